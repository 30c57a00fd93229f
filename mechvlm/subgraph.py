"""Running a part of a model: what a circuit answers when all else is ablated.

Every head's query, key and value input, every MLP and the logits get a stream of their
own: what the senders on their edges give in this very run, and what everything else
gives when it is ablated. So a run of a circuit is no run of the model with some outputs
replaced, but a run of another, smaller model, made of the same modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from mechvlm.cone import Step
from mechvlm.errors import CircuitError, EngineError
from mechvlm.graph import LOGITS, Circuit, Edge, Node, Shape
from mechvlm.interventions import Patch
from mechvlm.layout import Positions
from mechvlm.metrics import Metric
from mechvlm.models.attention import wide
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.lowering import RunLike, Sources
from mechvlm.models.rowwise.base import Base, read_out
from mechvlm.models.rowwise.batches import Item
from mechvlm.models.rowwise.packing import most_rows, packed
from mechvlm.models.rowwise.rows import RowPass
from mechvlm.models.rowwise.sending import written
from mechvlm.record import Run
from mechvlm.sites import Site

__all__ = ["Ground", "Wiring", "answers"]


@dataclass(frozen=True, eq=False)
class Wiring:
    """Who gives its own value to whom; all else gives what it gives when ablated.

    Attributes:
        senders: Receiver -> nodes that give it their own values; a receiver that is
            left out gets ablated values alone.
    """

    senders: Mapping[Node, frozenset[Node]]

    @classmethod
    def of(cls, circuit: Circuit) -> Wiring:
        """A circuit's edges and no others."""
        return cls.along(circuit.edges)

    @classmethod
    def along(cls, edges: Iterable[Edge]) -> Wiring:
        """Some edges and no others."""
        found: dict[Node, set[Node]] = {}
        for edge in edges:
            found.setdefault(edge.receiver, set()).add(edge.sender)
        return cls({node: frozenset(senders) for node, senders in found.items()})

    @classmethod
    def whole(cls, shape: Shape, groups: Iterable[str]) -> Wiring:
        """Every edge of a model; receivers that get all alike share one set."""
        before = frozenset(map(Node.tokens, groups))
        found: dict[Node, frozenset[Node]] = {}
        for layer in range(shape.n_layers):
            heads = [Node("head", layer, head) for head in range(shape.n_heads)]
            found |= dict.fromkeys((x for h in heads for x in shape.inputs(h)), before)
            mlp = Node("mlp", layer)
            found[mlp] = before | frozenset(heads)
            before = found[mlp] | {mlp}
        return cls(found | {LOGITS: before})

    @classmethod
    def around(cls, circuit: Circuit, groups: Iterable[str]) -> Wiring:
        """All of the model but a circuit's edges.

        Args:
            circuit: The circuit.
            groups: Names of all token groups.
        """
        whole, own = cls.whole(circuit.shape, groups), cls.of(circuit)
        less = {node: whole.to(node) - gone for node, gone in own.senders.items()}
        return cls({**whole.senders, **less})

    def less_edge(self, edge: Edge) -> Wiring:
        """The same without one edge."""
        kept = self.to(edge.receiver) - {edge.sender}
        return Wiring({**self.senders, edge.receiver: kept})

    def less(self, nodes: Iterable[Node]) -> Wiring:
        """The same without what some nodes give."""
        gone = frozenset(nodes)
        kept = {senders: senders - gone for senders in set(self.senders.values())}
        return Wiring({node: kept[each] for node, each in self.senders.items()})

    @cached_property
    def givers(self) -> frozenset[Node]:
        """Nodes whose own value anything gets."""
        return frozenset(node for senders in self.senders.values() for node in senders)

    @cached_property
    def heads(self) -> Mapping[int, list[Node]]:
        """The heads that have a value of their own, by layer; no others are named."""
        found: dict[int, list[Node]] = {}
        for node in self.givers:
            if node.kind == "head":
                found.setdefault(node.layer or 0, []).append(node)
        return found

    def to(self, node: Node) -> frozenset[Node]:
        """What gives its own value to a node."""
        return self.senders.get(node, frozenset())


