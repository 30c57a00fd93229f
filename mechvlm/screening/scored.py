"""Scores of nodes and edges, as values that are ranked."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan

from jaxtyping import Float
from torch import Tensor

from mechvlm.graph.nodes import Edge, Node

__all__ = ["EdgeScores", "NodeScores"]


@dataclass(frozen=True, eq=False)
class NodeScores:
    """A number for every node that gives something to the stream.

    Attributes:
        nodes: In the order of the model.
        values: The number of each.
    """

    nodes: tuple[Node, ...]
    values: Float[Tensor, " node"]

    def ranked(self) -> list[tuple[Node, float]]:
        """Nodes with their numbers, the largest in absolute value first."""
        found = zip(self.nodes, self.values.tolist(), strict=True)
        return sorted(found, key=lambda each: (-abs(each[1]), each[0]))


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """A number for every edge of a model.

    Attributes:
        senders: What gives, in the order of the model.
        receivers: What takes, likewise.
        values: The number of each edge; nan where there is none.
    """

    senders: tuple[Node, ...]
    receivers: tuple[Node, ...]
    values: Float[Tensor, "sender receiver"]

    def ranked(self) -> list[tuple[Edge, float]]:
        """Edges with their numbers, the largest in absolute value first."""
        found = [
            (Edge(sender, receiver), value)
            for sender, row in zip(self.senders, self.values.tolist(), strict=True)
            for receiver, value in zip(self.receivers, row, strict=True)
            if not isnan(value)
        ]
        return sorted(found, key=lambda each: (-abs(each[1]), each[0]))
