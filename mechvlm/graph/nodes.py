"""Nodes and edges: what gives to the stream, what takes from it, and the direct ways.

A node gives something to the stream (a head, an MLP, the embeddings of a token group)
or takes something from it (a head's query, key or value input, an MLP, the logits). An
edge is the direct way from a giver to a taker. With grouped queries a key or value
input belongs to a key-value head, which serves several heads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from mechvlm.errors import CircuitError
from mechvlm.sites import Component, Site

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
_LABEL = re.compile(r"L(\d+)\.([Hqkv])(\d+)|MLP (\d+)|(logits)|\[(.+)\]")


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
        has = self.layer is not None, self.head is not None, bool(self.group)
        wanted = {"tokens": (0, 0, 1), "mlp": (1, 0, 0), "logits": (0, 0, 0)}
        if has != tuple(map(bool, wanted.get(self.kind, (1, 1, 0)))):
            raise CircuitError(
                f"a node of kind {self.kind!r} with layer={self.layer},"
                f" head={self.head}, group={self.group!r}: tokens have a group alone,"
                " an MLP a layer alone, the logits nothing, all others layer and head."
            )
        if min(self.layer or 0, self.head or 0) < 0:
            raise CircuitError(f"layers and heads count from 0, not {self.layer}.")

    @classmethod
    def tokens(cls, group: str) -> Node:
        """The embeddings of a token group, as they enter layer 0."""
        return cls("tokens", group=group)

    @classmethod
    def parse(cls, label: str) -> Node:
        """The node of a label.

        Raises:
            CircuitError: No node is called that.
        """
        match = _LABEL.fullmatch(label)
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
        if not (self.gives and other.takes):
            return False
        if self.kind == "tokens" or other.kind == "logits":
            return True
        same = self.layer == other.layer
        if same:
            return self.kind == "head" and other.kind == "mlp"
        return self.place < other.place

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
        """
        sender, arrow, receiver = label.partition(" -> ")
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
        n_key_value_heads: Key-value heads of a layer.
    """

    n_layers: int
    n_heads: int
    n_key_value_heads: int

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
        """The query, key and value input of a head."""
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
        takers = {LOGITS, *(node for node in givers if node.takes)}
        for head in (node for node in givers if node.kind == "head"):
            takers.update(self.inputs(head))
        ordered = sorted(takers, key=_by_place)
        for sender in givers:
            yield from (Edge(sender, taker) for taker in ordered if sender.feeds(taker))


def _by_place(node: Node) -> tuple[int, int, int, str]:
    return node.place
