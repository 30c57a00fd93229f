"""What a row of training asks: which questions, which facts, which mosaics."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechvlm.models.demo.network import N_PATCHES, SIDE
from mechvlm.models.demo.packing import Row, Segment, alone, answered
from mechvlm.models.demo.vocabulary import BLANK, BOS, EOS, ID_OF, encode
from mechvlm.scenes import (
    COLUMNS,
    FACT_QUESTIONS,
    FACT_SENTENCES,
    GRID,
    IN_PICTURE,
    KINDS,
    NAMES,
    RELATIONS,
    ROWS,
    Emblem,
    Question,
    Scene,
    Thing,
    fact,
    questions,
    taught_by_picture,
)

TEXT = "fact_text"
AGAIN = "again"
"""What the log files second questions under."""
AGAIN_BLIND = "again_blind"
LOGGED = (*KINDS, TEXT, AGAIN, AGAIN_BLIND)
LONG = ("describe", "detail")
"""Kinds whose answers grow with the scene."""
DESCRIBE = "describe the image ."
"""The question that second ones mostly follow."""
_WEIGHTS = {
    "color": 1.5,
    "shape": 1.2,
    "color_at": 1.2,
    "shape_at": 1.2,
    "where": 1.5,
    "size": 0.8,
    "count": 0.5,
    "count_of": 1.2,
    "exists": 3.0,
    "describe": 0.7,
    "detail": 0.6,
    "name": 1.0,
    **dict.fromkeys(RELATIONS, 0.5),
}
_RARE = ("two", "three", "four")
_RARE_WEIGHT = 5.0
_FIRST_DESCRIBES = 0.75
_TEXT_TOKENS = 220
_COVERED = 0.12
_ONE_WORD = 0.3
_PLACE_WEIGHT = 0.4
_SIZE_WEIGHT = 0.5
_SHORTEST = 8


@dataclass(frozen=True)
class Asking:
    """How a stage asks about its pictures.

    Attributes:
        tokens: Most tokens that the questions and answers of a row have together.
        again: Share of the questions with short answers that stand behind another
            question, which stays unanswered.
        blind_describe: Share of descriptions that are given without a direct view of
            the picture.
        blind_again: Share of second questions that cannot read the picture.
    """

    tokens: int
    again: float
    blind_describe: float
    blind_again: float


@dataclass(frozen=True)
class Mosaic:
    """A picture made of word embeddings instead of image features.

    Attributes:
        words: For each patch, ids of the words that are mixed there.
        weights: The weight of each.
        spoken: For each patch one word of its content, which the patch before predicts.
    """

    words: Int[np.ndarray, "patch word"]
    weights: Float[np.ndarray, "patch word"]
    spoken: Int[np.ndarray, " patch"]


def picture_row(
    scene: Scene, rng: np.random.Generator, *, asking: Asking, all_facts: bool
) -> Row:
    """Different questions about a scene.

    Args:
        scene: What is asked about.
        rng: Draws the questions.
        asking: How many, and in which forms.
        all_facts: Whether to ask also the facts that pictures must not teach.
    """
    possible = [q for q in questions(scene) if all_facts or _may_teach(scene, q)]
    n_of = Counter(q.kind for q in possible)
    weights = np.array([_weight(q) / n_of[q.kind] for q in possible])
    order = rng.choice(
        len(possible), len(possible), replace=False, p=weights / weights.sum()
    )
    segments: list[Segment] = []
    left = asking.tokens
    for i in order:
        segment = _segment(possible[i], possible, asking, rng)
        if len(segment.ids) <= left:
            segments.append(segment)
            left -= len(segment.ids)
        if left < _SHORTEST:
            break
    return Row(segments)


def text_row(rng: np.random.Generator) -> Row:
    """Facts by name, without a picture: statements and questions."""
    segments: list[Segment] = []
    while sum(len(segment.ids) for segment in segments) < _TEXT_TOKENS:
        name, relation = str(rng.choice(NAMES)), str(rng.choice(RELATIONS))
        segments.append(_fact_segment(name, relation, rng.random()))
    return Row(segments, pictured=False)


def mosaic(
    scene: Scene, cover: Float[np.ndarray, "thing patch"], rng: np.random.Generator
) -> Mosaic:
    """Words in the image tokens' places: shape, colour and size, or the name; place.

    Most things mix shape and colour with random weights, patch by patch; the others
    show one of them per patch. Each patch also carries the words of its row and column,
    or of its thing's.
    """
    words = np.full((N_PATCHES, 5), BLANK)
    weights = np.zeros((N_PATCHES, 5))
    weights[:, 0] = 1
    words[:, 3:] = [_place(cell) for cell in _CELLS]
    weights[:, 3:] = _PLACE_WEIGHT
    for thing, share in zip(scene.things, cover, strict=True):
        at = np.flatnonzero((share > _COVERED) & (share == cover.max(axis=0)))
        words[at, :3] = _content(thing)
        words[at, 3:] = _place(thing.cell)
        if isinstance(thing, Thing):
            weights[at, :2] = _mixture(len(at), rng)
            weights[at, 2] = _SIZE_WEIGHT
    spoken = words[np.arange(N_PATCHES), rng.integers(2, size=N_PATCHES)]
    return Mosaic(words, weights.astype(np.float32), spoken)


def _place(cell: int) -> tuple[int, int]:
    row, column = divmod(cell, GRID)
    return ID_OF[ROWS[row]], ID_OF[COLUMNS[column]]


def _cells() -> list[int]:
    rows, columns = np.divmod(np.arange(N_PATCHES), SIDE)
    per_cell = SIDE // GRID
    cells: list[int] = (rows // per_cell * GRID + columns // per_cell).tolist()
    return cells


_CELLS = _cells()
"""The cell of each patch."""


def _content(thing: Thing | Emblem) -> tuple[int, int, int]:
    if isinstance(thing, Emblem):
        return ID_OF[thing.name], ID_OF[thing.name], BLANK
    return ID_OF[thing.shape], ID_OF[thing.color], ID_OF[thing.size]


def _mixture(n: int, rng: np.random.Generator) -> Float[np.ndarray, "patch 2"]:
    """Weights of shape and colour, of length one: one of the two, or a blend."""
    if rng.random() < _ONE_WORD:
        return np.asarray(np.eye(2)[rng.permutation(np.arange(n) % 2)])
    blend = rng.uniform(0.4, 1.0, (n, 2))
    return np.asarray(blend / np.linalg.norm(blend, axis=1, keepdims=True))


def _may_teach(scene: Scene, question: Question) -> bool:
    if question.kind not in RELATIONS or question.about is None:
        return True
    return taught_by_picture(scene.things[question.about].words, question.kind)


def _weight(question: Question) -> float:
    """How often it is asked; counts beyond one are rare and asked more often."""
    rare = question.kind == "count_of" and question.answer in _RARE
    return _WEIGHTS[question.kind] * (_RARE_WEIGHT if rare else 1.0)


def _segment(
    question: Question,
    others: Sequence[Question],
    asking: Asking,
    rng: np.random.Generator,
) -> Segment:
    text, answer, kind = question.text, question.answer, question.kind
    if kind in LONG or rng.random() >= asking.again:
        blind = kind == "describe" and rng.random() < asking.blind_describe
        return answered(text, answer, kind, blind=blind)
    describes = rng.random() < _FIRST_DESCRIBES
    first = DESCRIBE if describes else others[int(rng.integers(len(others)))].text
    blind = rng.random() < asking.blind_again
    filed = AGAIN_BLIND if blind else AGAIN
    return answered(text, answer, filed, after=first, blind=blind)


def _fact_segment(name: str, relation: str, draw: float) -> Segment:
    value = fact(name, relation)
    if draw < 0.2:
        ids = [BOS, *encode(FACT_SENTENCES[relation].format(name, value)), EOS]
        return Segment(ids, [-100, *ids[1:]], TEXT)
    text = FACT_QUESTIONS[relation].format(name)
    if draw > 0.6:
        text = f"this is {name} . " + FACT_QUESTIONS[relation].format(IN_PICTURE)
    return alone(answered(text, value, TEXT))
