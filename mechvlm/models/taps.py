"""Taps: how a hook point hears an unmodified Hugging Face module, for one forward.

A tap is installed only where a function waits on a hook point, and removed when the
forward ends, also after an exception. A forward without hooks runs without taps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mechvlm.errors import HookError
from mechvlm.models.attention import AttentionPoints, listening
from mechvlm.models.family import Layer
from mechvlm.models.points import Block, Norm, VisionEncoder, VisionProjector, heard
from mechvlm.sites import Component

__all__ = ["Tapped", "output_weights", "tap_site", "taps"]


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
    attn, mlp, layer = block.attn, block.mlp, block.layer
    _tap_norm(stack, block.ln1)
    _tap_norm(stack, block.ln2)
    if _waits(attn.hook_result):
        _tap_result(stack, block)
    if _waits(mlp.hook_pre):
        _tap_output(stack, layer.gate, mlp.hook_pre)
    if _waits(mlp.hook_pre_linear):
        _tap_output(stack, layer.up, mlp.hook_pre_linear)
    points: dict[Component, HookPoint] = {
        "resid_pre": block.hook_resid_pre,
        "q": attn.hook_q,
        "k": attn.hook_k,
        "v": attn.hook_v,
        "z": attn.hook_z,
        "attn_out": block.hook_attn_out,
        "mlp_post": mlp.hook_post,
        "mlp_out": block.hook_mlp_out,
        "resid_post": block.hook_resid_post,
        "resid_mid": block.hook_resid_mid,  # after resid_post, so that it fires before
    }
    for component, point in points.items():
        if _waits(point):
            tap_site(stack, layer, component, point, attn.W_Q.shape[-1])


def tap_site(
    stack: ExitStack,
    layer: Layer,
    component: Component,
    hear: Callable[[Tensor], Tensor],
    d_head: int,
) -> None:
    """Pass the activation of a component of one layer through a function.

    Args:
        stack: Takes the tap away when it closes.
        layer: The layer's modules.
        component: Any component of a layer but "result".
        hear: From the activation, in TransformerLens's shape, to the one to go on with.
        d_head: Width of a head.
    """
    heads = partial(_by_head, hear, d_head)
    match component:
        case "q":
            _tap_output(stack, layer.q, heads)
        case "k":
            _tap_output(stack, layer.k, heads)
        case "v":
            _tap_output(stack, layer.v, heads)
        case "z":
            _tap_input(stack, layer.o, heads)
        case "attn_out":
            _tap_output(stack, layer.attn_out, partial(_first, hear))
        case "resid_mid":
            _tap_middle(stack, layer, hear)
        case "mlp_post":
            _tap_input(stack, layer.down, hear)
        case "mlp_out":
            _tap_output(stack, layer.mlp_out, hear)
        case "resid_pre":
            _tap_input(stack, layer.whole, hear)
        case "resid_post":
            _tap_output(stack, layer.whole, hear)
        case _:
            raise HookError(f"{component!r} is no part of a layer that can be tapped.")


def _tap_result(stack: ExitStack, block: Block) -> None:
    """Each head's own addition to the residual stream."""
    attn, layer = block.attn, block.layer
    w_o = output_weights(layer, attn.W_Q.shape[-1])

    def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        z = args[0].unflatten(-1, (-1, w_o.shape[1]))
        result = torch.einsum("bphe,hed->bphd", z, w_o)
        new, changed = heard(attn.hook_result, result)
        return new.sum(dim=2) + attn.b_O if changed else output

    stack.callback(layer.o.register_forward_hook(hook).remove)


def output_weights(layer: Layer, d_head: int) -> Float[Tensor, "head d_head d_model"]:
    """Each head's part of a layer's output projection.

    Raises:
        HookError: The weights are offloaded, and here only while they are used.
    """
    if layer.o.weight.is_meta:
        raise HookError(
            "hook_result needs the output projection's weights at hand, and those of"
            " this layer are offloaded. Load the model with a device_map that keeps"
            " them on a device, or use hook_z, which needs none."
        )
    split: Tensor = layer.o.weight.T.unflatten(0, (-1, d_head))
    return split


def _tap_middle(
    stack: ExitStack, layer: Layer, hear: Callable[[Tensor], Tensor]
) -> None:
    """The stream between attention and MLP.

    Hugging Face keeps it in a local variable that the second norm and the layer's sum
    both read. The norm's input is that value; what a hook changes there is added to
    the layer's output, which is the same as having changed the variable.
    """
    changes: list[Tensor] = []

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        old = args[0]
        new = hear(old)
        if new is not old:
            changes.append(new - old)
        return (new, *args[1:])

    def leave(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output + changes.pop() if changes else output

    stack.callback(layer.ln2.register_forward_pre_hook(enter).remove)
    handle = layer.whole.register_forward_hook(leave, prepend=True)
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


def _by_head(hear: Callable[[Tensor], Tensor], d_head: int, flat: Tensor) -> Tensor:
    """A function that sees heads side by side: [batch position head d_head]."""
    split = flat.unflatten(-1, (-1, d_head))
    new = hear(split)
    return flat if new is split else new.flatten(-2)


def _first(hear: Callable[[Tensor], Tensor], outputs: Any) -> Any:
    """A function that sees the first of several outputs, or the only one."""
    if isinstance(outputs, tuple):
        return (hear(outputs[0]), *outputs[1:])
    return hear(outputs)
