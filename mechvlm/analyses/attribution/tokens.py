"""Attribution by gradients: which tokens of a prompt its answer rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import xarray as xr

from mechvlm.axes import labelled
from mechvlm.gradients import Attribution, Baseline, along_a_path, midpoints
from mechvlm.layout import GROUPS, Positions
from mechvlm.metrics import Metric
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of

__all__ = ["gradient_x_input", "integrated_gradients"]

PAPER = "arXiv:2410.07149"


def integrated_gradients(
    vlm: HookedVLM,
    prompt: Prompt | Run,
    metric: Metric,
    *,
    baseline: Baseline = "mean",
    at: str | Positions = "image",
    steps: int = 50,
) -> xr.DataArray:
    """Share a metric out over tokens: what each adds, from a baseline to the prompt.

    The embeddings of `at`, as they enter layer 0, go from the baseline to their own in
    a straight line, and each token is given its part of the gradient on the way. The
    parts keep their sign, so that they add up to the whole difference.

    Args:
        vlm: The model; no weight's `requires_grad` is touched.
        prompt: The prompt, or its `base_run`.
        metric: What is shared out, such as `logit_difference`; must have a gradient.
        baseline: What stands for absent tokens: "mean" of the prompt's own tokens at
            `at`; "zero"; or a vector `[d_model]` or `[at d_model]`, such as
            `mean_token` makes of other pictures. From zero, tokens change in length
            alone, which normalisation forgets: nearly all is decided in the first
            step, and "gap" will be large.
        at: Tokens that are shared out over: a group of the layout, positions, or "all".
        steps: Places on the way where the gradient is taken, the middles of equal
            parts; 50 is usual.

    Returns:
        Score of each position, dimension (position), in the metric's unit: above 0
        speaks for it, 0 everywhere outside `at`. `attrs` holds the metric of the prompt
        ("value") and of the baseline ("baseline"), "gap", the scores' sum minus the
        difference of the two (0 is complete: take more steps where it is not), and
        "totals", the sum over each group of the layout.

    Raises:
        ArgumentError: `metric` is no metric, or `at` neither a group nor positions.
        InterventionError: There is no position or step, or the baseline does not fit.
        MetricError: The metric has no gradient.

    Paper: Neo et al. 2024, arXiv:2410.07149, ablation of tokens; signed, where the
    paper's code takes absolute values.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> metric = mv.logit_difference(vlm, "one", "two")
        >>> scores = mv.integrated_gradients(vlm, prompt, metric, steps=8)
        >>> scores.dims, bool((scores[scores.group != "image"] == 0).all())
        (('position',), True)
    """
    asked = prompt_of(prompt)
    found = along_a_path(
        vlm, asked, metric, shares=midpoints(steps), baseline=baseline, at=at
    )
    named = {"method": "integrated gradients", "steps": steps}
    return _result(vlm, asked, metric, found, baseline, named)


def gradient_x_input(
    vlm: HookedVLM,
    prompt: Prompt | Run,
    metric: Metric,
    *,
    baseline: Baseline = "zero",
    at: str | Positions = "image",
) -> xr.DataArray:
    """First-order estimate of what each token adds: gradient times embedding.

    One gradient, taken at the prompt itself, times the way from the baseline. It costs
    a single pass, and sees nothing where attention or a nonlinearity is saturated:
    "gap" says how far it is from the truth.

    Args:
        vlm: The model; no weight's `requires_grad` is touched.
        prompt: The prompt, or its `base_run`.
        metric: What is estimated; must have a gradient.
        baseline: What stands for absent tokens; see `integrated_gradients`.
        at: Tokens that are scored: a group of the layout, positions, or "all".

    Returns:
        As `integrated_gradients`.

    Raises:
        ArgumentError: `metric` is no metric, or `at` neither a group nor positions.
        InterventionError: There is no position, or the baseline does not fit.
        MetricError: The metric has no gradient.

    Paper: the one-step form of Neo et al. 2024, arXiv:2410.07149, ablation of tokens.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> metric = mv.logit_difference(vlm, "one", "two")
        >>> scores = mv.gradient_x_input(vlm, prompt, metric, at="all")
        >>> scores.sizes["position"] == prompt.layout.n
        True
    """
    asked = prompt_of(prompt)
    found = along_a_path(vlm, asked, metric, shares=[1.0], baseline=baseline, at=at)
    named = {"method": "gradient x input", "steps": 1}
    return _result(vlm, asked, metric, found, baseline, named)


def _result(
    vlm: HookedVLM,
    prompt: Prompt,
    metric: Metric,
    found: Attribution,
    baseline: Baseline,
    named: Mapping[str, object],
) -> xr.DataArray:
    scores = found.scores.cpu()
    attrs: dict[str, object] = {
        **prompt.described,
        **named,
        "model": vlm.cfg.model_name,
        "metric": metric.name,
        "baseline_tokens": baseline if isinstance(baseline, str) else "given vector",
        "value": found.value,
        "baseline": found.baseline,
        "gap": found.gap,
        "totals": {
            group: float(scores[_rows(prompt, group)].sum())
            for group in GROUPS
            if prompt.layout[group]
        },
        "layer_convention": "h[0], what enters layer 0",
    }
    result = labelled(
        scores.numpy(),
        name="attribution",
        units=metric.units,
        paper=PAPER,
        attrs=attrs,
        position=range(prompt.layout.n),
    )
    return result.assign_coords(prompt.labels())


def _rows(prompt: Prompt, group: str) -> Sequence[int]:
    return list(prompt.layout[group])
