"""Rows and lanes of a circuit: where its nodes stand, and where the stream passes them.

Rows stand upon each other in the order in which a model computes. Whatever a node gives
rises in one lane of the stream, from which its edges branch off to those that take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from mechvlm.graph.circuit import Circuit
from mechvlm.graph.nodes import Edge, Node
from mechvlm.viz.graphs.layered import Link, ordered, placed

__all__ = ["FULL_PX", "LETTER_PX", "Lanes"]

FULL_PX = 9.0
"""Width of the strongest edge."""
THIN_PX = 1.0
"""Room of an edge in its lane at least."""
LETTER_PX, MOST_PX = 6.8, 150.0
HEIGHTS = {"tokens": 24.0, "input": 20.0, "head": 32.0, "mlp": 24.0, "logits": 26.0}
APART_PX = 14.0


def row_key(node: Node) -> tuple[int, int]:
    """Row of a node: its layer, and within it inputs, heads and MLP in this order."""
    within = {"k": 1, "v": 1, "head": 2, "mlp": 3}.get(node.kind, 0)
    return node.place[0], within


@dataclass(frozen=True)
class Lanes:
    """A circuit in rows.

    A thing is a node, or the lane of a sender in one of the rows that it passes.
    """

    circuit: Circuit

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All that get a box."""
        shared = {
            edge.receiver
            for edge in self.circuit.edges
            if edge.receiver.kind in ("k", "v") and self.circuit.shape.each > 1
        }
        return tuple(sorted({*self.circuit.nodes, *shared}))

    @cached_property
    def index(self) -> dict[Node, int]:
        """The thing that a node is."""
        return {node: i for i, node in enumerate(self.nodes)}

    @cached_property
    def keys(self) -> tuple[tuple[int, int], ...]:
        """Rows from below."""
        return tuple(sorted({row_key(node) for node in self.nodes}))

    @cached_property
    def rows(self) -> dict[Node, int]:
        """Row of each node, from below."""
        return {node: self.keys.index(row_key(node)) for node in self.nodes}

    def end(self, edge: Edge) -> Node:
        """The node whose box an edge ends at."""
        if edge.receiver in self.index:
            return edge.receiver
        return self.circuit.shape.served(edge.receiver)[0]

    @cached_property
    def served(self) -> tuple[tuple[int, int], ...]:
        """Shared inputs and the heads that take by them."""
        return tuple(
            (self.index[node], self.index[head])
            for node in self.nodes
            if node.kind in ("k", "v")
            for head in self.circuit.shape.served(node)
            if head in self.index
        )

    # -- lanes -------------------------------------------------------------------------

    @cached_property
    def given(self) -> dict[Node, list[Edge]]:
        """Edges by sender."""
        found: dict[Node, list[Edge]] = {}
        for edge in self.circuit.edges:
            found.setdefault(edge.sender, []).append(edge)
        return found

    @cached_property
    def lanes(self) -> dict[tuple[Node, int], int]:
        """The thing that a sender's lane is, by the rows that it passes."""
        passed = [
            (node, row)
            for node, own in self.given.items()
            for row in range(
                self.rows[node] + 1, max(self.rows[self.end(edge)] for edge in own)
            )
        ]
        return {lane: len(self.nodes) + i for i, lane in enumerate(passed)}

    @cached_property
    def full(self) -> float:
        """Size of the strongest effect; 1 where none is known."""
        return max(map(abs, self.circuit.effects.values()), default=0.0) or 1.0

    def width(self, edge: Edge) -> float:
        """Width of an edge; nan where its effect is unknown."""
        effect = self.circuit.effects.get(str(edge), math.nan)
        return FULL_PX * abs(effect) / self.full

    def room(self, edge: Edge) -> float:
        """Room that an edge takes beside others."""
        width = self.width(edge)
        return THIN_PX + (0.0 if math.isnan(width) else width)

    def passing(self, sender: Node) -> list[Edge]:
        """Edges that pass at least one row before they end."""
        above = self.rows[sender] + 1
        return [e for e in self.given[sender] if self.rows[self.end(e)] > above]

    @cached_property
    def links(self) -> list[Link]:
        """Ways between rows next to each other; lanes hold to being straight."""
        found: dict[tuple[int, int], float] = dict.fromkeys(self.served, 2.0)
        for sender, own in self.given.items():
            for edge in own:
                before, end = self.index[sender], self.index[self.end(edge)]
                for row in range(self.rows[sender] + 1, self.rows[self.end(edge)]):
                    lane = self.lanes[sender, row]
                    straight = 8.0 if before >= len(self.nodes) else 1.5
                    found[before, lane] = found.get((before, lane), 0.0) + straight
                    before = lane
                found[before, end] = found.get((before, end), 0.0) + 1.0
        return [Link(lower, upper, weight) for (lower, upper), weight in found.items()]

    # -- places ------------------------------------------------------------------------

    def size(self, node: Node) -> float:
        """Width of a node's box."""
        least = {"logits": 76.0, "k": 40.0, "v": 40.0}.get(node.kind, 54.0)
        return max(least, min(MOST_PX, 16.0 + LETTER_PX * len(str(node))))

    @cached_property
    def x(self) -> dict[int, float]:
        """Centre of each thing."""
        rows: list[list[int]] = [[] for _ in self.keys]
        widths = {}
        for node, row in self.rows.items():
            rows[row].append(self.index[node])
            widths[self.index[node]] = self.size(node)
        for (sender, row), lane in self.lanes.items():
            rows[row].append(lane)
            widths[lane] = sum(map(self.room, self.passing(sender)))
        order = ordered(rows, self.links)
        return placed(order, self.links, widths=widths, gap=APART_PX)

    @cached_property
    def between(self) -> float:
        """Free height between two rows: less in a picture of many."""
        return min(48.0, max(24.0, 380.0 / len(self.keys)))

    @cached_property
    def y(self) -> list[float]:
        """Middle of each row."""
        found, top = [], 4.0
        for tall in self.heights:
            found.append(top + tall / 2)
            top += tall + self.between
        return found

    @cached_property
    def heights(self) -> list[float]:
        """Height of the boxes of each row."""
        kind = {row: node.kind for node, row in self.rows.items()}
        return [HEIGHTS.get(kind[row], HEIGHTS["input"]) for row in range(len(kind))]

    @property
    def height(self) -> float:
        """Of the picture."""
        return self.y[-1] + self.heights[-1] / 2 + 4.0
