"""Holding image positions at what they were in another layer: freezing, back-patching.

h[l] is the residual stream at the input of layer l; h[n_layers] leaves the last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Shaped

from mechvlm.errors import InterventionError, LayerError
from mechvlm.interventions import NOTHING, Ablate, Intervention, Patch
from mechvlm.layout import Positions
from mechvlm.matching import Matcher, names
from mechvlm.models.hooked import HookedVLM
from mechvlm.posing import Arms, Posed, clean_run, outcome, stream, tables
from mechvlm.prompts import Prompt
from mechvlm.record import Run
from mechvlm.sites import Site
from mechvlm.wanted import layers_in

__all__ = ["back_patch", "freeze"]

PAPER = "arXiv:2412.14133"

_UNTIL = 20 / 32
"""The paper's last frozen layer, of the layers of its first model."""

Cell = tuple[int, int]
"""Source and target layer."""


def freeze(
    vlm: HookedVLM,
    posed: Sequence[Posed],
    *,
    sources: Sequence[int] | range | None = None,
    until: int | None = None,
    at: str | Positions = "image",
    matcher: Matcher = names,
    max_new_tokens: int = 20,
    progress: bool | None = None,
) -> xr.Dataset:
    """Hold image positions at h[source] while the text goes on reading them.

    At the inputs of layers source+1 up to and including `until`, all positions of `at`
    are set to the clean run's h[source]; layers from `until` on work on from there. So
    with source == until nothing is held: that arm is the control. The paper's source
    layer l, whose output is kept, is source l+1 here; its last frozen layer is `until`.
    An item that stays right from an early source on was settled by what the image
    positions held there. No random set of equal size stands beside it, because all
    image positions are held.

    Args:
        vlm: The model.
        posed: What is asked, and what counts as right.
        sources: Layers at whose input the positions are kept; None takes 0 to `until`.
        until: Last layer at whose input they are held; None takes the paper's share,
            layer 20 of 32.
        at: What is held: a group of the layout, or positions that mean the same in
            every prompt.
        matcher: Whether an answer, without its prompt, is right.
        max_new_tokens: Longest answer, in tokens.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Over `source`, each with an interval of 95 % ("_low", "_high"): "rate", the
        fraction of items answered right; "kept" and "gained", the same of items that
        are right or wrong in the clean run, nan if there are none; "change", the rate
        minus the clean run's, item by item, 0 where freezing changes nothing, without
        interval (nan) for fewer than six items. Over (item, source): "right", "said",
        and "p_answer", the probability that the first token is a right answer in one of
        its spellings, nan where none is a single token. Over `item`, with "_clean", the
        same with nothing done.

    Raises:
        ArgumentError: An argument is of another kind, such as one layer for several.
        PromptError: There is no item, or ids are not unique.
        PairError: `at` are positions, and the prompts' layouts differ.
        InterventionError: A prompt has no position of `at`, or ends before.
        LayerError: A layer does not exist, or a source lies behind `until`.

    Paper: Cohen et al. 2024, arXiv:2412.14133 (freezing of image tokens).

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> ask = vlm.prompt("how many objects are there ?", scene.image)
        >>> posed = [mv.Posed(ask, ("one",))]
        >>> held = mv.freeze(vlm, posed, sources=[0, 5], until=5, max_new_tokens=2)
        >>> held["rate"].dims, bool(held["p_answer"][0, 1] == held["p_answer_clean"][0])
        (('source',), True)
    """
    last = vlm.cfg.n_layers - 1
    end = min(last, round(vlm.cfg.n_layers * _UNTIL)) if until is None else until
    if not 0 <= end <= last:
        raise LayerError(
            f"until={end}: wanted the last layer at whose input to hold, 0..{last}."
        )
    chosen = _layers("sources", range(end + 1) if sources is None else sources, end)
    found = outcome(
        vlm,
        posed,
        at,
        partial(_frozen, vlm, chosen, end),
        matcher=matcher,
        max_new_tokens=max_new_tokens,
        progress=False if progress is False else "freezing",
    )
    result = tables(found, posed, lambda x: x, PAPER, source=chosen)
    attrs = _described(vlm, posed, at, max_new_tokens) | {
        "layer_convention": "h[source], the input of layer source, is held at the"
        f" inputs of layers source+1..{end}",
        "until": end,
    }
    return xr.Dataset(result, attrs=attrs)


