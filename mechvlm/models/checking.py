"""What must hold before an intervention runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mechvlm.cone import Cells, Reads, cells_of
from mechvlm.errors import (
    BlindRowError,
    InterventionError,
    LayerError,
    MechVLMWarning,
    RunError,
)
from mechvlm.interventions import (
    Ablate,
    Add,
    Intervention,
    Knockout,
    Patch,
    PathPatch,
    parts,
)
from mechvlm.layout import Positions
from mechvlm.models.config import Config
from mechvlm.models.lowering import RunLike, Sources
from mechvlm.models.setting import Setting
from mechvlm.prompts import Prompt
from mechvlm.sites import PER_HEAD, Site

__all__ = ["Reading", "check", "check_all", "check_site", "shape_at", "warn_of_hooks"]


@runtime_checkable
class Reading(Protocol):
    """A model that can tell who may read whom."""

    cfg: Config

    def setting(self, prompt: Prompt) -> Setting:
        """What every layer is told of a prompt's positions."""
        ...


def check(
    cfg: Config,
    intervention: Intervention,
    n: int,
    sources: Sources | None,
    reads: Reads | None,
) -> None:
    """Refuse an intervention that cannot mean anything on a sequence of `n` positions.

    Args:
        cfg: The model's numbers.
        intervention: One, or a tuple of several.
        n: Number of positions that there will be.
        sources: The named runs and vectors; None where they are not looked at yet.
        reads: Which position may read which; needed where attention is cut.

    Raises:
        InterventionError: A position is outside the sequence, or a vector has the wrong
            shape or no value.
        LayerError: A layer or head does not exist.
        RunError: A run is not given, or lacks a site or a position.
        BlindRowError: A row that is cut has nothing left to read.
    """
    if sources is not None and "zero" in sources.vectors:
        raise InterventionError(
            'a vector is named "zero", which Ablate takes for 0 itself; rename it.'
        )
    cuts = [part for part in parts(intervention) if isinstance(part, Knockout)]
    for part in parts(intervention):
        if isinstance(part, Knockout):
            _check_cut(cfg, part, n)
        elif isinstance(part, PathPatch):
            _check_path(cfg, part, n, sources)
        else:
            _check_write(cfg, part, n, sources)
    if cuts and reads is not None:
        _check_rows(cfg, cuts, reads)


def check_all(
    vlm: Reading,
    prompt: Prompt,
    todo: Sequence[Intervention],
    sources: Sources | None,
    reads: Reads | None = None,
) -> None:
    """Refuse a sweep of which an intervention cannot mean anything on this prompt.

    Args:
        vlm: The model.
        prompt: The prompt.
        todo: The interventions.
        sources: The named runs and vectors; None where they are not looked at yet.
        reads: Who may read whom, where that is known already.

    Raises:
        InterventionError: And its kinds; see `check`.
    """
    cuts = any(isinstance(part, Knockout) for each in todo for part in parts(each))
    if cuts and reads is None:
        reads = vlm.setting(prompt).reads
    for each in todo:
        check(vlm.cfg, each, prompt.layout.n, sources, reads)


def check_site(cfg: Config, site: Site) -> None:
    """Refuse a site whose layer or head this model does not have."""
    if site.layer is not None and site.layer >= cfg.n_layers:
        raise LayerError(
            f"{site!r}: this model has {cfg.n_layers} layers, 0..{cfg.n_layers - 1}."
        )
    n_heads = cfg.n_key_value_heads if site.component in "kv" else cfg.n_heads
    if site.head is not None and site.head >= n_heads:
        kind = "key-value heads" if site.component in "kv" else "heads"
        raise LayerError(
            f"{site!r}: this model has {n_heads} {kind}, 0..{n_heads - 1}."
        )


def _check_inside(what: str, positions: Positions, n: int) -> None:
    if positions.indices[-1] >= n:
        beyond = Positions.of(p for p in positions if p >= n)
        raise InterventionError(
            f"{what} names positions {beyond}, outside this sequence of {n} positions"
            f" (0..{n - 1}). Were the positions taken from another prompt's layout?"
        )


def _check_write(
    cfg: Config, part: Patch | Ablate | Add, n: int, sources: Sources | None
) -> None:
    check_site(cfg, part.site)
    _check_inside(type(part).__name__, part.at, n)
    if sources is None:
        return
    if isinstance(part, Patch):
        _check_run(cfg, part.run, part.site, part.from_ or part.at, sources)
        return
    name = part.vector if isinstance(part, Add) else part.value
    if isinstance(part, Ablate) and name == "zero":
        return
    if name not in sources.vectors:
        raise InterventionError(
            f"{part!r} names the vector {name!r}, and vectors= has"
            f" {sorted(sources.vectors)}."
        )
    _check_vector(cfg, part, sources.vectors[name])


def _check_vector(cfg: Config, part: Ablate | Add, vector: Tensor) -> None:
    one = shape_at(cfg, part.site)
    if not isinstance(vector, Tensor):
        raise InterventionError(
            f"{part!r}: the vector is a {type(vector).__name__}; wanted a tensor."
        )
    if tuple(vector.shape) not in (one, (len(part.at), *one)):
        raise InterventionError(
            f"{part!r}: the vector has shape {tuple(vector.shape)}; wanted {one} for"
            f" every position alike, or {(len(part.at), *one)}, one row per position."
        )
    if not torch.isfinite(vector).all():
        raise InterventionError(f"{part!r}: the vector holds NaN or infinity.")


