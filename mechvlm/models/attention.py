"""The attention function registered with transformers: where attention can be touched.

Families keep their own attention modules (rotary embedding, grouped heads, windows);
they call this function for "query, key, value -> output". Scores and patterns are
computed one by one only in layers where a hook waits; elsewhere SDPA runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mechvlm.errors import EngineError

__all__ = ["NAME", "Asked", "AttentionPoints", "answering", "listening", "wide"]

NAME = "mechvlm"


@dataclass(frozen=True, slots=True)
class AttentionPoints:
    """Hook points inside one layer's attention, in the order in which they fire."""

    rot_q: HookPoint
    rot_k: HookPoint
    scores: HookPoint
    pattern: HookPoint

    def explicit(self) -> bool:
        """Whether scores or patterns must be computed one by one."""
        points = (self.scores, self.pattern)
        return any(point.fwd_hooks or point.bwd_hooks for point in points)


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a layer asks of its attention: rotated queries and keys, values, the mask.

    Attributes:
        query: `[batch head target d_head]`.
        key: `[batch kv_head source d_head]`, as `value`.
        value: What is read.
        mask: True where a target may read a source; None stands for causal.
        scale: Factor of the scores.
        softcap: Scores are bent to stay within plus or minus this; None does not.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    softcap: float | None


Answer = Callable[[Asked], Tensor | None]
"""Attention's output `[batch target head d_head]`; None leaves it to the usual way."""


_BEHIND = ContextVar("attention that the model was loaded with", default="sdpa")
"""What runs where nothing waits: the kind of the base run, so that runs compare."""

_LISTENING: WeakKeyDictionary[nn.Module, AttentionPoints] = WeakKeyDictionary()

_ANSWERING: WeakKeyDictionary[nn.Module, Answer] = WeakKeyDictionary()


@contextmanager
def listening(config: Any, points: dict[nn.Module, AttentionPoints]) -> Iterator[None]:
    """Send the attention of these modules through their hook points, for one forward.

    Args:
        config: Config of the language backbone; its attention is switched and restored.
        points: Attention module -> its hook points.
    """
    _LISTENING.update(points)
    try:
        with _switched(config):
            yield
    finally:
        for module in points:
            _LISTENING.pop(module, None)


@contextmanager
def answering(
    config: Any, modules: Sequence[nn.Module], answer: Answer
) -> Iterator[None]:
    """Let a function answer for the attention of these modules, for a while.

    Args:
        config: Config of the language backbone; its attention is switched and restored.
        modules: Attention modules.
        answer: What gives their output, or None for the usual way.
    """
    if any(module in _ANSWERING for module in modules):
        raise EngineError(
            "this model is in the middle of a sweep, and serves one at a time. Record"
            " runs before the sweep that uses them, and sweep from one thread."
        )
    _ANSWERING.update(dict.fromkeys(modules, answer))
    try:
        with _switched(config):
            yield
    finally:
        for module in modules:
            _ANSWERING.pop(module, None)


@contextmanager
def _switched(config: Any) -> Iterator[None]:
    """Send the backbone's attention here, and know what it was loaded with."""
    before = config._attn_implementation
    if before == NAME:
        yield
        return
    config._attn_implementation = NAME
    behind = _BEHIND.set(before)
    try:
        yield
    finally:
        _BEHIND.reset(behind)
        config._attn_implementation = before


def _attention(
    module: nn.Module,
    query: Float[Tensor, "batch head target d_head"],
    key: Float[Tensor, "batch kv_head source d_head"],
    value: Float[Tensor, "batch kv_head source d_head"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls in place of its own attention function."""
    points = _LISTENING.get(module)
    if points is not None:
        query = points.rot_q(query.transpose(1, 2)).transpose(1, 2)
        key = points.rot_k(key.transpose(1, 2)).transpose(1, 2)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    asked = Asked(query, key, value, attention_mask, scale, softcap)
    answer = _ANSWERING.get(module)
    output = None if answer is None else answer(asked)
    if output is not None:
        return output, None
    if points is not None and points.explicit():
        return _explicit(points.scores, points.pattern, asked)
    if _BEHIND.get() == "eager" or softcap is not None:
        return _explicit(_unheard, _unheard, asked)
    plain: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
        module,
        query.contiguous(),
        key.contiguous(),
        value,
        attention_mask,
        scaling=scale,
        dropout=dropout,
        **kwargs,
    )
    return plain


def _unheard(value: Tensor) -> Tensor:
    return value


def wide(values: Tensor) -> Tensor:
    """16-bit values in fp32; others as they are."""
    return values.float() if values.itemsize < 4 else values


def _explicit(
    hear_scores: Callable[[Tensor], Tensor],
    hear_pattern: Callable[[Tensor], Tensor],
    asked: Asked,
) -> tuple[Tensor, Tensor]:
    query, key, value = asked.query, asked.key, asked.value
    shared = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
    if _BEHIND.get() != "eager":
        # In fp32, as SDPA's kernels compute them: a cut run must not differ from an
        # uncut one by the rounding of 16-bit scores.
        query, key = wide(query), wide(key)
    scores = query @ key.transpose(2, 3) * asked.scale
    if asked.softcap is not None:
        scores = (scores / asked.softcap).tanh() * asked.softcap
    allowed = _allowed(asked.mask, query.shape[2], key.shape[2], query.device)
    scores = hear_scores(scores.masked_fill(~allowed, -torch.inf))
    # A row that may read nothing is a row of padding; it reads nothing, not NaN.
    blind = scores.isneginf().all(dim=-1, keepdim=True)
    pattern = wide(scores.masked_fill(blind, 0)).softmax(dim=-1)
    pattern = hear_pattern(pattern.masked_fill(blind, 0).to(value.dtype))
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def _allowed(
    mask: Tensor | None, n_target: int, n_source: int, device: torch.device
) -> Tensor:
    """Whether each target row may read each source; None stands for causal."""
    if mask is not None:
        return mask
    ones = torch.ones(n_target, n_source, dtype=torch.bool, device=device)
    return ones.tril(n_source - n_target)


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
# The mask must be SDPA's (None or boolean), so that "cut" cannot be mistaken.
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
