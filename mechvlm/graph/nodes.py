"""Nodes and edges: what gives to the stream, what takes from it, and the direct ways.

A node gives something to the stream (a head, an MLP, the embeddings of a token group)
or takes something from it (a head's query, key or value input, an MLP, the logits). An
edge is the direct way from a giver to a taker. With grouped queries a key or value
input belongs to a key-value head, which serves several heads.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from mechvlm.errors import ArgumentError, CircuitError
from mechvlm.sites import Component, Site
from mechvlm.wanted import one, whole_number

__all__ = ["LOGITS", "Edge", "Kind", "Node", "Shape"]

Kind = Literal["tokens", "head", "mlp", "q", "k", "v", "logits"]

_IN_A_LAYER: tuple[str, ...] = ("q", "k", "v", "head", "mlp")
"""The order in which a layer takes and gives; a head takes by q, k and v."""

_COMPONENTS: dict[str, Component] = {
    "tokens": "embed",
    "head": "z",
    "mlp": "mlp_out",
    "q": "q",
    "k": "k",
    "v": "v",
}
_LABEL = re.compile(r"L(\d+)\.([Hqkv])(\d+)|MLP (\d+)|(logits)|\[(.+)\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Node:
    """Something that gives to the stream or takes from it.

    Attributes:
        kind: "tokens", "head" and "mlp" give; "q", "k", "v", "mlp" and "logits" take.
        layer: 0-based layer; None for tokens and logits.
        head: Head; of "k" and "v" a key-value head.
        group: Name of a token group, of "tokens".

    Example:
        >>> Node.parse("L2.H0"), str(Node("v", 2, 0)), str(Node.tokens("object"))
        (Node('L2.H0'), 'L2.v0', '[object]')
    """

    kind: Kind
    layer: int | None = None
    head: int | None = None
    group: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no place in any model."""
        if self.kind not in get_args(Kind):
            raise CircuitError(
                f"no node is of kind {self.kind!r}; there are"
                f" {', '.join(get_args(Kind))}."
            )
        if not isinstance(self.group, str):
            raise ArgumentError(
                f"group of a node is {self.group!r}; wanted a name: Node.tokens('last')"
            )
        has = self.layer is not None, self.head is not None, bool(self.group)
        wanted = {"tokens": (0, 0, 1), "mlp": (1, 0, 0), "logits": (0, 0, 0)}
        if has != tuple(map(bool, wanted.get(self.kind, (1, 1, 0)))):
            raise CircuitError(
                f"a node of kind {self.kind!r} with layer={self.layer},"
                f" head={self.head}, group={self.group!r}: tokens have a group alone,"
                " an MLP a layer alone, the logits nothing, all others layer and head."
            )
        if self.layer is not None:
            layer = whole_number(self.layer, 0, f"layer of a {self.kind} node")
            object.__setattr__(self, "layer", layer)
        if self.head is not None:
            head = whole_number(self.head, 0, f"head of a {self.kind} node")
            object.__setattr__(self, "head", head)

    @classmethod
    def tokens(cls, group: str) -> Node:
        """The embeddings of a token group, as they enter layer 0."""
        return cls("tokens", group=group)

    @classmethod
    def parse(cls, label: str) -> Node:
        """The node of a label.

        Raises:
            CircuitError: No node is called that.
            ArgumentError: It is no string.
        """
        match = _LABEL.fullmatch(one(label, str, "label", '"L2.H0"'))
        if match is None:
            raise CircuitError(
                f"no node is called {label!r}; wanted L2.H0 (a head), L2.q0, L2.k0 or"
                " L2.v0 (its inputs), MLP 2, [object] (a token group) or logits."
            )
        layer, part, head, mlp, logits, group = match.groups()
        if logits:
            return LOGITS
        if group:
            return cls.tokens(group)
        if mlp:
            return cls("mlp", int(mlp))
        kinds: dict[str, Kind] = {"H": "head", "q": "q", "k": "k", "v": "v"}
        return cls(kinds[part], int(layer), int(head))

    def __str__(self) -> str:
        """The label, such as L2.H0, L2.v0, MLP 2, [object] or logits."""
        if self.kind == "tokens":
            return f"[{self.group}]"
        if self.kind == "mlp":
            return f"MLP {self.layer}"
        if self.kind == "logits":
            return "logits"
        return f"L{self.layer}.{'H' if self.kind == 'head' else self.kind}{self.head}"

    def __repr__(self) -> str:
        """The label, said to be one."""
        return f"Node({str(self)!r})"

    def __lt__(self, other: Node) -> bool:
        """In the order in which a model computes them, then by head and name."""
        return self.place < other.place

    @property
    def place(self) -> tuple[int, int, int, str]:
        """What nodes are sorted by."""
        if self.kind == "tokens":
            return -1, 0, 0, self.group
        if self.layer is None:
            return 10**9, 0, 0, ""
        return self.layer, _IN_A_LAYER.index(self.kind), self.head or 0, ""

    @property
    def gives(self) -> bool:
        """Whether it writes to the stream."""
        return self.kind in ("tokens", "head", "mlp")

    @property
    def takes(self) -> bool:
        """Whether it reads the stream."""
        return self.kind in ("q", "k", "v", "mlp", "logits")

    def feeds(self, other: Node) -> bool:
        """Whether an edge from here to there exists.

        Example:
            >>> head = Node("head", 1, 0)
            >>> head.feeds(Node("mlp", 1)), head.feeds(Node("q", 1, 0))
            (True, False)
        """
        return self.gives and other.takes and self.place < other.place

    @property
    def site(self) -> Site:
        """Where it is found in the network: its output, or a head's input.

        Raises:
            CircuitError: Logits are no site.
        """
        if self.kind == "logits":
            raise CircuitError("the logits are no site; they are read after the last.")
        return Site(_COMPONENTS[self.kind], self.layer, self.head)


