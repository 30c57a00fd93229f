"""What a paper claims, what one model shows of it, and the files that keep that."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import xarray as xr

from mechvlm.axes import save_result
from mechvlm.report import Section
from mechvlm.viz import Figure

__all__ = ["Claim", "Finding", "Row", "section_of", "verdict", "written"]

Cell: TypeAlias = str | float | int
Row: TypeAlias = Sequence[Cell]


@dataclass(frozen=True)
class Claim:
    """A finding of a paper, and how it is measured.

    Attributes:
        key: Stem of its files, such as "token_ablation".
        title: Heading: the finding, in a few words.
        asked: What is measured and how, in a sentence or two.
        paper_says: What the paper reports, and where.
    """

    key: str
    title: str
    asked: str
    paper_says: str


@dataclass(frozen=True, eq=False)
class Finding:
    """What one model shows of a claim.

    Attributes:
        here: What was measured, with numbers; one sentence.
        shown: Whether it is the same as in the paper; None where that cannot be told.
        table: Rows of words and numbers, the first one naming the columns.
        results: Stem of a file -> labelled result, kept as netCDF.
        figure: In the paper's form.
    """

    here: str
    shown: bool | None
    table: Sequence[Row] = ()
    results: Mapping[str, xr.DataArray | xr.Dataset] = field(default_factory=dict)
    figure: Figure | None = None


def verdict(finding: Finding) -> str:
    """Whether the model shows what the paper found, in words.

    Example:
        >>> verdict(Finding("nobody was recognised.", None))
        'cannot be told'
    """
    if finding.shown is None:
        return "cannot be told"
    return "shown" if finding.shown else "not shown"


def written(claim: Claim, finding: Finding, folder: Path) -> None:
    """Write a finding's table, results and figure into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(finding.table)
    (folder / f"{claim.key}.csv").write_text(lines.getvalue())
    for name, result in finding.results.items():
        save_result(result, folder / f"{name}.nc")
    if finding.figure is not None:
        finding.figure.save(folder / f"{claim.key}.png")
        finding.figure.save(folder / f"{claim.key}.html")


def section_of(claim: Claim, finding: Finding, model: str) -> Section:
    """A finding as a part of a report."""
    text = "\n\n".join(
        (
            claim.asked,
            f"The paper: {claim.paper_says}",
            f"`{model}`, {verdict(finding)}: {finding.here}",
        )
    )
    table = [[_shown(value) for value in row] for row in finding.table]
    title = f"{claim.title} ({model})"
    return Section(title, text, figure=finding.figure, table=table)


def _shown(value: Cell) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    return "-" if not np.isfinite(value) else f"{value:.3g}"
