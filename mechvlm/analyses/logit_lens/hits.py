"""How often the lens names an object at the object's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int, Shaped

from mechvlm.analyses.logit_lens.lens import PAPER, words_of
from mechvlm.analyses.logit_lens.reading import (
    CONVENTION,
    Norm,
    depths,
    streams,
    top_words,
)
from mechvlm.axes import labelled
from mechvlm.errors import MetricError, PromptError, TokenError
from mechvlm.items import Item, class_of
from mechvlm.layout import Positions, Rule
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.pieces import first_pieces, spelled
from mechvlm.posing import ids_of
from mechvlm.progress import bar_of
from mechvlm.selecting import seen, tell_unseen
from mechvlm.statistics import mean_of, paired, random_sets, share_of
from mechvlm.wanted import several

__all__ = ["object_hit_rate", "object_lens"]

Sought: TypeAlias = Sequence[str] | Sequence[int]
"""Whole words, compared with the decoded token; or token ids."""


def object_hit_rate(
    lens: xr.Dataset,
    words: Sequence[str] | Sequence[int],
    at: Positions | None = None,
    *,
    topk: int = 1,
) -> xr.DataArray:
    """Share of positions at which the lens names an object.

    Args:
        lens: What `logit_lens` returned.
        words: What counts as naming it. A string is a whole word and must be all that
            the token shows (case and surrounding space aside): the strict reading. A
            class name of several tokens is sought by the ids of `first_pieces`: the
            lenient one.
        at: The object's positions; None takes all of the lens's. Give the background's
            for the control.
        topk: How many of the lens's best words may be it.

    Returns:
        Share of positions, 0 to 1, over (layer): 0 where no position names it.
        `attrs["best_layer"]` is the first layer with the highest share, and -1 where no
        layer has any, which an arg-max would call layer 0.

    Raises:
        ArgumentError: `words` is one string, or holds neither words nor ids.
        MetricError: There is no word, or the lens has fewer than `topk`.
        TokenError: A word has several parts and can be no token.
        PromptError: The lens was not asked at one of the positions.

    Paper: Neo et al. 2024, arXiv:2410.07149, logit lens.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> lens = mv.logit_lens(vlm, prompt, topk=1)
        >>> thing = prompt.layout.region(scene.mask(0))
        >>> rate = mv.object_hit_rate(lens, [scene.things[0].shape], thing)
        >>> rate.dims, bool((rate >= 0).all())
        (('layer',), True)
    """
    known = Positions.of(lens["position"].values.tolist())
    sought = known if at is None else at
    if not sought or sought - known:
        raise PromptError(
            f"the lens was asked at positions {known}, and the object is at"
            f" {sought or 'none'}. Ask the lens at all image tokens: at='image'."
        )
    if not 1 <= topk <= lens.sizes["k"]:
        raise MetricError(
            f"topk={topk}: this lens kept {lens.sizes['k']} words of each position."
        )
    own = lens.sel(position=list(sought)).isel(k=slice(topk))
    hits = _hits(own["token_id"].values, own["word"].values, words)
    rate = hits.any(axis=2).mean(axis=1)
    kept = {name: lens.attrs[name] for name in ("model", "norm", "layer_convention")}
    return labelled(
        rate,
        name="share of positions that name it",
        units="share of positions",
        paper=PAPER,
        attrs=kept
        | {
            "words": list(words),
            "topk": topk,
            "n_positions": len(sought),
            "best_layer": int(lens["layer"][rate.argmax()]) if rate.any() else -1,
        },
        layer=lens["layer"].values.tolist(),
    )


class _Thing(NamedTuple):
    """One object of one item, and what the lens found."""

    label: str
    n_positions: int
    own: Float[np.ndarray, " layer"]
    control: Float[np.ndarray, " layer"]
    background: Float[np.ndarray, " layer"]


def object_lens(
    vlm: HookedVLM,
    items: Sequence[Item],
    *,
    words: Callable[[str], Sequence[str] | Sequence[int]] | None = None,
    topk: int = 1,
    norm: Norm = "final",
    rule: Rule = "any",
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """How much of each object the lens names, and from which layer on, over items.

    Every object of every item counts by itself, so that two of one class in a picture
    are told apart. Its control is a random set of as many background tokens (image
    tokens of no object), read for the same words: the best of many layers is above 0
    by chance alone, and more so for few tokens. An object with less background than
    tokens of its own has none (NaN) and is left out of the comparison.

    Args:
        vlm: The model.
        items: Pictures with their objects.
        words: Object's name -> what counts as naming it, as in `object_hit_rate`. None
            takes its class (`class_of`: "person" for "person 2") as one whole word,
            strictly; a class that no single token shows, because it is of several words
            or tokens, can be found by its first piece alone, leniently
            (`attrs["by_first_piece"]` lists them). For the lenient reading of all:
            `lambda name: first_pieces(vlm, name)`.
        topk: How many of the lens's best words may be it.
        norm: "final" or "none"; see `logit_lens`.
        rule: Which cells of the image grid are the object's; see `Layout.region`.
        seed: Of the random sets.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Dataset. Over (object, layer), shares of tokens, 0 where none names it:
        "hit_rate"; "control_rate" of the random set; "background_rate" of the whole
        background. Over (object): "best_rate" and "best_layer", the layer where it is
        highest (NaN where no layer names it); "control_best_rate"; "n_tokens". Over
        (estimate), mean, low, high, n with an interval of 95 %: "mean_best_rate" and
        "mean_best_layer" of the objects that some layer names, as in the paper;
        "share_named", the share of objects that some layer names; and
        "best_rate_over_control", the paired difference over objects with a control,
        with `attrs["p"]`. Objects that no token sees are left out with a warning;
        `attrs["n_cropped"]` counts them.

    Raises:
        ArgumentError: `items` are no items.
        PromptError: There is no item, or one has no object.
        TokenError: The vocabulary has nothing of a name and `words` is not given.
        RegionError: An object lies outside its picture, or no token sees any of them.

    Paper: Neo et al. 2024, arXiv:2410.07149, logit lens.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> objects = {scene.things[0].shape: scene.mask(0)}
        >>> item = mv.Item(scene.image, "how many objects are there ?", objects=objects)
        >>> found = mv.object_lens(vlm, [item])
        >>> found["hit_rate"].dims, found["mean_best_rate"].dims
        (('object', 'layer'), ('estimate',))
    """
    items = several(items, Item, "items", "[Item(image, question, objects={...})]")
    if not items or not all(item.objects for item in items):
        raise PromptError(
            f"{len(items)} items, and each needs objects to look for. Give"
            " Item(..., objects={name: box or mask})."
        )
    names = ids_of([item.id for item in items], "item")
    chosen = words or (lambda name: _class_words(vlm, class_of(name)))
    sought = {name: chosen(name) for item in items for name in item.objects}
    things: list[_Thing] = []
    n_all = sum(len(item.objects) for item in items)
    layers = depths(vlm, None)
    with bar_of(len(items), False if progress is False else "lens") as bar:
        for i, item in enumerate(items):
            asked = vlm.prompt(item.question, item.image, prefix=item.prefix)
            at = {n: seen(asked.layout, a, rule=rule) for n, a in item.objects.items()}
            image = asked.layout["image"]
            stream = streams(vlm, asked, image, layers)
            ids = top_words(vlm, stream, topk=topk, norm=norm).ids.numpy()
            things += _things(vlm, ids, image, at, sought, names[i], (seed, i))
            bar.update(1)
    n_cropped = n_all - len(things)
    tell_unseen(n_cropped, n_all, "objects")
    described: dict[str, object] = {"topk": topk, "norm": norm, "seed": seed}
    described["n_cropped"] = n_cropped
    if words is None:
        classes = sorted({class_of(name) for name in sought})
        described["by_first_piece"] = [c for c in classes if not spelled(vlm, c)]
    return _table(vlm, things, layers, described)


def _class_words(vlm: HookedVLM, name: str) -> Sequence[str] | Sequence[int]:
    """A class as one whole word, or its first pieces where no token shows it whole."""
    return [name] if spelled(vlm, name) else first_pieces(vlm, name)


def _things(
    vlm: HookedVLM,
    ids: Int[np.ndarray, "layer position k"],
    image: Positions,
    at: dict[str, Positions],
    sought: dict[str, Sought],
    label: str,
    seed: tuple[int, int],
) -> list[_Thing]:
    """Each object of a picture that some token sees, with its control."""
    place = {position: i for i, position in enumerate(image)}
    background = image - Positions.of(*at.values())
    words = words_of(vlm, ids)
    found = []
    for j, (name, own) in enumerate(at.items()):
        if not own:
            continue
        hits = np.asarray(_hits(ids, words, sought[name]).any(axis=2))
        control = _drawn(background, len(own), (*seed, j))
        rates = [
            _rate(hits, [place[position] for position in group])
            for group in (own, control, background)
        ]
        found.append(_Thing(f"{label}: {name}", len(own), *rates))
    return found


def _rate(
    hits: Bool[np.ndarray, "layer position"], at: Sequence[int]
) -> Float[np.ndarray, " layer"]:
    """Share of some positions that are hits; NaN where there are none."""
    if not at:
        return np.full(len(hits), np.nan)
    return np.asarray(hits[:, at].mean(axis=1))


def _drawn(background: Positions, size: int, seed: Sequence[int]) -> Positions:
    """A random set of this size; none where the background is smaller."""
    enough = len(background) >= size
    return random_sets(background, size, seed=seed)[0] if enough else Positions()


def _table(
    vlm: HookedVLM,
    things: Sequence[_Thing],
    layers: Sequence[int],
    described: dict[str, object],
) -> xr.Dataset:
    labels = [thing.label for thing in things]
    own = np.array([thing.own for thing in things])
    control = np.array([thing.control for thing in things])
    each = {
        name: labelled(
            values,
            name=name,
            units="share of tokens",
            paper=PAPER,
            object=labels,
            layer=layers,
        )
        for name, values in (
            ("hit_rate", own),
            ("control_rate", control),
            ("background_rate", np.array([thing.background for thing in things])),
        )
    }
    best, at = own.max(axis=1), np.array(layers, dtype=float)[own.argmax(axis=1)]
    n_tokens = np.array([thing.n_positions for thing in things])
    for name, values, units in (
        ("best_rate", best, "share of tokens"),
        ("best_layer", np.where(best > 0, at, np.nan), "layer, input"),
        ("control_best_rate", control.max(axis=1), "share of tokens"),
        ("n_tokens", n_tokens, "tokens"),
    ):
        each[name] = labelled(
            values, name=name, units=units, paper=PAPER, object=labels
        )
    attrs = {
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "n_objects": len(things),
        "n_never_named": int((best == 0).sum()),
        "layer_convention": CONVENTION,
        **described,
    }
    means = _means(best, at, control.max(axis=1))
    return xr.Dataset({**each, **means}, attrs=attrs)


def _means(
    best: Float[np.ndarray, " object"],
    at: Float[np.ndarray, " object"],
    control: Float[np.ndarray, " object"],
) -> dict[str, xr.DataArray]:
    """What the paper reports of all objects, with intervals."""
    named, told = best > 0, ~np.isnan(control)
    over = paired(best[told], control[told])
    means = {
        name: labelled(
            list(estimate),
            name=name,
            units=units,
            paper=PAPER,
            estimate=["mean", "low", "high", "n"],
        )
        for name, estimate, units in (
            ("mean_best_rate", mean_of(best[named]), "share of tokens"),
            ("mean_best_layer", mean_of(at[named]), "layer, input"),
            ("share_named", share_of(named), "share of objects"),
            ("best_rate_over_control", over[:4], "share of tokens"),
        )
    }
    means["best_rate_over_control"].attrs["p"] = over.p
    return means


def _hits(
    ids: Int[np.ndarray, "layer position k"],
    words: Shaped[np.ndarray, "layer position k"],
    sought: Sought,
) -> Bool[np.ndarray, "layer position k"]:
    """Where a token is one of those sought."""
    several(sought, (str, int, np.integer), "words", '["red"]')
    if not sought:
        raise MetricError("no word is given that would count as naming the object.")
    tokens = [each for each in sought if not isinstance(each, str)]
    names = [each.strip().lower() for each in sought if isinstance(each, str)]
    parted = [name for name in names if len(name.split()) != 1]
    if parted:
        raise TokenError(
            f"{parted} have several parts or none, and a token shows one: they would"
            " never be found. Seek the first piece: first_pieces(vlm, name)."
        )
    shown = np.char.lower(np.char.strip(words))
    return np.asarray(np.isin(ids, tokens) | np.isin(shown, names))
