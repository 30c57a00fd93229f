"""Numbers of a result as CSV: every row by itself, every digit that counts."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape

import numpy as np
import xarray as xr

__all__ = ["MOST_ROWS", "Table", "downloads", "edges_of", "left_out", "tables_of"]

MOST_ROWS = 100_000
"""Rows that a page still carries; above, the results' own file is the better one."""

FORMULA = (
    *("=", "+", "-", "@", "'"),
    *("\N{FULLWIDTH EQUALS SIGN}", "\N{FULLWIDTH PLUS SIGN}"),
    *("\N{FULLWIDTH HYPHEN-MINUS}", "\N{FULLWIDTH COMMERCIAL AT}"),
)
"""First characters of a text that a spreadsheet would run, and of the mark for it."""


BY = " \N{MULTIPLICATION SIGN} "


@dataclass(frozen=True)
class Table:
    """Columns of equal length, as CSV.

    Attributes:
        name: Name of its file, without a suffix.
        title: What its rows count, in words.
        columns: Heading -> values, in order.
    """

    name: str
    title: str
    columns: Mapping[str, np.ndarray] = field(repr=False)

    @property
    def n_rows(self) -> int:
        """Number of rows below the heading."""
        return max((len(column) for column in self.columns.values()), default=0)

    @cached_property
    def csv(self) -> bytes:
        """The whole table, UTF-8.

        Numbers have the fewest digits that give them back in their own precision, and
        what is missing is empty. A text that a spreadsheet would take for a formula has
        an apostrophe before it, as has one that begins with an apostrophe.
        """
        out = io.StringIO(newline="")
        rows = zip(*map(cells, self.columns.values()), strict=True)
        # Only what the end of a line holds is quoted: with \n alone, a lone \r is not.
        write = csv.writer(out, lineterminator="\r\n")
        write.writerow([harmless(name) for name in self.columns])
        write.writerows(rows)
        return out.getvalue().encode("utf-8", "backslashreplace")

    @cached_property
    def packed(self) -> bytes:
        """The table as gzip; the same table gives the same bytes."""
        return gzip.compress(self.csv, 9, mtime=0)


def cells(column: np.ndarray) -> list[str]:
    """A column as text."""
    match column.dtype.kind:
        case "f":
            words = map(str, column)
            return ["" if word == "nan" else word for word in words]
        case "b":
            return ["TRUE" if value else "FALSE" for value in column]
        case "i" | "u":
            return list(map(str, column.tolist()))
        case _:
            return [harmless(str(value)) for value in column]


def harmless(text: str) -> str:
    """Text that no spreadsheet runs, and that a reader of text sees whole.

    Example:
        >>> harmless("=1+1"), harmless("red"), harmless("- a")
        ("'=1+1", 'red', "'- a")
    """
    text = text.replace("\0", "\N{SYMBOL FOR NULL}")
    return f"'{text}" if text.strip().startswith(FORMULA) else text


def tables_of(data: xr.DataArray | xr.Dataset, name: str) -> list[Table]:
    """All numbers of a result, one table for each set of dimensions.

    A table has a row for each cell: the coordinates of its dimensions, all that is
    known along them (token, group), and the values.

    Args:
        data: A result.
        name: What the files are called, before what tells them apart.

    Returns:
        The tables of at most `MOST_ROWS` rows; `left_out` names the others.
    """
    alike = by_dims(data)
    made = []
    for members in alike:
        first = next(iter(members.values()))
        if first.size > MOST_ROWS:
            continue
        dims = [str(dim) for dim in first.dims]
        label = "_".join([name, *(dims if len(alike) > 1 else ())])
        file = re.sub(r"[^\w.-]+", "_", label).strip("_") or "numbers"
        title = BY.join(dims) or "single values"
        made.append(Table(file, title, columns(members, dims)))
    return made


def left_out(data: xr.DataArray | xr.Dataset) -> list[tuple[str, int]]:
    """Tables that are too long for a page: what their rows count, and how many."""
    firsts = [next(iter(members.values())) for members in by_dims(data)]
    return [
        (BY.join(map(str, first.dims)), first.size)
        for first in firsts
        if first.size > MOST_ROWS
    ]


def by_dims(data: xr.DataArray | xr.Dataset) -> list[dict[str, xr.DataArray]]:
    """Values of a result, those of the same dimensions together."""
    if isinstance(data, xr.DataArray):
        return [{"value" if data.name is None else str(data.name): data}]
    alike: dict[frozenset[object], dict[str, xr.DataArray]] = {}
    for name in data.data_vars:
        array = data[name]
        alike.setdefault(frozenset(array.dims), {})[str(name)] = array
    return list(alike.values())


def columns(
    members: Mapping[str, xr.DataArray], dims: list[str]
) -> dict[str, np.ndarray]:
    """Columns of values with the same dimensions: labels first, then the values."""
    first = next(iter(members.values()))
    shape = tuple(first.sizes[dim] for dim in dims)
    made: dict[str, np.ndarray] = {}
    for k, dim in enumerate(dims):
        places = np.arange(shape[k]) if dim not in first.coords else first[dim].values
        along = [1] * len(dims)
        along[k] = shape[k]
        made[dim] = np.broadcast_to(places.reshape(along), shape).ravel()
    known = {str(name): coord for name, coord in first.coords.items()}
    labels = {n: c for n, c in known.items() if c.dims and n not in dims}
    for name, array in sorted(labels.items(), key=lambda each: each[1].ndim):
        made[name] = spread(array, first, dims)
    for name, array in members.items():
        made[name if name not in made else f"{name} (value)"] = spread(
            array, first, dims
        )
    return made


def spread(array: xr.DataArray, over: xr.DataArray, dims: list[str]) -> np.ndarray:
    """An array repeated along the dimensions that it lacks, cell by cell."""
    shape = tuple(over.sizes[dim] for dim in dims)
    own = array.transpose(*(dim for dim in dims if dim in array.dims))
    along = [
        size if dim in own.dims else 1 for dim, size in zip(dims, shape, strict=True)
    ]
    return np.broadcast_to(own.values.reshape(along), shape).ravel()


def edges_of(labels: Iterable[str], effects: Mapping[str, float], name: str) -> Table:
    """Edges of a circuit as a table.

    Args:
        labels: Labels of the edges, such as "L0.H1 -> logits".
        effects: What an edge does alone, by its label; empty where nothing is known.
        name: What the file is called.
    """
    edges = list(labels)
    ends = [label.split(" -> ") for label in edges]
    made = {
        "sender": np.array([end[0] for end in ends], dtype=str),
        "receiver": np.array([end[-1] for end in ends], dtype=str),
    }
    if effects:
        made["effect"] = np.array([effects.get(label, np.nan) for label in edges])
    file = re.sub(r"[^\w.-]+", "_", name).strip("_") or "edges"
    return Table(file, "edges", made)


def downloads(tables: Iterable[Table]) -> str:
    """Links under which a page holds its tables; without scripts they give gzip."""
    links = []
    for table in tables:
        words = f"{escape(table.title)}, {table.n_rows:,} rows"
        if table.n_rows == 1:
            words = escape(table.title)
        uri = base64.b64encode(table.packed).decode()
        links.append(
            f'<a class="mv-csv" download="{escape(table.name)}.csv.gz"'
            f' href="data:application/gzip;base64,{uri}">{words}</a>'
        )
    if not links:
        return ""
    return f'<p class="downloads"><span>CSV</span> {" ".join(links)}</p>\n'
