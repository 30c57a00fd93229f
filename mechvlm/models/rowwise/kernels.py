"""Attention kernels that also tell each row's log-sum-exp, so that parts can be merged.

Attention over two sets of keys is the mean of attention over each, weighted by the
sums of their exponentials: keys that many rows share need not be copied for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from mechvlm.models.attention import wide

__all__ = ["Kernel", "kernel_for", "merged", "plain", "removal"]

Kernel = Callable[..., tuple[Tensor, Tensor]]
"""From query, key, value, scale, an additive mask or None, and whether row i reads keys
0..i alone, to `[batch head target d_head]` and log-sum-exps `[batch head target]`."""


def plain(
    query: Float[Tensor, "batch head target d_head"],
    key: Float[Tensor, "batch head source d_head"],
    value: Float[Tensor, "batch head source d_head"],
    scale: float,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Every score written out; runs anywhere, and knows soft-capped scores."""
    scores = wide(query) @ wide(key).transpose(-2, -1) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if causal:
        ahead = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(ahead, torch.finfo(scores.dtype).min)
    if mask is not None:
        scores = scores.masked_fill(mask < 0, torch.finfo(scores.dtype).min)
    total = scores.logsumexp(dim=-1)
    pattern = (scores - total[..., None]).exp()
    return pattern.to(value.dtype) @ value, total


def _flash_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, total = flash(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)
    return output, total


def _efficient_on_cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    if mask is not None:
        shape = (*query.shape[:-1], key.shape[-2])
        # The kernel wants every row of its bias to begin at a multiple of 16 bytes.
        padded = mask.new_zeros(*mask.shape[:-1], math.ceil(shape[-1] / 16) * 16)
        padded[..., : shape[-1]] = mask
        mask = padded[..., : shape[-1]].expand(shape)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    output, total, *_ = efficient(
        query, key, value, mask, True, 0.0, causal, scale=scale
    )
    return output, total[..., : query.shape[-2]]


_FAST = {"cpu": _flash_on_cpu, "cuda": _efficient_on_cuda}


@cache
def kernel_for(device: str, dtype: torch.dtype) -> Kernel:
    """The fastest kernel that gives the plain one's answer on this kind of device.

    Args:
        device: Kind of device: "cpu", "cuda", ...
        dtype: Type of queries, keys and values.
    """
    fast = _FAST.get(device)
    if fast is None:
        return plain
    try:
        agrees = _agrees(fast, device, dtype)
    except (AttributeError, NotImplementedError, RuntimeError):
        return plain  # an older torch, or a device whose kernel lacks this type
    return fast if agrees else plain


def _agrees(fast: Kernel, device: str, dtype: torch.dtype) -> bool:
    """Whether a kernel gives the plain one's answer on a few numbers."""
    draw = torch.Generator(device).manual_seed(0)
    shape = 3, 2, 2, 5, 16
    q, k, v = torch.randn(shape, generator=draw, device=device).to(dtype)
    cut = torch.zeros(1, 1, 5, 5, device=device, dtype=torch.bool)
    cut[..., 2:, 1] = True
    bound = 1e-5 if q.itemsize >= 4 else 2e-2
    for mask, causal in ((None, False), (None, True), (removal(cut, dtype), False)):
        ours = fast(q, k, v, 0.25, mask, causal=causal)
        theirs = plain(q, k, v, 0.25, mask, causal=causal)
        for one, other in zip(ours, theirs, strict=True):
            if not torch.allclose(one.double(), other.double(), rtol=0, atol=bound):
                return False
    return True


def removal(cut: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask of removed pairs: so low that nothing of them is left.

    It is finite, so that a row that loses all keys of one part stays a number; its
    log-sum-exp says that this part weighs nothing.
    """
    mask = torch.zeros(cut.shape, dtype=dtype, device=cut.device)
    return mask.masked_fill_(cut, torch.finfo(dtype).min)


def merged(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys, from attention over each."""
    (out, total), (out_too, total_too) = one, other
    share = torch.sigmoid(total_too - total)[..., None]
    both = torch.lerp(wide(out), wide(out_too), share.to(wide(out).dtype))
    return both.to(out.dtype), torch.logaddexp(total, total_too)
