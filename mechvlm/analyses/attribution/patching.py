"""Attribution patching: activation patching to first order, for one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mechvlm.axes import labelled
from mechvlm.interventions import Patch
from mechvlm.layout import Positions
from mechvlm.metrics import Metric, recovery
from mechvlm.models.checking import check_all
from mechvlm.models.hooked import HookedVLM
from mechvlm.places import Where, check_direction, layers_of, places_of, site_in
from mechvlm.prompts import Prompt, check_pair
from mechvlm.record import Run, prompt_of, record
from mechvlm.screening import site_slopes
from mechvlm.sites import Component, Site

__all__ = ["PAPER", "attribution_patching"]

PAPER = "arXiv:2310.10348"


def attribution_patching(
    vlm: HookedVLM,
    clean: Prompt | Run,
    corrupted: Prompt | Run,
    *,
    metric: Metric,
    site: Component = "resid_pre",
    at: Where = "all",
    direction: Literal["denoise", "noise"] = "denoise",
    steps: int = 1,
    layers: Sequence[int] | range | None = None,
) -> xr.DataArray:
    """Estimate `activation_patching` in all its places by one backward pass.

    Each place's change, times the metric's gradient there: what the patch would do if
    everything behind it were linear. Where attention is saturated the gradient is
    nearly 0 and says nothing of what a whole patch would do; `steps` helps.

    Args:
        vlm: The model; no weight's `requires_grad` is touched.
        clean: The prompt with the answer in question, or its `base_run`.
        corrupted: Its twin, of the same layout, with another answer, or its base run.
        metric: What is estimated; must have a gradient.
        site: Component that is patched. Per-head components (q, k, v, z, result) head
            by head, at all positions of `at` together.
        at: "all", a group of the layout ("image", "query", "last", ...) or positions:
            each position alone. A mapping of names to positions: each set as a whole.
        direction: "denoise" runs the corrupted prompt and takes clean activations,
            "noise" the other way round.
        steps: 1 takes the gradient in the run that is patched. More take its mean over
            the middles of as many equal steps between the embeddings of the two runs,
            image and all: its integrated-gradients form.
        layers: Layers to patch in; None takes all.

    Returns:
        Estimated recovery of the metric, a fraction of the gap between the clean and
        the corrupted run: 1 as good as the clean run, 0 as bad as the corrupted one, in
        both directions. Dimensions (layer, position), (layer, set) for a mapping,
        (layer, head) per head, as of `activation_patching`. The coordinate "raw" holds
        the estimated metric, `attrs` its "clean" and "corrupted" value.

    Raises:
        PairError: The prompts cannot be matched position by position.
        MetricError: The metric has no gradient, or is the same for both prompts.
        InterventionError: There is no position or no step.
        LayerError: A layer does not exist.

    Paper: Syed et al. 2023, arXiv:2310.10348; its integrated form with the inputs of
    Hanna et al. 2024, arXiv:2403.17806.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> red = mv.scenes.sample(seed=3, n=1).recolored(0, "red")
        >>> ask = f"what color is the {red.things[0].shape} ?"
        >>> clean = vlm.prompt(ask, red.image)
        >>> corrupted = vlm.prompt(ask, red.recolored(0, "blue").image)
        >>> metric = mv.logit_difference(vlm, "red", "blue")
        >>> heat = mv.attribution_patching(
        ...     vlm, clean, corrupted, metric=metric, site="z", layers=[0, 7])
        >>> heat.dims, heat.shape
        (('layer', 'head'), (2, 4))
    """
    ends = {"clean": prompt_of(clean), "corrupted": prompt_of(corrupted)}
    check_pair(ends["clean"], ends["corrupted"])
    check_direction(direction)
    runs, gives = ("corrupted", "clean")[:: 1 if direction == "denoise" else -1]
    chosen = layers_of(vlm, site, layers)
    places, labels = places_of(vlm, ends[runs], site, at)
    patches = [Patch(site_in(site, chosen[0], head), x, gives) for head, x in places]
    check_all(vlm, ends[runs], patches, None)
    sites = [site_in(site, layer) for layer in chosen]
    other = record(vlm, ends[gives], [Site("embed"), *sites])
    own, added = site_slopes(
        vlm, ends[runs], other, metric=metric, sites=sites, steps=steps
    )
    values = {runs: own, gives: float(metric(other.logits[None])[0])}
    units = recovery(metric, **values).units  # refuses an empty gap
    raw = own + torch.stack([_in_places(added[each], places) for each in sites])
    bad, good = values["corrupted"], values["clean"]
    result = labelled(
        ((raw - bad) / (good - bad)).numpy(),
        name="estimated recovery",
        units=units,
        paper=PAPER,
        attrs=_described(vlm, ends["clean"], metric)
        | {"site": site, "direction": direction, "steps": steps, **values},
        layer=chosen,
        **labels,
    )
    result = result.assign_coords(raw=(result.dims, raw.numpy()))
    return _with_tokens(result, ends[runs])


def _described(
    vlm: HookedVLM, clean: Prompt, metric: Metric
) -> dict[str, str | int | float]:
    """What was estimated of what, as attributes of the result."""
    return {
        **clean.described,
        "model": vlm.cfg.model_name,
        "method": "attribution patching",
        "metric": metric.name,
        "metric_units": metric.units,
        "layer_convention": "sites of layer l; resid_pre is h[l], what enters it",
    }


def _in_places(
    added: Float[Tensor, "position ..."],
    places: Sequence[tuple[int | None, Positions]],
) -> Float[Tensor, " place"]:
    """What each place's positions (of its head) add together."""
    cells = [added if head is None else added[:, head] for head, _ in places]
    sums = [x[list(at)].sum() for x, (_, at) in zip(cells, places, strict=True)]
    return torch.stack(sums).cpu()


def _with_tokens(result: xr.DataArray, prompt: Prompt) -> xr.DataArray:
    """Name each position's token and group."""
    if "position" not in result.dims:
        return result
    at = [int(position) for position in result["position"]]
    return result.assign_coords(prompt.labels(at=at))
