"""What circuits and judgements of them show."""

from __future__ import annotations

import numpy as np
import xarray as xr

from mechvlm.graph.circuit import Circuit
from mechvlm.report.phrases import (
    counted,
    farthest,
    largest,
    named,
    percent,
    smallest,
    value_at,
)
from mechvlm.report.shown import Picture, Shown, banded, stacked
from mechvlm.viz.graphs.circuit import circuit as drawn_circuit
from mechvlm.viz.graphs.flow import flow
from mechvlm.viz.labels import number
from mechvlm.viz.plots.bars import bars

__all__ = [
    "beaten",
    "explained",
    "flowing",
    "missing",
    "needed",
    "overlapping",
    "wired",
]

MOST_BARS = 16


def wired(circuit: Circuit) -> list[Shown]:
    """A circuit: its edges, drawn by layer."""
    heads = circuit.of_kind("head")
    words = (
        f"{counted(len(circuit), 'edge')} join {counted(len(circuit.nodes), 'node')},"
        f" {counted(len(heads), 'head')} among them"
        f" ({percent(circuit.share_of_heads)} of the model's)."
    )
    if circuit.effects:
        edge = max(circuit.effects, key=lambda e: abs(circuit.effects[e]))
        words += (
            f" The edge {edge.replace('->', '→')} does most alone: without it"
            f" {number(circuit.effects[edge])} of the gap is lost."
        )
    return [Shown(drawn_circuit(circuit), words)]


def explained(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Faithfulness of circuits, and of what is left without them."""
    names = {"faithfulness": "the circuit alone", "without": "all but the circuit"}
    drawn = stacked(found, names, "Share of the gap that is kept", "run")
    at = largest(found["faithfulness"])
    name = named(found["faithfulness"], "circuit", at["circuit"])
    words = (
        f"{name}, {counted(int(found['edges'].isel(at)), 'edge')} and"
        f" {counted(int(found['heads'].isel(at)), 'head')}, alone keeps"
        f" {number(value_at(found['faithfulness'], at))} of the gap between everything"
        " ablated (0) and the whole model (1); without it"
        f" {number(float(found['without'].isel(at)))} is kept."
    )
    return [Shown(bars(drawn), words)]


def missing(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Completeness: circuit and model without the same parts."""
    names = {"circuit": "the circuit without them", "model": "the model without them"}
    gaps = found["difference"]
    order = np.argsort(-np.abs(np.nan_to_num(gaps.values)), kind="stable")[:MOST_BARS]
    drawn = stacked(
        found.isel(set=order), names, "Circuit and model without a set", "run"
    )
    at = farthest(gaps)
    taken = named(gaps, "set", at["set"])
    how = "with nothing taken away" if "nothing" in taken else f"without {taken}"
    words = (
        f"Circuit and model differ most {how}, by"
        f" {number(abs(value_at(gaps, at)))} of the gap (0: the circuit is complete)."
    )
    if len(order) < gaps.size:
        words += f" Drawn: the {len(order)} sets of {gaps.size} that differ most."
    return [Shown(bars(drawn), words)]


def needed(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Minimality: what each part adds."""
    loss = banded(found, "loss", "What is lost without a part")
    order = np.argsort(-np.nan_to_num(loss.values), kind="stable")[:MOST_BARS]
    most, least = largest(loss), smallest(loss)
    words = (
        f"Without {named(loss, 'part', most['part'])} most is lost,"
        f" {number(value_at(loss, most))} of the gap; without"
        f" {named(loss, 'part', least['part'])} least,"
        f" {number(value_at(loss, least))} (0: the part is not needed)."
        if value_at(loss, least) < value_at(loss, most)
        else f"Without {named(loss, 'part', most['part'])}"
        f" {number(value_at(loss, most))} of the gap is lost (0: the part is not"
        " needed); no part adds more."
    )
    if len(order) < loss.size:
        words += f" Drawn: the {len(order)} parts of {loss.size} that do most."
    return [Shown(bars(loss.isel(part=order)), words)]


def beaten(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Random circuits of the same size beside one's own."""
    own, drawn = float(found.attrs["circuit"]), found["faithfulness"]
    rows = {
        "this circuit": own,
        "best random": float(drawn.max()),
        "median random": float(drawn.median()),
        "worst random": float(drawn.min()),
    }
    attrs = {**found.attrs, **drawn.attrs, "long_name": "Against random circuits"}
    table = xr.DataArray(
        list(rows.values()), {"circuit": list(rows)}, "circuit", "kept", attrs
    )
    words = (
        f"The circuit keeps {number(own)} of the gap, the best of"
        f" {counted(drawn.size, 'random circuit')} of its size"
        f" {number(rows['best random'])}; it beats"
        f" {percent(float(found.attrs['beaten']))} of them"
        f" (p = {float(found.attrs['p']):.2g})."
    )
    return [Shown(bars(table), words)]


def overlapping(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Two circuits: what they share, and where in depth."""
    names = {"first": "the first", "second": "the second", "shared": "in both"}
    drawn = stacked(found, names, "Parts of two circuits", "found")
    here = found.sel(part="edges")
    words = (
        f"Of {counted(float(here['first']), 'edge')} of the first circuit and"
        f" {counted(float(here['second']), 'edge')} of the second"
        f" {float(here['shared']):.0f} are in both (Jaccard"
        f" {number(float(here['jaccard']))}); by chance it would be"
        f" {number(float(here['chance']))}."
    )
    return [Shown(bars(drawn), words)]


def flowing(flows: xr.Dataset, image: Picture) -> list[Shown]:
    """Flows between groups, by band of layers."""
    edges = flows["kept"].astype(bool)
    words = (
        f"{counted(int(edges.sum()), 'cut')} of {flows.attrs.get('n_cuts', edges.size)}"
        " cost more than random ones of their size."
    )
    if bool(edges.any()):
        effect = flows["effect"].where(edges)
        at = smallest(effect)
        target, source, band = (
            str(effect[dim].values[at[dim]]) for dim in ("target", "source", "band")
        )
        words += (
            f" Of these {source} → {target} in the band “{band}” costs most: it changes"
            f" the answer's probability by {number(value_at(effect, at))} % of what it"
            " was."
        )
    alone = int(flows["uncontrolled"].sum())
    if alone:
        words += f" {counted(alone, 'more cut')} have no random ones to compare with."
    return [Shown(flow(flows), words)]
