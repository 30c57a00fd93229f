"""Circuits as values: the part of a model along whose edges information flows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from mechvlm.axes import replacing
from mechvlm.errors import CircuitError
from mechvlm.graph.nodes import LOGITS, Edge, Kind, Node, Shape
from mechvlm.wanted import mapping_to, one, several, words_of

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
        effects: What edges were found to do alone, by their labels and in their order:
            the share of the gap between clean and ablated that is lost without the
            edge, 0 nothing, 1 all of it, below 0 for an edge that holds the answer
            back. Of a circuit found `within` another, the share that the other one
            loses without the edge, with all else ablated already. What is told of
            edges that are not in the circuit is left out; may be empty.
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
        given = several(self.edges, Edge, "edges", "Circuit.parse takes their labels")
        one(self.shape, Shape, "shape", "mv.Shape.of(vlm.cfg)")
        one(self.model, str, "model", "vlm.cfg.model_name")
        own = set(given)
        place = {node: node.place for edge in own for node in _ends(edge)}
        for node in place:
            self.shape.check(node)
        ordered = sorted(own, key=lambda e: (place[e.sender], place[e.receiver]))
        object.__setattr__(self, "edges", tuple(ordered))
        object.__setattr__(self, "effects", self._own(self.effects))
        about = one(self.about, Mapping, "about", '{"metric": "log-odds"}')
        object.__setattr__(self, "about", dict(about))

    def _own(self, effects: object) -> dict[str, float]:
        """What the edges of the circuit do, of what is told of any edges."""
        told = mapping_to(effects, Real, "effects", '{"L0.H1 -> logits": 0.25}')
        if not told:
            return {}
        labels = list(map(str, self.edges))
        for label in told.keys() - set(labels):
            Edge.parse(label)
        return {label: float(told[label]) for label in labels if label in told}

    def __len__(self) -> int:
        """Number of edges."""
        return len(self.edges)

    def __contains__(self, edge: Edge | str) -> bool:
        """Whether an edge, or the edge of a label, is in it."""
        given = one(edge, (Edge, str), "edge", '"L0.H1 -> logits" in circuit')
        return (Edge.parse(given) if isinstance(given, str) else given) in self._known

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
        for taker in self._takers:
            if taker.kind not in ("k", "v") or self.shape.each == 1:
                found.update(self.shape.served(taker))
        return tuple(sorted(found, key=lambda node: node.place))

    @cached_property
    def _takers(self) -> frozenset[Node]:
        return frozenset(edge.receiver for edge in self.edges)

    def of_kind(self, kind: Kind) -> tuple[Node, ...]:
        """Its nodes of a kind: "tokens", "head", "mlp" or "logits".

        Raises:
            CircuitError: No node of a circuit is of that kind.
        """
        if kind not in get_args(Kind) or kind in ("q", "k", "v"):
            raise CircuitError(
                f"no node of a circuit is of kind {kind!r}; wanted 'tokens', 'head',"
                " 'mlp' or 'logits'. Inputs of heads are the receivers of its edges."
            )
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
            ArgumentError: They are one string, or hold what is none.
        """
        given = several(labels, str, "labels", '["[object] -> L0.v0"]')
        return cls(tuple(map(Edge.parse, given)), shape, model)

    @classmethod
    def among(
        cls,
        nodes: Iterable[Node],
        shape: Shape,
        *,
        model: str = "",
        about: Mapping[str, object] | None = None,
    ) -> Circuit:
        """The circuit of every edge among some nodes, and from them to the logits.

        Raises:
            CircuitError: One is an input of a head, or is not in this model.
            ArgumentError: One is no node.
        """
        given = several(nodes, Node, "nodes", '[Node.parse("L0.H1")]')
        if inputs := [node for node in given if not node.gives and node != LOGITS]:
            raise CircuitError(
                f"{inputs} take for a head, and give nothing; name the heads instead."
            )
        edges = tuple(one(shape, Shape, "shape", "mv.Shape.of(vlm.cfg)").edges(given))
        return cls(edges, shape, model, about={} if about is None else about)

    @classmethod
    def whole(cls, shape: Shape, groups: Iterable[str], *, model: str = "") -> Circuit:
        """The circuit of every edge that a model has, from some token groups on.

        Args:
            shape: Numbers of the model's layers and heads.
            groups: Names of the token groups; of a pair they are `pair.groups`.
            model: Name of the model.

        Raises:
            ArgumentError: The groups are one string, or hold what is none.
        """
        names = list(groups) if isinstance(groups, Mapping) else groups
        tokens = map(Node.tokens, words_of(names, "groups"))
        return cls.among((*tokens, *shape.heads, *shape.mlps), shape, model=model)

    def without(self, part: Node | Edge) -> Circuit:
        """The circuit with an edge, or all edges at a node, taken away.

        Without a head go the edges to its inputs too, but not those to a key or value
        input by which another head of the circuit takes. Without an input of a head go
        all edges to it, whatever heads it serves.

        Raises:
            CircuitError: The part is not in the circuit.
            ArgumentError: It is no node and no edge.
        """
        one(part, (Node, Edge), "part", 'Node.parse("L1.H2") or an Edge')
        into = self._taken_by(part) if isinstance(part, Node) else ()
        kept = tuple(
            edge
            for edge in self.edges
            if part not in (edge, edge.sender) and edge.receiver not in into
        )
        if len(kept) == len(self.edges):
            raise CircuitError(
                f"{part} is not in the circuit, so that nothing would go without it."
            )
        return replace(self, edges=kept)

    def _taken_by(self, node: Node) -> frozenset[Node]:
        """The inputs by which a node takes, and no other of the circuit."""
        if node.kind != "head":
            return frozenset({node})
        nodes, shape = set(self.nodes), self.shape
        inputs = shape.inputs(node)
        return frozenset(x for x in inputs if nodes & {*shape.served(x)} == {node})

    def connected(self) -> Circuit:
        """The circuit without edges that lie on no way from tokens to the logits."""
        ends = {taker: self.shape.served(taker) for taker in self._takers}
        onward: dict[Node, set[Node]] = {}
        backward: dict[Node, set[Node]] = {}
        for edge in self.edges:
            onward.setdefault(edge.sender, set()).update(ends[edge.receiver])
            for end in ends[edge.receiver]:
                backward.setdefault(end, set()).add(edge.sender)
        used = _reached(self.of_kind("tokens"), onward) & _reached([LOGITS], backward)
        alive = {taker for taker, heads in ends.items() if not used.isdisjoint(heads)}
        kept = (e for e in self.edges if e.sender in used and e.receiver in alive)
        return replace(self, edges=tuple(kept))

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

        Nodes carry their kind, and layer, head and group where they have one; inputs of
        heads are nodes of their own, joined to the heads that they serve by edges with
        kind "input". The other edges have kind "edge", and their effect where it is
        known. The graph carries `model` and what `about` says, lists of it as JSON, so
        that it can be written to files of any kind.
        """
        import networkx as nx

        graph = nx.DiGraph()
        graph.graph.update(_plain({**self.about, "model": self.model}))
        for node in sorted({*self.nodes, *self._takers}):
            given = {
                "layer": node.layer,
                "head": node.head,
                "group": node.group or None,
            }
            graph.add_node(str(node), kind=node.kind, **_plain(given))
        for edge in self.edges:
            effect = {"effect": self.effects.get(str(edge))}
            ends = str(edge.sender), str(edge.receiver)
            graph.add_edge(*ends, kind="edge", **_plain(effect))
        for taker in sorted(self._takers):
            for head in self.shape.served(taker):
                if head != taker and head in self.nodes:
                    graph.add_edge(str(taker), str(head), kind="input")
        return graph


_FORMAT = "mechvlm circuit"


def _ends(edge: Edge) -> tuple[Node, Node]:
    return edge.sender, edge.receiver


def _reached(start: Iterable[Node], onward: Mapping[Node, set[Node]]) -> set[Node]:
    """The nodes to which any number of steps lead."""
    found = set(start)
    waiting = list(found)
    while waiting:
        new = onward.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def _plain(given: Mapping[str, object]) -> dict[str, str | int | float]:
    """What is there, with all but strings and numbers written as JSON."""
    return {
        name: value
        if isinstance(value, (str, int, float))
        else json.dumps(value, default=str)
        for name, value in given.items()
        if value is not None
    }