def back_patch(
    vlm: HookedVLM,
    posed: Sequence[Posed],
    *,
    sources: Sequence[int] | range | None = None,
    targets: Sequence[int] | range | None = None,
    window: int = 1,
    later: Literal["recomputed", "clean"] = "recomputed",
    at: str | Positions = "image",
    matcher: Matcher = names,
    max_new_tokens: int = 20,
    progress: bool | None = None,
) -> xr.Dataset:
    """Give early layers what image positions hold only in later ones.

    For each source behind its target, h[target+k] takes the clean run's h[source+k] at
    all positions of `at`, for k = 0..window-1. If the answer improves, the picture's
    content was there, and came too late to be read. source == target writes what is
    there already: the control on the diagonal. For the control with text, take the
    same question about a named thing and at="query".

    Args:
        vlm: The model.
        posed: What is asked, and what counts as right.
        sources: h that is taken, 0 to n_layers; None takes all that fit the window.
        targets: h that is written, 0 to n_layers-1; None likewise.
        window: Neighbouring layers that are patched together.
        later: What becomes of the positions in the layers after the window:
            "recomputed" lets the layers process them again, a second time over;
            "clean" holds them at the clean run's values of each later layer.
        at: What is patched: a group of the layout, or positions that mean the same in
            every prompt.
        matcher: Whether an answer, without its prompt, is right.
        max_new_tokens: Longest answer, in tokens.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        As `freeze`, over (source, target) and (item, source, target): "rate", "kept",
        "gained", "change" with intervals of 95 %, "right", "said", "p_answer". Cells
        with a source before the target are not run: nan, and "" in "said".

    Raises:
        ArgumentError: An argument is of another kind, such as one layer for several.
        PromptError: There is no item, or ids are not unique.
        PairError: `at` are positions, and the prompts' layouts differ.
        InterventionError: A prompt has no position of `at` or ends before, or `later`
            is unknown.
        LayerError: A layer or window does not exist, or no source reaches a target.

    Paper: Cohen et al. 2024, arXiv:2412.14133 (its hypothesis); the method as Nikankin
        et al. use it.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> ask = vlm.prompt("how many objects are there ?", scene.image)
        >>> grid = mv.back_patch(
        ...     vlm, [mv.Posed(ask, ("one",))], sources=[1, 4], targets=[1, 2],
        ...     max_new_tokens=2)
        >>> grid["rate"].dims, bool(grid["rate"].isnull().sel(source=1, target=2))
        (('source', 'target'), True)
    """
    if later not in ("recomputed", "clean"):
        raise InterventionError(f"later={later!r}: wanted 'recomputed' or 'clean'.")
    froms, tos = _sides(vlm.cfg.n_layers, sources, targets, window)
    cells = [(source, target) for source in froms for target in tos if source >= target]
    if not cells:
        raise LayerError(
            f"no source of {froms} lies at or behind a target of {tos}: back-patching"
            " takes from later layers to earlier ones."
        )
    found = outcome(
        vlm,
        posed,
        at,
        partial(_moved, vlm, cells, window, later),
        matcher=matcher,
        max_new_tokens=max_new_tokens,
        progress=False if progress is False else "back-patching",
    )
    grid = partial(_grid, cells=cells, sources=froms, targets=tos)
    result = tables(found, posed, grid, PAPER, source=froms, target=tos)
    attrs = _described(vlm, posed, at, max_new_tokens) | {
        "layer_convention": "h[target+k], the input of layer target+k, takes the clean"
        " h[source+k]",
        "window": window,
        "later": later,
    }
    return xr.Dataset(result, attrs=attrs)


def _frozen(
    vlm: HookedVLM, sources: Sequence[int], end: int, own: Prompt | Run, at: Positions
) -> Arms:
    """One arm per source; the last may have nothing to hold."""
    run = clean_run(vlm, own)
    todo = [
        tuple(
            Ablate(Site("resid_pre", layer), at, value=f"h{source}")
            for layer in range(source + 1, end + 1)
        )
        or NOTHING
        for source in sources
    ]
    return Arms(todo, vectors={f"h{x}": stream(vlm, run, x, at) for x in sources})


def _moved(
    vlm: HookedVLM,
    cells: Sequence[Cell],
    window: int,
    later: str,
    own: Prompt | Run,
    at: Positions,
) -> Arms:
    """One arm per cell of the grid."""
    run = clean_run(vlm, own)
    todo = [_written(vlm, cell, window, later, at) for cell in cells]
    needed = {source + k for source, _ in cells for k in range(window)}
    kept = {f"h{layer}": stream(vlm, run, layer, at) for layer in sorted(needed)}
    return Arms(todo, runs={"clean": run}, vectors=kept)


def _written(
    vlm: HookedVLM, cell: Cell, window: int, later: str, at: Positions
) -> Intervention:
    """Everything that is done for one cell of the grid."""
    source, target = cell
    patched = [
        Ablate(Site("resid_pre", target + k), at, value=f"h{source + k}")
        for k in range(window)
    ]
    after = range(target + window, vlm.cfg.n_layers)
    held = [Patch(Site("resid_pre", layer), at, "clean") for layer in after]
    return (*patched, *(held if later == "clean" else ()))


def _described(
    vlm: HookedVLM, posed: Sequence[Posed], at: str | Positions, max_new_tokens: int
) -> dict[str, str | int]:
    return {
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "at": str(at),
        "n": len(posed),
        "max_new_tokens": max_new_tokens,
    }


def _sides(
    n_layers: int,
    sources: Sequence[int] | range | None,
    targets: Sequence[int] | range | None,
    window: int,
) -> tuple[list[int], list[int]]:
    if not 1 <= window <= n_layers:
        raise LayerError(
            f"window={window}: a window has 1 to {n_layers} layers in this model."
        )
    top = n_layers + 1 - window
    froms = range(top + 1) if sources is None else sources
    tos = range(top) if targets is None else targets
    return _layers("sources", froms, top), _layers("targets", tos, top - 1)


def _layers(what: str, layers: Sequence[int] | range, top: int) -> list[int]:
    otherwise = f"cannot be used here; wanted layers 0..{top}."
    return sorted(set(layers_in(layers, range(top + 1), what, otherwise)))


def _grid(
    values: Shaped[np.ndarray, "... arm"],
    cells: Sequence[Cell],
    sources: Sequence[int],
    targets: Sequence[int],
) -> Shaped[np.ndarray, "..."]:
    """Values of the cells that were run, in their places."""
    shape = (*values.shape[:-1], len(sources), len(targets))
    text = values.dtype.kind == "U"
    grid = np.full(shape, "" if text else np.nan, values.dtype if text else float)
    for arm, (source, target) in enumerate(cells):
        grid[..., sources.index(source), targets.index(target)] = values[..., arm]
    return grid
