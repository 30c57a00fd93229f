"""What a row of training asks: which questions, which facts, which mosaics."""

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
LOGGED = (*KINDS, TEXT)
_WEIGHTS = dict.fromkeys(KINDS, 1.2) | {
    "color": 1.5,
    "shape": 1.0,
    "describe": 1.5,
    "name": 2.5,
}
_BLIND = 0.25
_TEXT_TOKENS = 170
_COVERED = 0.12
_ONE_WORD = 0.3
_PLACE_WEIGHT = 0.4


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
    scene: Scene, rng: np.random.Generator, *, n: int, all_facts: bool
) -> Row:
    """Up to `n` different questions about a scene.

    Args:
        scene: What is asked about.
        rng: Draws the questions.
        n: How many, if the scene bears that many.
        all_facts: Whether to ask also the facts that pictures must not teach.

    Returns:
        A row; a quarter of its descriptions are blind (see the model card).
    """
    possible = [q for q in questions(scene) if all_facts or _may_teach(scene, q)]
    weights = np.array([_WEIGHTS[q.kind] for q in possible])
    n = min(n, len(possible))
    drawn = rng.choice(len(possible), n, replace=False, p=weights / weights.sum())
    return Row([_segment(possible[i], rng) for i in drawn])


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
    """Words in the image tokens' places: shape and colour, or the name, and place.

    Most things mix their two words with random weights, patch by patch; the others
    show one word per patch. Each patch also carries the words of its row and column.
    """
    words = np.full((N_PATCHES, 4), BLANK)
    weights = np.zeros((N_PATCHES, 4))
    weights[:, 0] = 1
    words[:, 2], words[:, 3] = _PLACE_WORDS
    weights[:, 2:] = _PLACE_WEIGHT
    for thing, share in zip(scene.things, cover, strict=True):
        at = np.flatnonzero(share > _COVERED)
        words[at, :2] = _content(thing)
        if isinstance(thing, Thing):
            weights[at, :2] = _mixture(len(at), rng)
    spoken = words[np.arange(N_PATCHES), rng.integers(2, size=N_PATCHES)]
    return Mosaic(words, weights.astype(np.float32), spoken)


def _place_words() -> Int[np.ndarray, "2 patch"]:
    rows, columns = np.divmod(np.arange(N_PATCHES), SIDE)
    per_cell = SIDE // GRID
    return np.array(
        [
            [ID_OF[ROWS[row // per_cell]] for row in rows],
            [ID_OF[COLUMNS[column // per_cell]] for column in columns],
        ]
    )


_PLACE_WORDS = _place_words()


def _content(thing: Thing | Emblem) -> tuple[int, int]:
    if isinstance(thing, Emblem):
        return ID_OF[thing.name], ID_OF[thing.name]
    return ID_OF[thing.shape], ID_OF[thing.color]


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


def _segment(question: Question, rng: np.random.Generator) -> Segment:
    blind = question.kind == "describe" and rng.random() < _BLIND
    return answered(question.text, question.answer, question.kind, blind=blind)


def _fact_segment(name: str, relation: str, draw: float) -> Segment:
    value = fact(name, relation)
    if draw < 0.2:
        ids = [BOS, *encode(FACT_SENTENCES[relation].format(name, value)), EOS]
        return Segment(ids, [-100, *ids[1:]], TEXT)
    text = FACT_QUESTIONS[relation].format(name)
    if draw > 0.6:
        text = f"this is {name} . " + FACT_QUESTIONS[relation].format(IN_PICTURE)
    return alone(answered(text, value, TEXT))
