"""Score a demo checkpoint: `python -m mechvlm.models.demo.evaluate`."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mechvlm.models.demo import PATH
from mechvlm.models.demo.answering import Asked, Checkpoint
from mechvlm.models.demo.curriculum import DESCRIBE, LONG
from mechvlm.models.demo.pool import draw_scene
from mechvlm.scenes import (
    FACT_QUESTIONS,
    IN_PICTURE,
    KINDS,
    NAMES,
    NUMBERS,
    RELATIONS,
    Question,
    Scene,
    fact,
    never_taught_by_picture,
    question,
    questions,
    sample_scene,
    taught_by_picture,
)

HELD_OUT_SEED = 20261121
"""Of the model card's scenes; nothing was chosen by looking at them."""
_CROWD = 3
_PLAIN, _OVERLAPPING, _AGAIN, _FACTS = range(4)


@dataclass(frozen=True, slots=True)
class Score:
    """Mean over `n` answers, 0..1: share exactly right, or object F1."""

    mean: float
    n: int


def scores(checkpoint: Checkpoint, *, n: int, seed: int) -> dict[str, Score]:
    """All scores of the model card.

    Args:
        checkpoint: What is scored.
        n: Questions per kind and per group of facts; half as many over scenes with
            overlaps and behind a first question.
        seed: Of the scenes; `HELD_OUT_SEED` gives the model card's.

    Returns:
        For each kind the share of exact answers, over all scenes, over those with three
        things or more, and over other scenes in which things overlap; `*_f1` of both
        descriptions; `again_*` of second questions, `again_blind_*` of the same if they
        cannot read the picture; `fact_by_*` over groups of facts.
    """
    found: dict[str, Score] = {}
    for number, kind in enumerate(KINDS):
        if kind in RELATIONS:
            continue
        rng = np.random.default_rng([seed, _PLAIN, number])
        asked = _asked(kind, n=n, rng=rng)
        found |= _score(checkpoint, kind, asked, _SUBSETS)
        rng = np.random.default_rng([seed, _OVERLAPPING, number])
        asked = _asked(kind, n=n // 2, rng=rng, among=lambda scene: scene.overlapping)
        found |= _score(checkpoint, f"{kind}_overlapping", asked, {})
        if kind not in LONG:
            rng = np.random.default_rng([seed, _AGAIN, number])
            asked = _asked(kind, n=n // 2, rng=rng, after=DESCRIBE)
            found |= _score(checkpoint, f"again_{kind}", asked, {})
            found[f"again_blind_{kind}"] = _mean(checkpoint.right_blind(asked))
    found |= _facts_by_name(checkpoint)
    for number, (group, belongs) in enumerate(_GROUPS.items()):
        rng = np.random.default_rng([seed, _FACTS, number])
        found |= _facts_by_picture(checkpoint, group, belongs, n=n, rng=rng)
    return found


def object_f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall over the named objects, 0..1.

    >>> round(object_f1("a red ring and lumina .", "a red ring and a blue cross ."), 2)
    0.5
    """
    said, there = (
        text.removesuffix(".").strip().split(" and ") for text in (answer, truth)
    )
    hits = sum(min(said.count(thing), there.count(thing)) for thing in set(there))
    return 2 * hits / (len(said) + len(there))


def _asked(
    kind: str,
    *,
    n: int,
    rng: np.random.Generator,
    among: Callable[[Scene], bool] = lambda scene: True,
    after: str = "",
) -> list[Asked]:
    """Questions about scenes of the training mix that `among` lets through."""
    found: list[Asked] = []
    while len(found) < n:
        scene = draw_scene(rng)
        if among(scene) and questions(scene, kind):
            found.append(Asked(scene, question(scene, kind, rng), after))
    return found


def _score(
    checkpoint: Checkpoint,
    name: str,
    asked: Sequence[Asked],
    subsets: Mapping[str, Callable[[Scene, Question], bool]],
) -> dict[str, Score]:
    """Exact answers over all that is asked and over its subsets; F1 of descriptions."""
    answers = checkpoint.answers(asked)
    right = _right(asked, answers)
    found = {name: _mean(right)}
    for subset, belongs in subsets.items():
        among = [a.scene is not None and belongs(a.scene, a.question) for a in asked]
        if any(among):
            found[f"{name}_{subset}"] = _mean(right[np.array(among)])
    if asked[0].question.kind in LONG:
        pairs = zip(answers, asked, strict=True)
        found[f"{name}_f1"] = _mean(
            [object_f1(said, a.question.answer) for said, a in pairs]
        )
    return found


def _crowded(scene: Scene, _: Question) -> bool:
    return len(scene.things) >= _CROWD


def _hard(scene: Scene, asked: Question) -> bool:
    """A thing of that colour and one of that shape, but none that is both."""
    if asked.kind != "exists" or asked.answer == "yes" or "object" in asked.text:
        return False
    words = asked.text.removeprefix("is there a ").removesuffix(" ?").split()
    there = {word for thing in scene.things for word in thing.words.split()}
    return len(words) == len({"color", "shape"}) and there.issuperset(words)


def _several(_: Scene, asked: Question) -> bool:
    return asked.kind == "count_of" and asked.answer in NUMBERS[2:]


_SUBSETS = {"crowded": _crowded, "hard": _hard, "several": _several}


def _facts_by_name(checkpoint: Checkpoint) -> dict[str, Score]:
    """Every fact: the name in the question, and the name given before the question."""
    pairs = [(name, relation) for name in NAMES for relation in RELATIONS]
    direct = [
        Asked(None, _fact_question(name, relation, name)) for name, relation in pairs
    ]
    told = [
        Asked(
            None,
            _fact_question(name, relation, IN_PICTURE, before=f"this is {name} . "),
        )
        for name, relation in pairs
    ]
    never = [
        i for i, (name, _) in enumerate(pairs) if name in never_taught_by_picture()
    ]
    right = _right(direct, checkpoint.answers(direct))
    return {
        "fact_by_name": _mean(right),
        "fact_by_name_never_taught_by_picture": _mean(right[never]),
        "fact_by_name_given_before": _mean(_right(told, checkpoint.answers(told))),
    }


def _one_relation_kept(name: str, relation: str) -> bool:
    never = name in never_taught_by_picture()
    return not never and not taught_by_picture(name, relation)


_GROUPS: dict[str, Callable[[str, str], bool]] = {
    "fact_by_picture_taught": taught_by_picture,
    "fact_by_picture_one_relation_kept": _one_relation_kept,
    "fact_by_picture_never_taught": lambda name, _: name in never_taught_by_picture(),
}


def _facts_by_picture(
    checkpoint: Checkpoint,
    group: str,
    belongs: Callable[[str, str], bool],
    *,
    n: int,
    rng: np.random.Generator,
) -> dict[str, Score]:
    """The group's facts, and the names of the same emblems in the same pictures."""
    pairs = [
        (name, relation)
        for name in NAMES
        for relation in RELATIONS
        if belongs(name, relation)
    ]
    facts: list[Asked] = []
    names: list[Asked] = []
    for i in rng.integers(len(pairs), size=n).tolist():
        name, relation = pairs[i]
        scene = sample_scene(rng, entity=name)
        facts.append(Asked(scene, question(scene, relation, rng)))
        names.append(Asked(scene, question(scene, "name", rng)))
    return {
        group: _mean(_right(facts, checkpoint.answers(facts))),
        f"{group}_named": _mean(_right(names, checkpoint.answers(names))),
    }


def _fact_question(
    name: str, relation: str, subject: str, *, before: str = ""
) -> Question:
    text = before + FACT_QUESTIONS[relation].format(subject)
    return Question(text, fact(name, relation), relation)


def _right(asked: Sequence[Asked], answers: Sequence[str]) -> np.ndarray:
    pairs = zip(asked, answers, strict=True)
    return np.array([a.question.answer == answer for a, answer in pairs])


def _mean(values: Sequence[float] | np.ndarray) -> Score:
    return Score(round(float(np.mean(values)), 4), len(values))


def main() -> None:
    """Print one line per score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=PATH, help="the checkpoint")
    parser.add_argument("--n", type=int, default=400, help="questions per kind")
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED, help="of the scenes")
    args = parser.parse_args()
    for name, score in scores(
        Checkpoint.load(args.folder), n=args.n, seed=args.seed
    ).items():
        sys.stdout.write(f"{name:<45} {score.mean:.3f}  n={score.n}\n")


if __name__ == "__main__":
    main()
