"""Which image positions an experiment is about, as values that choose them in a prompt.

A selector is given the model, a prompt and the item that the prompt asks about, and
answers with positions of the image. A set may be empty, as that of register tokens is
in many pictures; whoever uses it must say so.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from mechvlm.errors import (
    InterventionError,
    MechVLMWarning,
    MetricError,
    PromptError,
    RegionError,
)
from mechvlm.gradients import Baseline, along_a_path, midpoints
from mechvlm.items import Area, Item
from mechvlm.layout import Layout, Positions, Rule
from mechvlm.metrics import Metric
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.statistics import random_sets
from mechvlm.wanted import one

__all__ = [
    "Selector",
    "all_object_tokens",
    "attribution_tokens",
    "background_tokens",
    "image_tokens",
    "object_tokens",
    "other_object_tokens",
    "random_tokens",
    "register_tokens",
    "seen",
    "tell_unseen",
]


@dataclass(frozen=True)
class Selector:
    """A rule that chooses positions in the prompt of an item.

    Attributes:
        name: What it chooses, in words.
        choose: (model, prompt, item) -> positions.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> item = mv.Item(scene.image, "?", objects={"it": scene.box(0)}, target="it")
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> chosen = mv.selecting.object_tokens()(vlm, prompt, item)
        >>> 0 < len(chosen) < len(prompt.layout["image"])
        True
    """

    name: str
    choose: Callable[[HookedVLM, Prompt, Item], Positions] = field(repr=False)

    def __call__(self, vlm: HookedVLM, prompt: Prompt, item: Item) -> Positions:
        """Positions of the prompt's image; may be empty.

        Raises:
            PromptError: The prompt has no image, or the item lacks what is chosen by.
            RegionError: An object lies outside the picture.
            InterventionError: What was chosen are not positions of the image.
        """
        image = _image(prompt)
        found = self.choose(vlm, prompt, item)
        if len(found & image) != len(found):
            raise InterventionError(
                f"selector {self.name!r} chose {found - image}, which are no positions"
                f" of the image ({image}). A selector chooses among image tokens."
            )
        return found


def image_tokens() -> Selector:
    """Every position of the image.

    Example:
        >>> image_tokens()
        Selector(name='image')
    """
    return Selector("image", lambda vlm, prompt, item: prompt.layout["image"])


def object_tokens(*, buffer: int = 0, rule: Rule = "any") -> Selector:
    """Tokens whose cells see the item's target; none where it was cropped away.

    Args:
        buffer: Rings of neighbouring cells to add, diagonals included.
        rule: What counts as seeing; see `Layout.region`. The grid of cells covers all
            that the model sees, without an uncovered rim.

    Paper: Neo et al. 2024, arXiv:2410.07149, object tokens.

    Example:
        >>> object_tokens(buffer=1)
        Selector(name='object + 1')
    """
    return Selector(
        _named("object", buffer),
        lambda vlm, prompt, item: seen(
            prompt.layout, item.area, rule=rule, buffer=buffer
        ),
    )


def background_tokens(*, buffer: int = 0) -> Selector:
    """All image tokens but those of the target and of `buffer` rings around it.

    Example:
        >>> background_tokens(buffer=2)
        Selector(name='all but object + 2')
    """
    target = object_tokens(buffer=buffer)
    return Selector(
        f"all but {target.name}",
        lambda v, prompt, item: prompt.layout["image"] - target(v, prompt, item),
    )


def all_object_tokens(*, buffer: int = 0, rule: Rule = "any") -> Selector:
    """Tokens of all the item's objects, target or not.

    Example:
        >>> all_object_tokens()
        Selector(name='all objects')
    """

    def choose(vlm: HookedVLM, prompt: Prompt, item: Item) -> Positions:
        _refuse_no_objects(item)
        return _seen_any(prompt.layout, item.objects.values(), rule, buffer)

    return Selector(_named("all objects", buffer), choose)


def other_object_tokens(*, buffer: int = 0, rule: Rule = "any") -> Selector:
    """Tokens of the item's other objects that see nothing of the target.

    Where another object overlaps the target, the cells that see both are left out: a
    control must not touch what it controls for.

    Example:
        >>> other_object_tokens()
        Selector(name='other objects')
    """

    def choose(vlm: HookedVLM, prompt: Prompt, item: Item) -> Positions:
        others = [area for name, area in item.objects.items() if name != item.target]
        found = _seen_any(prompt.layout, others, rule, buffer)
        return found - seen(prompt.layout, item.area)

    return Selector(_named("other objects", buffer), choose)


def register_tokens(*, k_std: float | int = 2.0) -> Selector:
    """Tokens whose embedding is far longer than the others': norm > mean + k std.

    Mean and standard deviation (of the population) of the Euclidean norms are those of
    the same image, of what enters layer 0.

    Args:
        k_std: Standard deviations above the mean.

    Paper: Neo et al. 2024, arXiv:2410.07149, ablation of tokens (register tokens).

    Example:
        >>> register_tokens()
        Selector(name='register (norm > mean + 2 std)')
    """

    @torch.no_grad()
    def choose(vlm: HookedVLM, prompt: Prompt, item: Item) -> Positions:
        at = list(prompt.layout["image"])
        norms = vlm(prompt, stop_at_layer=0)[0, at].float().norm(dim=-1)
        long = norms > norms.mean() + k_std * norms.std(correction=0)
        return Positions.of(at[i] for i in long.nonzero().flatten().tolist())

    return Selector(f"register (norm > mean + {k_std:g} std)", choose)


def random_tokens(
    n: int | Selector, *, outside: Selector | None = None, seed: int = 0
) -> Selector:
    """Image tokens drawn evenly: other ones in each picture, the same every time.

    Args:
        n: How many; or a selector, as many as it chooses.
        outside: A selector whose tokens are not drawn; None draws from all.
        seed: Of the draw.

    Paper: Neo et al. 2024, arXiv:2410.07149, ablation of tokens (random tokens).

    Example:
        >>> random_tokens(object_tokens(), outside=object_tokens(buffer=1))
        Selector(name='random object outside object + 1')
    """
    one(n, (int, Selector), "n", "5, or object_tokens()")
    size = n.name if isinstance(n, Selector) else str(n)

    def choose(vlm: HookedVLM, prompt: Prompt, item: Item) -> Positions:
        wanted = len(n(vlm, prompt, item)) if isinstance(n, Selector) else n
        pool = prompt.layout["image"]
        if outside is not None:
            pool -= outside(vlm, prompt, item)
        if isinstance(n, Selector) and wanted == 0:
            return Positions()
        pixels = b"" if prompt.image is None else prompt.image.tobytes()
        of_picture = zlib.crc32(pixels, zlib.crc32(str(seed).encode()))
        return random_sets(pool, wanted, seed=of_picture)[0]

    where = "" if outside is None else f" outside {outside.name}"
    return Selector(f"random {size}{where}", choose)


def attribution_tokens(
    n: int,
    *,
    word: Callable[[Item], str] | None = None,
    baseline: Baseline = "mean",
    steps: int = 50,
) -> Selector:
    """The image tokens that add most to the logit of a word, by integrated gradients.

    Scores keep their sign: a token that speaks against the word ranks last.

    Args:
        n: How many tokens.
        word: The word of an item, one token; None takes the first word of its answer.
        baseline: What stands for an absent token; see `integrated_gradients`. The
            paper's is the mean over many pictures, as `mean_token` gives it.
        steps: Places between baseline and prompt where the gradient is taken.

    Paper: Neo et al. 2024, arXiv:2410.07149, ablation of tokens (integrated gradients).

    Example:
        >>> attribution_tokens(40)
        Selector(name='integrated gradients, top 40')
    """

    def choose(vlm: HookedVLM, prompt: Prompt, item: Item) -> Positions:
        at = list(prompt.layout["image"])
        if not 0 < n <= len(at):
            raise MetricError(
                f"the {n} highest of {len(at)} image tokens are no choice: wanted 1 to"
                f" {len(at)}."
            )
        said = _first_word(item) if word is None else word(item)
        metric = Metric(
            f"logit of {said}", "nats", lambda x: x[:, 0], (vlm.to_single_token(said),)
        )
        found = along_a_path(
            vlm, prompt, metric, shares=midpoints(steps), baseline=baseline, at="image"
        )
        order = found.scores[at].argsort(descending=True, stable=True)
        return Positions.of(at[i] for i in order[:n].tolist())

    return Selector(f"integrated gradients, top {n}", choose)


def seen(
    layout: Layout, area: Area, *, rule: Rule = "any", buffer: int = 0
) -> Positions:
    """Positions whose cells see an area, in every grid that shows the picture.

    Unlike `Layout.region`, it answers with none where the processor cropped the area
    away, or where it is too small for the rule.

    Args:
        layout: The prompt's layout.
        area: Box or mask in pixels of the original picture.
        rule: What counts as seeing; see `Layout.region`.
        buffer: Rings of neighbouring cells to add, diagonals included.

    Raises:
        RegionError: The area lies outside the picture.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> layout = vlm.prompt("how many objects are there ?", scene.image).layout
        >>> seen(layout, scene.box(0)) == layout.region(scene.box(0))
        True
    """
    found = Positions()
    for image, grid in enumerate(layout.grids):
        if not grid.coverage(area).any():  # refuses an area outside the picture
            continue
        try:
            found |= layout.region(area, rule=rule, buffer=buffer, image=image)
        except RegionError:
            continue  # the rule asks for more of a cell than the area covers
    return found


def tell_unseen(n_unseen: int, n_all: int, what: str) -> None:
    """Warn of objects that no token sees; refuse where there are no others.

    Args:
        n_unseen: How many are left out.
        n_all: How many there are.
        what: What they are, in the plural.

    Raises:
        RegionError: None is left.
    """
    told = (
        f"{n_unseen} of {n_all} {what} are seen by no token: the processor cropped them"
        " away, or rule= asks for more of a cell than they cover"
    )
    if n_unseen == n_all:
        raise RegionError(f"{told}. None is left: give pictures that show what counts.")
    if n_unseen:
        warnings.warn(
            f"{told}; they are left out (n_cropped).", MechVLMWarning, stacklevel=3
        )


def _seen_any(
    layout: Layout, areas: Iterable[Area], rule: Rule, buffer: int
) -> Positions:
    """Positions whose cells see one of the areas."""
    return Positions.of(*(seen(layout, x, rule=rule, buffer=buffer) for x in areas))


def _image(prompt: Prompt) -> Positions:
    image = prompt.layout["image"]
    if not image:
        raise PromptError(
            "the prompt has no image, so there are no image tokens to choose from. Was"
            " it built without its picture?"
        )
    return image


def _refuse_no_objects(item: Item) -> None:
    if not item.objects:
        raise PromptError(
            f"item {item.id or item.question!r} names no objects. Give"
            " Item(..., objects={name: box})."
        )


def _first_word(item: Item) -> str:
    if not item.answer.split():
        raise PromptError(
            f"item {item.id or item.question!r} has no answer whose logit could be"
            " attributed. Give Item(..., answer=...), or word= to attribution_tokens."
        )
    return item.answer.split()[0]


def _named(what: str, buffer: int) -> str:
    return f"{what} + {buffer}" if buffer else what
