"""Writes of many interventions to the flat rows of one pass, all at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvlm.cone import ENTERED, place_of
from mechvlm.interventions import Ablate, Add, Intervention, Patch, parts
from mechvlm.models.lowering import Sources
from mechvlm.models.rowwise.batches import Placed

__all__ = [
    "Edit",
    "Write",
    "edited",
    "edits_of",
    "writes_of",
]

Write = Patch | Ablate | Add
"""An intervention that writes an activation."""

_ENTERED_IN_ORDER = ("embed", "resid_pre")


def writes_of(intervention: Intervention) -> dict[tuple[int, str], list[Write]]:
    """Writes by where they are made, in the order in which they take effect."""
    found: dict[tuple[int, str], list[Write]] = defaultdict(list)
    for part in parts(intervention):
        if isinstance(part, Patch | Ablate | Add):
            found[place_of(part.site)].append(part)
    for (_, where), writes in found.items():
        if where == ENTERED:
            writes.sort(key=lambda x: _ENTERED_IN_ORDER.index(x.site.component))
    return dict(found)


@dataclass(frozen=True, slots=True)
class Edit:
    """Values for some flat rows, of one head each or of all.

    Attributes:
        rows: Flat rows; none comes twice.
        heads: Head of each, for an activation that has heads and a write to one.
        values: What is put there or added, one row each.
        adds: Whether it is added.
    """

    rows: Int[Tensor, " row"]
    heads: Int[Tensor, " row"] | None
    values: Float[Tensor, "row ..."]
    adds: bool


def edits_of(
    writes: Iterable[tuple[Placed, Sequence[Write]]],
    shape: tuple[int, ...],
    sources: Sources,
    like: Tensor,
) -> list[Edit]:
    """All writes to one component of one layer, merged into few.

    Args:
        writes: For each intervention where its rows are, and what it writes, in order.
        shape: Shape of one row of the activation.
        sources: The named runs and vectors.
        like: Gives device and dtype.
    """
    merged: dict[tuple[int, bool, bool], list[tuple[np.ndarray, int, Tensor]]]
    merged = defaultdict(list)
    for placed, several in writes:
        for rank, write in enumerate(several):
            at = np.fromiter(write.at, dtype=np.int64, count=len(write.at))
            here = (at >= placed.rows.start) & (at < placed.rows.stop)
            if not here.any():
                continue
            head = write.site.head
            given = sources.rows_of(write).to(like.device, like.dtype)
            if len(given) > 1 and not here.all():
                given = given[torch.from_numpy(here)]
            rows = at[here] - placed.rows.start + placed.start
            one = shape if head is None else shape[1:]
            values = given.expand(len(rows), *one)
            key = rank, isinstance(write, Add), head is not None
            merged[key].append((rows, 0 if head is None else head, values))
    return [
        _merged(found, adds=key[1], by_head=key[2], device=like.device)
        for key, found in sorted(merged.items(), key=lambda each: each[0][0])
    ]


def _merged(
    found: Sequence[tuple[np.ndarray, int, Tensor]],
    *,
    adds: bool,
    by_head: bool,
    device: torch.device,
) -> Edit:
    rows, heads, values = zip(*found, strict=True)
    flat = torch.from_numpy(np.concatenate(rows)).to(device)
    each = np.repeat(heads, [len(r) for r in rows])
    of_heads = torch.from_numpy(each).to(device) if by_head else None
    return Edit(flat, of_heads, torch.cat(values), adds)


def edited(activation: Tensor, edits: Sequence[Edit]) -> Tensor:
    """An activation `[1 row ...]` with the edits made, in their order."""
    new = activation.clone()
    flat = new[0]
    for edit in edits:
        at = (edit.rows,) if edit.heads is None else (edit.rows, edit.heads)
        flat[at] = flat[at] + edit.values if edit.adds else edit.values
    return new
