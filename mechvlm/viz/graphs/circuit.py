"""A circuit drawn from its token groups up to the logits, edges as thick as effects."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from mechvlm.errors import CircuitError
from mechvlm.graph.circuit import Circuit
from mechvlm.graph.nodes import Edge
from mechvlm.viz.figure import Figure
from mechvlm.viz.graphs import arcs
from mechvlm.viz.graphs.circuit_still import CircuitStill
from mechvlm.viz.graphs.lanes import FULL_PX
from mechvlm.viz.graphs.wiring import Wiring, wired
from mechvlm.viz.labels import number, shown
from mechvlm.viz.payload import tinted
from mechvlm.wanted import one, whole_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["circuit"]

MOST = 300
"""Edges of a page, from which its reader chooses how many are shown."""
MANY, AT_FIRST = 80, 60
NAMED = 3
UNITS = "share of the gap between clean and ablated that is lost without the edge"


def circuit(circuit: Circuit, *, most: int = MOST) -> Figure:
    """Draw a circuit as a graph, from its token groups at the bottom to the logits.

    A layer's heads and its MLP stand in rows; q, k and v at the foot of a head are its
    inputs. An edge is as thick as what it does; without effects all are equally thin.
    Of a circuit of more than 80 edges the strongest 60 are shown at first, in the live
    view as many as its slider says, and the picture states how many there are.

    Args:
        circuit: What `discover` returns, or any other with an edge.
        most: Most edges that the live view can show, the strongest; 1 or more.

    Returns:
        A figure; its `data` has each edge's effect over "edge", with "sender",
        "receiver" and "layer" of the sender, nan where the effect is unknown.

    Raises:
        CircuitError: The circuit has no edge, or has more than `most`, of which more
            than the others have no effect by which the strongest could be chosen.
        ArgumentError: An argument is of another kind.

    Example:
        >>> import mechvlm as mv
        >>> labels = "[object] -> L0.v0", "L0.H0 -> logits"
        >>> found = mv.Circuit.parse(labels, mv.Shape(1, 1, 1))
        >>> mv.viz.circuit(found).data.sizes["edge"]
        2
    """
    one(circuit, Circuit, "circuit", "viz.circuit(mechvlm.discover(vlm, pairs))")
    sheet = _Sheet(circuit, whole_number(most, 1, "most"))
    return Figure(
        sheet.data,
        "circuit",
        sheet.spec,
        sheet.still,
        round(sheet.wiring.height) + 190,
        about=sheet.about,
        within=("arcs",),
    )


@dataclass(frozen=True)
class _Sheet:
    """A circuit and how much of it a page carries."""

    circuit: Circuit
    most: int

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn, or not be chosen from."""
        n, known = len(self.circuit), len(self.circuit.effects)
        if n == 0:
            raise CircuitError(
                "the circuit has no edge, so there is nothing to draw. Usual cause: a"
                " threshold that no edge reaches; lower discover's threshold, or give"
                " it size=."
            )
        if n > self.most > known:
            raise CircuitError(
                f"the circuit has {n} edges, and effects of {known} of them, so that"
                f" the strongest {self.most} are not known. discover(vlm, pairs,"
                f" within=circuit) measures them; viz.circuit(circuit, most={n}) draws"
                " all."
            )

    @cached_property
    def ranked(self) -> list[str]:
        """Labels of all edges: known effects first, the strongest before others."""
        effects = self.circuit.effects
        labels = [str(edge) for edge in self.circuit.edges]
        return sorted(labels, key=lambda x: -abs(effects[x]) if x in effects else 1.0)

    @cached_property
    def wiring(self) -> Wiring:
        """The edges of the live view and their nodes, placed."""
        return self._strongest(self.most)

    def _strongest(self, n: int) -> Wiring:
        """The strongest edges and their nodes, placed."""
        if len(self.circuit) <= n:
            return wired(self.circuit)
        kept = tuple(Edge.parse(label) for label in self.ranked[:n])
        return wired(replace(self.circuit, edges=kept))

    @property
    def at_first(self) -> int:
        """Edges that are shown before a reader chooses."""
        n = len(self.circuit)
        few = n <= MANY or not self.circuit.effects
        return min(n, self.most) if few else min(AT_FIRST, self.most)

    @property
    def full(self) -> float:
        """Size of the strongest effect; 0 where none is known."""
        return max(map(abs, self.circuit.effects.values()), default=0.0)

    @property
    def marks(self) -> tuple[float, ...]:
        """Effects of the legend: round ones, and one below 0 where any is."""
        low = min(self.circuit.effects.values(), default=0.0)
        under = (-arcs.marks(-low)[0],) if low < 0 else ()
        return arcs.marks(self.full) + under if self.full else ()

    @cached_property
    def data(self) -> xr.DataArray:
        """Each edge's effect."""
        circuit = self.circuit
        labels = [str(edge) for edge in circuit.edges]
        coords = {
            "edge": labels,
            "sender": ("edge", [str(edge.sender) for edge in circuit.edges]),
            "receiver": ("edge", [str(edge.receiver) for edge in circuit.edges]),
        }
        effects = np.array([circuit.effects.get(x, math.nan) for x in labels])
        attrs = {"units": UNITS, "long_name": f"Circuit of {self.size}"}
        attrs |= {"model": circuit.model, "metric": self.metric}
        attrs["about"] = json.dumps(dict(circuit.about), default=str)
        return xr.DataArray(effects, coords, ("edge",), "effect", attrs)

    @property
    def size(self) -> str:
        """Numbers of edges and heads, in words."""
        n = len(self.circuit.of_kind("head"))
        heads = f"{n} of {len(self.circuit.shape.heads)} heads"
        edges = f"{len(self.circuit):,} edge{_s(len(self.circuit))}"
        return f"{edges}, {heads} ({100 * self.circuit.share_of_heads:.3g} %)"

    @property
    def metric(self) -> str:
        """What was measured, so far as the circuit says."""
        told = self.circuit.about
        names = told.get("metrics")
        if isinstance(names, list) and names:
            return f"{names[0]} and {len(names) - 1} more"
        return str(told.get("metric", ""))

    @property
    def found_by(self) -> str:
        """How it was found, in words; "" where the circuit does not say."""
        told = self.circuit.about
        words = [f"ablation: {told['ablation']}"] if "ablation" in told else []
        if "pairs" in told:
            words.append(f"{told['pairs']} pair{_s(told['pairs'])}")
        if told.get("looked_in"):
            words.append(f"looked in {told['looked_in']}")
        return " · ".join(words)

    @property
    def about(self) -> str:
        """The circuit in words, for those who do not see it."""
        nodes = self.circuit.nodes
        n_mlps, n_groups = (
            sum(node.kind == kind for node in nodes) for kind in ("mlp", "tokens")
        )
        others = f"{n_mlps} MLP{_s(n_mlps)}, {n_groups} token group{_s(n_groups)}"
        effects = self.circuit.effects
        text = f"{self.data.attrs['long_name']}, {others}, drawn from tokens to logits."
        if not effects:
            return f"{text} What single edges do is not known."
        strongest = ", ".join(
            f"{shown(label)} {number(effects[label])}"
            for label in self.ranked[: min(NAMED, len(effects))]
        )
        return f"{text} Strongest edges, by {UNITS}: {strongest}."

    @property
    def spec(self) -> dict[str, object]:
        """What the page's script draws."""
        wiring, full = self.wiring, self.full
        edges = [
            {
                "from": way.sender,
                "to": way.receiver,
                "port": way.port,
                "takes": shown(way.label.rpartition(" -> ")[2]),
                "effect": None
                if math.isnan(way.effect)
                else float(f"{way.effect:.4g}"),
                "width": None if math.isnan(way.width) else round(way.width, 4),
                "at": [x for point in way.points for x in point],
            }
            for way in wiring.ways
        ]
        nodes = [
            {
                "name": spot.written,
                "full": shown(spot.label), "kind": spot.kind, "x": spot.x, "y": spot.y,
                "w": spot.width, "h": spot.height, "ports": spot.ports,
            }
            for spot in wiring.spots
        ]  # fmt: skip
        return {
            "nodes": nodes,
            "edges": edges,
            "served": wiring.served,
            "bands": [(band.name, band.low, band.high) for band in wiring.bands],
            "size": (wiring.width, wiring.height),
            "total": len(self.circuit),
            "known": len(self.circuit.effects),
            "shown": self.at_first,
            "full": full,
            "marks": self.marks,
            "hair": arcs.HAIR_PX,
            "scale": tinted(arcs.strength(full or 1.0)),
            "units": self.widths,
            "means": UNITS,
            "found_by": self.found_by,
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What a still says under the picture: widths, number of edges, how found."""
        n, total = self.at_first, len(self.circuit)
        count = (
            f"{n:,} of {total:,} edges shown" if n < total else f"all {total:,} shown"
        )
        if not self.circuit.effects:
            count += "; what single edges do is not known, so all are equally thin"
            return (count, *filter(None, [self.found_by]))
        if n < total:
            count += f", the strongest (from {number(self._weakest)})"
        unknown = sum(label not in self.circuit.effects for label in self.ranked[:n])
        if unknown:
            count += f"; {unknown} of unknown effect are dashed"
        return (self.widths, *filter(None, [count, self.found_by]))

    @property
    def widths(self) -> str:
        """What the width of an edge says, and from where on it no longer does."""
        known = self.circuit.effects.values()
        thin = any(abs(effect) * FULL_PX < arcs.HAIR_PX * self.full for effect in known)
        return f"{UNITS}; {arcs.hairs(self.full, FULL_PX)}" if thin else UNITS

    @property
    def _weakest(self) -> float:
        """Size of the weakest effect of the edges shown at first."""
        return abs(self.circuit.effects[self.ranked[self.at_first - 1]])

    def still(self) -> Drawing:
        """The still picture, of the edges that are shown at first."""
        placed = self._strongest(self.at_first)
        return CircuitStill(placed, self.data, self.full, self.marks, self.notes)()


def _s(n: object) -> str:
    return "" if n == 1 else "s"
