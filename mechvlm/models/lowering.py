"""From interventions to hook functions: what each of them literally does.

Positions are absolute. A forward computes the rows `rows` of the sequence (the whole
prompt, or one generated token), and a hook function touches those that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mechvlm.errors import InterventionError
from mechvlm.interventions import Ablate, Add, Intervention, Knockout, Patch, parts
from mechvlm.sites import PER_HEAD, Site

__all__ = ["RunLike", "Sources", "hooks_of", "unused"]

Hook = tuple[str, Callable[..., Tensor]]


@runtime_checkable
class RunLike(Protocol):
    """What a patch needs of a recorded run."""

    def __getitem__(self, site: Site) -> Tensor:
        """Activation `[position ...]` at a site."""
        ...


@dataclass(frozen=True)
class Sources:
    """Where the named runs and vectors of interventions are.

    Attributes:
        runs: Recorded runs by name.
        vectors: Vectors `[d]` or `[len(at) d]` by name.
    """

    runs: Mapping[str, RunLike]
    vectors: Mapping[str, Tensor]

    def rows_of(self, write: Patch | Ablate | Add) -> Tensor:
        """What is put or added: `[len(at) ...]`, or `[1 ...]` for all alike."""
        if isinstance(write, Patch):
            read = write.at if write.from_ is None else write.from_
            return self.runs[write.run][write.site][list(read)]
        if isinstance(write, Add):
            return _rows(self.vectors[write.vector], write) * write.scale
        if write.value == "zero":
            return torch.zeros(1)
        return _rows(self.vectors[write.value], write)


def _rows(vector: Tensor, write: Ablate | Add) -> Tensor:
    """The vector with an axis of positions in front."""
    all_heads = write.site.component in PER_HEAD and write.site.head is None
    alone = 2 if all_heads else 1
    return vector[None] if vector.ndim == alone else vector


def unused(name: str, taken: Container[str]) -> str:
    """A name that is not taken: this one, or this one with primes."""
    while name in taken:
        name += "'"
    return name


def hooks_of(
    intervention: Intervention, rows: range, sources: Sources
) -> Iterator[Hook]:
    """The hooks of an intervention for a forward that computes `rows`.

    Args:
        intervention: Already checked; several are applied in their order.
        rows: Absolute positions that the forward computes.
        sources: The named runs and vectors.

    Yields:
        Hook name and function; nothing where no row is touched.
    """
    for part in parts(intervention):
        if isinstance(part, Knockout):
            target = [row - rows.start for row in part.target if row in rows]
            if target:
                yield from _cuts(part, target)
        elif isinstance(part, Patch | Ablate | Add):
            at = [(i, row) for i, row in enumerate(part.at) if row in rows]
            if at:
                yield _write(part, at, rows.start, sources)
        else:
            raise InterventionError(
                f"{part!r} consists of several runs and cannot be applied in one."
            )


def _write(
    part: Patch | Ablate | Add, at: list[tuple[int, int]], start: int, sources: Sources
) -> Hook:
    values = sources.rows_of(part)
    if len(values) > 1:
        values = values[[i for i, _ in at]]
    local = [row - start for _, row in at]

    def write(activation: Tensor, **_: Any) -> Tensor:
        new = activation.clone()
        here = new[0] if part.site.head is None else new[0, :, part.site.head]
        old = here[local]
        given = values.to(old.device, old.dtype).expand_as(old)
        here[local] = old + given if isinstance(part, Add) else given
        return new

    return part.site.hook_name, write


def _cuts(part: Knockout, target: list[int]) -> Iterator[Hook]:
    rows = torch.tensor(target)[:, None]

    def cut(scores: Tensor, **_: Any) -> Tensor:
        new = scores.clone()
        # While generating, keys end at the row that is computed.
        source = [key for key in part.source if key < new.shape[-1]]
        keys = torch.tensor(source, dtype=torch.long)[None]
        for head in part.heads if part.heads is not None else range(new.shape[1]):
            new[0, head, rows, keys] = -torch.inf
        return new

    for layer in part.layers:
        yield f"blocks.{layer}.attn.hook_attn_scores", cut
