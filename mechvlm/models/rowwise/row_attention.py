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
from mechvlm.models.rowwise.kernels import Kernel, kernel_for, merged, plain, removal

__all__ = ["Attention", "Cuts", "Group", "Masks", "Shared"]

Cuts = tuple[int, ...]
"""What an intervention cuts in one layer: numbers that a `Masks` knows."""


@dataclass(frozen=True)
class Group:
    """Interventions whose rows are the same positions, flat one below the other.

    Attributes:
        items: Which interventions of the pass these are.
        rows: Positions that each has keys and values of its own for.
        out: Positions that each computes attention of.
        first_row: Flat row at which the keys of the first of them begin.
        first_out: Flat row at which the queries of the first of them begin.
        cuts: What each cuts in this layer.
    """

    items: tuple[int, ...]
    rows: range
    out: range
    first_row: int
    first_out: int
    cuts: tuple[Cuts, ...]

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
    """What all interventions share in one layer.

    Attributes:
        key: The base run's keys, one for each of its positions.
        value: The base run's values.
        mask: Whether a target may read a source.
        scale: Factor of the scores.
        softcap: Bound of the scores, if they have one.
    """

    key: Float[Tensor, "kv_head base d_head"]
    value: Float[Tensor, "kv_head base d_head"]
    mask: Bool[Tensor, "position position"]
    scale: float
    softcap: float | None


@dataclass(frozen=True, eq=False)
class _Part:
    """Keys that are read in one go, and the pairs that the layer's mask forbids."""

    keys: range
    forbidden: Bool[Tensor, "out key"] | None
    is_causal: bool = False


class Masks:
    """The masks of one pass: every question about them is answered once."""

    def __init__(self, n_heads: int, n: int) -> None:
        """Start with none, for a model of `n_heads` and a sequence of `n` positions."""
        self._n_heads, self._n = n_heads, n
        self._numbers: dict[_Pairs, int] = {}
        self._blocks: dict[tuple[Cuts, range], Tensor] = {}
        self._parts: dict[tuple[int, range, range, int], list[_Part]] = {}

    def forget(self) -> None:
        """Drop what is remembered of rows that will not come again."""
        self._blocks.clear()
        self._parts.clear()

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
            # A prompt has no column yet for what is still to be generated.
            known_yet = [s for s in source if s < self._n]
            columns = torch.tensor(known_yet, dtype=torch.long)
            for head in range(n_heads) if heads is None else heads:
                block[head, rows[:, None], columns] = True
        return block

    def parts(self, mask: Tensor, rows: range, out: range, n_base: int) -> list[_Part]:
        """Own keys, and the base run's before and behind them, as far as they are read.

        The first part is that of the own keys.
        """
        key = id(mask), rows, out, n_base
        if key not in self._parts:
            beside = (range(rows.start), range(rows.stop, n_base))
            allowed = mask[out.start : out.stop]
            read = [_read(allowed, keys) for keys in beside]
            parts = [_part(allowed, keys) for keys in (rows, *read)]
            self._parts[key] = [parts[0], *(part for part in parts[1:] if part.keys)]
        return self._parts[key]


_Pairs = tuple[Positions, Positions, tuple[int, ...] | None]


def _read(allowed: Tensor, keys: range) -> range:
    """The part of a range of keys that any row may read, without its ends."""
    read = allowed[:, keys.start : keys.stop].any(dim=0).nonzero()
    if not len(read):
        return range(0)
    return range(keys.start + int(read[0]), keys.start + int(read[-1]) + 1)


def _part(allowed: Tensor, keys: range) -> _Part:
    here = allowed[:, keys.start : keys.stop]
    if bool(here.all()):
        return _Part(keys, None)
    square = here.shape[0] == here.shape[1]
    is_causal = square and torch.equal(here, torch.ones_like(here).tril())
    return _Part(keys, ~here, is_causal)


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention of rows in one layer.

    Attributes:
        shared: What all interventions share.
        masks: The masks of the pass.
    """

    shared: Shared
    masks: Masks

    def of_batch(
        self,
        query: Float[Tensor, "head out d_head"],
        key: Float[Tensor, "kv_head row d_head"],
        value: Float[Tensor, "kv_head row d_head"],
        groups: Sequence[Group],
    ) -> Float[Tensor, "1 out head d_head"]:
        """Attention's output for the flat rows of all groups, in their order."""
        found = query.new_empty(query.shape[1], query.shape[0], value.shape[-1])
        for group in groups:
            if not group.n_out:  # only its keys and values were wanted
                continue
            rows = slice(group.first_row, group.first_row + group.n_rows)
            out = slice(group.first_out, group.first_out + group.n_out)
            split = len(group.items), len(group.rows)
            own_key, own_value = (
                each[:, rows].unflatten(1, split).transpose(0, 1)
                for each in (key, value)
            )
            output = self.of_group(query[:, out], own_key, own_value, group)
            found[out] = output.transpose(0, 1)
        return found[None]

    def of_group(
        self,
        query: Float[Tensor, "head itemout d_head"],
        key: Float[Tensor, "item kv_head row d_head"],
        value: Float[Tensor, "item kv_head row d_head"],
        group: Group,
    ) -> Float[Tensor, "head itemout d_head"]:
        """Attention's output for the rows of one group, item after item."""
        n_base = self.shared.key.shape[1]
        own, *beside = self.masks.parts(self.shared.mask, group.rows, group.out, n_base)
        one = _Attending(query, group, self)
        both = one.to_own(key, value, own)
        for part in beside:
            both = merged(both, one.to_base(part))
        return both[0]


