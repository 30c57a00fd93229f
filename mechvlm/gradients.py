"""Attribution by gradients: how much each position's embedding adds to a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvlm.errors import InterventionError, MetricError
from mechvlm.layout import Positions
from mechvlm.metrics import Metric
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.wanted import one

__all__ = [
    "Attribution",
    "Baseline",
    "Vector",
    "along_a_path",
    "as_vector",
    "midpoints",
]


@runtime_checkable
class Array(Protocol):
    """Anything that numpy reads: arrays, and labelled results."""

    def __array__(self) -> np.ndarray:
        """The numbers."""
        ...


Vector: TypeAlias = Tensor | Array
"""A vector of the stream `[d_model]`, or one per position `[position d_model]`."""

Baseline: TypeAlias = Literal["mean", "zero"] | Vector
"""What stands for an absent token: the mean of the prompt's own tokens that are
replaced, zeros, or a vector."""


class Attribution(NamedTuple):
    """How a difference of a metric is shared out over positions.

    Attributes:
        scores: Signed share of each position, in the metric's unit.
        value: The metric of the prompt.
        baseline: The metric with the baseline in place of the tokens.
    """

    scores: Float[Tensor, " position"]
    value: float
    baseline: float

    @property
    def gap(self) -> float:
        """What the scores add up to, beyond the difference that they share out."""
        return float(self.scores.sum()) - (self.value - self.baseline)


def midpoints(steps: int) -> list[float]:
    """Places on the way from baseline (0) to input (1): the middles of equal steps.

    The ends, where attention is often flat or saturated, weigh as much as any other
    place, so that the sum's error falls with the square of `steps`.

    Raises:
        InterventionError: There is no step.

    Example:
        >>> midpoints(2)
        [0.25, 0.75]
    """
    if steps < 1:
        raise InterventionError(f"steps={steps}: wanted at least 1; 50 is usual.")
    return [(step + 0.5) / steps for step in range(steps)]


def along_a_path(
    vlm: HookedVLM,
    prompt: Prompt,
    metric: Metric,
    *,
    shares: Sequence[float],
    baseline: Baseline,
    at: str | Positions,
) -> Attribution:
    """Gradient times (embedding - baseline), meaned over places between the two.

    The embeddings are the merged ones that enter layer 0; all positions but `at` keep
    theirs and score 0. No weight's `requires_grad` is touched.

    Args:
        vlm: The model.
        prompt: The prompt.
        metric: What is shared out; must have a gradient.
        shares: Places where the gradient is taken: 0 is the baseline, 1 the prompt.
        baseline: What stands for an absent token.
        at: Positions that are attributed to; a group of the layout, or "all".

    Raises:
        ArgumentError: `metric` is no metric, or `at` neither a group nor positions.
        InterventionError: There is no position, or the baseline does not fit.
        MetricError: The metric has no gradient.
    """
    one(metric, Metric, "metric", 'mv.logit_difference(vlm, "red", "blue")')
    one(at, (str, Positions), "at", 'at="image", or at=Positions.of(3, 4)')
    chosen = _positions(prompt, at)
    with torch.no_grad():
        whole = vlm(prompt, stop_at_layer=0)[0]
    rows = list(chosen)
    start = whole.clone()
    start[rows] = _absent(baseline, whole[rows])
    way = whole - start
    slope = torch.zeros_like(whole, dtype=torch.float32)
    for share in shares:
        slope += _gradient(vlm, prompt, metric, start + share * way).float()
    scores = (slope / len(shares) * way.float()).sum(dim=-1)
    ends = [_value(vlm, prompt, metric, each) for each in (whole, start)]
    return Attribution(scores, *ends)


def as_vector(given: Vector) -> Tensor:
    """A vector as a tensor."""
    if isinstance(given, Tensor):
        return given.detach()
    return torch.from_numpy(np.array(given, dtype=np.float32))


def _positions(prompt: Prompt, at: str | Positions) -> Positions:
    every = Positions.of(range(prompt.layout.n))
    found = every if at == "all" else prompt.layout[at] if isinstance(at, str) else at
    if not found:
        raise InterventionError(
            f"at={at!r} is empty in this prompt, so there is nothing to attribute to."
            " Was the prompt built without its image?"
        )
    if found.indices[-1] > prompt.layout.last:
        raise InterventionError(
            f"position {found.indices[-1]} lies behind the prompt's last position,"
            f" {prompt.layout.last}."
        )
    return found


def _absent(
    baseline: Baseline, own: Float[Tensor, "at d_model"]
) -> Float[Tensor, "#at d_model"]:
    """The baseline's rows at the positions that are attributed to."""
    if isinstance(baseline, str):
        if baseline == "zero":
            return torch.zeros_like(own[:1])
        if baseline == "mean":
            return own.mean(dim=0, keepdim=True)
        raise InterventionError(
            f"baseline={baseline!r}: wanted 'mean', 'zero' or a vector."
        )
    rows = as_vector(baseline).to(own)
    wanted = own.shape[1:], own.shape
    if rows.shape not in wanted:
        raise InterventionError(
            f"a baseline of shape {list(rows.shape)} does not fit: wanted"
            f" [{own.shape[1]}], or {list(own.shape)}, one row per position of `at`."
        )
    return rows.reshape(-1, own.shape[1])


def _gradient(
    vlm: HookedVLM, prompt: Prompt, metric: Metric, embedding: Tensor
) -> Float[Tensor, "position d_model"]:
    with torch.enable_grad():
        leaf = embedding.detach().requires_grad_()
        logits = vlm(leaf[None], prompt=prompt, start_at_layer=0)
        value = metric(logits[:, -1])
        if not value.requires_grad:
            raise MetricError.flat(metric.name)
        (found,) = torch.autograd.grad(value.sum(), leaf)
    return found


@torch.no_grad()
def _value(vlm: HookedVLM, prompt: Prompt, metric: Metric, embedding: Tensor) -> float:
    logits = vlm(embedding[None], prompt=prompt, start_at_layer=0)
    return float(metric(logits[:, -1])[0])
