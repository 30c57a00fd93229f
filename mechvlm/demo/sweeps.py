"""The sweeps behind the report: what is patched, and what is cut."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mechvlm.analyses.activation_patching import activation_patching
from mechvlm.analyses.knockout import knockout_windows
from mechvlm.axes import Labelled
from mechvlm.demo.case import Case
from mechvlm.interventions import Ablate
from mechvlm.layout import Positions
from mechvlm.metrics import Metric
from mechvlm.models.hooked import HookedVLM
from mechvlm.plan import plan
from mechvlm.prompts import Prompt
from mechvlm.sites import Component, Site

__all__ = ["handed_over", "knocked_out", "patched"]

MOST_PASSES = 300
"""Above the work of this many whole passes, neighbours are patched together."""


def patched(
    vlm: HookedVLM,
    clean: Prompt,
    corrupted: Prompt,
    metric: Metric,
    *,
    site: Component = "resid_pre",
    direction: Literal["denoise", "noise"] = "denoise",
    progress: bool | None = None,
) -> Labelled:
    """Recovery by layer and position; large models in blocks of neighbours.

    `attrs["cells_together"]` is the side of a block, in cells.
    """
    side, blocks = _blocks(vlm, clean, site)
    heat = activation_patching(
        vlm,
        clean,
        corrupted,
        metric=metric,
        site=site,
        at=blocks,
        direction=direction,
        progress=progress,
    )
    names = [name for name, block in blocks.items() for _ in block]
    positions = [position for block in blocks.values() for position in block]
    spread = heat.sel(set=names).rename(set="position")
    spread = spread.assign_coords(position=positions).sortby("position")
    spread = spread.assign_coords(clean.labels())
    return spread.assign_attrs(cells_together=side)


def _blocks(
    vlm: HookedVLM, prompt: Prompt, site: Component
) -> tuple[int, dict[str, Positions]]:
    """Positions alone; where that costs too much, square blocks of image cells."""
    for side in range(1, 8):
        blocks = _blocks_of(prompt, side)
        patches = [
            Ablate(Site(site, layer), at)
            for layer in range(vlm.cfg.n_layers)
            for at in blocks.values()
        ]
        if plan(vlm, prompt, patches).share * len(patches) <= MOST_PASSES:
            return side, blocks
    return 8, _blocks_of(prompt, 8)


def _blocks_of(prompt: Prompt, side: int) -> dict[str, Positions]:
    layout = prompt.layout
    blocks = {str(at): Positions.of(at) for at in layout["text"]}
    for g, grid in enumerate(layout.grids):
        for row in range(grid.rows):
            for col in range(grid.cols):
                name = f"{g}/{row // side}/{col // side}"
                here = Positions.of(grid.position(row, col))
                blocks[name] = blocks.get(name, Positions()) | here
    return blocks


def handed_over(
    vlm: HookedVLM,
    clean: Prompt,
    corrupted: Prompt,
    metric: Metric,
    case: Case,
    *,
    progress: bool | None = None,
) -> Labelled:
    """Recovery by layer when a whole set of positions is patched at once."""
    layout = clean.layout
    sets = {"image": layout["image"]}
    if case.outline is not None:
        thing = layout.region(case.outline, buffer=1)
        far = layout["image"] - thing
        sets = {"object": thing, "as much background": _some(far, len(thing))}
    sets |= {"question": layout["query"], "last": layout["last"]}
    return activation_patching(
        vlm, clean, corrupted, metric=metric, at=sets, progress=progress
    )


def _some(positions: Positions, n: int) -> Positions:
    """`n` of the positions, evenly spread."""
    chosen = np.linspace(0, len(positions) - 1, min(n, len(positions))).round()
    return Positions.of(positions.indices[int(i)] for i in chosen)


def knocked_out(
    vlm: HookedVLM, prompt: Prompt, case: Case, *, progress: bool | None = None
) -> Labelled:
    """Curves of the cuts that tell how the image reaches the answer."""
    layout = prompt.layout
    seen = {"image": layout["image"]}
    if case.outline is not None:
        thing = layout.region(case.outline)
        seen = {"object": thing, "background": layout["image"] - thing}
    cuts: dict[str, tuple[str | Positions, str | Positions]] = {
        f"{what} → {reader}": (group, source)
        for reader, group in (("question", "query"), ("last", "last"))
        for what, source in seen.items()
    }
    cuts["question → last"] = ("last", "query")
    return knockout_windows(
        vlm, prompt, cuts, answer=case.answer, mode="from", progress=progress
    )
