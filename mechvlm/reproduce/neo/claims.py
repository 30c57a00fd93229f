"""Neo et al. 2024: where in the image tokens, and in which layers, an object is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from mechvlm.analyses.knockout_table import flow_cuts, knockout_accuracy
from mechvlm.analyses.logit_lens import object_lens
from mechvlm.analyses.token_ablation import token_ablation
from mechvlm.errors import InterventionError, MetricError, TokenError
from mechvlm.items import Item
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.pieces import first_pieces
from mechvlm.readings import Reading
from mechvlm.reproduce.finding import Claim, Finding
from mechvlm.reproduce.neo.material import Pictures, Session, of_folder, of_scenes
from mechvlm.reproduce.neo.tables import ablation_rows, cut_rows, lens_lines, lens_rows
from mechvlm.reproduce.shapes import beyond, columns, stacked, titled
from mechvlm.reproduce.study import Study
from mechvlm.selecting import (
    Selector,
    attribution_tokens,
    object_tokens,
    register_tokens,
)
from mechvlm.viz import bars, lines

__all__ = ["NEO"]

N_ATTRIBUTED = 8
"""Tokens that integrated gradients choose: about as many as an object has."""

N_RANDOM = 2
"""Random sets for each set and item: intervals come from the items."""

N_DRAWN = 500
"""Draws of items for an interval of layers."""

FEW = 12
"""Items that integrated gradients are taken of; each costs dozens of passes."""


def _ablated(session: Session) -> Finding:
    vlm, pictures = session.vlm, session.pictures
    sets = {
        "object": object_tokens(),
        "object + 1": object_tokens(buffer=1),
        "register": register_tokens(),
    }
    found = _lost(vlm, pictures.items, sets, pictures.readings)
    attributed = _attributed(vlm, pictures)
    decrease = columns(found, "decrease")
    excess = found["excess_low"].sel(set="object")
    last = str(found["reading"].values[-1])
    own, random = (
        100 * float(found[name].sel(set="object", reading=last))
        for name in ("decrease", "control")
    )
    return Finding(
        f"{last}: {own:.0f} % of right answers are lost with the object's tokens,"
        f" {random:.0f} % with as many random ones; paired excess over random, lower"
        f" ends: {', '.join(f'{100 * float(x):.0f} %' for x in excess)}.",
        None if bool(excess.isnull().any()) else bool((excess > 0).all()),
        [
            *ablation_rows(found),
            *(row for each in attributed.values() for row in ablation_rows(each)[1:]),
        ],
        {"token_ablation": found, **attributed},
        bars(decrease.assign_attrs(titled("Right answers lost", found))),
    )


def _attributed(vlm: HookedVLM, pictures: Pictures) -> dict[str, xr.Dataset]:
    """Ablation of what gradients choose; nothing if answers are not single tokens."""
    chosen = {"gradients": attribution_tokens(N_ATTRIBUTED, steps=16)}
    few, reading = pictures.items[:FEW], pictures.readings[-1]
    try:
        found = token_ablation(vlm, few, chosen, metric=reading, n_random=N_RANDOM)
    except TokenError:
        return {}
    return {"token_ablation_gradients": found}


def _lens(session: Session) -> Finding:
    vlm, pictures = session.vlm, session.pictures
    found = _object_lens(vlm, pictures, pictures.items)
    low = float(found["best_rate_over_control"].sel(estimate="low"))
    series = lens_lines(found, "Image tokens that decode to their object")
    own = series.sel(tokens="object")
    rises = float(own["low"].max()) > float(own["high"][0])
    best, layer = (
        {str(e): float(found[name].sel(estimate=e)) for e in ("mean", "low", "high")}
        for name in ("mean_best_rate", "mean_best_layer")
    )
    if np.isnan(best["mean"]):
        return Finding(
            "in no layer does a token decode to the object that it shows.",
            False,
            lens_rows(found),
            {"logit_lens": found},
            lines(series),
        )
    return Finding(
        f"{100 * best['mean']:.0f} % ({100 * best['low']:.0f} to"
        f" {100 * best['high']:.0f}) at the best layer, on average"
        f" h[{layer['mean']:.1f}] of {found.sizes['layer']}; above as many background"
        f" tokens by at least {100 * low:.0f} points.",
        beyond(low) and rises,
        lens_rows(found),
        {"logit_lens": found},
        lines(series),
    )


def _flows(session: Session) -> Finding:
    vlm, pictures = session.vlm, session.pictures
    n_layers = vlm.cfg.n_layers
    cuts = ("image->question", "image->last", "question->last")
    found = knockout_accuracy(
        vlm,
        pictures.routed,
        cuts=lambda layout, at: {k: flow_cuts(layout)[k] for k in cuts},
        windows={str(at): range(at, n_layers) for at in range(n_layers)},
        reading=pictures.readings[-1],
    )
    series = stacked(
        {
            cut: columns(found, "change", cut=cut).rename(window="from layer")
            for cut in cuts
        },
        "cut",
        "Answer's probability with a flow cut from a layer on",
    ).assign_attrs(titled("Answer's probability with a flow cut", found))
    changes = {cut: found["change"].sel(cut=cut).values for cut in cuts}
    told = "; ".join(f"{cut} {_told(change)}" for cut, change in changes.items())
    ends = found["change_high"].sel(cut=list(cuts[:2]))[:, 0]
    apart = _apart(*(found["item_change"].sel(cut=cut).values for cut in cuts[:2]))
    return Finding(
        f"change of the answer's probability with the cut from layer 0 on, and where"
        f" half of that is left: {told}.",
        apart and bool((ends < 0).all()),
        cut_rows(found, "change"),
        {"knockout_flows": found},
        lines(series),
    )


def _table_2(session: Session) -> Finding:
    vlm, pictures = session.vlm, session.pictures
    found = knockout_accuracy(vlm, pictures.items, reading=pictures.readings[-1])
    shown = ("object->last", "object+1->last", "rest of object+1->last")
    here = found["accuracy"].sel(cut=list(shown), window="all")
    picture = columns(found.sel(cut=list(shown)), "accuracy")
    aside = found["accuracy"].sel(cut="object+1->last row", window="all")
    cost = found["difference_high"]
    own, around, rest = (100 * float(x) for x in here)
    return Finding(
        f"with the cut in all layers {own:.0f} % stay right (object), {around:.0f} %"
        f" (object and ring), {rest:.0f} % (all others); with object and ring cut"
        f" off from the last row {100 * float(aside):.0f} %.",
        beyond(-float(cost.sel(cut="object+1->last", window="all"))),
        cut_rows(found, "accuracy"),
        {"knockout_table": found},
        lines(picture.assign_attrs(titled("Answers that stay right", found))),
    )


def _background(session: Session) -> Finding:
    """The open check on global features: is the object still counted elsewhere?"""
    vlm, pictures = session.vlm, session.pictures
    several = [item for item in pictures.items if len(item.objects) > 1]
    readings = (pictures.counting, pictures.readings[1])
    sets = {"object": object_tokens(), "object + 1": object_tokens(buffer=1)}
    found = _lost(vlm, several, sets, readings)
    if "counting" not in found["reading"]:
        raise MetricError("no count is right with nothing ablated.")
    lost, random = (
        100 * float(found[name].sel(reading="counting", set="object"))
        for name in ("decrease", "control")
    )
    return Finding(
        f"{lost:.0f} % of right counts are lost with one object's tokens ablated"
        f" ({random:.0f} % with as many random ones): the rest of the image keeps the"
        f" count in {100 - lost:.0f} % of cases.",
        None,
        ablation_rows(found),
        {"global_features": found},
        bars(
            columns(found, "decrease").assign_attrs(titled("Right answers lost", found))
        ),
    )


def _crowded(session: Session) -> Finding:
    """The open check on several objects: each is looked for by itself."""
    vlm, pictures = session.vlm, session.pictures
    if not pictures.crowded:
        return Finding("no picture here has several objects.", None)
    found = _object_lens(vlm, pictures, pictures.crowded)
    low = float(found["best_rate_over_control"].sel(estimate="low"))
    named = float(found["share_named"].sel(estimate="mean"))
    return Finding(
        f"{100 * named:.0f} % of {found.sizes['object']} such objects are named at some"
        f" layer by a token of their own, above background by {100 * low:.0f} points or"
        " more.",
        None,
        lens_rows(found),
        {"crowded": found},
        lines(lens_lines(found, "Tokens that decode to their object, crowded")),
    )


def _lost(
    vlm: HookedVLM,
    asked: Sequence[Item],
    sets: Mapping[str, Selector],
    readings: Sequence[Reading],
) -> xr.Dataset:
    """Ablation by every reading that a model can be asked by, the others left out.

    So are sets that no picture has, as of tokens of high norm.
    """
    prompts = [vlm.prompt(item.question, item.image) for item in asked]
    there = {
        name: choose
        for name, choose in sets.items()
        if any(choose(vlm, *each) for each in zip(prompts, asked, strict=True))
    }
    found = []
    for reading in readings:
        try:
            found.append(
                token_ablation(vlm, asked, there, metric=reading, n_random=N_RANDOM)
            )
        except (MetricError, InterventionError):  # nothing is right that could be lost
            continue
    if not found:
        raise MetricError(f"no answer is right to {asked[0].question!r} and the like.")
    return xr.concat(
        found,
        "reading",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="override",
    )


def _object_lens(
    vlm: HookedVLM, pictures: Pictures, chosen: Sequence[Item]
) -> xr.Dataset:
    if pictures.words is not None:
        return object_lens(vlm, chosen, words=pictures.words)
    return object_lens(vlm, chosen, words=lambda name: first_pieces(vlm, name))


def _until(change: np.ndarray) -> int:
    """First layer from which on a cut never has half of its effect from 0 on."""
    return int(np.flatnonzero(np.append(-np.inf, change) <= change[0] / 2)[-1])


def _apart(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two cuts lose their effect in different layers; both `[item layer]`.

    Items are drawn again and again, the same ones for both; the layers must lie apart
    in the same direction in 95 % of draws.
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(ours), size=(N_DRAWN, len(ours)))
    gaps = [_until(ours[i].mean(0)) - _until(theirs[i].mean(0)) for i in drawn]
    low, high = np.percentile(gaps, [2.5, 97.5])
    return bool(low > 0 or high < 0)


def _told(change: np.ndarray) -> str:
    at = _until(change)
    left = "nothing to halve" if at == 0 else f"half from layer {at} on"
    return f"{change[0]:+.0f} %, {left}"


NEO = Study(
    "neo",
    "arXiv:2410.07149",
    "Where visual information lives",
    40,
    of_scenes,
    of_folder,
    Session,
    {
        Claim(
            "token_ablation",
            "An object's own tokens hold what is said of it",
            "Image tokens are replaced by the mean token before layer 0: an object's,"
            " those with a ring around them, those of high norm, and each time as many"
            " random ones. Readings of which no answer was right are left out.",
            "accuracy drops by over 70 % when an object's tokens are removed"
            " (abstract).",
        ): _ablated,
        Claim(
            "logit_lens",
            "Image tokens of an object come to decode to its words",
            "The final norm and head read every image token of every layer; a token"
            " counts if its most probable word names the object that it shows.",
            "image tokens become more and more interpretable as words across layers"
            " (abstract).",
        ): _lens,
        Claim(
            "knockout_flows",
            "Image to question and image to last are read in different layers",
            "Attention between two groups is cut from one layer up, and the probability"
            " of the answer compared with nothing cut. Asked of scenes: a shape by its"
            " colour, and a colour by its place, whose answers take different ways.",
            "the model extracts object information at the last position (abstract). The"
            " cuts into the question are Zhang et al.'s, arXiv:2411.18620.",
        ): _flows,
        Claim(
            "knockout_table",
            "The last position reads the object's tokens directly",
            "Attention is cut between an object's tokens, or all others, and the last"
            " position or the last row of the image, in the paper's windows of layers.",
            "the model extracts object information at the last position (abstract);"
            " cuts and windows are those of its released code.",
        ): _table_2,
        Claim(
            "global_features",
            "Do background tokens still count an ablated object?",
            "The object's tokens are ablated, and the number of objects and its"
            " presence are asked.",
            "an open question: do background tokens hold global features?",
        ): _background,
        Claim(
            "crowded",
            "Objects that overlap, or share a class, are told apart",
            "The lens looks for every object by itself, in pictures where they overlap"
            " or are alike.",
            "an open question: several objects, overlapping or of one class.",
        ): _crowded,
    },
)
