"""Every sender to each receiver: one run per path, all senders of one in one batch."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechvlm.analyses.path_patching.ends import (
    Layers,
    Place,
    Receiver,
    Receivers,
    Sender,
    Senders,
    path_between,
    receivers_of,
    senders_of,
)
from mechvlm.axes import labelled
from mechvlm.engine import intervene
from mechvlm.errors import InterventionError
from mechvlm.interventions import NOTHING, PathPatch
from mechvlm.metrics import Metric, recovery
from mechvlm.models.checking import check_site
from mechvlm.models.hooked import HookedVLM
from mechvlm.places import check_direction
from mechvlm.prompts import Prompt, check_pair
from mechvlm.record import Run, prompt_of, record, shared

__all__ = ["path_patching"]

PAPER = "arXiv:2211.00593"


def path_patching(
    vlm: HookedVLM,
    clean: Prompt | Run,
    corrupted: Prompt | Run,
    *,
    metric: Metric,
    senders: Senders = "heads",
    receivers: Receivers = "logits",
    at: Place | None = None,
    to: Place | None = None,
    mlps: Literal["recomputed", "frozen"] = "recomputed",
    direction: Literal["noise", "denoise"] = "noise",
    layers: Layers = None,
    progress: bool | None = None,
) -> xr.DataArray:
    """Patch the direct path from each sender to each receiver, one at a time.

    The sender takes the other prompt's value while every head on the way keeps this
    prompt's; what the receiver then gets is put into a last run, whose answer is read.
    So an effect goes from this sender to this receiver, and by no other head. Noising
    runs the clean prompt and breaks paths, denoising the corrupted one and mends them.

    Args:
        vlm: The model.
        clean: The prompt with the answer in question, or its `base_run`.
        corrupted: Its twin, of the same layout, with another answer, or its base run.
        metric: What is measured at the last position, such as `logit_difference`.
        senders: "heads", "mlps", names of token groups whose embeddings send
            (`{"object": positions, "background": "image"}`), or a list of sites.
        receivers: "logits", a site, a list of them (each by itself), or names of sites
            or of tuples of sites, which receive jointly. A q, k or v of a head hears
            what enters the head; z and attn_out let their own layer attend; mlp_out is
            what an MLP makes of what it hears.
        at: Positions that send: a group, positions, or None for all.
        to: Positions that receive, likewise; the logits are read at the last one.
        mlps: "recomputed": MLPs on the way pass on what they make of the change.
            "frozen": they keep this prompt's output, so that the path is the stream's
            own; the sweep is then quickest.
        direction: "noise" or "denoise".
        layers: Layers of senders that are "heads" or "mlps"; None takes all.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Recovery of the metric, a fraction of the gap between the clean and the
        corrupted run: 1 where the run is as good as the clean one, 0 where it is as bad
        as the corrupted one, in both directions. The coordinate "effect" is the share
        of the gap that the path moves: 1 - recovery with noise, recovery itself with
        denoise, so that 0 is a path that does nothing; it is what a map shows best:
        `viz.heatmap(found["effect"][0])`. NaN where a sender has no path to a receiver:
        that was not run. Dimensions (receiver, layer, head) for heads, (receiver,
        layer) for MLPs, (receiver, group) for token groups, (receiver, sender) for
        sites. The coordinate "raw" holds the metric itself, "serves" the query heads
        that hear a receiver (with grouped queries several share a k or v); `attrs` the
        metric's "clean" and "corrupted" value. `layer` is the sender's, from 0.

    Raises:
        PairError: The prompts cannot be matched position by position.
        MetricError: The metric is the same for both prompts.
        InterventionError: No sender has a path to a receiver, or an end is empty.
        LayerError: A layer or head does not exist.

    Paper: Wang et al. 2022, arXiv:2211.00593 (path patching).

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> red = mv.scenes.sample(seed=3, n=1).recolored(0, "red")
        >>> ask = f"what color is the {red.things[0].shape} ?"
        >>> clean = vlm.prompt(ask, red.image)
        >>> corrupted = vlm.prompt(ask, red.recolored(0, "blue").image)
        >>> metric = mv.logit_difference(vlm, "red", "blue")
        >>> found = mv.path_patching(vlm, clean, corrupted, metric=metric)
        >>> found.dims, found.shape == (1, vlm.cfg.n_layers, vlm.cfg.n_heads)
        (('receiver', 'layer', 'head'), True)
    """
    prompts = prompt_of(clean), prompt_of(corrupted)
    check_pair(*prompts)
    check_direction(direction)
    if mlps not in ("recomputed", "frozen"):
        raise InterventionError(f"mlps={mlps!r}: wanted 'recomputed' or 'frozen'.")
    layout = prompts[0].layout
    sending, dims = senders_of(vlm.cfg, layout, senders, at=at, layers=layers)
    receiving = receivers_of(vlm.cfg, layout, receivers, to=to)
    paths = _paths(vlm, sending, receiving, mlps=mlps)
    base, donor = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    run = record(vlm, prompt_of(donor), [each.site for each in sending])
    own = shared(vlm, base)
    own_value = intervene(vlm, own, NOTHING, metric=metric, progress=False)
    both = [float(own_value[0]), float(metric(run.logits[None])[0])]
    bad, good = both if direction == "denoise" else reversed(both)
    units = recovery(metric, clean=good, corrupted=bad).units  # refuses an empty gap
    names = {"receiver": [each.name for each in receiving], **dims}
    rows = []
    for name, of_receiver in zip(names["receiver"], paths, strict=True):
        shown = False if progress is False else f"paths to {name}"
        rows.append(
            _measured(vlm, own, of_receiver, donor=run, metric=metric, progress=shown)
        )
    raw = np.stack(rows).reshape(*map(len, names.values()))
    attrs = _described(vlm, prompts[0], metric) | {"direction": direction, "mlps": mlps}
    attrs |= {"clean": good, "corrupted": bad, "n_paths": int(np.isfinite(raw).sum())}
    share = (raw - bad) / (good - bad)
    made = {"recovery": share, "effect": share if direction == "denoise" else 1 - share}
    result, effect = (
        labelled(values, name=name, units=units, paper=PAPER, attrs=attrs, **names)
        for name, values in made.items()
    )
    serves = ("receiver", [each.serves for each in receiving])
    raws = result.dims, raw
    return result.assign_coords(raw=raws, effect=effect.variable, serves=serves)


def _measured(
    vlm: HookedVLM,
    own: Prompt | Run,
    paths: list[PathPatch | None],
    *,
    donor: Run,
    metric: Metric,
    progress: str | bool,
) -> Float[np.ndarray, " path"]:
    """The metric after each path to one receiver; NaN where there is none."""
    found = np.full(len(paths), np.nan)
    todo = [path for path in paths if path is not None]
    runs = {"donor": donor}
    values = intervene(vlm, own, todo, runs=runs, metric=metric, progress=progress)
    found[[path is not None for path in paths]] = values.cpu().numpy()
    return found


def _described(
    vlm: HookedVLM, clean: Prompt, metric: Metric
) -> dict[str, str | int | float]:
    """What was measured where, as attributes of the result."""
    return {
        **clean.described,
        "model": vlm.cfg.model_name,
        "metric": metric.name,
        "metric_units": metric.units,
        "n": 1,
        "layer_convention": "layer of the sender, counted from 0",
    }


def _paths(
    vlm: HookedVLM,
    senders: list[Sender],
    receivers: list[Receiver],
    *,
    mlps: Literal["recomputed", "frozen"],
) -> list[list[PathPatch | None]]:
    """The paths of each receiver, a place for every sender."""
    for site in (s for each in receivers for s in each.sites):
        check_site(vlm.cfg, site)
    for sender in senders:
        check_site(vlm.cfg, sender.site)
    found = [
        [path_between(sender, receiver, "donor", mlps=mlps) for sender in senders]
        for receiver in receivers
    ]
    for receiver, of_receiver in zip(receivers, found, strict=True):
        if not any(of_receiver):
            raise InterventionError(
                f"no sender has a path to {receiver.name!r}: each stands in the same or"
                " a later layer, or sends from positions that it does not receive at,"
                " and heads on the way are frozen. Name senders in front of it."
            )
    return found
