"""PopVQA: popular entities with a picture each, and questions asked in two ways."""

from __future__ import annotations

import ast
import csv
import io
import json
import tokenize
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from mechvlm.errors import DatasetError, MechVLMWarning
from mechvlm.items import Entity, Fact
from mechvlm.wanted import words_of

__all__ = ["read"]

_OF_ENTITY = ("type", "s_uri", "subject", "aliases")
_OF_QUESTION = ("s_uri", "question", "question_for_image", "possible_answers")
_RELATION = "relation"
"""A column of the questions that may be missing."""

Row = Mapping[str, str]


def read(
    folder: str | Path,
    *,
    entities: str = "entities.csv",
    questions: str = "questions.csv",
    images: str | Path | None = None,
    picture: Literal["resized_path", "path"] = "resized_path",
    kinds: Sequence[str] | None = None,
    limit: int | None = None,
) -> tuple[Entity, ...]:
    """The entities of PopVQA, each with its picture and the facts asked about it.

    Columns of the entities: type, s_uri, subject, aliases, and the picture's path; of
    the questions: s_uri, question, question_for_image, possible_answers and, if there,
    relation. Lists are written as JSON or as Python writes them. An entity that has
    several rows counts once, with the picture of the first; questions of one wording
    are one fact, right with the answers of either row.

    Args:
        folder: Where the two tables lie.
        entities: File name of the entities.
        questions: File name of the questions.
        images: Folder that the paths of pictures start from; None takes `folder`.
        picture: Column with the path: "resized_path" is the picture as the paper shows
            it, a square with black bars, "path" the original.
        kinds: Types of entity to take; None takes all.
        limit: Most entities to take, in the order of the file; None takes all.

    Returns:
        Entities with `id` their s_uri and `kind` their type.

    Raises:
        ArgumentError: The kinds are one string.
        DatasetError: A file, a column or a picture is missing, a list cannot be read, a
            question is about no entity of the file, or a type does not occur.

    Paper: Cohen et al. 2024, arXiv:2412.14133.

    Example:
        >>> import mechvlm as mv
        >>> mv.datasets.popvqa.read("nowhere")
        Traceback (most recent call last):
        ...
        mechvlm.errors.DatasetError: nowhere/entities.csv is not there...
    """
    wanted_kinds = None if kinds is None else words_of(kinds, "kinds")
    root = Path(folder)
    rows = _rows(root / entities, (*_OF_ENTITY, picture))
    first = _once(rows, root / entities)
    facts = _facts(root / questions, set(first))
    wanted = _of_kinds(list(first.values()), wanted_kinds, root / entities)
    asked = [row for row in wanted if row["s_uri"] in facts]
    if len(asked) < len(wanted):
        _warn(f"{len(wanted) - len(asked)} entities have no question and are left out.")
    base = root if images is None else Path(images)
    return tuple(
        _entity(row, facts[row["s_uri"]], base, picture) for row in asked[:limit]
    )


def _rows(file: Path, columns: Sequence[str]) -> list[Row]:
    if not file.is_file():
        raise DatasetError(
            f"{file} is not there. Wanted the folder that PopVQA was downloaded into,"
            " with entities.csv and questions.csv; name other files with entities= and"
            " questions=."
        )
    with file.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.DictReader(opened)
        found = list(reader.fieldnames or ())
        missing = [column for column in columns if column not in found]
        if missing:
            raise DatasetError(f"{file} has no column {missing}; it has {found}.")
        rows: list[Row] = []
        for row in reader:
            if None in row or None in row.values():
                raise DatasetError(
                    f"{file}, line {reader.line_num}: not as many fields as columns."
                    " The file is torn, or its quotes are not those of CSV."
                )
            rows.append({name: text.strip() for name, text in row.items()})
    if not rows:
        raise DatasetError(f"{file} has a header and no row below it.")
    return rows


