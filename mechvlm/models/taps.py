"""Taps: how a hook point hears an unmodified Hugging Face module, for one forward.

A tap is installed only where a function waits on a hook point, and removed when the
forward ends, also after an exception. A forward without hooks runs without taps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mechvlm.models.attention import AttentionPoints, listening
from mechvlm.models.points import Block, Norm, VisionEncoder, VisionProjector, heard

__all__ = ["Tapped", "taps"]


@dataclass(frozen=True, slots=True)
class Tapped:
    """A model's hook points and the Hugging Face modules that they listen to."""

    points: tuple[HookPoint, ...]
    hook_embed: HookPoint
    blocks: tuple[Block, ...]
    ln_final: Norm
    vision_encoder: VisionEncoder
    vision_projector: VisionProjector
    encoder_layers: tuple[nn.Module, ...]
    projector: nn.Module
    text_config: Any


def _waits(point: HookPoint) -> bool:
    """Whether a function waits on a hook point."""
    return bool(point.fwd_hooks or point.bwd_hooks)


@contextmanager
def taps(model: Tapped) -> Iterator[None]:
    """Install the taps that the waiting functions need, for one forward."""
    if not any(map(_waits, model.points)):
        yield
        return
    with ExitStack() as stack:
        if _waits(model.hook_embed):
            _tap_input(stack, model.blocks[0].layer.whole, model.hook_embed)
        inner = {}
        for block in model.blocks:
            _tap_block(stack, block)
            points = block.attn.inner
            if _listens(points):
                inner[block.layer.attn] = points
        if inner:
            stack.enter_context(listening(model.text_config, inner))
        _tap_norm(stack, model.ln_final)
        _tap_vision(stack, model)
        yield


def _listens(points: AttentionPoints) -> bool:
    return points.explicit() or _waits(points.rot_q) or _waits(points.rot_k)


def _tap_block(stack: ExitStack, block: Block) -> None:
    layer = block.layer
    if _waits(block.hook_resid_pre):
        _tap_input(stack, layer.whole, block.hook_resid_pre)
    _tap_norm(stack, block.ln1)
    _tap_attention(stack, block)
    if _waits(block.hook_attn_out):
        _tap_output(stack, layer.attn, _first(block.hook_attn_out))
    _tap_norm(stack, block.ln2)
    if _waits(block.mlp.hook_pre):
        _tap_output(stack, layer.gate, block.mlp.hook_pre)
    if _waits(block.mlp.hook_pre_linear):
        _tap_output(stack, layer.up, block.mlp.hook_pre_linear)
    if _waits(block.mlp.hook_post):
        _tap_input(stack, layer.down, block.mlp.hook_post)
    if _waits(block.hook_mlp_out):
        _tap_output(stack, layer.mlp, block.hook_mlp_out)
    if _waits(block.hook_resid_post):
        _tap_output(stack, layer.whole, block.hook_resid_post)
    if _waits(block.hook_resid_mid):  # after resid_post's, so that it fires before
        _tap_middle(stack, block)


def _tap_attention(stack: ExitStack, block: Block) -> None:
    attn, layer = block.attn, block.layer
    d_head = attn.W_Q.shape[-1]
    into = ((attn.hook_q, layer.q), (attn.hook_k, layer.k), (attn.hook_v, layer.v))
    for point, linear in into:
        if _waits(point):
            _tap_output(stack, linear, _by_head(point, d_head))
    if _waits(attn.hook_z):
        _tap_input(stack, layer.o, _by_head(attn.hook_z, d_head))
    if _waits(attn.hook_result):
        _tap_result(stack, block)


def _tap_result(stack: ExitStack, block: Block) -> None:
    """Each head's own addition to the residual stream."""
    attn, layer = block.attn, block.layer
    d_head = attn.W_Q.shape[-1]

    def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        z = args[0].unflatten(-1, (-1, d_head))
        result = torch.einsum("bphe,hed->bphd", z, attn.W_O)
        new, changed = heard(attn.hook_result, result)
        return new.sum(dim=2) + attn.b_O if changed else output

    stack.callback(layer.o.register_forward_hook(hook).remove)


def _tap_middle(stack: ExitStack, block: Block) -> None:
    """The stream between attention and MLP.

    Hugging Face keeps it in a local variable that the second norm and the layer's sum
    both read. The norm's input is that value; what a hook changes there is added to
    the layer's output, which is the same as having changed the variable.
    """
    changes: list[Tensor] = []

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        old = args[0]
        new = block.hook_resid_mid(old)
        if new is not old:
            changes.append(new - old)
        return (new, *args[1:])

    def leave(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output + changes.pop() if changes else output

    stack.callback(block.layer.ln2.register_forward_pre_hook(enter).remove)
    handle = block.layer.whole.register_forward_hook(leave, prepend=True)
    stack.callback(handle.remove)


def _tap_norm(stack: ExitStack, norm: Norm) -> None:
    if _waits(norm.hook_scale) or _waits(norm.hook_normalized):

        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return norm.tapped(args[0], output)

        stack.callback(norm.norm.register_forward_hook(hook).remove)


def _tap_vision(stack: ExitStack, model: Tapped) -> None:
    points = model.vision_encoder.layers
    for point, layer in zip(points, model.encoder_layers, strict=True):
        if _waits(point.hook_resid_pre):
            _tap_input(stack, layer, point.hook_resid_pre)
        if _waits(point.hook_resid_post):
            _tap_output(stack, layer, point.hook_resid_post)
    if _waits(model.vision_projector.hook_in):
        _tap_input(stack, model.projector, model.vision_projector.hook_in)
    if _waits(model.vision_projector.hook_out):
        _tap_output(stack, model.projector, model.vision_projector.hook_out)


def _tap_input(
    stack: ExitStack, module: nn.Module, point: Callable[[Tensor], Tensor]
) -> None:
    """Pass what enters a module through a hook point."""

    def hook(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (point(args[0]), *args[1:]), kwargs
        name = "hidden_states"
        return args, {**kwargs, name: point(kwargs[name])}

    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def _tap_output(
    stack: ExitStack, module: nn.Module, point: Callable[[Any], Any]
) -> None:
    """Pass what leaves a module through a hook point.

    First in line: transformers collects a vision layer's output in a hook of its own.
    """

    def hook(_: nn.Module, __: object, output: Any) -> Any:
        return point(output)

    stack.callback(module.register_forward_hook(hook, prepend=True).remove)


def _by_head(point: HookPoint, d_head: int) -> Callable[[Tensor], Tensor]:
    """A hook point that sees heads side by side: [batch position head d_head]."""

    def call(flat: Tensor) -> Tensor:
        split = flat.unflatten(-1, (-1, d_head))
        new = point(split)
        return flat if new is split else new.flatten(-2)

    return call


def _first(point: HookPoint) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """A hook point that sees the first of several outputs."""
    return lambda outputs: (point(outputs[0]), *outputs[1:])
