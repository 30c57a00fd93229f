"""Scores of nodes and edges, as values that are ranked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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

    def ranked(self, n: int | None = None) -> list[tuple[Edge, float]]:
        """Edges with their numbers, the largest in absolute value first.

        Args:
            n: Most edges; None lists all, which in a large model are millions.
        """
        there = ~self.values.isnan()
        sizes = self.values.abs().where(there, -torch.inf).flatten()
        most = int(there.sum()) if n is None else min(n, int(there.sum()))
        # Stable, so that of equal numbers the earlier edge comes first.
        order = sizes.argsort(descending=True, stable=True)[:most].tolist()
        width = len(self.receivers)
        return [
            (
                Edge(self.senders[at // width], self.receivers[at % width]),
                float(self.values[at // width, at % width]),
            )
            for at in order
        ]
