"""The base run: one forward pass of a prompt, kept for sweeps to start from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from mechvlm.cone import Reads
from mechvlm.errors import EngineError
from mechvlm.models.attention import Asked, answering
from mechvlm.models.config import Config
from mechvlm.models.family import Family
from mechvlm.models.rowwise.row_attention import Shared
from mechvlm.models.setting import Setting
from mechvlm.models.taps import Tapped
from mechvlm.prompts import Prompt

__all__ = ["Backbone", "Base", "Based", "base_pass", "read_out"]


Weights = tuple[tuple[int, torch.dtype, int, float], ...]


@runtime_checkable
class Backbone(Protocol):
    """What row-wise passes need of a hooked model."""

    hf_model: Any
    cfg: Config
    family: Family
    tapped: Tapped


@dataclass(frozen=True, eq=False)
class Base:
    """What every layer computed of one prompt, on the layer's own device.

    Attributes:
        prompt: The prompt.
        stream: What enters each layer `[position d_model]`, and what leaves the last.
        z: Each layer's heads side by side, before the output projection.
        key: Each layer's keys after rotation, `[kv_head position d_head]`.
        value: Each layer's values, likewise.
        scale: Each layer's factor of its scores.
        softcap: Each layer's bound of its scores, where it has one.
        setting: Who may read whom, and what else each layer was called with.
        logits: Last-position logits.
        model: The model that was run.
        weights: Its weights' memory, type, writes and a sample, to notice changes.
    """

    prompt: Prompt
    stream: tuple[Float[Tensor, "position d_model"], ...]
    z: tuple[Float[Tensor, "position heads"], ...]
    key: tuple[Float[Tensor, "kv_head position d_head"], ...]
    value: tuple[Float[Tensor, "kv_head position d_head"], ...]
    scale: tuple[float, ...]
    softcap: tuple[float | None, ...]
    setting: Setting
    logits: Float[Tensor, " vocab"]
    model: ReferenceType[nn.Module]
    weights: Weights

    @property
    def reads(self) -> Reads:
        """Who may read whom in each layer."""
        return self.setting.reads

    @property
    def n_bytes(self) -> int:
        """Memory that its activations take."""
        kept = (*self.stream, *self.z, *self.key, *self.value)
        return sum(each.nbytes for each in kept)

    def check(self, vlm: Backbone) -> None:
        """Refuse to serve a model that is another, or not the same any more.

        Raises:
            EngineError: The weights are other ones, or were written since.
        """
        known = self.model() is vlm.hf_model
        if not known or self.weights != _weights(vlm.hf_model):
            raise EngineError(
                "this base run was made by another model, or the model's weights were"
                " changed since: its activations are not the model's any more. Make it"
                " again with base_run(vlm, prompt)."
            )

    def shared(self, layer: int) -> Shared:
        """What all interventions share in a layer."""
        return Shared(
            self.key[layer],
            self.value[layer],
            self.reads.mask(layer),
            self.scale[layer],
            self.softcap[layer],
        )


@runtime_checkable
class Based(Protocol):
    """A recorded run of a prompt that may carry a base run."""

    @property
    def prompt(self) -> Prompt:
        """The prompt that was run."""
        ...

    @property
    def base(self) -> Base | None:
        """Its base run, if it was made as one."""
        ...


@dataclass(eq=False)
class _Heard:
    """What hooks and attention leave behind, layer by layer."""

    stream: list[Tensor]
    z: list[Tensor]
    asked: list[Asked]
    calls: list[Mapping[str, Any]]

    def enter(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.stream.append((args[0] if args else kwargs["hidden_states"])[0])
        self.calls.append(kwargs)

    def leave(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.stream.append(args[0][0])

    def project(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.z.append(args[0][0])

    def attend(self, asked: Asked) -> Tensor | None:
        self.asked.append(replace(asked, query=asked.query[:0]))
        return None


@torch.no_grad()
def base_pass(vlm: Backbone, prompt: Prompt) -> Base:
    """Run a prompt once and keep what row-wise passes start from.

    Raises:
        EngineError: The model's logits are not those of its norm and unembedding.
    """
    heard = _Heard([], [], [], [])
    layers = [block.layer for block in vlm.tapped.blocks]
    with ExitStack() as stack:
        for layer in layers:
            enter = layer.whole.register_forward_pre_hook(heard.enter, with_kwargs=True)
            stack.callback(enter.remove)
            stack.callback(layer.o.register_forward_pre_hook(heard.project).remove)
        norm = vlm.tapped.ln_final.norm
        stack.callback(norm.register_forward_pre_hook(heard.leave).remove)
        attentions = [layer.attn for layer in layers]
        config = vlm.tapped.text_config
        stack.enter_context(answering(config, attentions, heard.attend))
        given = {**prompt.inputs, "use_cache": False, "logits_to_keep": 1}
        logits: Tensor = vlm.hf_model(**given).logits[0, -1]
    weights = _weights(vlm.hf_model)
    if _READ_OUT_OF.get(vlm.hf_model) != weights:
        _check_read_out(vlm, heard.stream[-1][-1:], logits)
        _READ_OUT_OF[vlm.hf_model] = weights
    return Base(
        prompt,
        tuple(heard.stream),
        tuple(heard.z),
        tuple(asked.key[0] for asked in heard.asked),
        tuple(asked.value[0] for asked in heard.asked),
        tuple(asked.scale for asked in heard.asked),
        tuple(asked.softcap for asked in heard.asked),
        Setting.of([x.mask for x in heard.asked], heard.calls, prompt.layout.n),
        logits,
        ref(vlm.hf_model),
        weights,
    )


def read_out(
    vlm: Backbone,
    stream: Float[Tensor, "row d_model"],
    tokens: tuple[int, ...] | None = None,
) -> Float[Tensor, "row token"]:
    """Logits of rows of the stream that leaves the last layer.

    Args:
        vlm: The model.
        stream: Rows that leave the last layer.
        tokens: Vocabulary columns; None gives them all.
    """
    normed = vlm.tapped.ln_final.norm(stream)
    head: nn.Linear = vlm.hf_model.get_submodule(vlm.family.head)
    if tokens is None or head.weight.is_meta:  # offloaded weights come only when called
        logits: Tensor = head(normed)
        logits = logits if tokens is None else logits[:, list(tokens)]
    else:
        has = cast("Tensor | None", head.bias)
        bias = None if has is None else has[list(tokens)]
        weight = head.weight[list(tokens)]
        logits = linear(normed.to(weight.device), weight, bias)
    cap = vlm.family.softcap(vlm.hf_model.config)
    return logits if cap is None else (logits / cap).tanh() * cap


_READ_OUT_OF: WeakKeyDictionary[nn.Module, Weights] = WeakKeyDictionary()
"""Models whose logits were found to be what their norm and unembedding give."""


def _check_read_out(vlm: Backbone, last: Tensor, logits: Tensor) -> None:
    ours = read_out(vlm, last)[0].to(logits.device)
    bound = 1e-4 if logits.itemsize >= 4 else 5e-2
    if not torch.allclose(ours, logits, rtol=bound, atol=bound):
        raise EngineError(
            "the model's logits are not what its final norm and unembedding"
            f" {vlm.family.head!r} give (largest difference"
            f" {float((ours - logits).abs().max()):.3g}): its forward does more with"
            f" them than family {vlm.family.name!r} knows."
        )


def _weights(model: nn.Module) -> Weights:
    """Each weight's memory, type, how often it was written in place, and a sample.

    Offloaded weights are there only while they are used, and are not told apart.
    """
    here = [each.detach() for each in model.parameters() if not each.is_meta]
    return tuple(
        (each.data_ptr(), each.dtype, 0 if each.is_inference() else each._version, some)
        for each, some in zip(here, _samples(here), strict=True)
    )


def _samples(weights: list[Tensor]) -> list[float]:
    """A sum over a few numbers of each weight: `weight.data` is written unnoticed."""
    sums = []
    for each in weights:
        few = each.reshape(-1)[:: max(1, each.numel() // 64)]
        sums.append(few.sum(dtype=torch.float64).cpu())
    return torch.stack(sums).tolist() if sums else []
