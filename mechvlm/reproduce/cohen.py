"""Cohen et al. 2024: what is known of an entity by name, and what by picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr

from mechvlm.analyses.cross_patching import Swap, cross_patch
from mechvlm.analyses.cumulative_knockout import cumulative_knockout
from mechvlm.analyses.holding import back_patch, freeze
from mechvlm.analyses.modality_gap import modality_gap
from mechvlm.datasets import popvqa
from mechvlm.errors import MetricError
from mechvlm.items import Entity
from mechvlm.models.hooked import HookedVLM
from mechvlm.posing import Posed
from mechvlm.readings import Ask
from mechvlm.reproduce.finding import Claim, Finding, Row
from mechvlm.reproduce.material import NAMING, entities
from mechvlm.reproduce.shapes import beside, beyond, columns, stacked, with_interval
from mechvlm.reproduce.study import Study
from mechvlm.viz import bars, heatmap, lines

__all__ = ["COHEN", "Known"]

SEED = 41
N_NEW = 4
DONORS = (1, 7)
"""How much further on in the list an entity's two donors stand."""

TRACED = 20
"""Recognised entities that are traced layer by layer; all are asked for facts."""

IN_VAIN = 12
"""Facts that are asked again after back-patching, in every cell of its grid."""

KINDS = {
    "celebrity": "Who is the person in this image?",
    "landmark": "Which place is shown in this image?",
    "painting": "What is the title of the painting in this image?",
    "brand": "Which brand does the logo in this image belong to?",
}


@dataclass(frozen=True, eq=False)
class Known:
    """Entities, and how they are asked about.

    Attributes:
        entities: With a picture and facts each.
        identify: How recognition is asked.
        answer: How facts are read.
    """

    entities: Sequence[Entity]
    identify: Ask
    answer: Ask

    def posed(self, vlm: HookedVLM, among: Sequence[str]) -> list[Posed]:
        """The question of recognition for some of the entities, by their ids."""
        return [
            Posed(
                vlm.prompt(self.identify.of(entity.kind), entity.image),
                entity.golds,
                entity.id or entity.name,
            )
            for entity in self.entities
            if (entity.id or entity.name) in among
        ]


def of_scenes(n: int) -> Known:
    """Named entities of the synthetic world, their emblems alone in the picture."""
    few = list(entities(SEED))[:n]
    return Known(few, Ask(NAMING, max_new_tokens=N_NEW), Ask(max_new_tokens=N_NEW))


def of_folder(folder: Path, n: int) -> Known:
    """Entities in PopVQA's layout."""
    found = popvqa.read(folder, limit=n)
    asked = {
        entity.kind: KINDS.get(entity.kind, f"What is the {entity.kind} in this image?")
        for entity in found
    }
    return Known(found, Ask(asked, max_new_tokens=20), Ask(max_new_tokens=100))


@dataclass(frozen=True, eq=False)
class Session:
    """Entities before a model, asked once for all that claims share."""

    vlm: HookedVLM
    known: Known

    @cached_property
    def gap(self) -> xr.Dataset:
        """Who is recognised, and what is known of them both ways."""
        known = self.known
        return modality_gap(
            self.vlm, known.entities, identify=known.identify, answer=known.answer
        )

    @cached_property
    def posed(self) -> list[Posed]:
        """The question of recognition, for some of those that are recognised."""
        ids = self.gap["entity"].values[self.gap["recognised"].values]
        return self.known.posed(self.vlm, [str(name) for name in ids[:TRACED]])

    @property
    def n_new(self) -> int:
        """Longest name."""
        return self.known.identify.max_new_tokens


def swaps(session: Session) -> list[Swap]:
    """Every entity with the pictures of two others in its place.

    Others whose names would count as its own are left out.
    """
    posed, matcher = session.posed, session.known.identify.matcher
    n = len(posed)
    steps = sorted({step % n for step in DONORS} - {0})
    pairs = [(each, posed[(i + s) % n]) for i, each in enumerate(posed) for s in steps]
    return [
        Swap(
            target.prompt,
            donor.prompt,
            target.answers,
            donor.answers,
            f"{target.id} <- {donor.id}",
        )
        for target, donor in pairs
        if not any(matcher(name, target.answers) for name in donor.answers)
        and not any(matcher(name, donor.answers) for name in target.answers)
    ]