LOGITS = Node("logits")


@dataclass(frozen=True, slots=True)
class Edge:
    """The direct way from a node that gives to one that takes.

    Attributes:
        sender: Tokens, a head or an MLP.
        receiver: A head's q, k or v input, an MLP, or the logits.

    Example:
        >>> edge = Edge.parse("[object] -> L0.v0")
        >>> edge.sender, edge.receiver
        (Node('[object]'), Node('L0.v0'))
    """

    sender: Node
    receiver: Node

    def __post_init__(self) -> None:
        """Refuse a way that does not exist."""
        if not all(isinstance(end, Node) for end in (self.sender, self.receiver)):
            raise ArgumentError(
                f"an edge from {self.sender!r} to {self.receiver!r}: wanted two nodes;"
                " Edge.parse takes a label."
            )
        if not self.sender.feeds(self.receiver):
            raise CircuitError(
                f"no edge goes from {self.sender} to {self.receiver}: tokens, heads and"
                " MLPs give to what comes after them, which are heads' inputs (q, k,"
                " v), MLPs and the logits."
            )

    @classmethod
    def parse(cls, label: str) -> Edge:
        """The edge of a label, such as "L0.H1 -> MLP 2".

        Raises:
            CircuitError: It is none.
            ArgumentError: It is no string.
        """
        given = one(label, str, "label", '"L0.H1 -> MLP 2"')
        # Only senders are token groups, whose names may hold an arrow of their own.
        sender, arrow, receiver = given.rpartition(" -> ")
        if not arrow:
            raise CircuitError(
                f"{label!r} is no edge; wanted two nodes with ' -> ' between them."
            )
        return cls(Node.parse(sender), Node.parse(receiver))

    def __str__(self) -> str:
        """The label."""
        return f"{self.sender} -> {self.receiver}"

    def __repr__(self) -> str:
        """The label, said to be one."""
        return f"Edge({str(self)!r})"

    def __lt__(self, other: Edge) -> bool:
        """By sender, then by receiver, each in the order of the model."""
        return self.place < other.place

    @property
    def place(self) -> tuple[tuple[int, int, int, str], tuple[int, int, int, str]]:
        """What edges are sorted by."""
        return self.sender.place, self.receiver.place


