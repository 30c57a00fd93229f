"""Pairs of pictures in files: one's own counterfactuals, written by hand or by `write`.

A folder holds `pairs.json` and, beside it, the pictures that it names::

    {
      "format": "mechvlm pairs",
      "version": 1,
      "pairs": [
        {
          "id": "ball 1",
          "clean": "red.png",
          "corrupted": "blue.png",
          "question": "What color is the ball?",
          "answer": "Red",
          "foil": "Blue",
          "objects": {"ball": [12, 30, 84, 101], "dog": "dog-mask.png"},
          "target": "ball",
          "change": "color"
        }
      ]
    }

`clean`, `corrupted`, `question`, `answer` and `foil` must be there; the rest may be
left out, as may `objects_corrupted` (objects that are elsewhere in the corrupted
picture) and `prefix` (the start of the answer). Paths begin at the JSON file's folder.
An object is a box (left, top, right, bottom) in pixels, right and bottom excluded, or
the path of a mask: a picture of the same size without transparency, black but where the
object is, and there of one other colour. The two pictures of a pair must differ, and be
of one size, or their tokens would see different places.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mechvlm.axes import output_folder
from mechvlm.datasets.fitting import check_fit, mask_in
from mechvlm.errors import DatasetError, PromptError
from mechvlm.items import Area, Picture, PicturePair
from mechvlm.wanted import several

__all__ = ["read", "write"]

_FILE = "pairs.json"
_FORMAT = "mechvlm pairs"
_VERSION = 1
_NEEDED = ("clean", "corrupted", "question", "answer", "foil")
_WORDS = ("change", "prefix", "id")
_OBJECTS = ("objects", "objects_corrupted")
_FURTHER = (*_WORDS, "target", *_OBJECTS)


def read(path: str | Path) -> tuple[PicturePair, ...]:
    """The pairs of a folder, or of a JSON file; the module shows how it is written.

    Every picture is looked at once, so that a fault is found before a model runs.

    Args:
        path: The folder that holds `pairs.json`, or the file itself.

    Returns:
        Pairs in the order of the file, their pictures as paths.

    Raises:
        DatasetError: The file is no such file, a key is missing, unknown or of another
            kind, a picture or a mask cannot be read, the two pictures of a pair are
            equal or of different sizes, an area does not fit them, or two pairs have
            one id.

    Paper: semantic image pairs of Golovanevsky et al. 2024, arXiv:2406.16320.

    Example:
        >>> import mechvlm as mv
        >>> mv.datasets.pairs.read("nowhere.json")
        Traceback (most recent call last):
        ...
        mechvlm.errors.DatasetError: nowhere.json cannot be read as JSON...
    """
    file = Path(path)
    file = file / _FILE if file.is_dir() else file
    pairs = []
    for place, entry in enumerate(_entries(file)):
        where = f"{file}, pairs[{place}]"
        if isinstance(entry, dict) and isinstance(entry.get("id"), str):
            where += f" ({entry['id']!r})"
        pairs.append(_pair(entry, file.parent, where))
    _check_ids(pairs, str(file))
    return tuple(pairs)


def write(pairs: Sequence[PicturePair], folder: str | Path) -> Path:
    """Write pairs and their pictures into a folder that `read` reads.

    Pictures given as files are copied; others, and masks, are written as PNG. One that
    is in several pairs is kept once. The folder appears complete or not at all.

    Args:
        pairs: What is written.
        folder: Folder to make; one that this function made is replaced.

    Returns:
        The folder.

    Raises:
        ArgumentError: It is no list of pairs.
        DatasetError: There is no pair, or `read` would refuse one of them.
        OutputError: The folder holds something else.

    Example:
        >>> import tempfile
        >>> import mechvlm as mv
        >>> pair = mv.scenes.counterfactual(mv.scenes.sample(seed=0, n=2)).pair
        >>> with tempfile.TemporaryDirectory() as name:
        ...     (same,) = read(write([pair], Path(name) / "mine"))
        >>> same.question == pair.question, same.target == pair.target
        (True, True)
    """
    fix = "[PicturePair(clean, corrupted, ...)], of a counterfactual its .pair"
    pairs = several(pairs, PicturePair, "pairs", fix)
    if not pairs:
        raise DatasetError("no pair is given, so there is nothing to write.")
    _check_ids(pairs, "pairs")
    for place, pair in enumerate(pairs):
        check_fit(pair, f"pairs[{place}] ({pair.id!r})")
    pictures = {
        _key(each): each for pair in pairs for each in (pair.clean, pair.corrupted)
    }
    files = {
        key: f"pictures/{n}{_suffix(each)}"
        for n, (key, each) in enumerate(pictures.items())
    }
    entries = [_entry(pair, place, files) for place, pair in enumerate(pairs)]
    whole = {"format": _FORMAT, "version": _VERSION, "pairs": entries}
    with output_folder(folder) as partial:
        for name in ("pictures", "masks"):
            (partial / name).mkdir()
        for key, picture in pictures.items():
            _keep(picture, partial / files[key])
        for place, pair in enumerate(pairs):
            for _, _, area, file in _areas(pair, place):
                if isinstance(area, np.ndarray):
                    Image.fromarray(area.astype(bool)).save(partial / file)
        text = json.dumps(whole, indent=1, ensure_ascii=False)
        (partial / _FILE).write_text(text + "\n", encoding="utf-8")
    return Path(folder)


# -- reading ---------------------------------------------------------------------------


def _entries(file: Path) -> list[object]:
    """What the file holds for each pair."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        whole: object = json.loads(text, object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as cause:
        raise DatasetError(
            f"{file} cannot be read as JSON: {cause}. Wanted a file of pairs, or the"
            f" folder that holds one as {_FILE}."
        ) from cause
    form = f'{{"format": "{_FORMAT}", "version": {_VERSION}, "pairs": [...]}}'
    if not isinstance(whole, dict) or whole.get("format") != _FORMAT:
        raise DatasetError(f"{file} is no file of pairs; wanted {form}.")
    if whole.get("version") != _VERSION:
        raise DatasetError(
            f"{file} is of version {whole.get('version')!r}; this mechvlm reads version"
            f" {_VERSION}."
        )
    if more := sorted(whole.keys() - {"format", "version", "pairs"}):
        raise DatasetError(f"{file} has unknown keys {more}; wanted {form}.")
    entries = whole.get("pairs")
    if not isinstance(entries, list) or not entries:
        raise DatasetError(f'{file} has no pairs; wanted {form}, "pairs" not empty.')
    return entries


