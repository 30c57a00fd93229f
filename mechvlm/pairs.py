"""Pairs of prompts that differ in one thing, with every position in a token group.

A circuit is found by what the corrupted prompt's values do in the clean prompt's run.
That asks for prompts whose positions mean the same, and for something that differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from mechvlm.errors import LayoutError, PairError, TokenError
from mechvlm.items import PicturePair
from mechvlm.layout import GROUPS, Layout, Positions
from mechvlm.metrics import Metric, logit_difference
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt, check_pair
from mechvlm.record import Run, prompt_of
from mechvlm.scenes.counterfactual import Counterfactual
from mechvlm.wanted import mapping_to, one

__all__ = ["Pair", "bind", "groups_of"]

_NONE: Mapping[str, Positions] = MappingProxyType({})
_OBJECT = "object"
"""What the target's group is called: one name, so that groups of pairs compare."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A clean and a corrupted prompt that are alike position by position.

    Made by `bind` from two pictures, or by hand from any two prompts.

    Attributes:
        clean: The prompt whose answer is explained.
        corrupted: The prompt that another answer is right of.
        metric: What tells the two apart; mostly the answer's logit minus the foil's.
        groups: Token groups by name: every position is in exactly one of them, the same
            in both prompts.
        id: What tables call it.

    Raises:
        ArgumentError: Something is of another kind.
        PairError: The positions of the two do not mean the same, nothing differs
            between them, or the groups are no partition of the positions.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=2)
        >>> asked = f"what color is the {scene.things[0].shape} ?"
        >>> clean = vlm.prompt(asked, scene.image)
        >>> corrupted = vlm.prompt(asked, scene.recolored(0, "cyan").image)
        >>> metric = mv.logit_difference(vlm, scene.things[0].color, "cyan")
        >>> sorted(mv.Pair(clean, corrupted, metric, mv.groups_of(clean)).groups)
        ['bos', 'image', 'last', 'query', 'template']
    """

    clean: Prompt
    corrupted: Prompt
    metric: Metric
    groups: Mapping[str, Positions]
    id: str = ""

    def __post_init__(self) -> None:
        """Refuse prompts that do not match or do not differ, and other groups."""
        for name, prompt in (("clean", self.clean), ("corrupted", self.corrupted)):
            one(prompt, Prompt, f"Pair.{name}", "vlm.prompt(text, image)")
        fix = 'mechvlm.logit_difference(vlm, "red", "blue")'
        one(self.metric, Metric, "Pair.metric", fix)
        fix = "mechvlm.groups_of(clean)"
        groups = mapping_to(self.groups, Positions, "Pair.groups", fix)
        _check_grids(self.clean.layout, self.corrupted.layout)
        check_pair(self.clean, self.corrupted)
        _check_difference(self.clean, self.corrupted)
        _check_partition(groups, self.clean.layout.n)
        object.__setattr__(self, "groups", MappingProxyType(groups))


def groups_of(
    prompt: Prompt | Run, objects: Mapping[str, Positions] = _NONE
) -> dict[str, Positions]:
    """Token groups of a prompt: those of its layout, the image parted by objects.

    Args:
        prompt: The prompt, or a run of it.
        objects: Image positions of objects by name. A position of two of them goes to
            the first.

    Returns:
        Every position in exactly one group, in this order: "bos", "system", the objects
        and "background" (the rest of the image; "image" where no object is given),
        "query", "template", "generated", "pad", each left out where it is empty; and
        "last", the last position alone, which is in none of the others.

    Raises:
        ArgumentError: Something is of another kind.
        LayoutError: An object has the name of another group or a position outside the
            image, or none of its own.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=2)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> ring = {"ring": prompt.layout.region(scene.mask(0))}
        >>> list(mv.groups_of(prompt, ring))
        ['bos', 'ring', 'background', 'query', 'template', 'last']
    """
    fix = '{"ball": prompt.layout.region(box)}'
    named = mapping_to(objects, Positions, "objects", fix)
    one(prompt, (Prompt, Run), "prompt", "vlm.prompt(text, image)")
    layout = prompt_of(prompt).layout
    last = layout["last"]
    groups: dict[str, Positions] = {}
    for name in GROUPS:
        own = layout[name] - last
        parted = name == "image" and named
        groups |= _parted(own, named) if parted else {name: own}
    return {name: at for name, at in (groups | {"last": last}).items() if at}


def bind(
    vlm: HookedVLM,
    pair: PicturePair | Counterfactual,
    *,
    metric: Metric | None = None,
    system: str | None = None,
) -> Pair:
    """Both prompts of a pair of pictures, in the model's own chat template.

    Args:
        vlm: The model.
        pair: Two pictures and the question; a scene's counterfactual is its pair.
        metric: What tells the two apart; None takes the logit of the pair's answer
            minus that of its foil, both of which must then be single tokens, written as
            the answer goes on: after a prefix perhaps with a space in front.
        system: System message; None leaves it to the template.

    Returns:
        The pair, its groups those of `groups_of`, with "object" the cells that see the
        target in either picture.

    Raises:
        ArgumentError: Something is of another kind.
        PairError: The pictures are of different sizes or equal.
        TokenError: No metric is given, and answer or foil is not exactly one token.
        RegionError: The target has no cell of the image grid.
        PromptError: The model has no chat template, or hides the question in it.
        UnreadableImageError: A file is no picture.

    Paper: semantic corruption of Golovanevsky et al. 2024, arXiv:2406.16320.

    Example:
        >>> import mechvlm as mv
        >>> import torch
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=2)
        >>> pair = bind(vlm, mv.PicturePair(
        ...     scene.image,
        ...     scene.recolored(0, "cyan").image,
        ...     f"what color is the {scene.things[0].shape} ?",
        ...     answer=scene.things[0].color,
        ...     foil="cyan",
        ...     objects={"thing": scene.mask(0)},
        ...     target="thing",
        ... ))
        >>> list(pair.groups)
        ['bos', 'object', 'background', 'query', 'template', 'last']
        >>> clean, corrupted = pair.metric(
        ...     torch.cat([vlm(pair.clean)[:, -1], vlm(pair.corrupted)[:, -1]])
        ... )
        >>> bool(corrupted < 0 < clean)
        True
    """
    asked = pair.pair if isinstance(pair, Counterfactual) else pair
    one(asked, PicturePair, "pair", "mechvlm.PicturePair(clean, corrupted, ...)")
    clean, corrupted = (
        vlm.prompt(asked.question, picture, prefix=asked.prefix, system=system)
        for picture in (asked.clean, asked.corrupted)
    )
    _check_grids(clean.layout, corrupted.layout)
    objects = {}
    if asked.target is not None:
        here, there = asked.areas
        found = clean.layout.region(here) | corrupted.layout.region(there)
        objects[_OBJECT] = found
    told = _told_by(vlm, asked) if metric is None else metric
    return Pair(clean, corrupted, told, groups_of(clean, objects), asked.id)


def _told_by(vlm: HookedVLM, pair: PicturePair) -> Metric:
    """The logit of the pair's answer minus that of its foil."""
    try:
        return logit_difference(vlm, pair.answer, pair.foil)
    except TokenError as cause:
        raise TokenError(
            f"pair {pair.id or pair.question!r}: {cause} Give the pair other words, or"
            " bind(..., metric=...) another metric, of token ids if need be:"
            " mechvlm.first_pieces tells those that a longer word begins with."
        ) from cause