def asked_in_vain(session: Session) -> list[Posed]:
    """Facts that are told by name and not by picture.

    Raises:
        MetricError: There is none.
    """
    known, gap = session.known, session.gap
    wanted = gap["right_by_name"].values & ~gap["right_by_picture"].values
    asked = [
        (entity, fact)
        for entity, recognised in zip(
            known.entities, gap["recognised"].values, strict=True
        )
        if recognised
        for fact in entity.facts
    ]
    places = np.flatnonzero(wanted)[:IN_VAIN]
    if not len(places):
        raise MetricError("every fact that is told by name is told by picture too.")
    return [
        Posed(
            session.vlm.prompt(fact.by_picture, entity.image),
            fact.answers,
            f"{place}: {entity.name}, {fact.by_picture}",
        )
        for place in places
        for entity, fact in [asked[place]]
    ]


def _gap(session: Session) -> Finding:
    gap = session.gap
    n = int(gap["n_recognised"])
    rows: list[Row] = [
        (name, n, *(float(gap[f"{key}{end}"]) for end in _ENDS))
        for name, key in (*_MEANS.items(), ("gap", "gap"))
    ]
    mean, low, high = (float(gap[f"gap{end}"]) for end in _ENDS)
    picture = bars(
        beside(
            {name: columns(gap, key) for name, key in _MEANS.items()},
            "question",
            "What is known of entities that are recognised",
        )
    )
    between = "" if np.isnan(low) else f" ({100 * low:.0f} to {100 * high:.0f})"
    return Finding(
        f"{100 * mean:.0f} points{between} over {n} entities recognised of"
        f" {int(gap['n'])}, Wilcoxon p = {float(gap['wilcoxon_p']):.2g}.",
        beyond(low),
        [("asked", "n", "share right", "low", "high"), *rows],
        {"modality_gap": gap},
        picture,
    )


_MEANS = {"by name": "mean_by_name", "by picture": "mean_by_picture"}


def _replaced(session: Session) -> Finding:
    found = cross_patch(
        session.vlm,
        swaps(session),
        matcher=session.known.identify.matcher,
        max_new_tokens=session.n_new,
    )
    sides = ("original", "injected")
    series = with_interval(
        found, sides, "names", "Which entity is named once the picture is exchanged"
    )
    critical = float(found["critical_layer"])
    deep = bool(np.isfinite(critical)) and critical > session.vlm.cfg.n_layers / 2
    follows = float(found["injected"][0])
    told = (
        f"from the input of layer {critical:.0f} on the original is named again"
        if np.isfinite(critical)
        else "the original is not named again in any layer"
    )
    return Finding(
        f"the injected entity is named in {100 * follows:.0f} % of"
        f" {int(found.attrs['n'])} swaps at the first layer; {told}.",
        deep and follows > 0.5,
        _layer_table(found, sides),
        {"cross_patch": found},
        lines(series),
    )


def _frozen(session: Session) -> Finding:
    found = freeze(session.vlm, session.posed, max_new_tokens=session.n_new)
    series = with_interval(
        found, ("rate",), "kept from layer", "Who is still named with the image frozen"
    )
    first, last = float(found["rate"][0]), float(found["rate"][-1])
    early = float(found["rate_high"][0]) < float(found["rate_low"][-1])
    return Finding(
        f"{100 * first:.0f} % are named with the image held from layer 0 on,"
        f" {100 * last:.0f} % with nothing held.",
        early,
        _layer_table(found, ("rate",)),
        {"freeze": found},
        lines(series.rename(source="layer")),
    )


