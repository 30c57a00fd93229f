"""What attention results show."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from mechvlm.report.phrases import among, counted, largest, named, percent, value_at
from mechvlm.report.shown import Picture, Shown, banded, on_picture, stacked
from mechvlm.viz.labels import number
from mechvlm.viz.plots.heatmap import heatmap
from mechvlm.viz.plots.lines import lines
from mechvlm.viz.widgets.attention import attention
from mechvlm.viz.widgets.last_token import attention_from_last, attention_into

__all__ = [
    "found_where_named", "located", "mapped", "patterned", "pooled", "rolled", "shared",
]  # fmt: skip

MOST_ROWS = 3


def shared(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Shares of attention by group, the mean over rows."""
    n_rows = found.sizes["row"]
    mean = found["fraction"].mean("row").transpose("group", "layer")
    mean.attrs = {**found.attrs, **found["fraction"].attrs}
    whose = named(found["fraction"], "row", 0) if n_rows == 1 else f"{n_rows} rows"
    mean.attrs["long_name"] = "Share of the attention by group"
    return [Shown(lines(mean), _split(mean, f"of {whose}"))]


def pooled(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Shares of attention over prompts."""
    mean = banded(found, "prompt_mean", "Share of the attention by group")
    mean = mean.transpose("group", "layer")
    many = f"over {found.attrs.get('n_prompts', 'many')} prompts"
    return [Shown(lines(mean), _split(mean, many))]


def _split(mean: xr.DataArray, whose: str) -> str:
    """How the groups share the attention, and where the image has most."""
    bare = mean.drop_vars(["low", "high"], errors="ignore")
    over = bare.mean("layer").sortby(bare.mean("layer"), ascending=False)
    shares = [
        f"{group} {percent(float(value))}"
        for group, value in zip(over["group"].values, over.values, strict=True)
    ]
    words = f"Over all layers the attention {whose} goes to {among(shares)}."
    if "image" in bare["group"].values:
        seen = bare.sel(group="image")
        at = largest(seen)
        words += (
            f" The image has most at {named(seen, 'layer', at['layer'])}:"
            f" {percent(value_at(seen, at))}."
        )
    return words


def mapped(result: xr.DataArray, image: Picture) -> list[Shown]:
    """Maps of a row's attention over the image, row by row."""
    rows = range(result.sizes["row"])[-MOST_ROWS:]
    shown = []
    for i in rows:
        plane = over_positions(result.isel(row=i))
        title = f"Of {named(result, 'row', i)}"
        heading = "Stream from" if result.name == "map" else "Attention to"
        plane = plane.assign_attrs(long_name=f"{heading} the image: {title.lower()}")
        at = largest(plane)
        total = plane.sum("position")
        most = largest(total)
        words = (
            f"The largest cell is {named(plane, 'position', at['position'])} at"
            f" {named(plane, 'layer', at['layer'])}, {percent(value_at(plane, at))};"
            f" the whole image takes most at {named(total, 'layer', most['layer'])},"
            f" {percent(value_at(total, most))}."
        )
        over = on_picture(plane, image)
        shown += [Shown(f, words, title) for f in over or [heatmap(plane)]]
    if len(rows) < result.sizes["row"]:
        first = shown[0]
        note = f" Drawn: the last {len(rows)} of {result.sizes['row']} rows."
        shown[0] = Shown(first.figure, first.sentence + note, first.title)
    return shown


def over_positions(plane: xr.DataArray) -> xr.DataArray:
    """A map by grid row and column as one by position, which its picture knows."""
    flat = plane.stack(cell=("grid_row", "grid_col"))
    attrs = dict(plane.attrs)
    if "position" in plane.coords:
        where = plane["position"].values.ravel()
    else:
        where = np.arange(flat.sizes["cell"])
    if "grids" in attrs:
        every = json.loads(str(attrs["grids"]))
        mine = [g for g in every if g["start"] == int(where[0])]
        attrs["grids"] = json.dumps(mine or every)
    coords = {"layer": plane["layer"].values, "position": where}
    values = flat.transpose("layer", "cell").values
    return xr.DataArray(
        values, coords, ("layer", "position"), name=plane.name, attrs=attrs
    )


def rolled(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Rollout: where each row's stream comes from."""
    whole = found["rollout"].isel(layer=-1)
    by_group = whole.groupby("source_group").sum().mean("row")
    order = np.argsort(-by_group.values)
    shares = [
        f"{by_group['source_group'].values[i]} {percent(float(by_group[i]))}"
        for i in order
    ]
    words = f"Behind the last layer the stream comes from {among(shares)}."
    if "map" in found and "layer" in found["map"].dims:
        shown = mapped(found["map"].assign_attrs(_about(found, "map")), image)
        return [
            Shown(s.figure, words if i == 0 else s.sentence, s.title)
            for i, s in enumerate(shown)
        ]
    plane = found["rollout"].isel(row=-1).assign_attrs(_about(found, "rollout"))
    return [Shown(heatmap(plane.transpose("layer", "source")), words)]


def _about(found: xr.Dataset, name: str) -> dict[str, object]:
    own = {str(key): value for key, value in found[name].attrs.items()}
    return {"model": found.attrs.get("model", ""), **own}


def located(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Does attention lie on an object: mass, overlap and what the image takes."""
    mean = found[["mass", "iou", "image_mass"]].mean("row", keep_attrs=True)
    names = {
        "mass": "of the image's, on the object",
        "iou": "overlap with the object",
        "image_mass": "of the row's, on the image",
    }
    drawn = stacked(mean, names, "Attention on the object")
    drawn = drawn.assign_attrs({"model": found.attrs.get("model", "")})
    hits = found["hit"]
    known = int(hits.notnull().sum())
    words = (
        f"The peak lies on the object in {int(hits.sum())} of {known} maps (by chance"
        f" {percent(float(found.attrs['chance']))})."
    )
    mass = found["mass"].mean("row")
    at = largest(mass)
    words += (
        " The share of the image's attention that lies on it is largest at"
        f" {named(mass, 'layer', at['layer'])}: {percent(value_at(mass, at))}."
    )
    return [Shown(lines(drawn), words)]


def found_where_named(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Attention on objects while they are named, by layer."""
    names = {"accuracy": "peak on the object", "accuracy_near": "near it"}
    drawn = stacked(found, names, "Objects found while they are named")
    accuracy = found["accuracy"]
    at = largest(accuracy)
    chance = float(found["chance"].mean())
    words = (
        f"At {named(accuracy, 'layer', at['layer'])} the peak of attention lies on"
        f" {percent(value_at(accuracy, at))} of"
        f" {counted(int(found.attrs['n_objects']), 'object')}, the most of all layers;"
        f" a random cell would find {percent(chance)}."
    )
    return [Shown(lines(drawn), words)]


def patterned(result: xr.DataArray, image: Picture) -> list[Shown]:
    """Attention patterns: what the last position reads, and all heads."""
    groups = set(map(str, result["source_group"].values))
    group = "image" if "image" in groups else sorted(groups)[0]
    mine = np.flatnonzero(result["source_group"].values == group)
    share = result.isel(target=-1).isel(source=mine).sum("source")
    at = largest(share)
    layer = int(share["layer"].values[at["layer"]])
    words = (
        f"Head {share['head'].values[at['head']]} of"
        f" {named(share, 'layer', at['layer'])} gives the {group} positions more of"
        " what the last position attends to than any other head:"
        f" {number(value_at(share, at))} of its row."
    )
    last = attention_from_last(result, layer=layer)
    shown = [
        Shown(attention_into(result, group), words, "From the last position"),
        Shown(
            last, "Each head's row; blocks of positions are summed.", f"Layer {layer}"
        ),
    ]
    if result.sizes["target"] == result.sizes["source"]:
        every = "Choose a layer and a head; blocks of positions are shown as one."
        shown.append(Shown(attention(result, layer=layer), every, "All heads"))
    return shown
