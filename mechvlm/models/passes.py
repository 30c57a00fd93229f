"""Passes through part of the layers: a forward that really starts, and stops, inside.

The Hugging Face model still makes masks, rotary positions and the rest; only its list
of layers is exchanged for the time of one forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechvlm.errors import HookError
from mechvlm.models.setting import Setting

__all__ = ["exchanged", "setting_of", "skipped", "stopped"]


class _PassThrough(nn.Module):
    """Stands in for a layer that is skipped: the stream goes by."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


class _Recorder(nn.Module):
    """Stands in for a layer and keeps what it is called with."""

    def __init__(self, seen: list[dict[str, Any]]) -> None:
        super().__init__()
        self._seen = seen

    def forward(self, hidden_states: Tensor, *_: Any, **called: Any) -> Tensor:
        self._seen.append(called)
        return hidden_states


class _Stop(Exception):  # noqa: N818 - it ends a pass, it is no error
    def __init__(self, residual: Tensor) -> None:
        super().__init__()
        self.residual = residual


@contextmanager
def exchanged(parent: nn.Module, name: str, stand_in: nn.Module) -> Iterator[None]:
    """Put a module in the place of a child, for a while."""
    before = parent.get_submodule(name)
    parent.register_module(name, stand_in)
    try:
        yield
    finally:
        parent.register_module(name, before)


@contextmanager
def skipped(language_model: nn.Module, start: int) -> Iterator[None]:
    """Leave out the layers before `start`."""
    if start == 0:
        yield
        return
    layers = list(language_model.get_submodule("layers").children())
    # One stand-in each: a module counts a child that comes twice only once.
    stand_ins = [_PassThrough() for _ in range(start)]
    rest = nn.ModuleList([*stand_ins, *layers[start:]])
    with exchanged(language_model, "layers", rest):
        yield


def stopped(
    language_model: nn.Module, stop: int, run: Callable[[], object]
) -> Float[Tensor, "1 position d_model"]:
    """The residual stream that enters layer `stop`; nothing from there on is run."""
    layers = list(language_model.get_submodule("layers").children())
    here = layers[stop] if stop < len(layers) else language_model.get_submodule("norm")

    def halt(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Stop(args[0] if args else kwargs["hidden_states"])

    handle = here.register_forward_pre_hook(halt, with_kwargs=True, prepend=True)
    try:
        run()
    except _Stop as reached:
        return reached.residual
    finally:
        handle.remove()
    raise HookError(f"the forward pass never reached layer {stop}")


@torch.no_grad()
def setting_of(language_model: nn.Module, run: Callable[[], object], n: int) -> Setting:
    """What every layer is told of `n` positions, from what `run` gives them.

    No layer is executed: each is exchanged for a stand-in that keeps what it is given.
    """
    seen: list[dict[str, Any]] = []
    n_layers = len(list(language_model.get_submodule("layers").children()))
    recorders = nn.ModuleList(_Recorder(seen) for _ in range(n_layers))
    with exchanged(language_model, "layers", recorders):
        stopped(language_model, n_layers, run)
    return Setting.of([called.get("attention_mask") for called in seen], seen, n)