@dataclass(frozen=True, eq=False)
class Ground:
    """What circuits of one prompt are run on.

    Attributes:
        base: The prompt's base run.
        ablated: What everything gives when ablated, at the embeddings, z and mlp_out.
        groups: Token groups by name.
        stream: The stream that enters each layer when all is ablated, and the one that
            leaves the last: sums of what `ablated` gives, in fp32 or wider.
        by_heads: What each layer's heads add to that stream, likewise.
    """

    base: Base
    ablated: RunLike
    groups: Mapping[str, Positions]
    stream: tuple[Float[Tensor, "position d_model"], ...] = field(repr=False)
    by_heads: tuple[Float[Tensor, "position d_model"], ...] = field(repr=False)

    @classmethod
    def of(
        cls,
        vlm: HookedVLM,
        run: Run,
        ablated: RunLike,
        groups: Mapping[str, Positions],
    ) -> Ground:
        """Add up what everything gives when it is ablated.

        Raises:
            EngineError: The run is no base run.
        """
        if run.base is None:
            raise EngineError(
                "circuits are run on a base run; make it with base_run(vlm, prompt)."
            )
        stream, by_heads = [wide(ablated[Site("embed")])], []
        for number, block in enumerate(vlm.tapped.blocks):
            z = ablated[Site("z", number)].flatten(1)
            heads = wide(written(block.layer, z))
            added = heads + wide(ablated[Site("mlp_out", number)]).to(heads.device)
            stream.append(stream[-1] + added.to(stream[-1].device))
            by_heads.append(heads)
        return cls(run.base, ablated, groups, tuple(stream), tuple(by_heads))


@torch.no_grad()
def answers(
    vlm: HookedVLM,
    ground: Ground,
    wirings: Sequence[Wiring],
    metric: Metric,
    *,
    batch_tokens: int | None = None,
) -> Float[Tensor, " wiring"]:
    """What a metric is in each of several parts of a model, run together.

    Args:
        vlm: The model.
        ground: The prompt, and what ablated parts give.
        wirings: The parts.
        metric: What is read at the last position.
        batch_tokens: Most rows to compute at once; None takes what fits well into free
            memory.

    Raises:
        CircuitError: A token group is none of the ground's.
    """
    for wiring in wirings:
        unknown = {n.group for n in wiring.givers} - {"", *ground.groups}
        if unknown:
            raise CircuitError(
                f"the circuit has tokens of {sorted(unknown)}, and this prompt has"
                f" groups {sorted(ground.groups)}. Was it found on other groups?"
            )
    last = [ground.base.prompt.layout.last]
    run = _Run(vlm, ground, batch_tokens)
    values = [_Values(vlm, ground, wiring) for wiring in wirings]
    for number in range(vlm.cfg.n_layers):
        run.attend(number, values)
        run.think(number, values)
    rows = torch.cat([each.entering(LOGITS, vlm.cfg.n_layers)[last] for each in values])
    return metric.of_columns(read_out(vlm, rows, metric.tokens))


class _Values:
    """What the nodes of one wiring give, as far as it is known."""

    def __init__(self, vlm: HookedVLM, ground: Ground, wiring: Wiring) -> None:
        """Embeddings are known from the start."""
        self.wiring, self._vlm, self._ground = wiring, vlm, ground
        own = wide(ground.base.stream[0]) - ground.stream[0]
        self._more: dict[Node, Tensor] = {}
        for node in wiring.givers:
            if node.kind == "tokens":
                kept = torch.zeros_like(own)
                rows = list(ground.groups[node.group])
                kept[rows] = own[rows]
                self._more[node] = kept
        self._z: dict[int, Tensor] = {}
        self._written: dict[frozenset[Node], Tensor] = {}

    def entering(
        self, node: Node, layer: int, *, behind_heads: bool = False
    ) -> Float[Tensor, "position d_model"]:
        """The stream that a receiver gets.

        Args:
            node: The receiver.
            layer: Its layer; of the logits, the number of layers.
            behind_heads: Whether it stands behind the heads of its layer, as MLPs do.
        """
        ground = self._ground
        total = ground.stream[layer]
        if behind_heads:
            total = total + ground.by_heads[layer].to(total.device)
        for added in self._terms(self.wiring.to(node)):
            total = total + added.to(total.device)
        # Summed in fp32 and rounded once: many 16-bit sums would drown small effects.
        return total.to(ground.base.stream[0].dtype)

    def _terms(self, senders: frozenset[Node]) -> Iterator[Tensor]:
        """What senders give beyond their ablated values; heads of a layer together."""
        heads: dict[int, set[Node]] = {}
        for node in sorted(senders, key=lambda node: node.place):
            if node.kind != "head":
                yield self._more[node]
            else:
                heads.setdefault(node.layer or 0, set()).add(node)
        for layer, several in heads.items():
            yield self._by_heads(layer, frozenset(several))

    def _by_heads(self, number: int, heads: frozenset[Node]) -> Tensor:
        if heads not in self._written:
            mixed = self._ground.ablated[Site("z", number)].clone()
            for node in heads:
                mixed[:, node.head] = self._z[number][:, node.head]
            layer = self._vlm.tapped.blocks[number].layer
            new = wide(written(layer, mixed.flatten(1)))
            self._written[heads] = new - self._ground.by_heads[number]
        return self._written[heads]

    def keep_heads(self, number: int, z: Float[Tensor, "position head d_head"]) -> None:
        """What the heads of a layer give."""
        self._z[number] = z

    def keep_mlp(self, node: Node, out: Float[Tensor, "position d_model"]) -> None:
        """What an MLP gives."""
        ablated = self._ground.ablated[node.site].to(out.device)
        self._more[node] = wide(out) - wide(ablated)


