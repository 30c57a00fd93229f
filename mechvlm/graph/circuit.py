"""Circuits as values: the part of a model along whose edges information flows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mechvlm.axes import replacing
from mechvlm.errors import CircuitError
from mechvlm.graph.nodes import LOGITS, Edge, Kind, Node, Shape

if TYPE_CHECKING:
    import networkx

__all__ = ["Circuit"]


@dataclass(frozen=True)
class Circuit:
    """A part of a model: the edges along which information is said to flow.

    Attributes:
        edges: Kept sorted, each once.
        shape: Numbers of the model's layers and heads.
        model: Name of the model.
        effects: What each edge was found to do alone, by its label: the share of the
            gap between clean and ablated that is lost without it; may be empty.
        about: What it was found by (metric, ablation, threshold, ...): strings,
            numbers, and lists of them.

    Example:
        >>> labels = "[object] -> L0.v0", "L0.H0 -> logits"
        >>> circuit = Circuit.parse(labels, Shape(2, 2, 2))
        >>> [str(node) for node in circuit.nodes], circuit.share_of_heads
        (['[object]', 'L0.H0', 'logits'], 0.25)
    """

    edges: tuple[Edge, ...]
    shape: Shape
    model: str = ""
    effects: Mapping[str, float] = field(default_factory=dict, compare=False)
    about: Mapping[str, object] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Sort the edges, and refuse those that this model does not have."""
        for edge in self.edges:
            self.shape.check(edge.sender)
            self.shape.check(edge.receiver)
        ordered = sorted(set(self.edges), key=lambda edge: edge.place)
        object.__setattr__(self, "edges", tuple(ordered))

    def __len__(self) -> int:
        """Number of edges."""
        return len(self.edges)

    def __contains__(self, edge: Edge | str) -> bool:
        """Whether an edge, or the edge of a label, is in it."""
        return (Edge.parse(edge) if isinstance(edge, str) else edge) in self._known

    @cached_property
    def _known(self) -> frozenset[Edge]:
        return frozenset(self.edges)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Token groups, heads, MLPs and logits that its edges join, in order.

        A key or value input of a key-value head brings in no head by itself: of those
        that it serves, the ones are in the circuit that give to something or have a
        query of their own.
        """
        found = {edge.sender for edge in self.edges}
        for edge in self.edges:
            if edge.receiver.kind not in ("k", "v") or self.shape.each == 1:
                found.update(self.shape.served(edge.receiver))
        return tuple(sorted(found, key=lambda node: node.place))

    def of_kind(self, kind: Kind) -> tuple[Node, ...]:
        """Its nodes of a kind."""
        return tuple(node for node in self.nodes if node.kind == kind)

    @property
    def share_of_heads(self) -> float:
        """Share of the model's heads that it has, a fraction."""
        return len(self.of_kind("head")) / len(self.shape.heads)

    @classmethod
    def parse(cls, labels: Iterable[str], shape: Shape, *, model: str = "") -> Circuit:
        """The circuit of some edges, given by their labels.

        Raises:
            CircuitError: A label is no edge, or no edge of this model.
        """
        return cls(tuple(map(Edge.parse, labels)), shape, model)

    @classmethod
    def among(
        cls,
        nodes: Iterable[Node],
        shape: Shape,
        *,
        model: str = "",
        about: Mapping[str, object] | None = None,
    ) -> Circuit:
        """The circuit of every edge among some nodes, and from them to the logits."""
        return cls(tuple(shape.edges(nodes)), shape, model, about=about or {})

    @classmethod
    def whole(cls, shape: Shape, groups: Iterable[str], *, model: str = "") -> Circuit:
        """The circuit of every edge that a model has, from some token groups on."""
        tokens = map(Node.tokens, groups)
        return cls.among((*tokens, *shape.heads, *shape.mlps), shape, model=model)

    def without(self, part: Node | Edge) -> Circuit:
        """The circuit with an edge, or all edges at a node, taken away."""
        kept = [edge for edge in self.edges if not self._touches(edge, part)]
        return replace(self, edges=tuple(kept))

    def _touches(self, edge: Edge, part: Node | Edge) -> bool:
        if isinstance(part, Edge):
            return edge == part
        ends = {edge.sender, edge.receiver, *self.shape.served(edge.receiver)}
        return part in ends if self._alone(edge.receiver) else edge.sender == part

    def _alone(self, taker: Node) -> bool:
        """Whether an input belongs to at most one head of the circuit."""
        served = set(self.shape.served(taker)) & set(self.nodes)
        return len(served) <= 1

    def connected(self) -> Circuit:
        """The circuit without edges that lie on no way from tokens to the logits."""
        ahead = self._reached({n for n in self.nodes if n.kind == "tokens"}, back=False)
        behind = self._reached({LOGITS}, back=True)
        kept = [
            edge
            for edge in self.edges
            if edge.sender in ahead & behind
            and any(node in ahead & behind for node in self.shape.served(edge.receiver))
        ]
        return replace(self, edges=tuple(kept))

    def _reached(self, start: set[Node], *, back: bool) -> set[Node]:
        """Nodes that are joined to some, along the edges or against them."""
        found = set(start)
        edges = self.edges[::-1] if back else self.edges
        grown = True
        while grown:
            size = len(found)
            for edge in edges:
                ends = set(self.shape.served(edge.receiver)) & set(self.nodes)
                if back and ends & found:
                    found.add(edge.sender)
                elif not back and edge.sender in found:
                    found |= ends
            grown = len(found) > size
        return found

    # -- on disk and elsewhere -----------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, wholly or not at all.

        Raises:
            CircuitError: `about` holds what JSON cannot, or the file cannot be written.
        """
        path = Path(path)
        kept = {
            "format": _FORMAT,
            "version": 1,
            "model": self.model,
            "layers": self.shape.n_layers,
            "heads": self.shape.n_heads,
            "key_value_heads": self.shape.n_key_value_heads,
            "about": dict(self.about),
            "edges": [str(edge) for edge in self.edges],
            "effects": dict(self.effects),
        }
        try:
            text = json.dumps(kept, indent=1)
            with replacing(path) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
        except (TypeError, ValueError, OSError) as cause:
            raise CircuitError(
                f"cannot write the circuit to {path}: {cause}"
            ) from cause
        return path

    @classmethod
    def open(cls, path: str | Path) -> Circuit:
        """Read what `save` wrote.

        Raises:
            CircuitError: The file is missing, or holds no circuit.
        """
        path = Path(path)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["format"] != _FORMAT or kept["version"] != 1:
                raise CircuitError(f"{path} is no circuit of version 1.")
            numbers = (kept[each] for each in ("layers", "heads", "key_value_heads"))
            shape = Shape(*map(int, numbers))
            edges = tuple(map(Edge.parse, kept["edges"]))
            return cls(edges, shape, kept["model"], kept["effects"], kept["about"])
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise CircuitError(
                f"cannot read a circuit from {path}: {cause!r}. Circuit.save writes"
                " such files."
            ) from cause

    def to_networkx(self) -> networkx.DiGraph:
        """The circuit as a graph of labels: heads with their inputs before them.

        Nodes carry kind, layer, head and group; inputs of heads are nodes of their own,
        joined to the heads that they serve by edges with kind "input".
        """
        import networkx as nx

        graph = nx.DiGraph(model=self.model, **self.about)
        for node in {*self.nodes, *(edge.receiver for edge in self.edges)}:
            given = {"kind": node.kind, "layer": node.layer, "head": node.head}
            graph.add_node(str(node), **given, group=node.group)
        for edge in self.edges:
            effect = self.effects.get(str(edge))
            ends = str(edge.sender), str(edge.receiver)
            graph.add_edge(*ends, kind="edge", effect=effect)
            for head in set(self.shape.served(edge.receiver)) & set(self.nodes):
                if head != edge.receiver:
                    graph.add_edge(str(edge.receiver), str(head), kind="input")
        return graph


_FORMAT = "mechvlm circuit"
