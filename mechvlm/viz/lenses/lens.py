"""The logit lens, cell by cell: what the model would say if it stopped there."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import partial

import numpy as np
import xarray as xr
from jaxtyping import Int
from PIL import Image

from mechvlm.viz.figure import Figure
from mechvlm.viz.labels import grids
from mechvlm.viz.lenses.still import Placed, drawn, spot
from mechvlm.viz.lenses.words import Said, Words, said_by, without_image
from mechvlm.viz.palette import Scale
from mechvlm.viz.payload import packed, picture_uri, spoken, tinted
from mechvlm.viz.plots.overlay import Outline, cells, segments
from mechvlm.wanted import several

__all__ = ["lens"]


def lens(
    lensed: xr.Dataset,
    image: Image.Image | None = None,
    *,
    outline: Outline | Sequence[Outline] | None = None,
    words: Words = (),
    ranks: xr.DataArray | None = None,
    grid: int = 0,
) -> Figure:
    """Walk a logit lens: point at a cell or a token and read its words at every layer.

    Cells are tinted by the rank of the word that is sought, deepest for rank 1, or by
    the probability of the best word where none is. The live view seeks any other word
    that one types or clicks.

    Args:
        lensed: What `mv.logit_lens` returned.
        image: The picture that the prompt was asked about, in its original size; None
            draws layers by positions.
        outline: The object: x0, y0, x1, y1 in pixels of the picture, or a bool mask
            [height width] of its size; or several of these.
        words: What counts as naming the object, as in `mv.object_hit_rate`: whole
            words as a token shows them, or token ids.
        ranks: (layer, position), of the lens's layers and positions: the object's
            rank in the whole vocabulary, 1 the best, NaN where it is not known; or
            counted from 0 in the unit "tokens above", as `mv.answer_track` does.
            (layer) alone will do for a lens of one position. None takes the ranks
            among the lens's top words.
        grid: Which of the grids, where several views of the image were read.

    Returns:
        A figure; its still shows the cell where the sought word ranks best.

    Raises:
        ArgumentError: `words` is one string, or holds neither words nor ids.
        ResultError: The Dataset is no lens; the ranks are of other layers or
            positions; the lens lacks positions of the image; or an outline is given
            without an image.

    Paper: Neo et al. 2024, arXiv:2410.07149, logit lens.

    Example:
        >>> dims = ("layer", "position", "k")
        >>> said = {
        ...     "word": (dims, [[["the"], ["a"]], [["red"], ["a"]]]),
        ...     "token_id": (dims, [[[5], [3]], [[7], [3]]]),
        ...     "probability": (dims, [[[0.2], [0.3]], [[0.9], [0.4]]]),
        ... }
        >>> figure = lens(xr.Dataset(said), words=["red"])
        >>> print(figure.about.split(". ")[1].split(", where")[0])
        “red” ranks best, number 1, at layer 1, position 0
    """
    given = several(words, (str, int, np.integer), "words", '["red"]')
    sought = [each if isinstance(each, str) else int(str(each)) for each in given]
    said = said_by(lensed, sought, ranks)
    place = None
    if image is None:
        without_image(outline, grid)
    else:
        found = grids(lensed["probability"].assign_attrs(lensed.attrs))
        strokes = segments(outline, image) if outline is not None else []
        at = places(lensed, grid)
        found[grid].check(image.size)
        place = Placed(image, found[grid], at, tuple(strokes))
    titled = lensed.assign_attrs(long_name=lensed.attrs.get("long_name", heading(said)))
    return Figure(
        titled,
        "lens",
        spec_of(said, place),
        partial(drawn, said, place, titled),
        300 + max(420, 24 * len(said.layers.labels)),
        about=about(said, place),
        within=("lens_table", "lens_views"),
    )


def heading(said: Said) -> str:
    """The figure's title."""
    return f"Logit lens: where it says “{said.sought}”" if said.sought else "Logit lens"


def places(lensed: xr.Dataset, grid: int) -> Int[np.ndarray, "row col"]:
    """Index of each cell's position in the lens."""
    n = lensed.sizes["position"]
    each = xr.DataArray(np.arange(n), dims="position", attrs=lensed.attrs, name="lens")
    if "position" in lensed.coords:
        each = each.assign_coords(position=lensed["position"].values)
    return np.asarray(cells(each, grid).values[0], dtype=int)


def whole(values: Int[np.ndarray, "..."]) -> dict[str, object]:
    """Whole numbers from 0 as base64, little-endian, in as few bytes as hold them."""
    bytes_each = 2 if int(values.max(initial=0)) < 65536 else 4
    data = base64.b64encode(values.astype(f"<u{bytes_each}").tobytes()).decode()
    return {"data": data, "bytes": bytes_each}


def spec_of(said: Said, place: Placed | None) -> dict[str, object]:
    """What the page's script draws."""
    sought: dict[str, object] = {"name": said.sought, "members": said.members}
    sought |= {"ranks": whole(said.ranks) if said.exact else None}
    layer, position = said.best
    return {
        "layers": spoken(said.layers),
        "positions": spoken(said.positions),
        "quiet": said.positions.quiet(),
        "words": said.words,
        "ids": tuple(said.vocabulary),
        "k": said.k,
        "index": whole(said.index),
        "probability": packed(said.probability),
        "sought": sought | {"deepest": said.deepest},
        "start": [layer, position],
        "scale": tinted(Scale(0.0, 1.0)),
        "picture": None if place is None else pictured(place),
    }


def pictured(place: Placed) -> dict[str, object]:
    """The picture and what lies on it, as the page's script reads them."""
    g = place.grid
    return {
        "uri": picture_uri(place.image),
        "size": place.image.size,
        "grid": [g.start, g.rows, g.cols, *g.box],
        "outline": [[round(v, 2) for v in stroke] for stroke in place.strokes],
        "cells": whole(place.at),
    }


def about(said: Said, place: Placed | None) -> str:
    """Where the sought word ranks best, or where the best word is most certain."""
    layer, position = said.best
    n = f"{len(said.layers.labels)} layers by {len(said.positions.labels)} positions"
    where = f"layer {said.layers.labels[layer]}, {spot(said, place, position)}"
    first = f"“{said.word(layer, position)}”"
    chance = f"{100 * said.probability[layer, position, 0]:.3g} %"
    if not said.sought:
        return f"Logit lens, {n}. Most certain: {first}, {chance}, at {where}."
    rank = int(said.ranks[layer, position])
    if rank == 0:
        nowhere = f"is nowhere among the {said.k} best words"
        return f"Logit lens, {n}. “{said.sought}” {nowhere}."
    named = int((said.ranks == 1).any(axis=0).sum())
    return (
        f"Logit lens, {n}. “{said.sought}” ranks best, number {rank}, at {where}, where"
        f" the best word is {first} with {chance}. It is the best word of {named} of"
        f" {len(said.positions.labels)} positions at some layer."
    )
