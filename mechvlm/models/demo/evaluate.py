"""Score the demo checkpoint: `python -m mechvlm.models.demo.evaluate`.

Everything goes the way that any checkpoint goes: `AutoProcessor`, `generate`, text.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from mechvlm.models.demo import PATH
from mechvlm.models.demo.pool import draw_scene
from mechvlm.scenes import (
    FACT_QUESTIONS,
    IN_PICTURE,
    KINDS,
    NAMES,
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
_BATCH = 32
_LONGEST = 32
_CROWD = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """A question put to the model: with a scene, or by name alone."""

    scene: Scene | None
    question: Question


@dataclass(frozen=True, slots=True)
class Score:
    """Mean over `n` answers, 0..1: share exactly right, or object F1."""

    mean: float
    n: int


@dataclass(frozen=True)
class Checkpoint:
    """A model with its processor."""

    network: LlavaForConditionalGeneration
    processor: LlavaProcessor

    @classmethod
    def load(cls, folder: Path = PATH) -> "Checkpoint":
        """Load a folder in Hugging Face's format, in float32."""
        network = LlavaForConditionalGeneration.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)
        network.eval()
        return cls(network, processor)

    def answers(self, asked: Sequence[Asked]) -> list[str]:
        """What the model generates, greedily, up to the end of its answer.

        Args:
            asked: All with a scene, or all without.
        """
        found: list[str] = []
        for start in range(0, len(asked), _BATCH):
            found += self._batch(asked[start : start + _BATCH])
        return found

    def _batch(self, asked: Sequence[Asked]) -> list[str]:
        images = [a.scene.image for a in asked if a.scene is not None]
        picture = "<image>\n" if images else ""
        prompts = [f"USER: {picture}{a.question.text} ASSISTANT:" for a in asked]
        inputs = self.processor(
            images=images or None, text=prompts, return_tensors="pt", padding=True
        )
        with torch.no_grad():
            ids = self.network.generate(  # type: ignore[misc]
                **inputs, max_new_tokens=_LONGEST
            )
        said = ids[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(said, skip_special_tokens=True)
        return [text.strip() for text in texts]


def scores(checkpoint: Checkpoint, *, n: int, seed: int) -> dict[str, Score]:
    """All scores of the model card.

    Args:
        checkpoint: What is scored.
        n: Questions per kind and per group of facts.
        seed: Of the scenes; `HELD_OUT_SEED` gives the model card's.

    Returns:
        For each kind the share of exact answers, over all scenes and over those with
        three things or more; `describe_f1`; `fact_by_*` over groups of facts.
    """
    found: dict[str, Score] = {}
    for number, kind in enumerate(KINDS):
        if kind not in RELATIONS:
            rng = np.random.default_rng([seed, number])
            found |= _score_kind(checkpoint, kind, n=n, rng=rng)
    found |= _facts_by_name(checkpoint)
    groups = {
        "fact_by_picture_taught": lambda name, relation: taught_by_picture(
            name, relation
        ),
        "fact_by_picture_one_relation_kept": lambda name, relation: (
            not taught_by_picture(name, relation)
            and name not in never_taught_by_picture()
        ),
        "fact_by_picture_never_taught": lambda name, _: (
            name in never_taught_by_picture()
        ),
    }
    for number, (group, belongs) in enumerate(groups.items()):
        rng = np.random.default_rng([seed, len(KINDS) + number])
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


def _score_kind(
    checkpoint: Checkpoint, kind: str, *, n: int, rng: np.random.Generator
) -> dict[str, Score]:
    asked: list[Asked] = []
    while len(asked) < n:
        scene = draw_scene(rng)
        if questions(scene, kind):
            asked.append(Asked(scene, question(scene, kind, rng)))
    answers = checkpoint.answers(asked)
    right = _right(asked, answers)
    crowd = [a.scene is not None and len(a.scene.things) >= _CROWD for a in asked]
    found = {kind: _mean(right), f"{kind}_crowded": _mean(right[np.array(crowd)])}
    if kind == "describe":
        pairs = zip(answers, asked, strict=True)
        found["describe_f1"] = _mean(
            [object_f1(said, a.question.answer) for said, a in pairs]
        )
    return found


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
