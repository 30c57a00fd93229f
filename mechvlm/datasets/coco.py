"""COCO: pictures of everyday scenes, with an outline of every object in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from mechvlm.errors import DatasetError
from mechvlm.items import Area, Item
from mechvlm.layout import Box

__all__ = ["read"]

_FINE = 4
"""Parts of a pixel's side in which an outline is drawn: Pillow fills pixels that an
outline merely touches, and so grows every object by up to a pixel on each side."""

Kind = TypeVar("Kind")


def read(
    annotations: str | Path,
    images: str | Path,
    *,
    question: str = "What is in the image?",
    prefix: str = "It is a",
    area: tuple[int | float, int | float] = (1000, 2000),
    max_annotations: int = 3,
    limit: int | None = None,
) -> tuple[Item, ...]:
    """Pictures with few objects, one of them small and the only one of its kind.

    A picture is taken if it has at most `max_annotations` annotations and, among them,
    a category with exactly one instance, no crowd, whose area lies between the bounds.
    That instance is the target, the first such in the file's order.

    Args:
        annotations: COCO's instances file, such as instances_train2017.json.
        images: Folder of the pictures.
        question: What every item asks.
        prefix: Start of every answer, as readings of kind VQA use it.
        area: Bounds of the target's area, in square pixels, both excluded.
        max_annotations: Most annotated objects in a picture.
        limit: Most pictures to take, in the file's order; None takes all.

    Returns:
        Items whose answer and target is the category's name. `objects` holds a mask of
        every object, by the name of its category, and "person 2" for the second of a
        kind (`mechvlm.items.class_of` gives "person" for both); `id` is COCO's id of
        the picture. A mask takes a byte per pixel, about 0.3 MB.

    Raises:
        DatasetError: A file is missing, is no instances file of COCO, or does not fit
            its pictures; or no picture passes.

    Paper: filter of Neo et al. 2024, arXiv:2410.07149, ablation of tokens (table 1).

    Example:
        >>> import mechvlm as mv
        >>> mv.datasets.coco.read("nowhere.json", ".")
        Traceback (most recent call last):
        ...
        mechvlm.errors.DatasetError: nowhere.json is not there...
    """
    file = Path(annotations)
    held = _loaded(file)
    things = _by_picture(held, file)
    items: list[Item] = []
    for each in _list(held, "images", file):
        here = things[_get(each, "id", int, file)]
        target = _target(here, area) if len(here) <= max_annotations else None
        if len(items) == limit:
            break
        if target is None:
            continue
        item = Item(
            _picture(each, Path(images), file),
            question,
            answer=target.name,
            objects=_objects(here, each, file),
            target=target.name,
            prefix=prefix,
            id=str(target.picture),
        )
        items.append(item)
    if not items:
        raise DatasetError(
            f"no picture of {file} passes: at most {max_annotations} objects, one of"
            f" them alone of its kind and between {area[0]} and {area[1]} square pixels"
            f" large, at most {limit} pictures."
        )
    return tuple(items)


def _by_picture(held: Mapping[str, object], file: Path) -> dict[int, list[_Annotation]]:
    """The annotated objects of every picture that the file lists, by its id."""
    names = {
        _get(each, "id", int, file): _get(each, "name", str, file)
        for each in _list(held, "categories", file)
    }
    found: dict[int, list[_Annotation]] = {
        _get(each, "id", int, file): [] for each in _list(held, "images", file)
    }
    for each in _list(held, "annotations", file):
        thing = _annotation(each, names, file)
        if thing.picture not in found:
            raise DatasetError(
                f"{file}: an annotation is of picture {thing.picture}, which the file"
                " does not list. Is it torn?"
            )
        found[thing.picture].append(thing)
    return found


@dataclass(frozen=True)
class _Annotation:
    """One annotated object, as the file has it."""

    picture: int
    name: str
    area: float
    is_crowd: bool
    box: tuple[float, ...]
    outline: Mapping[str, object] | Sequence[object]


def _target(
    things: Sequence[_Annotation], area: tuple[int | float, int | float]
) -> _Annotation | None:
    """The first object that is alone of its kind and has the right size."""
    kinds = [thing.name for thing in things]
    low, high = area
    return next(
        (
            thing
            for thing in things
            if kinds.count(thing.name) == 1
            and low < thing.area < high
            and not thing.is_crowd
        ),
        None,
    )


def _objects(
    things: Sequence[_Annotation], picture: Mapping[str, object], file: Path
) -> dict[str, Area]:
    """Where each object is, by the name of its kind and its number from 2 on."""
    width, height = (
        _get(picture, "width", int, file),
        _get(picture, "height", int, file),
    )
    found: dict[str, Area] = {}
    seen: list[str] = []
    for thing in things:
        seen.append(thing.name)
        n = seen.count(thing.name)
        name = thing.name if n == 1 else f"{thing.name} {n}"
        mask = _mask(thing, width, height, file)
        found[name] = mask if mask.any() else _box(thing, width, height, file)
    return found


def _box(thing: _Annotation, width: int, height: int, file: Path) -> Box:
    """Left, top, right, bottom from COCO's left, top, width, height."""
    left, top, wide, high = thing.box
    box = (
        max(0.0, left),
        max(0.0, top),
        min(width, left + wide),
        min(height, top + high),
    )
    if not (box[0] < box[2] and box[1] < box[3]):
        raise DatasetError(
            f"{file}: the box {list(thing.box)} of a {thing.name!r} lies outside its"
            f" picture {thing.picture} of {width} x {height} pixels. Wanted left, top,"
            " width, height."
        )
    return box


