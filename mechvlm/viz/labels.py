"""Words around a labelled result: axes, tokens, groups, units, and a sentence on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError

__all__ = [
    "LARGE", "TIMES",
    "Axis", "Grid", "axis", "called", "describe", "grids", "number", "shown",
    "subtitle", "title", "units",
]  # fmt: skip

LONGEST = 240  # characters of a prompt in a subtitle
TIMES = "\N{MULTIPLICATION SIGN}"
LARGE = 65536  # whole numbers up to here are exact in a page, larger ones are rounded
QUIET = 12  # a group of more positions than this is labelled once, not token by token


def is_quiet(run: tuple[str, int, int], tokens: Sequence[str]) -> bool:
    """Whether a group's run, which repeats one token, is labelled but once."""
    group, start, stop = run
    alike = len(set(tokens[start:stop])) <= 1
    return group == "image" and stop - start > QUIET and alike


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of a result, in words.

    Attributes:
        name: Name of the dimension.
        labels: Its coordinate values, as text.
        tokens: Token at each place, made visible; empty where there are none.
        groups: Runs of one group, as (group, start, stop); empty where there are none.
        sizes: How many positions each place stands for; empty where it is one.
    """

    name: str
    labels: tuple[str, ...]
    tokens: tuple[str, ...] = ()
    groups: tuple[tuple[str, int, int], ...] = ()
    sizes: tuple[int, ...] = ()

    def said(self, run: tuple[str, int, int]) -> str:
        """A group's run with how many positions it has, where that is not plain.

        Example:
            >>> blocks = Axis("source", ("0", "9"), sizes=(9, 9))
            >>> blocks.said(("image", 0, 2)).replace(TIMES, "x")
            'image x18 as 2'
        """
        group, start, stop = run
        n, places = sum(self.sizes[start:stop]) or stop - start, stop - start
        if n == places:
            return f"{group} {TIMES}{n}" if n > QUIET else group
        return f"{group} {TIMES}{n}" + (f" as {places}" if places > 1 else "")

    def quiet(self) -> list[bool]:
        """Places whose token is not written: those of long image blocks."""
        silent = [False] * len(self.labels)
        for run in self.groups:
            if is_quiet(run, self.tokens):
                _, start, stop = run
                silent[start:stop] = [True] * (stop - start)
        return silent

    def place(self, index: int) -> str:
        """What stands at `index`, as a reader would say it."""
        words = [f"{self.name} {self.labels[index]}"]
        within = [run for run in self.groups if run[1] <= index < run[2]]
        if self.tokens and not any(is_quiet(run, self.tokens) for run in within):
            words.append(f"“{self.tokens[index]}”")
        return " · ".join(words + [group for group, _, _ in within])


def shown(token: str) -> str:
    """A token as visible text: breaks and lone spaces become signs, a word mark goes.

    Example:
        >>> shown("▁red"), shown(" "), shown("a" + chr(10))
        ('red', '␣', 'a↵')
    """
    text = token.replace("\n", "↵").replace("\t", "⇥").replace("\r", "↵")
    text = text.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "↵")
    text = "".join(c if c.isprintable() else "�" for c in text)
    return text.strip() or "␣"


def axis(result: xr.DataArray, dim: str) -> Axis:
    """Words for one dimension, from its coordinates.

    Args:
        result: A labelled result.
        dim: One of its dimensions. Tokens and groups come from the coordinates
            `token`, `group` or `<dim>_token`, `<dim>_group`, where they exist.

    Returns:
        The axis; without a coordinate its labels are 0, 1, ...
    """
    n = result.sizes[dim]
    along = {
        str(name).removeprefix(f"{dim}_"): tuple(plain(value) for value in found.values)
        for name, found in result.coords.items()
        if found.dims == (dim,) and name != dim
    }
    labels = tuple(str(i) for i in range(n))
    if dim in result.coords:
        labels = tuple(plain(value) for value in result[dim].values)
    tokens = tuple(shown(token) for token in along.get("token", ()))
    groups, start = [], 0
    for group, members in groupby(along.get("group", ())):
        stop = start + len(list(members))
        groups.append((group, start, stop))
        start = stop
    sizes = tuple(int(size) for size in along.get("size", ()) if size.isdecimal())
    return Axis(dim, labels, tokens, tuple(groups), sizes)


def plain(value: object) -> str:
    """A coordinate's value as text, without the last digits of a float's rounding."""
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


def number(value: float | int) -> str:
    """A value for reading: three significant digits, a true minus sign.

    Example:
        >>> number(0.12345), number(1234.5), number(2.5e6), number(float("nan"))
        ('0.123', '1234', '2.5e6', 'no value')
    """
    if not np.isfinite(value):
        return "no value"
    if value == 0:
        return "0"
    plain_too = 999.5 <= abs(value) < LARGE
    text = f"{value:.0f}" if plain_too else f"{value:.3g}"
    for long, short in (("e+0", "e"), ("e+", "e"), ("e-0", "e-")):
        text = text.replace(long, short)
    return text.replace("-", "\N{MINUS SIGN}")


def units(result: xr.DataArray) -> str:
    """Unit of the values, or "" where the result does not say."""
    return str(result.attrs.get("units", ""))


def title(result: xr.DataArray | xr.Dataset) -> str:
    """Heading of the figure: the long name, else the name; its first word is large."""
    named = result.name if isinstance(result, xr.DataArray) else None
    name = "value" if named is None else str(named)
    words = str(result.attrs.get("long_name") or name)
    return words[:1].upper() + words[1:] if words[:2].isalpha() else words


def called(result: xr.DataArray) -> str:
    """How errors call the result."""
    return "this result" if result.name is None else str(result.name)


def subtitle(result: xr.DataArray | xr.Dataset) -> str:
    """Model, selection, prompt, metric and what a layer is, as the result names them.

    Args:
        result: Its coordinates without a dimension are what was selected of a larger
            one, such as the receiver of a path.

    Returns:
        One line.

    Example:
        >>> sweep = xr.DataArray([[1.0]], dims=("head", "layer"), coords={"head": [7]})
        >>> subtitle(sweep.sel(head=7).assign_attrs(model="demo", prompt="What color?"))
        'demo · head 7 · “What color?”'
    """
    attrs = result.attrs
    words = [str(attrs["model"])] if attrs.get("model") else []
    words += selected(result)
    words += [f"“{abridged(str(attrs['prompt']))}”"] if attrs.get("prompt") else []
    words += [f"metric: {attrs['metric']}"] if attrs.get("metric") else []
    words += [str(attrs["layer_convention"])] if attrs.get("layer_convention") else []
    return " · ".join(words)


def selected(result: xr.DataArray | xr.Dataset) -> list[str]:
    """Coordinates without a dimension, in words; empty texts and NaN say nothing."""
    named = {
        str(name): found.values.item()
        for name, found in result.coords.items()
        if not found.dims
    }
    return [
        f"{name} {number(value) if isinstance(value, float) else value}"
        for name, value in named.items()
        if value not in ("", None) and value == value  # NaN is not itself
    ]


def abridged(text: str) -> str:
    """A prompt on one line: its beginning and its end where it is long."""
    line = " ".join(text.split())
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} … {line[-half:]}"


def describe(result: xr.DataArray) -> str:
    """One sentence for those who do not see the figure: shape, range, extreme cell.

    Args:
        result: A labelled result with at least one finite value.

    Returns:
        Plain text.
    """
    values = np.asarray(result.values, dtype=float)
    values = np.where(np.isfinite(values), values, np.nan)
    dims = [str(dim) for dim in result.dims]
    shape = " by ".join(counted(result.sizes[dim], dim) for dim in dims)
    at = np.unravel_index(int(np.nanargmax(np.abs(values))), values.shape)
    where = ", ".join(
        axis(result, dim).place(int(i)) for dim, i in zip(dims, at, strict=True)
    )
    unit = f" ({units(result)})" if units(result) else ""
    return (
        f"{title(result)}{unit}, {shape}, from {number(float(np.nanmin(values)))} to"
        f" {number(float(np.nanmax(values)))}. Strongest:"
        f" {number(float(values[at]))} at {where}."
    )


def counted(n: int, dim: str) -> str:
    """A number of entries in words: "1 layer", "8 entities"."""
    if n == 1:
        return f"1 {dim}"
    return f"{n} {dim[:-1]}ies" if dim.endswith("ty") else f"{n} {dim}s"


@dataclass(frozen=True, slots=True)
class Grid:
    """The image positions of one view, and the rectangle of the picture they cover.

    Attributes:
        start: First position.
        rows: Rows of cells.
        cols: Cells in a row.
        box: x0, y0, x1, y1 in pixels of the original picture.
        size: Width and height of that picture, pixels; () where they are not known.
    """

    start: int
    rows: int
    cols: int
    box: tuple[float, float, float, float]
    size: tuple[int, ...] = ()

    def check(self, size: tuple[int, int]) -> None:
        """Refuse a picture on which the cells would lie elsewhere.

        Raises:
            ResultError: The prompt's picture had another size.
        """
        if self.size and self.size != size:
            raise ResultError(
                f"the picture is of {size[0]} x {size[1]} pixels, the prompt's was of"
                f" {self.size[0]} x {self.size[1]}: cells and outlines would lie"
                " elsewhere. Give the picture that was asked about, prompt.image; of"
                " several images, grid= says which one."
            )


def boxed(values: Sequence[int | float]) -> tuple[float, float, float, float]:
    """Four numbers as a box."""
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1


def grids(result: xr.DataArray) -> tuple[Grid, ...]:
    """Image grids that a result carries in `attrs["grids"]` (JSON).

    Args:
        result: A result over positions.

    Returns:
        One grid for each view of an image; empty where the result names none.

    Raises:
        ResultError: The attribute is not such a list.
    """
    text = str(result.attrs.get("grids", "[]"))
    try:
        return tuple(
            Grid(
                int(g["start"]), int(g["rows"]), int(g["cols"]), boxed(g["box"]),
                tuple(map(int, g.get("size", ()))),
            )
            for g in json.loads(text)
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ResultError(
            f'attrs["grids"] is {text[:80]!r}; wanted a JSON list of objects with'
            ' "start", "rows", "cols" and "box" [x0, y0, x1, y1].'
        ) from error
