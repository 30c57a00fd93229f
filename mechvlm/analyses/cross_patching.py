"""Cross patching: from which layer on is another picture's content no longer read?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from mechvlm.axes import Labelled, labelled
from mechvlm.errors import PairError, PromptError
from mechvlm.interventions import Patch
from mechvlm.layout import Positions
from mechvlm.matching import Matcher, names
from mechvlm.models.generation import Generation
from mechvlm.models.hooked import HookedVLM
from mechvlm.posing import Arms, answered, first_word, ids_of, placed, shares
from mechvlm.progress import bar_of
from mechvlm.prompts import Prompt, check_pair
from mechvlm.record import Run, prompt_of, record, shared
from mechvlm.sites import Site
from mechvlm.wanted import layers_in, one, several, words_of

__all__ = ["Swap", "cross_patch"]

PAPER = "arXiv:2412.14133"

CONVENTION = "layer l is patched at its input, h[l]: the output of layer l-1"


@dataclass(frozen=True, eq=False)
class Swap:
    """A prompt whose picture is exchanged inside the model for another prompt's.

    Attributes:
        target: The prompt that is answered, or its `base_run`.
        donor: The prompt that activations are taken from, or a run of it that holds
            "resid_pre".
        original: Every name of what the target's picture shows.
        injected: Every name of what the donor's picture shows.
        id: What tables call it; its place in the list if empty.
    """

    target: Prompt | Run
    donor: Prompt | Run
    original: tuple[str, ...]
    injected: tuple[str, ...]
    id: str = ""

    def __post_init__(self) -> None:
        """Refuse a swap that could not be read off any answer, and strings as lists."""
        for side, prompt in (("target", self.target), ("donor", self.donor)):
            one(prompt, (Prompt, Run), f"Swap.{side}", "vlm.prompt(text, image)")
        for side, names_ in (("original", self.original), ("injected", self.injected)):
            given = words_of(names_, f"Swap.{side}")
            object.__setattr__(self, side, given)
            if not given or not all(name.strip() for name in given):
                raise PromptError(
                    f"Swap.{side} of {self.id!r} is {given!r}; wanted the names that"
                    ' count, such as ("Eiffel Tower",).'
                )


@dataclass(frozen=True, eq=False)
class _Told:
    """What one swap's answers say: the clean one first, then one per layer."""

    said: Sequence[str]
    original: Bool[np.ndarray, " arm"]
    injected: Bool[np.ndarray, " arm"]
    p_original: Float[np.ndarray, " arm"]
    p_injected: Float[np.ndarray, " arm"]
    donor: str
    donor_right: bool