def _parted(image: Positions, objects: Mapping[str, Positions]) -> dict[str, Positions]:
    """An image's positions by object, and what is left."""
    parts: dict[str, Positions] = {}
    rest = image
    for name, at in objects.items():
        if name in (*GROUPS, "background", "last"):
            raise LayoutError(
                f"an object is called {name!r}, which is the name of another group of"
                " tokens. Give it another name."
            )
        if at - image:
            raise LayoutError(
                f"object {name!r} is at {at}, and of these {at - image} are outside"
                f" the image, which is at {image}. Take prompt.layout.region(area)."
            )
        if not at & rest:
            raise LayoutError(
                f"object {name!r} is at {at!r}, which leaves it no position of its own"
                " beside the objects before it. Leave it out or name it earlier."
            )
        parts[name] = at & rest
        rest -= at
    return parts | {"background": rest}


def _check_grids(clean: Layout, corrupted: Layout) -> None:
    """Refuse images whose cells see other places of the picture."""
    ours, theirs = (
        [(g.rows, g.cols, g.width, g.height, g.box) for g in layout.grids]
        for layout in (clean, corrupted)
    )
    if ours != theirs:
        raise PairError(
            f"the clean prompt has {_seen(clean)}, and the corrupted one"
            f" {_seen(corrupted)}: a cell of one does not see the place that the same"
            " cell of the other sees. Give both prompts pictures of one size."
        )


def _seen(layout: Layout) -> str:
    grids = [
        f"a picture of {g.width} x {g.height} pixels, of which a grid of {g.rows} x"
        f" {g.cols} cells sees {g.box}"
        for g in layout.grids
    ]
    return " and ".join(grids) or "no picture"


def _check_difference(clean: Prompt, corrupted: Prompt) -> None:
    ours, theirs = clean.inputs, corrupted.inputs
    if ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    ):
        raise PairError(
            "the clean and the corrupted prompt are the same to the model, ids and"
            " pixels alike: whatever is patched, nothing would change. Was the same"
            " picture given twice, or does what differs lie where the processor crops?"
        )


def _check_partition(groups: Mapping[str, Positions], n: int) -> None:
    """Refuse groups in which a position is missing, or is twice, or does not exist."""
    fix = "Wanted every position in exactly one group, as mechvlm.groups_of gives them."
    taken = Positions()
    for name, at in groups.items():
        if not at:
            raise PairError(f"group {name!r} has no position. Leave it out.")
        if beyond := at - Positions.of(range(n)):
            raise PairError(
                f"group {name!r} holds {beyond!r}, and the prompts have positions"
                f" 0..{n - 1}. {fix}"
            )
        if twice := at & taken:
            others = [other for other in groups if other != name and groups[other] & at]
            raise PairError(
                f"group {name!r} shares {twice!r} with {', '.join(others)}. {fix}"
            )
        taken |= at
    if missing := Positions.of(range(n)) - taken:
        raise PairError(f"{missing!r} are in no group. {fix}")