def _cut(session: Session) -> Finding:
    found = {
        way: cumulative_knockout(
            session.vlm, session.posed, direction=way, max_new_tokens=session.n_new
        )
        for way in _WAYS
    }
    each: dict[str, xr.DataArray]
    each = {name: columns(of, "rate") for name, of in found.items()}
    series = stacked(each, "cut", "Who is named with the image cut off")
    half = series.sizes["n_cut"] // 2
    above, below = (float(series.sel(cut=name)[half]) for name in found)
    rows = [
        (name, int(n), float(line.sel(n_cut=n)), float(line["low"].sel(n_cut=n)),
         float(line["high"].sel(n_cut=n)))
        for name in found
        for line in [series.sel(cut=name)]
        for n in line["n_cut"].values
    ]  # fmt: skip
    return Finding(
        f"with the upper half of the layers cut {100 * above:.0f} % are named, with the"
        f" lower half {100 * below:.0f} %.",
        below > above,
        [("cut", "layers cut", "share named", "low", "high"), *rows],
        {f"cumulative_knockout_{k.replace('-', '_')}": v for k, v in found.items()},
        lines(series),
    )


def _put_back(session: Session) -> Finding:
    answer = session.known.answer
    found = back_patch(
        session.vlm,
        asked_in_vain(session),
        matcher=answer.matcher,
        max_new_tokens=answer.max_new_tokens,
    )
    above = found["source"] > found["target"]
    rate = found["rate"].where(above)
    control = float(found["right_clean"].mean())
    best = rate.argmax(...)
    cell = rate[best]
    change = found["rate"].assign_attrs(
        long_name="Facts told after back-patching", model=found.attrs["model"]
    )
    rows = [
        (int(s), int(t), float(found["rate"].sel(source=s, target=t)))
        for s in found["source"].values
        for t in found["target"].values
        if s >= t
    ]
    return Finding(
        f"at best {100 * float(cell):.0f} % of {int(found.attrs['n'])} such facts are"
        f" told (h[{int(cell['source'])}] into layer {int(cell['target'])}), against"
        f" {100 * control:.0f} % with nothing done; the best of"
        f" {int(above.sum())} cells, so partly luck.",
        None,  # it is no finding of the paper's
        [("source", "target", "share told"), *rows],
        {"back_patch": found},
        heatmap(change),
    )


def _layer_table(found: xr.Dataset, names: Sequence[str]) -> list[Row]:
    dim = str(found[names[0]].dims[0])
    rows: list[Row] = [(dim, "named", "share", "low", "high")]
    for at in found[dim].values:
        for name in names:
            here = [float(found[f"{name}{end}"].sel({dim: at})) for end in _ENDS]
            rows.append((int(at), name, *here))
    return rows


_ENDS = ("", "_low", "_high")

_WAYS: tuple[Literal["top-down", "bottom-up"], ...] = ("top-down", "bottom-up")

COHEN = Study(
    "cohen",
    "arXiv:2412.14133",
    "What is known by name, and what by picture",
    48,
    of_scenes,
    of_folder,
    Session,
    {
        Claim(
            "modality_gap",
            "Facts known by name are missed by picture",
            "Every entity that the model names from its picture is asked for the same"
            " facts twice: with its name and no picture, and with its picture and no"
            " name.",
            "accuracy drops by 19 % on average (abstract of the first version), by up"
            " to 18 % (as published).",
        ): _gap,
        Claim(
            "cross_patch",
            "The picture is read in the deeper half of the layers",
            "At the input of one layer all image positions are taken from another"
            " entity's run, and the model is asked who it is. From the critical layer"
            " on the original is named again: its picture has been read.",
            "information flows from image tokens only in much deeper layers (abstract)."
            " Its figure has these two curves.",
        ): _replaced,
        Claim(
            "freeze",
            "The language model works on image positions before they are read",
            "Image positions are held at what enters one layer, in all layers up to"
            " five eighths of the depth; text goes on reading them.",
            "critical processing of the image happens in the language model's middle"
            " layers (abstract). Its figure has this curve.",
        ): _frozen,
        Claim(
            "cumulative_knockout",
            "Deeper layers need the image more than early ones",
            "All text behind the image is cut off from it in more and more layers, from"
            " the last one down and from the first one up.",
            "information flows from image tokens only in much deeper layers (abstract);"
            " these cuts are in its appendix.",
        ): _cut,
        Claim(
            "back_patch",
            "What image positions hold late would help earlier",
            "Facts told by name and not by picture are asked again, with image"
            " positions of a layer put into the input of an earlier one.",
            "few layers are left for reasoning once the image is processed (abstract);"
            " its code has no back-patching.",
        ): _put_back,
    },
)