def _mask(
    thing: _Annotation, width: int, height: int, file: Path
) -> Bool[np.ndarray, "height width"]:
    """Pixels of an object; those count that lie in it with half of their area."""
    outline = thing.outline
    if isinstance(outline, Mapping):
        return _run_lengths(outline, width, height, file)
    fine = Image.new("1", (width * _FINE, height * _FINE))
    draw = ImageDraw.Draw(fine)
    for polygon in outline:
        corners = _numbers(polygon, file)
        if len(corners) < 6 or len(corners) % 2:
            raise DatasetError(
                f"{file}: a polygon of picture {thing.picture} has {len(corners)}"
                " numbers; wanted x and y of at least three corners."
            )
        draw.polygon([_FINE * each - 0.5 for each in corners], fill=1)
    parts = np.asarray(fine).reshape(height, _FINE, width, _FINE)
    return np.asarray(parts.mean(axis=(1, 3)) >= 0.5)


def _run_lengths(
    coded: Mapping[str, object], width: int, height: int, file: Path
) -> Bool[np.ndarray, "height width"]:
    """A mask from the lengths of its runs, column by column, first one of zeros."""
    counts = coded.get("counts")
    if not isinstance(counts, list):
        raise DatasetError(
            f"{file}: a mask is compressed ({type(counts).__name__}); wanted polygons"
            " or plain run lengths, as COCO publishes them. Decode it with pycocotools."
        )
    lengths = [int(each) for each in _numbers(counts, file)]
    if sum(lengths) != width * height:
        raise DatasetError(
            f"{file}: run lengths of {sum(lengths)} pixels are not those of a picture"
            f" of {width} x {height}."
        )
    bits = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return bits.reshape(width, height).T


def _picture(each: Mapping[str, object], images: Path, file: Path) -> Path:
    """The picture's file, whose size is as the annotations say."""
    path = images / _get(each, "file_name", str, file)
    if not path.is_file():
        raise DatasetError(
            f"{path} is not there, and {file.name} lists it. Wanted the folder of the"
            " pictures that these annotations are of, such as train2017."
        )
    wanted = _get(each, "width", int, file), _get(each, "height", int, file)
    with Image.open(path) as picture:
        size = picture.size
    if size != wanted:
        raise DatasetError(
            f"{path} has {size[0]} x {size[1]} pixels and {file.name} says"
            f" {wanted[0]} x {wanted[1]}: outlines would lie elsewhere. Was it resized?"
        )
    return path


def _loaded(file: Path) -> Mapping[str, object]:
    if not file.is_file():
        raise DatasetError(
            f"{file} is not there. Wanted COCO's instances file, such as"
            " annotations/instances_train2017.json."
        )
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise DatasetError(f"{file} is no JSON: {cause}. Is it torn?") from cause
    if not isinstance(held, dict):
        raise DatasetError(f"{file} holds a {type(held).__name__}; wanted an object.")
    return held


def _list(held: Mapping[str, object], key: str, file: Path) -> list[dict[str, object]]:
    found = _get(held, key, list, file)
    rows = [each for each in found if isinstance(each, dict)]
    if len(rows) < len(found):
        raise DatasetError(f"{file}: {key!r} holds other things than objects.")
    return rows


def _get(held: Mapping[str, object], key: str, kind: type[Kind], file: Path) -> Kind:
    """An entry of a JSON object, which must be of a kind."""
    found = held.get(key)
    if not isinstance(found, kind) or isinstance(found, bool):
        raise DatasetError(
            f"{file}: {key!r} is {'missing' if found is None else repr(found)[:40]};"
            f" wanted a {kind.__name__}. Is it an instances file of COCO?"
        )
    return found


def _annotation(
    each: Mapping[str, object], names: Mapping[int, str], file: Path
) -> _Annotation:
    category = _get(each, "category_id", int, file)
    if category not in names:
        raise DatasetError(f"{file}: category {category} is not among the categories.")
    outline = each.get("segmentation")
    if not isinstance(outline, dict | list):
        raise DatasetError(
            f"{file}: an annotation has no 'segmentation'. Wanted the instances file,"
            " not that of captions or keypoints."
        )
    box = tuple(_numbers(each.get("bbox"), file))
    (area,) = _numbers([each.get("area")], file)
    if len(box) != 4:
        raise DatasetError(f"{file}: a 'bbox' of {len(box)} numbers; wanted four.")
    return _Annotation(
        _get(each, "image_id", int, file),
        names[category],
        area,
        each.get("iscrowd", 0) == 1,
        box,
        outline,
    )


def _numbers(given: object, file: Path) -> list[float]:
    values: Iterable[object] = given if isinstance(given, list) else [given]
    found = [
        float(x)
        for x in values
        if isinstance(x, int | float) and not isinstance(x, bool) and -inf < x < inf
    ]
    if not isinstance(given, list) or len(found) < len(given):
        raise DatasetError(
            f"{file}: {repr(given)[:60]} was found where numbers belong. Is it an"
            " instances file of COCO?"
        )
    return found
