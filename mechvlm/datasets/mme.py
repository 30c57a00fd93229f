"""MME: pictures with two questions each, one right answer yes or no to every one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mechvlm.errors import DatasetError
from mechvlm.items import Item
from mechvlm.wanted import words_of

__all__ = ["PERCEPTION", "read"]

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
"""The ten subsets about perception, which the paper reports."""

_PICTURES = frozenset({".jpg", ".jpeg", ".png"})
_ANSWERS = {"yes": "Yes", "no": "No"}
_QUESTIONS = 2
"""Questions about each picture."""


def read(
    folder: str | Path, *, subsets: Sequence[str] | None = None
) -> dict[str, tuple[Item, ...]]:
    r"""The questions of MME, by subset.

    A subset is a folder. Beside each picture, or in `questions_answers_YN` where the
    pictures lie in `images`, a text of the picture's name has two lines
    "question<tab>Yes" or "question<tab>No".

    Args:
        folder: Where the subsets' folders lie.
        subsets: Names of those to read, such as `PERCEPTION`; None reads all there are.

    Returns:
        Subset -> items, two in a row for each picture, with the answer "Yes" or "No"
        and an `id` of subset, picture and line.

    Raises:
        ArgumentError: The subsets are one string.
        DatasetError: A folder is missing or empty, a picture has no text or a text no
            picture, or a text has other lines.

    Paper: Fu et al. 2023, arXiv:2306.13394.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     place = Path(name) / "color"
        ...     place.mkdir()
        ...     _ = (place / "a.jpg").write_bytes(b"")
        ...     _ = (place / "a.txt").write_text("Is it red?\tYes\nIs it blue?\tNo\n")
        ...     [item.answer for item in read(name)["color"]]
        ['Yes', 'No']
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(
            f"{folder} is no folder. Wanted the unpacked MME benchmark, with one folder"
            " for each subset."
        )
    there = sorted(each.name for each in folder.iterdir() if each.is_dir())
    wanted = there if subsets is None else list(words_of(subsets, "subsets"))
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        raise DatasetError(
            f"{folder} has no subset {missing or 'at all'}; its folders are {there}."
        )
    return {name: _subset(folder / name) for name in wanted}


def _subset(folder: Path) -> tuple[Item, ...]:
    """The items of one subset, in either of the two layouts."""
    apart = (folder / "images").is_dir()
    pictures = _files(folder / "images" if apart else folder, _PICTURES)
    texts = _files(
        folder / "questions_answers_YN" if apart else folder, frozenset({".txt"})
    )
    alone = sorted(pictures.keys() ^ texts.keys())
    if alone or not pictures:
        raise DatasetError(
            f"subset {folder.name!r} has {len(pictures)} pictures and {len(texts)}"
            f" texts; without a partner of the same name are {alone[:5]}. Is the"
            " download complete?"
        )
    return tuple(
        item
        for name in sorted(pictures)
        for item in _items(pictures[name], texts[name])
    )


def _files(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """Name without suffix -> file."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not there, although its twin folder is.")
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in suffixes or file.name.startswith("."):
            continue
        if file.stem in found:
            raise DatasetError(
                f"{found[file.stem]} and {file} have one name, so that it is not clear"
                " which of them is meant."
            )
        found[file.stem] = file
    return found


def _items(picture: Path, text: Path) -> list[Item]:
    """The two questions about one picture."""
    try:
        lines = text.read_text(encoding="utf-8-sig").strip().splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise DatasetError(f"{text} cannot be read as text: {cause}.") from cause
    if len(lines) != _QUESTIONS:
        raise DatasetError(
            f"{text} has {len(lines)} lines; wanted {_QUESTIONS}, one question each."
        )
    subset = text.relative_to(text.parents[1]).parts[0]
    if subset == "questions_answers_YN":
        subset = text.parents[1].name
    found = []
    for place, line in enumerate(lines):
        question, tab, said = line.rpartition("\t")
        answer = _ANSWERS.get(said.strip().casefold())
        if not tab or not question.strip() or answer is None:
            raise DatasetError(
                f"{text}: line {place + 1} is {line!r}; wanted a question, a tab, and"
                " Yes or No."
            )
        name = f"{subset}/{picture.name}/{place}"
        found.append(Item(picture, question.strip(), answer, id=name))
    return found