def _once(rows: Sequence[Row], file: Path) -> dict[str, Row]:
    """The first row of each entity, by its s_uri."""
    first: dict[str, Row] = {}
    for place, row in enumerate(rows):
        for column in ("s_uri", "subject", "type"):
            if not row[column]:
                raise DatasetError(f"{file}: row {place + 1} has an empty {column}.")
        first.setdefault(row["s_uri"], row)
    if len(first) < len(rows):
        _warn(
            f"{file.name} has {len(rows)} rows of {len(first)} entities; each is taken"
            " once, with its first picture."
        )
    return first


def _facts(file: Path, known: set[str]) -> dict[str, list[Fact]]:
    """The facts of each entity; rows of one wording are one fact."""
    answers: dict[tuple[str, str, str], dict[str, None]] = {}
    relations: dict[tuple[str, str, str], str] = {}
    for place, row in enumerate(_rows(file, _OF_QUESTION)):
        where = f"{file}, row {place + 1}"
        if row["s_uri"] not in known:
            raise DatasetError(
                f"{where} asks about {row['s_uri']!r}, which is no entity of the file"
                " of entities. Do the two files belong to one version?"
            )
        key = row["s_uri"], row["question"], row["question_for_image"]
        right = _listed(row["possible_answers"], where)
        if not right or not all(key):
            raise DatasetError(f"{where}: a question or its possible_answers is empty.")
        answers.setdefault(key, {}).update(dict.fromkeys(right))
        relations.setdefault(key, row.get(_RELATION, ""))
    found: dict[str, list[Fact]] = {}
    for key, right_ones in answers.items():
        entity, by_name, by_picture = key
        fact = Fact(by_name, by_picture, tuple(right_ones), relations[key])
        found.setdefault(entity, []).append(fact)
    return found


def _of_kinds(rows: list[Row], kinds: Sequence[str] | None, file: Path) -> list[Row]:
    if kinds is None:
        return rows
    there = {row["type"] for row in rows}
    unknown = sorted(set(kinds) - there)
    if unknown or not kinds:
        raise DatasetError(
            f"kinds {unknown or list(kinds)}: {file} has {', '.join(sorted(there))}."
        )
    return [row for row in rows if row["type"] in kinds]


def _entity(row: Row, facts: Sequence[Fact], images: Path, picture: str) -> Entity:
    path = images / row[picture]
    if not path.is_file():
        raise DatasetError(
            f"the picture of {row['subject']!r} is not there: {path}. Paths are read"
            f" from column {picture!r} and start from {images}; name another folder"
            " with images=, or another column with picture=."
        )
    aliases = _listed(row["aliases"], f"aliases of {row['subject']!r}")
    others = tuple(name for name in aliases if name != row["subject"])
    return Entity(
        row["subject"], path, tuple(facts), row["type"], others, id=row["s_uri"]
    )


def _listed(text: str, where: str) -> tuple[str, ...]:
    """A list in JSON or in Python's way of writing; words alone are a list of one."""
    if not text or text.lower() == "nan":
        return ()
    if text[0] not in "[({":
        return (text,)
    value = _parsed(text)
    if not isinstance(value, list | tuple | set) or not all(
        isinstance(each, str | int | float) for each in value
    ):
        raise DatasetError(
            f'{where}: {text[:80]!r} is no list of words. Wanted ["a", "b"], with'
            " commas; a list without commas was written from an array and has lost"
            " where its parts end."
        )
    every = value if isinstance(value, list | tuple) else sorted(map(str, value))
    return tuple(dict.fromkeys(name for each in every if (name := str(each).strip())))


def _parsed(text: str) -> object:
    """The value of a literal; None if it is none, or joins neighbouring strings."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        if any(a == b == tokenize.STRING for a, b in pairwise(_kinds(text))):
            return None
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, tokenize.TokenError):
        return None


def _kinds(text: str) -> Iterator[int]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        yield token.type


def _warn(text: str) -> None:
    warnings.warn(text, MechVLMWarning, stacklevel=3)
