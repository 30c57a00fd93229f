"""What a flow graph is made of: prompts with groups of tokens, and bands of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from types import MappingProxyType

import numpy as np

from mechvlm.cutting import answer_of
from mechvlm.errors import InterventionError, LayerError, PromptError
from mechvlm.layout import Positions
from mechvlm.pairs import Pair
from mechvlm.posing import ids_of
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of
from mechvlm.wanted import mapping_to, one, several

__all__ = ["END", "Grouped", "bands_of", "grouped"]

END = "end"
"""Where the last band has ended: the band of every node that only receives."""

N_BANDS = 4

_NO_FLOW = ("bos", "pad")
"""Groups of a pair from which nothing flows: a sink, and what nobody reads."""


@dataclass(frozen=True, eq=False)
class Grouped:
    """A prompt, its tokens in groups, and the answer whose probability is watched.

    Attributes:
        prompt: The prompt, or its `base_run`.
        groups: Name -> positions, or the name of a group of the layout; no position in
            two of them.
        answer: One word, or a token id.
        id: What tables call it; its place in the list if empty.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> asked = mv.Grouped(prompt, {"image": "image", "last": "last"}, "one")
        >>> asked.groups["last"] == prompt.layout["last"]
        True
    """

    prompt: Prompt | Run
    groups: Mapping[str, str | Positions]
    answer: str | int
    id: str = ""

    def __post_init__(self) -> None:
        """Take names for the positions they stand for; refuse what is no set of groups.

        Raises:
            ArgumentError: Something is of another kind.
            InterventionError: A group is empty, two share positions, or there is one.
            LayoutError: The layout has no group of a name.
        """
        one(self.prompt, (Prompt, Run), "Grouped.prompt", "vlm.prompt(text, image)")
        answer_of(self.answer, "Grouped.answer")
        fix = '{"image": "image", "last": "last"}'
        given: dict[str, str | Positions]
        given = mapping_to(self.groups, (str, Positions), "Grouped.groups", fix)
        asked = prompt_of(self.prompt)
        name = self.id or asked.text
        if len(given) < 2:
            raise InterventionError(
                f"prompt {name!r} has the groups {list(given)}: a flow goes from one"
                f" group to another. Wanted two or more, such as {fix}."
            )
        at = {group: _at(asked, name, group, where) for group, where in given.items()}
        for (first, here), (second, there) in combinations(at.items(), 2):
            if here & there:
                raise InterventionError(
                    f"groups {first!r} and {second!r} of prompt {name!r} share"
                    f" {here & there!r}: a cut of one would be a cut of the other. Take"
                    " what is in both out of one of them: image - object."
                )
        object.__setattr__(self, "groups", MappingProxyType(at))

    @classmethod
    def of(cls, pair: Pair, answer: str | int) -> Grouped:
        """A pair's clean prompt and its groups, without BOS and padding.

        Attention rests on BOS where it reads nothing: what a cut of it costs is no
        flow.

        Args:
            pair: The pair, such as `bind` makes of two pictures.
            answer: The clean prompt's answer; one word, or a token id.

        Raises:
            ArgumentError: Something is of another kind.
            InterventionError: BOS left out, there are not two groups.

        Example:
            >>> import mechvlm as mv
            >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=2)
            >>> made = mv.scenes.counterfactual(scene)
            >>> asked = mv.Grouped.of(mv.bind(vlm, made.pair), made.answer)
            >>> list(asked.groups)
            ['object', 'background', 'query', 'template', 'last']
        """
        one(pair, Pair, "pair", "mechvlm.bind(vlm, mechvlm.PicturePair(...))")
        flowing = {name: at for name, at in pair.groups.items() if name not in _NO_FLOW}
        return cls(pair.clean, flowing, answer, pair.id)

    @property
    def at(self) -> dict[str, Positions]:
        """The groups' positions."""
        return {
            name: where
            for name, where in self.groups.items()
            if isinstance(where, Positions)
        }


def _at(prompt: Prompt, name: str, group: str, where: str | Positions) -> Positions:
    """Positions of one group of a prompt."""
    found = prompt.layout[where] if isinstance(where, str) else where
    n = prompt.layout.n
    if not found:
        raise InterventionError(
            f"group {group!r} is empty in prompt {name!r}, so nothing flows from or to"
            " it. Was the prompt built without its image, or the object cropped away?"
            " Leave such a prompt out."
        )
    if max(found) >= n:
        raise InterventionError(
            f"group {group!r} reaches beyond prompt {name!r}, which has positions"
            f" 0..{n - 1}. Was it taken from another prompt's layout?"
        )
    return found


def grouped(given: object) -> tuple[list[str], list[Grouped]]:
    """Prompts of a set by their ids, all with the groups of the first, in its order.

    Raises:
        ArgumentError: They are no list of `Grouped`.
        PromptError: There is none, two share an id, or their groups differ.
    """
    fix = '[Grouped(prompt, {"image": "image", "last": "last"}, "red")]'
    asked = several(given, Grouped, "asked", fix)
    names = ids_of([each.id for each in asked], "prompt")
    for name, each in zip(names, asked, strict=True):
        if set(each.groups) != set(asked[0].groups):
            raise PromptError(
                f"prompt {name!r} has the groups {sorted(each.groups)}, and"
                f" {names[0]!r} has {sorted(asked[0].groups)}: one graph of both needs"
                " the same names. What an object is called belongs into the id."
            )
    return names, asked


def bands_of(n_layers: int, bands: Mapping[str, range] | None) -> dict[str, range]:
    """Bands of layers by name, in their order; None cuts the layers into four.

    Raises:
        ArgumentError: They are no ranges by name.
        LayerError: A band has a layer that does not exist.
        InterventionError: There is none, one is empty or not of consecutive layers, or
            they overlap or are not in the order of the layers.
    """
    if bands is None:
        parts = np.array_split(np.arange(n_layers), min(N_BANDS, n_layers))
        layers = [range(int(part[0]), int(part[-1]) + 1) for part in parts]
        return {_called(each): each for each in layers}
    fix = '{"early": range(0, 4), "late": range(4, 8)}'
    found = mapping_to(bands, range, "bands", fix)
    odd = [name for name, each in found.items() if not each or each.step != 1]
    if not found or odd:
        raise InterventionError(
            f"bands {odd or 'given'} hold no layer, or not consecutive ones; wanted"
            f" {fix}."
        )
    if END in found:
        raise InterventionError(
            f"a band is called {END!r}, which is what the graph calls the state behind"
            " the last band. Give it another name."
        )
    for name, each in found.items():
        if each.start < 0 or each.stop > n_layers:
            raise LayerError(
                f"band {name!r} has layers {_called(each)}; this model has {n_layers}"
                f" layers, 0..{n_layers - 1}."
            )
    for (first, here), (second, there) in pairwise(found.items()):
        if there.start < here.stop:
            raise InterventionError(
                f"bands {first!r} ({_called(here)}) and {second!r} ({_called(there)})"
                " overlap or are not in the order of the layers: a layer belongs to one"
                " band at most, and time runs from the first to the last. For windows"
                " that overlap there is knockout_windows."
            )
    return found


def sizes_of(asked: Sequence[Grouped]) -> list[list[int]]:
    """Positions of each prompt's groups, in the first prompt's order."""
    return [[len(each.at[name]) for name in asked[0].groups] for each in asked]


def _called(layers: range) -> str:
    first, last = layers[0], layers[-1]
    return str(first) if first == last else f"{first}-{last}"