@runtime_checkable
class Sized(Protocol):
    """A model's numbers."""

    @property
    def n_layers(self) -> int:
        """Layers."""
        ...

    @property
    def n_heads(self) -> int:
        """Heads of a layer."""
        ...

    @property
    def n_key_value_heads(self) -> int:
        """Key-value heads of a layer."""
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model decides which nodes and edges there are.

    Attributes:
        n_layers: Layers.
        n_heads: Heads of a layer.
        n_key_value_heads: Key-value heads of a layer, each of which serves as many
            heads as any other.
    """

    n_layers: int
    n_heads: int
    n_key_value_heads: int

    def __post_init__(self) -> None:
        """Refuse the numbers of no model."""
        for name, given in (
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_key_value_heads", self.n_key_value_heads),
        ):
            object.__setattr__(self, name, whole_number(given, 1, name))
        if self.n_heads % self.n_key_value_heads:
            raise CircuitError(
                f"{self.n_heads} heads cannot share {self.n_key_value_heads} key-value"
                " heads evenly; wanted a multiple. Shape.of(vlm.cfg) takes a model's."
            )

    @classmethod
    def of(cls, cfg: Sized) -> Shape:
        """Of a model's numbers, which are `vlm.cfg`."""
        return cls(cfg.n_layers, cfg.n_heads, cfg.n_key_value_heads)

    @property
    def each(self) -> int:
        """Heads that a key-value head serves."""
        return self.n_heads // self.n_key_value_heads

    @property
    def heads(self) -> tuple[Node, ...]:
        """Every head."""
        layers, heads = range(self.n_layers), range(self.n_heads)
        return tuple(Node("head", layer, head) for layer in layers for head in heads)

    @property
    def mlps(self) -> tuple[Node, ...]:
        """Every MLP."""
        return tuple(Node("mlp", layer) for layer in range(self.n_layers))

    def inputs(self, head: Node) -> tuple[Node, Node, Node]:
        """The query, key and value input of a head.

        Raises:
            CircuitError: It is no head.
        """
        if head.kind != "head":
            raise CircuitError(f"{head} is no head, and has no q, k and v input.")
        layer, number = head.layer, head.head or 0
        own = number // self.each
        return Node("q", layer, number), Node("k", layer, own), Node("v", layer, own)

    def served(self, taker: Node) -> tuple[Node, ...]:
        """The heads that an input belongs to; an MLP or the logits are their own."""
        if taker.kind not in ("q", "k", "v"):
            return (taker,)
        number = taker.head or 0
        each = self.each if taker.kind in ("k", "v") else 1
        heads = range(number * each, (number + 1) * each)
        return tuple(Node("head", taker.layer, head) for head in heads)

    def check(self, node: Node) -> None:
        """Refuse a node that this model does not have.

        Raises:
            CircuitError: Its layer or head is out of range.
        """
        own = node.kind in ("k", "v")
        n_heads = self.n_key_value_heads if own else self.n_heads
        if (node.layer or 0) >= self.n_layers or (node.head or 0) >= n_heads:
            raise CircuitError(
                f"{node}: the model has {self.n_layers} layers with {self.n_heads}"
                f" heads and {self.n_key_value_heads} key-value heads each."
            )

    def edges(self, nodes: Iterable[Node]) -> Iterator[Edge]:
        """Every edge among some heads, MLPs and token groups, and to the logits."""
        givers = sorted({node for node in nodes if node.gives}, key=_by_place)
        takers = sorted(self.takers(givers), key=_by_place)
        places = [taker.place for taker in takers]
        for sender in givers:
            after = bisect_right(places, sender.place)
            yield from (Edge(sender, taker) for taker in takers[after:])

    def takers(self, nodes: Iterable[Node]) -> frozenset[Node]:
        """What some heads and MLPs take by, and the logits."""
        found = {LOGITS}
        for node in nodes:
            if node.kind == "head":
                found.update(self.inputs(node))
            elif node.takes:
                found.add(node)
        return frozenset(found)

    def n_edges(self, groups: int) -> int:
        """Number of the edges that a model has, from some token groups on.

        Args:
            groups: Number of token groups, 0 or more.

        Raises:
            ArgumentError: It is no such number.

        Example:
            >>> shape = Shape(2, 2, 2)
            >>> shape.n_edges(1), sum(1 for _ in shape.edges([*shape.heads]))
            (46, 16)
        """
        tokens = whole_number(groups, 0, "groups")
        takers = self.n_heads + 2 * self.n_key_value_heads + 1
        later = self.n_layers * (self.n_layers - 1) // 2
        from_tokens = self.n_layers * takers + 1
        from_a_head_each = later * takers + 2 * self.n_layers
        from_mlps = later * takers + self.n_layers
        return tokens * from_tokens + self.n_heads * from_a_head_each + from_mlps


def _by_place(node: Node) -> tuple[int, int, int, str]:
    return node.place