def cross_patch(
    vlm: HookedVLM,
    swaps: Sequence[Swap],
    *,
    at: str | Positions = "image",
    layers: Sequence[int] | range | None = None,
    max_new_tokens: int = 20,
    matcher: Matcher = names,
    progress: bool | None = None,
) -> xr.Dataset:
    """Exchange a picture for another one's at the input of one layer, and ask.

    All positions of `at` are written at once, in one layer and in the prefill; what
    later layers make of them stays in the cache for every generated token. While the
    answer follows the donor, what was exchanged has yet to be read; once it follows the
    target again, it has already moved on to the text.

    Swaps of one target that follow one another share its clean run.

    Args:
        vlm: The model.
        swaps: What is exchanged for what.
        at: What is exchanged: a group of the layout, or positions that mean the same in
            every target and every donor.
        layers: Layers at whose input to exchange; None takes all.
        max_new_tokens: Longest answer, in tokens.
        matcher: Whether an answer, without its prompt, names one of several names.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Over `layer`: "original" and "injected", the fraction of swaps whose answer
        names what the target or the donor shows, with Wilson intervals ("_low",
        "_high"). Over (swap, layer): "says_original", "says_injected", "said", and
        "p_original", "p_injected", the probability that the first token is one of those
        names in one of its spellings, nan where none is a single token. The same with
        "_clean" over `swap` are the target with nothing exchanged, and "donor_said",
        "donor_right" the donor's own answer: without it the injected name could not be
        expected. "critical_layer" is the first swept layer from which on, in every
        later one too, "original" is above "injected"; nan if it is not so in the last
        one.

    Raises:
        ArgumentError: An argument is of another kind, such as one swap for several.
        PromptError: There is no swap, or ids are not unique.
        PairError: Target and donor have not as many positions of `at`, their image
            grids differ, or a name counts as both; or `at` are positions, and the
            layouts of targets and donors differ.
        InterventionError: A prompt has no position of `at`, or ends before.
        LayerError: A layer does not exist.

    Paper: Cohen et al. 2024, arXiv:2412.14133 (replacement by another entity).

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> red = mv.scenes.sample(seed=3, n=1).recolored(0, "red")
        >>> ask = f"what color is the {red.things[0].shape} ?"
        >>> target = vlm.prompt(ask, red.image)
        >>> donor = vlm.prompt(ask, red.recolored(0, "blue").image)
        >>> swap = mv.Swap(target, donor, ("red",), ("blue",))
        >>> named = mv.cross_patch(vlm, [swap], max_new_tokens=2)
        >>> named["original"].dims, named["p_injected"].sizes["layer"]
        (('layer',), 8)
    """
    swaps = several(swaps, Swap, "swaps", "[Swap(target, donor, original, injected)]")
    labels = ids_of([swap.id for swap in swaps], "swap")
    chosen = _layers(vlm, layers)
    places = [
        _matched(swap, at, matcher, name)
        for swap, name in zip(swaps, labels, strict=True)
    ]
    if isinstance(at, Positions):
        first = prompt_of(swaps[0].target)
        for swap in swaps:
            check_pair(first, prompt_of(swap.target))
            check_pair(first, prompt_of(swap.donor))
    words = False if progress is False else "cross patching"
    with bar_of(len(swaps), words) as bar:
        told = []
        for swap, made, donor in _swapped(vlm, swaps, places, chosen, max_new_tokens):
            told.append(_read(vlm, swap, made, donor, matcher))
            bar.update(1)
    result = _labelled(told, swaps, chosen, labels)
    attrs = {
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "layer_convention": CONVENTION,
        "at": str(at),
        "n": len(swaps),
        "max_new_tokens": max_new_tokens,
    }
    return xr.Dataset(result, attrs=attrs)


def _layers(vlm: HookedVLM, layers: Sequence[int] | range | None) -> list[int]:
    every = range(vlm.cfg.n_layers)
    otherwise = (
        f"have no input to exchange anything in; this model has layers 0..{every[-1]}."
    )
    return sorted(set(layers_in(layers, every, "layers", otherwise)))


def _matched(
    swap: Swap, at: str | Positions, matcher: Matcher, name: str
) -> tuple[Positions, Positions]:
    """Positions that are written in the target and read in the donor, one to one."""
    both = [n for n in swap.original if matcher(n, swap.injected)]
    both += [n for n in swap.injected if matcher(n, swap.original)]
    if both:
        raise PairError(
            f"swap {name!r}: {both[0]!r} counts as the original and as the injected"
            " name, so no answer could tell them apart. Choose another donor, or a"
            " stricter matcher."
        )
    target, donor = prompt_of(swap.target), prompt_of(swap.donor)
    to, from_ = placed(at, target, name), placed(at, donor, name)
    if len(to) != len(from_):
        raise PairError(
            f"swap {name!r}: the target has {len(to)} positions of {at!r} and the"
            f" donor {len(from_)}; they are exchanged one to one. Resize both pictures"
            " to one size."
        )
    grids = [[(g.rows, g.cols) for g in p.layout.grids] for p in (target, donor)]
    if grids[0] != grids[1]:
        raise PairError(
            f"swap {name!r}: the pictures are laid out in other grids, {grids[0]} and"
            f" {grids[1]} (rows, columns), so their positions see other places. Resize"
            " both to one size."
        )
    return to, from_