def shape_at(cfg: Config, site: Site) -> tuple[int, ...]:
    """Shape of one position's activation at a site."""
    if site.component == "mlp_post":
        return (cfg.d_mlp,)
    if site.component not in PER_HEAD:
        return (cfg.d_model,)
    width = cfg.d_model if site.component == "result" else cfg.d_head
    n_heads = cfg.n_key_value_heads if site.component in "kv" else cfg.n_heads
    return (width,) if site.head is not None else (n_heads, width)


def _check_run(
    cfg: Config, name: str, site: Site, at: Positions, sources: Sources
) -> None:
    if name not in sources.runs:
        raise RunError(
            f"the run {name!r} is not given: runs= has {sorted(sources.runs)}. Record"
            " it with record(vlm, prompt) and hand it over as runs={...}."
        )
    run = sources.runs[name]
    if not isinstance(run, RunLike):
        raise RunError(
            f"the run {name!r} is a {type(run).__name__}; wanted what record(vlm,"
            " prompt) returns."
        )
    found = run[site]
    if tuple(found.shape[1:]) != shape_at(cfg, site):
        raise RunError(
            f"run {name!r} has {site!r} of shape {tuple(found.shape[1:])} per position;"
            f" this model has {shape_at(cfg, site)}. Was it recorded on another model?"
        )
    _check_inside(f"the patch from run {name!r}", at, len(found))


def _check_path(cfg: Config, part: PathPatch, n: int, sources: Sources | None) -> None:
    for site in (*part.senders, *part.receivers):
        check_site(cfg, site)
    for positions in (part.at, part.to):
        if positions is not None:
            _check_inside("PathPatch", positions, n)
    if sources is None:
        return
    at = Positions((n - 1,)) if part.at is None else part.at  # a run that goes so far
    for site in part.senders:
        _check_run(cfg, part.run, site, at, sources)


def _check_cut(cfg: Config, part: Knockout, n: int) -> None:
    layers = list(part.layers)
    if min(layers) < 0 or max(layers) >= cfg.n_layers:
        raise LayerError(
            f"{part!r}: this model has {cfg.n_layers} layers, 0..{cfg.n_layers - 1}."
        )
    beyond = [h for h in part.heads or () if not 0 <= h < cfg.n_heads]
    if beyond:
        raise LayerError(
            f"{part!r}: heads {beyond} do not exist; this model has {cfg.n_heads}."
        )
    _check_inside("Knockout.target", part.target, n)
    _check_inside("Knockout.source", part.source, n)


def _check_rows(cfg: Config, cuts: list[Knockout], reads: Reads) -> None:
    """Refuse rows that all the cuts together leave nothing to read."""
    for part in cuts:
        _warn_if_idle(part, reads)
    seen = set()
    for layer in sorted({layer for part in cuts for layer in part.layers}):
        here = [part for part in cuts if layer in part.layers]
        # Layers of the same mask and the same cuts are alike.
        kind = reads.kind(layer), tuple(map(id, here))
        if kind in seen:
            continue
        seen.add(kind)
        named = {h for part in here for h in part.heads or ()}
        # Heads that no cut names are all cut alike: one of them stands for the others.
        others = next((h for h in range(cfg.n_heads) if h not in named), None)
        for head in sorted(named) + ([] if others is None else [others]):
            on_head = [p for p in here if p.heads is None or head in p.heads]
            _check_left(reads, on_head, layer, head)


def _check_left(reads: Reads, cuts: list[Knockout], layer: int, head: int) -> None:
    gone: dict[int, Cells] = {}
    for part in cuts:
        source = cells_of(part.source)
        for target in part.target:
            gone[target] = gone.get(target, 0) | source
    readable = ((at, reads.readable(layer, at), cut) for at, cut in gone.items())
    blind = Positions.of(
        at for at, cells, cut in readable if cells and not cells & ~cut
    )
    if blind:
        raise BlindRowError(
            f"the knockout leaves positions {blind} nothing to read in layer {layer},"
            f" head {head}: their attention is undefined. Keep at least one source,"
            " usually BOS or the position itself."
        )


def _warn_if_idle(part: Knockout, reads: Reads) -> None:
    source = cells_of(part.source)
    kinds = {reads.kind(layer): layer for layer in part.layers}
    for layer in kinds.values():
        if any(reads.readable(layer, target) & source for target in part.target):
            return
    warnings.warn(
        f"{part!r} cuts only pairs that the attention mask already forbids, so it"
        " changes nothing. Are target (reads) and source (is read) swapped?",
        MechVLMWarning,
        stacklevel=2,
    )


def warn_of_hooks(stacklevel: int) -> None:
    """Say that hooks of the user's make a sweep slow."""
    warnings.warn(
        "the model has hooks of its own, which a sweep's rows would not pass as they"
        " expect, so every intervention runs whole passes: right, but slow. Take them"
        " away with vlm.reset_hooks().",
        MechVLMWarning,
        stacklevel=stacklevel,
    )
