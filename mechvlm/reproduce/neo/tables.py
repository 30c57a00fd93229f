"""Tables and lines of Neo et al.'s measures."""

from __future__ import annotations

import numpy as np
import xarray as xr

from mechvlm.reproduce.finding import Row
from mechvlm.reproduce.shapes import stacked, titled
from mechvlm.statistics import mean_of

__all__ = ["ablation_rows", "cut_rows", "lens_lines", "lens_rows"]


def lens_lines(found: xr.Dataset, title: str) -> xr.DataArray:
    """Mean over objects of the own words' rate and its control, by layer."""
    return stacked(
        {
            "object": _over_objects(found["hit_rate"]),
            "background": _over_objects(found["control_rate"]),
        },
        "tokens",
        title,
    ).assign_attrs(titled(title, found))


def _over_objects(rates: xr.DataArray) -> xr.DataArray:
    every = rates.transpose("layer", "object").values
    told = [mean_of(row[np.isfinite(row)]) for row in every]
    mean, low, high = (np.array([each[i] for each in told]) for i in range(3))
    return xr.DataArray(
        mean,
        dims="layer",
        coords={
            "layer": rates["layer"].values,
            "low": ("layer", low),
            "high": ("layer", high),
        },
        attrs=rates.attrs,
    )


def ablation_rows(found: xr.Dataset) -> list[Row]:
    """What every reading loses by every set, beside its control."""
    names = (
        *("n_tokens", "n", "decrease", "decrease_low", "decrease_high", "control"),
        *("excess", "excess_low", "excess_high", "p"),
    )
    rows: list[Row] = [("reading", "set", *names)]
    for reading in found["reading"].values:
        for name in found["set"].values:
            here = found.sel(reading=reading, set=name)
            rows.append((str(reading), str(name), *(float(here[x]) for x in names)))
    return rows


def lens_rows(found: xr.Dataset) -> list[Row]:
    """The lens's lines as a table."""
    lines = lens_lines(found, "")
    rows: list[Row] = [("layer", "tokens", "share", "low", "high")]
    for layer in lines["layer"].values:
        for name in lines["tokens"].values:
            here = lines.sel(layer=layer, tokens=name)
            ends = (float(here), float(here["low"]), float(here["high"]))
            rows.append((int(layer), str(name), *ends))
    return rows


def cut_rows(found: xr.Dataset, name: str) -> list[Row]:
    """One variable of a knockout by cut and window, beside its control."""
    control = "control_change" if name == "change" else "control"
    columns_ = (name, f"{name}_low", f"{name}_high", control, "n")
    rows: list[Row] = [("cut", "window", *columns_)]
    for cut in found["cut"].values:
        for window in found["window"].values:
            here = found.sel(cut=cut, window=window)
            rows.append((str(cut), str(window), *(float(here[x]) for x in columns_)))
    return rows