def _swapped(
    vlm: HookedVLM,
    swaps: Sequence[Swap],
    places: Sequence[tuple[Positions, Positions]],
    layers: Sequence[int],
    max_new_tokens: int,
) -> Iterator[tuple[Swap, list[Generation], str]]:
    """Each swap, what its target says, and what its donor says by itself.

    A donor is run once and let go after its last swap; a target is run once for swaps
    that follow one another.
    """
    last_use = {id(swap.donor): place for place, swap in enumerate(swaps)}
    donors: dict[int, tuple[Run, str]] = {}
    target, own = swaps[0].target, shared(vlm, swaps[0].target)
    for place, (swap, (to, from_)) in enumerate(zip(swaps, places, strict=True)):
        if swap.target is not target:
            target, own = swap.target, shared(vlm, swap.target)
        key = id(swap.donor)
        if key not in donors:
            donors[key] = _donor(vlm, swap.donor, layers, max_new_tokens)
        run, alone = donors[key] if last_use[key] > place else donors.pop(key)
        todo = [Patch(Site("resid_pre", x), to, "donor", from_) for x in layers]
        made = answered(vlm, own, Arms(todo, runs={"donor": run}), max_new_tokens)
        yield swap, made, alone


def _donor(
    vlm: HookedVLM, donor: Prompt | Run, layers: Sequence[int], max_new_tokens: int
) -> tuple[Run, str]:
    """What is taken from the donor, and what it says by itself."""
    spoken = vlm.generate(donor, max_new_tokens=max_new_tokens).text
    if isinstance(donor, Run):
        return donor, spoken
    return record(vlm, donor, [Site("resid_pre", x) for x in layers]), spoken


def _read(
    vlm: HookedVLM,
    swap: Swap,
    made: Sequence[Generation],
    donor: str,
    matcher: Matcher,
) -> _Told:
    return _Told(
        [one.text for one in made],
        np.array([matcher(one.text, swap.original) for one in made], dtype=bool),
        np.array([matcher(one.text, swap.injected) for one in made], dtype=bool),
        first_word(vlm, swap.original, made),
        first_word(vlm, swap.injected, made),
        donor,
        matcher(donor, swap.injected),
    )


def _labelled(
    told: Sequence[_Told],
    swaps: Sequence[Swap],
    layers: Sequence[int],
    labels: Sequence[str],
) -> Mapping[str, Labelled]:
    says = {
        "original": np.stack([each.original for each in told]),
        "injected": np.stack([each.injected for each in told]),
    }
    tables = {
        **{f"says_{side}": (values, "true or false") for side, values in says.items()},
        "p_original": (np.stack([x.p_original for x in told]), "probability"),
        "p_injected": (np.stack([x.p_injected for x in told]), "probability"),
        "said": (np.array([x.said for x in told]), "text"),
    }
    alone = {
        "donor_said": ([each.donor for each in told], "text"),
        "donor_right": ([each.donor_right for each in told], "true or false"),
        "asked": ([prompt_of(each.target).text for each in swaps], "text"),
        **{f"{n}_clean": (v[:, 0], units) for n, (v, units) in tables.items()},
    }
    by_layer, by_swap = {"layer": layers}, {"swap": labels}
    result: dict[str, Labelled] = {}
    for side, hits in says.items():
        three = zip(("", "_low", "_high"), shares(hits[:, 1:]), strict=True)
        for end, rate in three:
            result[side + end] = _named(
                side + end, rate, "fraction of swaps", **by_layer
            )
    for name, (values, units) in tables.items():
        result[name] = _named(name, values[:, 1:], units, **by_swap, **by_layer)
    for name, (column, units) in alone.items():
        result[name] = _named(name, column, units, **by_swap)
    rates = result["original"].values, result["injected"].values
    first = _critical(layers, *rates)
    result["critical_layer"] = _named("critical_layer", first, "layer")
    return result


def _named(
    name: str, values: object, units: str, **dims: Sequence[int] | Sequence[str]
) -> Labelled:
    return labelled(values, name=name, units=units, paper=PAPER, attrs=None, **dims)


def _critical(
    layers: Sequence[int],
    original: Float[np.ndarray, " layer"],
    injected: Float[np.ndarray, " layer"],
) -> float:
    """The first layer from which on the original name leads; nan if it ends behind."""
    leads = np.logical_and.accumulate((original > injected)[::-1])[::-1]
    return float(layers[int(leads.argmax())]) if leads.any() else np.nan
