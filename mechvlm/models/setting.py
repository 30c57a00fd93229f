"""What every layer is told of a prompt's positions: who reads whom, and rotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechvlm.cone import Reads
from mechvlm.errors import EngineError

__all__ = ["Setting"]

_MADE_HERE = frozenset(
    {"hidden_states", "attention_mask", "past_key_values", "use_cache"}
    | {"cache_position"}
)
"""What whoever calls a layer for single rows gives itself, or has no use for."""

_POSITION_AXIS = {"position_embeddings": -2, "position_ids": -1}


@dataclass(frozen=True, eq=False)
class Setting:
    """What the layers are told of a prompt, apart from the stream.

    Attributes:
        reads: Who may read whom in each layer.
        calls: What else each layer is called with.
    """

    reads: Reads
    calls: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(
        cls, masks: Sequence[Tensor | None], calls: Sequence[Mapping[str, Any]], n: int
    ) -> Setting:
        """From the mask and the keyword arguments that each layer was given.

        Args:
            masks: Boolean masks `[1 1 position position]`; None stands for causal.
            calls: Keyword arguments.
            n: Number of positions.
        """
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        shared = {id(mask): mask for mask in masks if mask is not None}
        on_cpu = {name: mask[0, 0].cpu() for name, mask in shared.items()}
        reads = Reads([on_cpu.get(id(mask), causal) for mask in masks])
        return cls(reads, tuple(map(_without_own, calls)))

    def called(self, layer: int, rows: Int[Tensor, " row"]) -> dict[str, Any]:
        """What a layer is called with for some positions of the prompt.

        Raises:
            EngineError: It is not known which of its arguments' axes counts positions.
        """
        call = self.calls[layer]
        return {name: _sliced(name, given, rows) for name, given in call.items()}


def _without_own(call: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: given for name, given in call.items() if name not in _MADE_HERE}


def _sliced(name: str, given: Any, rows: Tensor) -> Any:
    if not _holds_tensors(given):
        return given
    if name not in _POSITION_AXIS:
        raise EngineError(
            f"the model's layers are called with {name!r}, and it is not known here"
            " which of its axes counts positions, so single rows cannot be computed."
        )
    take = partial(_rows_of, axis=_POSITION_AXIS[name], rows=rows)
    return tuple(map(take, given)) if isinstance(given, tuple | list) else take(given)


def _rows_of(given: Tensor, *, axis: int, rows: Tensor) -> Tensor:
    return given.index_select(axis, rows.to(given.device))


def _holds_tensors(given: Any) -> bool:
    if isinstance(given, dict):
        return any(map(_holds_tensors, given.values()))
    if isinstance(given, tuple | list):
        return any(map(_holds_tensors, given))
    return isinstance(given, Tensor)
