"""Activation patching: which activations carry what differs between two prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import xarray as xr

from mechvlm.axes import labelled
from mechvlm.engine import intervene
from mechvlm.interventions import NOTHING, Patch
from mechvlm.metrics import Metric, recovery
from mechvlm.models.hooked import HookedVLM
from mechvlm.places import Where, check_direction, layers_of, places_of, site_in
from mechvlm.prompts import Prompt, check_pair
from mechvlm.record import Run, prompt_of, record, shared
from mechvlm.sites import Component

__all__ = ["activation_patching"]

PAPER = "arXiv:2404.15255"


def activation_patching(
    vlm: HookedVLM,
    clean: Prompt | Run,
    corrupted: Prompt | Run,
    *,
    metric: Metric,
    site: Component = "resid_pre",
    at: Where = "all",
    direction: Literal["denoise", "noise"] = "denoise",
    layers: Sequence[int] | range | None = None,
    progress: bool | None = None,
) -> xr.DataArray:
    """Patch activations of one prompt into the other, one place at a time.

    Denoising runs the corrupted prompt and takes clean activations: what restores the
    answer is sufficient for it. Noising runs the clean prompt and takes corrupted ones:
    what destroys the answer is necessary. The two are not mirror images.

    Args:
        vlm: The model.
        clean: The prompt with the answer in question, or its `base_run`.
        corrupted: Its twin, of the same layout, with another answer, or its base run.
        metric: What is measured at the last position, such as `logit_difference`.
        site: Component that is patched. Per-head components (q, k, v, z, result) are
            patched head by head, at all positions of `at` together.
        at: "all", a group of the layout ("image", "query", "last", ...) or positions:
            each position alone. A mapping of names to positions: each set as a whole.
        direction: "denoise" or "noise".
        layers: Layers to patch in; None takes all.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Recovery of the metric, a fraction of the gap between the clean and the
        corrupted run: 1 where the run with the patch is as good as the clean one, 0
        where it is as bad as the corrupted one, in both directions. Dimensions
        (layer, position), (layer, set) for a mapping, (layer, head) per head. The
        coordinate "raw" holds the metric itself, `attrs` its "clean" and "corrupted"
        value.

    Raises:
        PairError: The prompts cannot be matched position by position.
        MetricError: The metric is the same for both prompts.
        InterventionError: There is no position to patch.
        LayerError: A layer does not exist.

    Paper: Heimersheim and Nanda 2024, arXiv:2404.15255.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> red = mv.scenes.sample(seed=3, n=1).recolored(0, "red")
        >>> ask = f"what color is the {red.things[0].shape} ?"
        >>> clean = vlm.prompt(ask, red.image)
        >>> corrupted = vlm.prompt(ask, red.recolored(0, "blue").image)
        >>> metric = mv.logit_difference(vlm, "red", "blue")
        >>> heat = mv.activation_patching(
        ...     vlm, clean, corrupted, metric=metric, at="last", layers=[0, 7])
        >>> heat.dims, heat.shape, abs(float(heat[0, 0])) < 1e-5
        (('layer', 'position'), (2, 1), True)
    """
    check_pair(prompt_of(clean), prompt_of(corrupted))
    check_direction(direction)
    chosen = layers_of(vlm, site, layers)
    base, donor = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    prompt = prompt_of(base)
    places, labels = places_of(vlm, prompt, site, at)
    todo = [
        Patch(site_in(site, layer, head), positions, "donor")
        for layer in chosen
        for head, positions in places
    ]
    run = record(vlm, prompt_of(donor), [site_in(site, layer) for layer in chosen])
    own = shared(vlm, base)
    own_value = intervene(vlm, own, NOTHING, metric=metric, progress=False)
    both = [float(own_value[0]), float(metric(run.logits[None])[0])]
    bad, good = both if direction == "denoise" else reversed(both)
    units = recovery(metric, clean=good, corrupted=bad).units  # refuses an empty gap
    shown = False if progress is False else f"{direction} {site}"
    runs = {"donor": run}
    raw = intervene(vlm, own, todo, runs=runs, metric=metric, progress=shown)
    raw = raw.reshape(len(chosen), -1).cpu()
    result = labelled(
        ((raw - bad) / (good - bad)).numpy(),
        name="recovery",
        units=units,
        paper=PAPER,
        attrs=_described(vlm, prompt_of(clean), metric, site, direction)
        | {"clean": good, "corrupted": bad},
        layer=chosen,
        **labels,
    )
    result = result.assign_coords(raw=(result.dims, raw.numpy()))
    return _with_tokens(result, prompt)


def _described(
    vlm: HookedVLM, clean: Prompt, metric: Metric, site: str, direction: str
) -> dict[str, str | float]:
    """What was patched where, as attributes of the result."""
    return {
        **clean.described,
        "model": vlm.cfg.model_name,
        "metric": metric.name,
        "metric_units": metric.units,
        "site": site,
        "direction": direction,
    }


def _with_tokens(result: xr.DataArray, prompt: Prompt) -> xr.DataArray:
    """Name each position's token and group."""
    if "position" not in result.dims:
        return result
    at = [int(position) for position in result["position"]]
    return result.assign_coords(prompt.labels(at=at))
