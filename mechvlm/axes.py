"""Labels of results: dimension names, units, and files that survive a crash.

A result is an `xarray` object whose dimensions are named after what they count (run,
layer, head, position, target, source, cut) and whose attributes say what was measured,
in which unit, on which model and prompt, and after which paper.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from mechvlm.errors import OutputError, ResultError

__all__ = [
    "Labelled",
    "LabelledSet",
    "labelled",
    "open_result",
    "output_folder",
    "replacing",
    "save_result",
]

Labelled: TypeAlias = xr.DataArray
"""A result: values with named dimensions, labels, units and attributes."""

LabelledSet: TypeAlias = xr.Dataset
"""Several results that share dimensions."""

_JSON = "json:"
_MANIFEST = "mechvlm.json"
_IN_FILE = "mechvlm_values"
"""Name of an array inside its file; its own may hold what netCDF names may not."""


def labelled(
    values: Any,
    *,
    name: str,
    units: str,
    paper: str,
    attrs: Mapping[str, object] | None = None,
    **dims: Sequence[Any] | range,
) -> xr.DataArray:
    """A result with named dimensions.

    Args:
        values: Array with one axis per dimension, in the order of `dims`.
        name: What is measured.
        units: Unit of the values; say in it what they are relative to.
        paper: Key of the paper behind the method (see `mechvlm.papers`).
        attrs: More attributes: model, prompt, baselines.
        **dims: Dimension name -> its coordinate values.

    Raises:
        ResultError: The shape does not fit the dimensions.

    Example:
        >>> both = {"layer": [0], "head": [0, 1]}
        >>> labelled([[1.0, 2.0]], name="m", units="nats", paper="-", **both).dims
        ('layer', 'head')
    """
    array = np.asarray(values)
    wanted = tuple(len(coord) for coord in dims.values())
    if array.shape != wanted:
        raise ResultError(
            f"values of shape {array.shape} do not fit dimensions"
            f" {dict(zip(dims, wanted, strict=True))}."
        )
    coords = {dim: np.asarray(list(coord)) for dim, coord in dims.items()}
    described = {"units": units, "long_name": name, "paper": paper, **(attrs or {})}
    return xr.DataArray(
        array, coords=coords, dims=list(dims), name=name, attrs=described
    )


def save_result(result: xr.DataArray | xr.Dataset, path: str | Path) -> Path:
    """Save a result as netCDF, wholly or not at all.

    The file is written beside its place, flushed to disk and then renamed, so that an
    interruption leaves the old file or the new one and never a torn one.

    Args:
        result: Result of an analysis.
        path: File to write; the suffix must be .nc.

    Returns:
        The path written.

    Raises:
        ResultError: The suffix is not .nc, or netCDF cannot hold the result.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".nc":
        raise ResultError(
            f"results are saved as netCDF: wanted a path ending in .nc, got"
            f" {path.name!r}."
        )
    try:
        with replacing(path) as partial:
            _write(_encoded(result), partial)
    except OSError as cause:
        raise OutputError(
            f"cannot write {path}: {cause}. Does the folder exist, and is there space?"
        ) from cause
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` once it is wholly written.

    It reaches the disk before it takes the name. Whatever fails, an older file of that
    name stays as it was.

    Args:
        path: File to write; its folder must exist.

    Yields:
        The file beside it to write into.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def open_result(path: str | Path) -> xr.DataArray | xr.Dataset:
    """Open a saved result as it was saved.

    Raises:
        OutputError: The file is missing, torn, or no netCDF file.

    Example:
        >>> import tempfile
        >>> result = labelled([1.0], name="m", units="nats", paper="-", layer=[3])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     kept = save_result(result, Path(folder) / "m.nc")
        ...     open_result(kept).identical(result)
        True
    """
    path = Path(path)
    try:
        return _stored(path)
    except (OSError, ValueError, KeyError) as cause:
        raise OutputError(
            f"cannot open {path} as a result: {cause}. If the file is there, its"
            " writing or copying was interrupted; make it again."
        ) from cause


@contextmanager
def output_folder(path: str | Path) -> Iterator[Path]:
    """A folder that appears complete or not at all.

    Args:
        path: Folder to make. A finished one that this function made is replaced.

    Yields:
        A temporary folder beside it to write into.

    Raises:
        OutputError: `path` holds something else or a half-written output, or cannot
            be made.
    """
    path = Path(path)
    _check_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as cause:
        raise OutputError(
            f"cannot write {path}: {cause}. May you write there, and is there space?"
        ) from cause
    try:
        yield partial
        manifest = json.dumps({"files": _sizes(partial)}, indent=1)
        (partial / _MANIFEST).write_text(manifest)
        partial.chmod(0o755)
        _exchange(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _exchange(new: Path, path: Path) -> None:
    """Put a folder in its place; the one that was there goes last, or comes back."""
    if not path.exists():
        new.rename(path)
        return
    old = new.with_name(f"{new.name}-old")
    path.rename(old)
    with ExitStack() as undo:
        undo.callback(old.rename, path)
        new.rename(path)
        undo.pop_all()
    shutil.rmtree(old)


def _sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of every file below a folder, by its path from there."""
    return {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _check_replaceable(path: Path) -> None:
    """Refuse to write over what this module did not finish."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        sizes = json.loads((path / _MANIFEST).read_text())["files"]
        whole = _sizes(path) == sizes | {_MANIFEST: (path / _MANIFEST).stat().st_size}
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise OutputError(
            f"{path} exists and is not a finished output: it is half-written, was"
            " changed by hand, or holds something else. Move or delete it, or choose"
            " another folder."
        )


def _write(dataset: xr.Dataset, file: Path) -> None:
    """Write netCDF and read it back: its conventions give some names a meaning."""
    try:
        dataset.to_netcdf(file, engine="h5netcdf")
    except (TypeError, ValueError, NotImplementedError) as cause:
        raise ResultError(f"netCDF cannot hold this result: {cause}.") from cause
    if not _encoded(_stored(file)).identical(dataset):
        raise ResultError(
            "this result would not come back from netCDF as it is. Usual causes: None"
            " among the strings of a coordinate, a space in a coordinate's name, or an"
            ' attribute whose name netCDF reserves ("scale_factor", "_FillValue").'
        )


def _stored(path: Path) -> xr.DataArray | xr.Dataset:
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        loaded = stored.load()
    for variable in loaded.variables.values():
        variable.attrs = _decoded_attrs(variable.attrs)
    loaded.attrs = _decoded_attrs(loaded.attrs)
    if loaded.attrs.pop("mechvlm_kind", "dataset") == "dataset":
        return loaded
    array = loaded[next(iter(loaded.data_vars))]
    return array.rename(loaded.attrs.get("mechvlm_name", array.name))


def _encoded(result: xr.DataArray | xr.Dataset) -> xr.Dataset:
    if isinstance(result, xr.DataArray):
        dataset = result.to_dataset(name=_IN_FILE)
        dataset.attrs |= {"mechvlm_kind": "array", "mechvlm_name": result.name}
    else:
        dataset = result.copy()
    for variable in dataset.variables.values():
        variable.attrs = _encoded_attrs(variable.attrs)
    dataset.attrs = _encoded_attrs(dataset.attrs)
    return dataset


def _encoded_attrs(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: _encoded_attr(key, value) for key, value in attrs.items()}


def _encoded_attr(key: object, value: object) -> object:
    """Numbers and strings as netCDF holds them; everything else as JSON."""
    value = value.item() if isinstance(value, np.generic) else value
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if plain or (isinstance(value, str) and not value.startswith(_JSON)):
        return value
    try:
        return _JSON + json.dumps(value)
    except (TypeError, ValueError) as cause:
        raise ResultError(
            f"attribute {key!r} is a {type(value).__name__} and cannot be saved: wanted"
            " numbers, strings, None, or lists and dicts of them. An array belongs into"
            " a coordinate."
        ) from cause


def _decoded_attrs(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: _decoded_attr(value) for key, value in attrs.items()}


def _decoded_attr(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_JSON):
        return json.loads(value.removeprefix(_JSON))
    return value.item() if isinstance(value, np.generic) else value