@dataclass
class _Attending:
    """One group's queries, and their attention to one part of the keys at a time."""

    query: Float[Tensor, "head itemout d_head"]
    group: Group
    attention: Attention

    @cached_property
    def _kernel(self) -> Kernel:
        softcap = self.attention.shared.softcap
        if softcap is not None:
            return partial(plain, softcap=softcap)
        return kernel_for(self.query.device.type, self.query.dtype)

    def to_own(self, key: Tensor, value: Tensor, part: _Part) -> tuple[Tensor, Tensor]:
        """Attention to the items' own keys, `[head itemout d_head]`."""
        shared_by = self.query.shape[0] // key.shape[1]
        if shared_by > 1:
            key = key.repeat_interleave(shared_by, dim=1)
            value = value.repeat_interleave(shared_by, dim=1)
        split = len(self.group.items), len(self.group.out)
        query = self.query.unflatten(1, split).transpose(0, 1)
        removed = self._removed(part)
        causal = part.is_causal and removed is None
        if removed is None and part.forbidden is not None and not causal:
            removed = part.forbidden[None, None].to(query.device)
        mask = None if removed is None else removal(removed, query.dtype)
        scale = self.attention.shared.scale
        output, total = self._kernel(query, key, value, scale, mask, causal=causal)
        return output.transpose(0, 1).flatten(1, 2), total.transpose(0, 1).flatten(1, 2)

    def to_base(self, part: _Part) -> tuple[Tensor, Tensor]:
        """Attention to keys that all items share, `[head itemout d_head]`."""
        shared = self.attention.shared
        heads = len(shared.key), self.query.shape[0] // len(shared.key)
        query = self.query.unflatten(0, heads).transpose(0, 1)
        key, value = (
            each[None, :, part.keys.start : part.keys.stop].expand(heads[1], -1, -1, -1)
            for each in (shared.key, shared.value)
        )
        removed = self._removed(part)
        if removed is None and part.forbidden is not None:
            removed = part.forbidden[None, None].to(query.device)
        mask = None if removed is None else removal(self._flat(removed), query.dtype)
        output, total = self._kernel(query, key, value, shared.scale, mask)
        return output.transpose(0, 1).flatten(0, 1), total.transpose(0, 1).flatten(0, 1)

    def _flat(self, removed: Bool[Tensor, "item head out key"]) -> Tensor:
        """Removed pairs in the order of the queries to shared keys."""
        each = removed.expand(len(self.group.items), -1, -1, -1)
        flat = each.transpose(0, 1).flatten(1, 2)
        if len(flat) == 1:
            return flat[None]
        kv_heads = len(self.attention.shared.key)
        by_group: Tensor = flat.unflatten(0, (kv_heads, -1)).transpose(0, 1)
        return by_group

    def _removed(self, part: _Part) -> Bool[Tensor, "item head out key"] | None:
        """Pairs that cuts or the mask remove; None where no cut touches these keys."""
        cuts = self.group.cuts
        if not any(cuts):
            return None
        kinds = {each: i for i, each in enumerate(dict.fromkeys(cuts))}
        blocks = [self.attention.masks.block(each, self.group.out) for each in kinds]
        n_heads = max(len(block) for block in blocks)
        here = slice(part.keys.start, part.keys.stop)
        found = torch.stack([b[..., here].expand(n_heads, -1, -1) for b in blocks])
        if not bool(found.any()):
            return None
        if part.forbidden is not None:
            found |= part.forbidden
        which = torch.tensor([kinds[each] for each in cuts])
        return found[which].to(self.query.device)