def _once(items: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; of a key that is there twice, one value would be lost."""
    twice = [key for key, n in Counter(key for key, _ in items).items() if n > 1]
    if twice:
        raise ValueError(f"keys {twice} are there twice in one object")
    return dict(items)


def _pair(entry: object, base: Path, where: str) -> PicturePair:
    """One pair, with all that it names looked at."""
    if not isinstance(entry, dict):
        raise _unwanted(where, entry, 'an object {"clean": ..., "corrupted": ..., ...}')
    missing = [key for key in _NEEDED if key not in entry]
    unknown = sorted(entry.keys() - {*_NEEDED, *_FURTHER})
    if missing or unknown:
        fault = f"lacks {missing}" if missing else f"has unknown keys {unknown}"
        raise DatasetError(
            f"{where} {fault}. Needed are {', '.join(_NEEDED)}; known besides are"
            f" {', '.join(_FURTHER)}."
        )
    clean, corrupted, question, answer, foil, change, prefix, name = (
        _text(entry.get(key, ""), f"{where}: {key!r}") for key in (*_NEEDED, *_WORDS)
    )
    target = entry.get("target")
    if target is not None:
        target = _text(target, f"{where}: 'target'")
    here, there = (
        _objects(entry.get(key, {}), base, f"{where}: {key!r}") for key in _OBJECTS
    )
    pictures = (
        _file(base, clean, f"{where}: 'clean'"),
        _file(base, corrupted, f"{where}: 'corrupted'"),
    )
    told = {"change": change, "prefix": prefix, "id": name}
    try:
        pair = PicturePair(
            *pictures, question, answer, foil, here, there, target, **told
        )
    except PromptError as cause:
        raise DatasetError(f"{where}: {cause}") from cause
    check_fit(pair, where)
    return pair


def _text(given: object, what: str) -> str:
    if not isinstance(given, str):
        raise _unwanted(what, given, "a string")
    return given


def _objects(given: object, base: Path, what: str) -> dict[str, Area]:
    """Names to boxes and to the masks that files hold."""
    if not isinstance(given, dict):
        raise _unwanted(what, given, '{"ball": [left, top, right, bottom]}')
    return {
        name: _area(each, base, f"{what}[{name!r}]") for name, each in given.items()
    }


def _area(given: object, base: Path, what: str) -> Area:
    if isinstance(given, str):
        return mask_in(_file(base, given, what), what)
    numbers = given if isinstance(given, list) else []
    if len(numbers) != 4 or not all(type(each) in (int, float) for each in numbers):
        wanted = "a box [left, top, right, bottom] or the path of a mask"
        raise _unwanted(what, given, wanted)
    left, top, right, bottom = numbers
    return left, top, right, bottom


def _file(base: Path, given: str, what: str) -> Path:
    """A file that the JSON file names."""
    path = base / given
    if not path.is_file():
        raise DatasetError(
            f"{what}: {path} is not there. Paths in a file of pairs begin at its own"
            " folder."
        )
    return path


def _unwanted(what: str, given: object, wanted: str) -> DatasetError:
    shown = json.dumps(given, ensure_ascii=False)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return DatasetError(f"{what} is {shown}; wanted {wanted}.")


def _check_ids(pairs: Sequence[PicturePair], what: str) -> None:
    """Refuse one id for two pairs; any number may have none."""
    named = Counter(pair.id for pair in pairs if pair.id)
    twice = [name for name, n in named.items() if n > 1]
    if twice:
        raise DatasetError(
            f"{what}: ids {twice[:5]} are there twice, so that tables could not tell"
            " the pairs apart. Give each its own, or none."
        )


# -- writing ---------------------------------------------------------------------------


def _key(picture: Picture) -> int | str:
    """What is the same for one picture in several pairs, while these are held."""
    return id(picture) if isinstance(picture, Image.Image) else str(picture)


def _suffix(picture: Picture) -> str:
    return ".png" if isinstance(picture, Image.Image) else Path(picture).suffix


def _keep(picture: Picture, file: Path) -> None:
    if isinstance(picture, Image.Image):
        picture.save(file, "PNG")
    else:
        shutil.copyfile(picture, file)


def _entry(
    pair: PicturePair, place: int, files: Mapping[int | str, str]
) -> dict[str, object]:
    """A pair as JSON; what may be left out and says nothing is left out."""
    objects: dict[str, dict[str, object]] = {key: {} for key in _OBJECTS}
    for key, name, area, file in _areas(pair, place):
        objects[key][name] = file if isinstance(area, np.ndarray) else list(area)
    further: dict[str, object] = {
        **objects,
        "target": pair.target,
        "change": pair.change,
        "prefix": pair.prefix,
    }
    return {
        **({"id": pair.id} if pair.id else {}),
        "clean": files[_key(pair.clean)],
        "corrupted": files[_key(pair.corrupted)],
        "question": pair.question,
        "answer": pair.answer,
        "foil": pair.foil,
        **{key: given for key, given in further.items() if given not in ({}, None, "")},
    }


def _areas(pair: PicturePair, place: int) -> Iterator[tuple[str, str, Area, str]]:
    """Key, name and area of each object, and the file that is a mask's."""
    both = pair.objects, pair.objects_corrupted
    for key, objects in zip(_OBJECTS, both, strict=True):
        for n, (name, area) in enumerate(objects.items()):
            yield key, name, area, f"masks/{place}-{key}-{n}.png"
