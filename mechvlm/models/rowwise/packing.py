"""Which interventions go through the layers together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil
import torch

from mechvlm.cone import Step
from mechvlm.errors import InterventionError
from mechvlm.models.config import Config
from mechvlm.models.rowwise.batches import Item

__all__ = ["Pass", "check_rows", "most_rows", "packed"]

_WIDEST_BYTES = {"cpu": 6 << 20}
"""Largest activation on a device where a larger one leaves the cache and is slower."""

_FEWEST_ROWS = 256
"""Rows below which the weights, read once for all of them, cost more than the rows."""


@dataclass(frozen=True)
class Pass:
    """Interventions that go through the layers together.

    Attributes:
        members: Which of all the items these are.
        rows: Most rows that any layer computes at once.
    """

    members: tuple[int, ...]
    rows: int


def packed(items: Sequence[Item], most: int, more: int = 0) -> Iterator[Pass]:
    """Neighbours in where and when they start, as many as the rows allow.

    Items without a step are in no pass. One of more rows than allowed goes alone. Each
    item counts `more` rows than it has: those that it will still get.
    """
    members: list[int] = []
    rows = 0
    live = [i for i, item in enumerate(items) if item.steps]
    for i in sorted(live, key=lambda i: _start(items[i].steps)):
        own = max(len(step.rows) for step in items[i].steps) + more
        if members and rows + own > most:
            yield Pass(tuple(members), rows)
            members, rows = [], 0
        members.append(i)
        rows += own
    if members:
        yield Pass(tuple(members), rows)


def _start(steps: tuple[Step, ...]) -> tuple[int, int]:
    return steps[0].rows.start, steps[0].layer


def most_rows(cfg: Config, row_bytes: int, batch_tokens: int | None) -> int:
    """Most rows to compute at once: as told, or what half the free memory holds.

    Args:
        cfg: The model's numbers.
        row_bytes: Memory of one row.
        batch_tokens: What was told, if anything; see `check_rows`.
    """
    if batch_tokens is None:
        device = cfg.device
        fits = _free_bytes(device) // (2 * row_bytes)
        widest = max(cfg.d_mlp, cfg.d_model) * cfg.dtype.itemsize
        good = _WIDEST_BYTES.get(device.type, fits * widest) // widest
        return max(1, min(fits, max(good, _FEWEST_ROWS)))
    return batch_tokens


def check_rows(batch_tokens: int | None) -> None:
    """Refuse a number of rows with which nothing can be computed."""
    if batch_tokens is not None and not isinstance(batch_tokens, int):
        raise InterventionError(
            f"batch_tokens={batch_tokens!r}: wanted a whole number."
        )
    if batch_tokens is not None and batch_tokens < 1:
        raise InterventionError(f"batch_tokens={batch_tokens}: wanted at least 1.")


def _free_bytes(device: torch.device) -> int:
    """Memory that is free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