class _Run:
    """Layers called on the streams of many receivers at once."""

    def __init__(
        self, vlm: HookedVLM, ground: Ground, batch_tokens: int | None
    ) -> None:
        """Take what all share."""
        self._vlm, self._base = vlm, ground.base
        self._shape = Shape.of(vlm.cfg)
        self._rows = range(ground.base.prompt.layout.n)
        self._every = Positions.of(self._rows)
        row_bytes = 64 * max(vlm.cfg.d_mlp, vlm.cfg.d_model)
        self._most = most_rows(vlm.cfg, row_bytes, batch_tokens)

    def attend(self, number: int, values: Sequence[_Values]) -> None:
        """What the heads of a layer give, from what their inputs get."""
        busy = [each for each in values if number in each.wiring.heads]
        inputs = [self._inputs(number, each) for each in busy]
        streams: list[Tensor] = []
        takes: list[dict[Node, int]] = []
        for each, wanted in zip(busy, inputs, strict=True):
            places: dict[frozenset[Node], int] = {}
            take = {}
            for node in wanted:
                senders = each.wiring.to(node)
                if senders not in places:
                    places[senders] = len(streams)
                    streams.append(each.entering(node, number))
                take[node] = places[senders]
            takes.append(take)
        projected = self._projected(number, streams)
        joined = [self._joined(number, take, projected) for take in takes]
        for each, z in zip(busy, self._attended(number, joined), strict=True):
            each.keep_heads(number, z)

    def think(self, number: int, values: Sequence[_Values]) -> None:
        """What the MLP of a layer gives, from what it gets."""
        node = Node("mlp", number)
        busy = [each for each in values if node in each.wiring.givers]
        site, heard = Site("resid_mid", number), Site("mlp_out", number)
        step = Step(number, self._rows, self._rows, False, len(self._rows))
        runs = [{site: each.entering(node, number, behind_heads=True)} for each in busy]
        found = self._heard(runs, step, (heard,))
        for each, out in zip(busy, found, strict=True):
            each.keep_mlp(node, out[heard])

    def _inputs(self, number: int, each: _Values) -> list[Node]:
        """The inputs of a layer's heads that are in a wiring."""
        heads = each.wiring.heads[number]
        return sorted({node for head in heads for node in self._shape.inputs(head)})

    def _projected(
        self, number: int, streams: Sequence[Tensor]
    ) -> list[dict[Site, Tensor]]:
        """Queries, keys and values that a layer makes of each stream."""
        site = Site("resid_pre", number)
        n = len(self._rows)
        step = Step(number, self._rows, range(0), True, 0, n)
        hears = Site("q", number), Site("k", number), Site("v", number)
        return self._heard([{site: stream} for stream in streams], step, hears)

    def _joined(
        self, number: int, take: Mapping[Node, int], of: Sequence[Mapping[Site, Tensor]]
    ) -> dict[Site, Tensor]:
        """Queries, keys and values, each head's own; of heads not wired, anyone's."""
        joined: dict[Site, Tensor] = {}
        for node, place in take.items():
            site = Site(node.site.component, number)
            if site not in joined:
                joined[site] = of[place][site].clone()
            joined[site][:, node.head] = of[place][site][:, node.head]
        return joined

    def _attended(
        self, number: int, joined: Sequence[dict[Site, Tensor]]
    ) -> list[Tensor]:
        """What heads make of their queries, keys and values."""
        site = Site("z", number)
        step = Step(number, self._rows, self._rows, True, len(self._rows))
        return [each[site] for each in self._heard(joined, step, (site,))]

    def _heard(
        self,
        given: Sequence[Mapping[Site, Tensor]],
        step: Step,
        hears: tuple[Site, ...],
    ) -> list[dict[Site, Tensor]]:
        """What is heard in one layer where some activations of it are given."""
        runs: dict[str, RunLike] = {str(i): each for i, each in enumerate(given)}
        items = [
            Item(
                tuple(Patch(site, self._every, str(i)) for site in each),
                (step,),
                hears,
            )
            for i, each in enumerate(given)
        ]
        found: list[dict[Site, Tensor]] = [{} for _ in items]
        for part in packed(items, self._most):
            members = [items[i] for i in part.members]
            made = RowPass(self._vlm, self._base, members, Sources(runs, {}))
            made.run()
            for place, i in enumerate(part.members):
                heard = made.script.heard
                found[i] = {site: heard[place, site].values for site in hears}
        return found
