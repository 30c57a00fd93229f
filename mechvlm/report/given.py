"""Whatever a report is given, as sections of its page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import xarray as xr
from PIL import Image

from mechvlm.axes import open_result
from mechvlm.errors import ArgumentError, MechVLMError, ResultError
from mechvlm.graph.circuit import Circuit
from mechvlm.report.figures import figures_of, heading_of
from mechvlm.report.page import Section
from mechvlm.report.shown import Picture, Result, Shown
from mechvlm.report.tables import Table, edges_of, left_out, tables_of
from mechvlm.viz.figure import Figure
from mechvlm.viz.labels import number, title

__all__ = ["Asked", "Given", "Showable", "Source", "named_results", "section_of"]

Showable: TypeAlias = Result | Figure | Section
"""What a report shows."""

Source: TypeAlias = Showable | str | Path
"""What a report shows, or the file it was saved in."""

ONE = (xr.DataArray, xr.Dataset, Circuit, Figure, Section, str, Path)
"""Kinds of one thing, as a check asks for them."""

UNSPOKEN = {
    "units", "long_name", "paper", "papers", "prompt", "grids", "model", "clean",
    "corrupted", "picture", "agreement", "missed", "totals", "sets", "threads",
}  # fmt: skip
"""Attributes that are said elsewhere on the page, or are tables of their own."""


@runtime_checkable
class Asked(Protocol):
    """What was asked, and of which picture: a `Prompt`."""

    @property
    def text(self) -> str:
        """The question as the model read it."""
        ...

    @property
    def image(self) -> Image.Image | None:
        """The picture, or None."""
        ...


@dataclass(frozen=True)
class Given:
    """One thing to show.

    Attributes:
        what: What errors call it.
        heading: Its heading; "" takes the name of its analysis.
        result: The thing itself.
    """

    what: str
    heading: str
    result: Showable

    @property
    def attrs(self) -> Mapping[str, object]:
        """What is known of how it was made."""
        match self.result:
            case xr.DataArray() | xr.Dataset():
                return {str(key): value for key, value in self.result.attrs.items()}
            case Circuit():
                about = {"model": self.result.model, **self.result.about}
                return {key: value for key, value in about.items() if value}
            case Figure():
                return {str(k): v for k, v in self.result.data.attrs.items()}
            case _:
                return {}


def named_results(
    results: Source | Sequence[Source] | Mapping[str, Source],
) -> list[Given]:
    """All that a report is given, opened where it is a file.

    Raises:
        ArgumentError: There is nothing, or something that is no result.
        ResultError: A file is of another kind.
    """
    each: Iterable[tuple[str, str, object]]
    if isinstance(results, ONE) or not isinstance(results, Iterable):
        each = [("results", "", results)]
    elif isinstance(results, Mapping):
        each = [(f"results[{key!r}]", str(key), one) for key, one in results.items()]
    else:
        each = [(f"results[{i}]", "", one) for i, one in enumerate(results)]
    found = [Given(what, heading, opened(what, one)) for what, heading, one in each]
    if not found:
        raise ArgumentError(
            "there is nothing to report: `results` is empty. Give what an analysis"
            " returned, a list of such results, or {heading: result}."
        )
    return found


def opened(what: str, given: object) -> Showable:
    """A thing to show, read from its file where it is one."""
    if isinstance(given, str | Path):
        match Path(given).suffix:
            case ".nc":
                return open_result(given)
            case ".json":
                return Circuit.open(given)
            case suffix:
                raise ResultError(
                    f"{what} is the file {Path(given).name!r}, which ends in"
                    f" {suffix!r}: wanted a result saved as .nc (mv.save_result) or a"
                    " circuit saved as .json (Circuit.save)."
                )
    if isinstance(given, xr.DataArray | xr.Dataset | Circuit | Figure | Section):
        return given
    raise ArgumentError(
        f"{what} is a {type(given).__name__}, which a report cannot show: wanted what"
        " an analysis returned (an xarray DataArray or Dataset, or a Circuit), a figure"
        " of mv.viz, a Section, or the path of a saved result. Of an answer from"
        " a compressed context, show the table of mv.context_accuracy; of items, what"
        " was measured over them."
    )


def section_of(given: Given, image: Picture) -> Section:
    """One thing as a section: sentence, figures, method, numbers.

    Raises:
        ResultError: It cannot be drawn; the message names it.
    """
    match given.result:
        case Section():
            own = given.result
            return replace(own, title=given.heading) if given.heading else own
        case Figure():
            data = given.result.data
            name = given.heading or title(data)
            return Section(
                name,
                given.result.alt,
                given.result,
                numbers=tables_of(data, slug(name)),
            )
        case result:
            name = given.heading or heading_of(result)
            try:
                shown = figures_of(result, image)
            except MechVLMError as error:
                raise ResultError(f"{given.what}: {error}") from error
            return drawn(name, given, result, shown)


def drawn(name: str, given: Given, result: Result, shown: Sequence[Shown]) -> Section:
    """A result as a section, its further figures as parts of it."""
    tables, note = numbers(result, shown, slug(name))
    method = f"Method: {shown[0].citation}" if shown[0].citation else ""
    caption = "\n\n".join(filter(None, [note, settings(given.attrs), method]))
    if len(shown) == 1:
        (only,) = shown
        return Section(
            name, only.sentence, only.figure, caption=caption, numbers=tables
        )
    parts = [Section(s.title, s.sentence, s.figure) for s in shown]
    return Section(name, within=parts, caption=caption, numbers=tables)


def numbers(
    result: Result, shown: Sequence[Shown], name: str
) -> tuple[list[Table], str]:
    """Tables of a result, and a word on those that are too long for a page."""
    if isinstance(result, Circuit):
        labels = [str(edge) for edge in result.edges]
        return [edges_of(labels, result.effects, name)], ""
    tables, long = tables_of(result, name), left_out(result)
    if not long:
        return tables, ""
    tables += [
        table
        for i, one in enumerate(shown, 1)
        for table in tables_of(one.figure.data, f"{name}_as_drawn_{i}")
    ]
    words = " and ".join(f"{title} ({n:,} rows)" for title, n in long)
    return tables, (
        f'Too long for a page: {words}. `mv.save_result(result, "result.nc")` keeps'
        " all of it; here are the numbers as drawn."
    )


def settings(attrs: Mapping[str, object]) -> str:
    """How a result was made, as its attributes say."""
    said = []
    for key, value in attrs.items():
        if key in UNSPOKEN or value in ("", None, [], {}):
            continue
        words = number(value) if isinstance(value, float) else str(value)
        if isinstance(value, list | dict):
            words = json.dumps(value, ensure_ascii=False, default=str)
        words = words.strip("[]").replace('"', "") if isinstance(value, list) else words
        if len(words) <= 160:
            said.append(f"{key.replace('_', ' ')}: {words}")
    return " · ".join(said)


def slug(name: str) -> str:
    """A heading as the name of a file."""
    return re.sub(r"\W+", "_", name.lower()).strip("_") or "result"
