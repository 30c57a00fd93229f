"""Where nodes and edges of a circuit are drawn, in live views and stills alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from mechvlm.graph.circuit import Circuit
from mechvlm.graph.nodes import Edge, Node
from mechvlm.viz.graphs.lanes import LETTER_PX, Lanes
from mechvlm.viz.labels import shown
from mechvlm.viz.stills import shortened

__all__ = ["PORTS", "Band", "Spot", "Way", "Wiring", "wired"]

PORTS = {"q": -0.3, "k": 0.0, "v": 0.3}
"""Place of a head's inputs, in shares of its width from the middle."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A node in the picture; lengths in pixels, y from the bottom up.

    Attributes:
        label: The node's label.
        kind: "tokens", "head", "mlp", "logits", or "input" for a key or value input
            that several heads share.
        x: Its centre.
        y: Its centre.
        width: Of its box.
        height: Of its box.
        ports: Which of q, k and v are a head's own inputs; k and v may be shared.
    """

    label: str
    kind: str
    x: float
    y: float
    width: float
    height: float
    ports: str = ""

    @property
    def written(self) -> str:
        """As much of the label as fits into the box."""
        return shortened(shown(self.label), int((self.width - 10) / LETTER_PX))


@dataclass(frozen=True, slots=True)
class Way:
    """An edge in the picture.

    Attributes:
        label: The edge's label.
        sender: Index of the spot where it begins.
        receiver: Index of the spot where it ends.
        port: "q", "k" or "v", of a head's input; else "".
        effect: What the circuit's `effects` say of it; nan where they say nothing.
        width: In pixels, proportional to the effect's size; nan where it is unknown.
        points: Where it passes, from below; between two of them it leaves and arrives
            vertically.
    """

    label: str
    sender: int
    receiver: int
    port: str
    effect: float
    width: float
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Band:
    """The rows of one layer: its name, and their bottom and top in pixels."""

    name: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Wiring:
    """A circuit, placed.

    Attributes:
        spots: Nodes, in the order of the model.
        ways: Edges, the strongest first.
        served: Pairs of spots: a shared input, and a head that takes by it.
        bands: Layers from below, then between which no other is.
        width: Of the picture, pixels.
        height: Of the picture, pixels.
    """

    spots: tuple[Spot, ...]
    ways: tuple[Way, ...]
    served: tuple[tuple[int, int], ...]
    bands: tuple[Band, ...]
    width: float
    height: float


def wired(circuit: Circuit) -> Wiring:
    """Place a circuit: rows by layer, few crossings, long edges straight.

    Args:
        circuit: With one edge at least.

    Returns:
        Its nodes and edges in pixels; the same circuit is always placed the same way.

    Example:
        >>> from mechvlm.graph.nodes import Shape
        >>> labels = "[object] -> L0.v0", "L0.H0 -> logits"
        >>> found = wired(Circuit.parse(labels, Shape(1, 1, 1)))
        >>> [spot.label for spot in found.spots], len(found.ways)
        (['[object]', 'L0.H0', 'logits'], 2)
    """
    tracks = _Tracks(Lanes(circuit))
    ways = sorted(map(tracks.way, circuit.edges), key=_weakness)
    right = max(spot.x + spot.width / 2 for spot in tracks.spots)
    lanes = (x for way in ways for x, _ in way.points)
    right = max(right, *lanes)
    return Wiring(
        tracks.spots,
        tuple(ways),
        tracks.on.served,
        tracks.bands,
        right,
        tracks.on.height,
    )


def _weakness(way: Way) -> float:
    return 1.0 if math.isnan(way.effect) else -abs(way.effect)


@dataclass(frozen=True)
class _Tracks:
    """Edges on their way between the rows of a circuit."""

    on: Lanes

    @cached_property
    def bands(self) -> tuple[Band, ...]:
        """Layers from the middle of the gap below to that of the gap above."""
        found = []
        for layer in sorted({layer for layer, _ in self.on.keys if 0 <= layer < 10**9}):
            own = [i for i, key in enumerate(self.on.keys) if key[0] == layer]
            low, high = (
                self.on.y[i] + sign * (self.on.heights[i] + self.on.between) / 2
                for i, sign in ((own[0], -1), (own[-1], 1))
            )
            found.append(Band(f"layer {layer}", round(low, 2), round(high, 2)))
        return tuple(found)

    @cached_property
    def spots(self) -> tuple[Spot, ...]:
        """The nodes' boxes."""
        own = "qkv" if self.on.circuit.shape.each == 1 else "q"
        return tuple(
            Spot(
                str(node),
                "input" if node.kind in ("k", "v") else node.kind,
                self.on.x[i],
                round(self.on.y[self.on.rows[node]], 2),
                self.on.size(node),
                self.on.heights[self.on.rows[node]],
                own if node.kind == "head" else "",
            )
            for i, node in enumerate(self.on.nodes)
        )

    @cached_property
    def in_lane(self) -> dict[Edge, float]:
        """Place of an edge in its lane, from the lane's middle."""
        found: dict[Edge, float] = {}
        for sender in self.on.given:
            own = sorted(
                self.on.passing(sender),
                key=lambda e: self.on.x[self.on.index[self.on.end(e)]],
            )
            found |= self.beside(own, math.inf)
        return found

    def beside(self, edges: list[Edge], most: float) -> dict[Edge, float]:
        """Edges side by side around 0, pressed into `most` pixels if need be."""
        rooms = [self.on.room(edge) for edge in edges]
        total, at, found = sum(rooms), 0.0, {}
        press = min(1.0, most / total) if total else 1.0
        for edge, room in zip(edges, rooms, strict=True):
            found[edge] = (at + room / 2 - total / 2) * press
            at += room
        return found

    def lane_x(self, edge: Edge, row: int) -> float:
        """Where an edge crosses a row that it passes."""
        return self.on.x[self.on.lanes[edge.sender, row]] + self.in_lane[edge]

    @cached_property
    def leaves(self) -> dict[Edge, float]:
        """Where edges leave their sender, by where they go next."""
        found: dict[Edge, float] = {}
        for sender, own in self.on.given.items():
            above, middle = self.on.rows[sender] + 1, self.on.x[self.on.index[sender]]
            far = set(self.on.passing(sender))
            nexts = {
                edge: self.lane_x(edge, above)
                if edge in far
                else self.on.x[self.on.index[self.on.end(edge)]]
                for edge in own
            }
            places = self.beside(
                sorted(own, key=nexts.__getitem__), self.on.size(sender) - 8
            )
            found |= {edge: middle + place for edge, place in places.items()}
        return found

    @cached_property
    def arrives(self) -> dict[Edge, float]:
        """Where edges arrive at their receiver, by where they come from."""
        by_taker: dict[Node, list[Edge]] = {}
        for edge in self.on.circuit.edges:
            by_taker.setdefault(edge.receiver, []).append(edge)
        found: dict[Edge, float] = {}
        for taker, own in by_taker.items():
            end = self.on.end(own[0])
            wide = self.on.size(end)
            middle, most = self.on.x[self.on.index[end]], wide - 10
            if end != taker:
                middle, most = middle + PORTS[taker.kind] * wide, 0.2 * wide
            before = {edge: self.last_x(edge) for edge in own}
            places = self.beside(sorted(own, key=before.__getitem__), most)
            found |= {edge: middle + place for edge, place in places.items()}
        return found

    def last_x(self, edge: Edge) -> float:
        """Where an edge is in the row before its end."""
        row = self.on.rows[self.on.end(edge)] - 1
        if row == self.on.rows[edge.sender]:
            return self.leaves[edge]
        return self.lane_x(edge, row)

    def way(self, edge: Edge) -> Way:
        """An edge from its sender's top, by its lane, to its receiver's bottom."""
        first, last = self.on.rows[edge.sender], self.on.rows[self.on.end(edge)]
        points = [(self.leaves[edge], self.on.y[first] + self.on.heights[first] / 2)]
        for row in range(first + 1, last):
            x, half = self.lane_x(edge, row), self.on.heights[row] / 2
            points += [(x, self.on.y[row] - half), (x, self.on.y[row] + half)]
        points.append((self.arrives[edge], self.on.y[last] - self.on.heights[last] / 2))
        return Way(
            str(edge),
            self.on.index[edge.sender],
            self.on.index[self.on.end(edge)],
            edge.receiver.kind if edge.receiver.kind in PORTS else "",
            self.on.circuit.effects.get(str(edge), math.nan),
            self.on.width(edge),
            tuple((round(x, 1), round(y, 1)) for x, y in points),
        )
