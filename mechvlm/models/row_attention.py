"""Attention of flat rows: their own keys, and beside them those of the base run.

Rows of many interventions stand one below the other. Each intervention has keys and
values of its own for a range of positions; for all others it reads the base run's,
which are shared by all and copied for none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvlm.interventions import Knockout
from mechvlm.layout import Positions
from mechvlm.models.attention import Asked
from mechvlm.models.kernels import Kernel, kernel_for, merged, plain, removal

__all__ = ["CutTable", "Cuts", "Group", "Shared", "attend_rows"]

Cuts = tuple[int, ...]
"""What an intervention cuts in one layer: numbers that a `CutTable` knows."""


class CutTable:
    """The cuts of one pass; equal ones in other layers share a number and a mask."""

    def __init__(self, n_heads: int, n: int) -> None:
        """Start with none, for a model of `n_heads` and a prompt of `n` positions."""
        self._n_heads, self._n = n_heads, n
        self._numbers: dict[_Pairs, int] = {}
        self._blocks: dict[tuple[Cuts, range], Tensor] = {}

    def number(self, cut: Knockout) -> int:
        """The number of a cut, whatever its layers are."""
        pairs = cut.target, cut.source, cut.heads
        return self._numbers.setdefault(pairs, len(self._numbers))

    def block(self, cuts: Cuts, out: range) -> Bool[Tensor, "head out position"]:
        """Pairs that some cuts remove; one head stands for all where it can."""
        if (cuts, out) not in self._blocks:
            self._blocks[cuts, out] = self._block(cuts, out)
        return self._blocks[cuts, out]

    def _block(self, cuts: Cuts, out: range) -> Tensor:
        known = list(self._numbers)
        pairs = [known[cut] for cut in cuts]
        n_heads = self._n_heads if any(heads for *_, heads in pairs) else 1
        block = torch.zeros(n_heads, len(out), self._n, dtype=torch.bool)
        for target, source, heads in pairs:
            inside = [t - out.start for t in target if t in out]
            rows = torch.tensor(inside, dtype=torch.long)
            columns = torch.tensor(source.indices)
            at = range(n_heads) if heads is None else heads
            for head in at:
                block[head, rows[:, None], columns] = True
        return block


_Pairs = tuple[Positions, Positions, tuple[int, ...] | None]


@dataclass(frozen=True)
class Group:
    """Interventions whose rows are the same positions, flat one below the other.

    Attributes:
        items: Which interventions of the pass these are.
        rows: Positions that each has keys and values of its own for.
        out: Positions that each computes attention of.
        first_row: Flat row at which the keys of the first of them begin.
        first_out: Flat row at which the queries of the first of them begin.
        cuts: Attention that each cuts in this layer; empty where none does.
    """

    items: tuple[int, ...]
    rows: range
    out: range
    first_row: int
    first_out: int
    cuts: tuple[Cuts, ...] = ()

    @property
    def n_rows(self) -> int:
        """Flat rows of keys."""
        return len(self.items) * len(self.rows)

    @property
    def n_out(self) -> int:
        """Flat rows of queries."""
        return len(self.items) * len(self.out)


@dataclass(frozen=True, eq=False)
class Shared:
    """What one layer of a base run shares.

    Attributes:
        key: Keys of every position.
        value: Values of every position.
        mask: Whether a target may read a source.
    """

    key: Float[Tensor, "kv_head position d_head"]
    value: Float[Tensor, "kv_head position d_head"]
    mask: Bool[Tensor, "position position"]


def attend_rows(
    query: Float[Tensor, "head out d_head"],
    key: Float[Tensor, "kv_head row d_head"],
    value: Float[Tensor, "kv_head row d_head"],
    asked: Asked,
    shared: Shared,
    groups: Sequence[Group],
    table: CutTable,
) -> Float[Tensor, "1 out head d_head"]:
    """Attention's output for the flat rows of all groups.

    Args:
        query: Flat queries of all groups.
        key: Flat keys of all groups.
        value: Flat values of all groups.
        asked: Gives scale and soft cap.
        shared: The base run's keys, values and mask in this layer.
        groups: The interventions, in the order of their flat rows.
        table: What the numbers of cuts stand for.
    """
    found = query.new_empty(query.shape[1], query.shape[0], value.shape[-1])
    for group in groups:
        rows = slice(group.first_row, group.first_row + group.n_rows)
        out = slice(group.first_out, group.first_out + group.n_out)
        one = _Attending(
            query[:, out], key[:, rows], value[:, rows], asked, shared, group, table
        )
        found[out] = one.output().transpose(0, 1)
    return found[None]


@dataclass
class _Attending:
    """One group's attention: a part over its own keys, and parts over the base run's.

    `query` is `[head item*out d_head]`, `key` and `value` `[kv_head item*row d_head]`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    asked: Asked
    shared: Shared
    group: Group
    table: CutTable

    def output(self) -> Float[Tensor, "head out d_head"]:
        """All parts, merged."""
        parts = [self._own()] if self._reads(self.group.rows) else []
        n = self.shared.key.shape[1]
        for beside in (range(self.group.rows.start), range(self.group.rows.stop, n)):
            read = self._reads(beside)
            if read:
                parts.append(self._base(read))
        both = parts[0]
        for part in parts[1:]:
            both = merged(both, part)
        return both[0]

    @cached_property
    def _allowed(self) -> Bool[Tensor, "out position"]:
        return self.shared.mask[self.group.out.start : self.group.out.stop]

    def _reads(self, keys: range) -> range:
        """The part of a range of keys that any row may read, without its ends."""
        if not keys:
            return keys
        read = self._allowed[:, keys.start : keys.stop].any(dim=0).nonzero()
        if not len(read):
            return range(0)
        return range(keys.start + int(read[0]), keys.start + int(read[-1]) + 1)

    @cached_property
    def _kernel(self) -> Kernel:
        if self.asked.softcap is not None:
            return partial(plain, softcap=self.asked.softcap)
        return kernel_for(self.query.device.type, self.query.dtype)

    def _own(self) -> tuple[Tensor, Tensor]:
        """Attention to the rows' own keys, `[head item*out d_head]`."""
        a, rows, out = len(self.group.items), self.group.rows, self.group.out
        shared_by = self.query.shape[0] // self.key.shape[0]
        query = self.query.unflatten(1, (a, len(out))).transpose(0, 1)
        key, value = (
            each.unflatten(1, (a, len(rows)))
            .transpose(0, 1)
            .repeat_interleave(shared_by, dim=1)
            if shared_by > 1
            else each.unflatten(1, (a, len(rows))).transpose(0, 1)
            for each in (self.key, self.value)
        )
        removed = self._removed(rows)
        causal = removed is None and self._is_causal
        if removed is None and not causal:
            removed = self._forbidden(rows)
        mask = None if removed is None else removal(removed, query.dtype)
        output, total = self._kernel(
            query, key, value, self.asked.scale, mask, causal=causal
        )
        return output.transpose(0, 1).flatten(1, 2), total.transpose(0, 1).flatten(1, 2)

    def _base(self, keys: range) -> tuple[Tensor, Tensor]:
        """Attention to keys that all items share, `[head item*out d_head]`."""
        a, n_out = len(self.group.items), len(self.group.out)
        kv_heads = self.key.shape[0]
        shared_by = self.query.shape[0] // kv_heads
        query = self.query.unflatten(0, (kv_heads, shared_by)).transpose(0, 1)
        key, value = (
            each[None, :, keys.start : keys.stop].expand(shared_by, -1, -1, -1)
            for each in (self.shared.key, self.shared.value)
        )
        removed = self._removed(keys)
        if removed is None:
            removed = self._forbidden(keys)
        mask = None
        if removed is not None:  # [item|1 head|1 out key] -> [shared_by kv_head .. key]
            flat = removed.expand(a, -1, n_out, -1).transpose(0, 1).flatten(1, 2)
            if len(flat) > 1:
                flat = flat.unflatten(0, (kv_heads, shared_by)).transpose(0, 1)
            else:
                flat = flat[None]
            mask = removal(flat, query.dtype)
        output, total = self._kernel(query, key, value, self.asked.scale, mask)
        return output.transpose(0, 1).flatten(0, 1), total.transpose(0, 1).flatten(0, 1)

    @cached_property
    def _is_causal(self) -> bool:
        """Whether row i of the rows reads exactly rows 0..i."""
        rows = self.group.rows
        if rows != self.group.out or len(rows) == 1:
            return False
        own = self._allowed[:, rows.start : rows.stop]
        return bool((own == torch.ones_like(own).tril()).all())

    def _forbidden(self, keys: range) -> Bool[Tensor, "1 1 out key"] | None:
        """Pairs that the layer's own mask forbids; None where it allows all."""
        allowed = self._allowed[:, keys.start : keys.stop]
        if bool(allowed.all()):
            return None
        return ~allowed[None, None].to(self.query.device)

    def _removed(self, keys: range) -> Bool[Tensor, "item head out key"] | None:
        """Pairs that cuts or the mask remove; None where no cut touches these keys."""
        if not self.group.cuts:
            return None
        kinds = {cuts: i for i, cuts in enumerate(dict.fromkeys(self.group.cuts))}
        blocks = [self.table.block(cuts, self.group.out) for cuts in kinds]
        heads = max(len(block) for block in blocks)
        here = slice(keys.start, keys.stop)
        found = torch.stack([b[..., here].expand(heads, -1, -1) for b in blocks])
        if not bool(found.any()):
            return None
        found |= ~self._allowed[:, here]
        which = torch.tensor([kinds[cuts] for cuts in self.group.cuts])
        return found[which].to(self.query.device)
