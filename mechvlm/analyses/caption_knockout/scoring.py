"""Scores of descriptions: what a judge says of each."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechvlm.analyses.caption_knockout.tables import PAPER, changes, means
from mechvlm.axes import labelled
from mechvlm.errors import MechVLMWarning, MetricError
from mechvlm.judges.verdict import Judge, Verdict

__all__ = ["Heard", "check_truth", "judged", "with_scores"]

_READ: Mapping[str, Callable[[Verdict], float]] = {
    "f1": lambda verdict: verdict.f1,
    "precision": lambda verdict: verdict.precision,
    "recall": lambda verdict: verdict.recall,
}
_ARM = ("prompt", "flow", "cut")


@dataclass(frozen=True, slots=True)
class Heard:
    """What the judge says of one prompt's descriptions.

    Attributes:
        by_reference: Description -> verdict beside the model's own.
        by_truth: Description -> verdict beside what the picture really shows; empty
            where that is not given.
    """

    by_reference: Mapping[str, Verdict]
    by_truth: Mapping[str, Verdict]


def check_truth(
    judge: Judge, n_prompts: int, truth: Sequence[Sequence[str]] | None
) -> None:
    """Refuse a truth that the judge cannot read, before anything is described.

    Raises:
        MetricError: It is not one list per prompt, or the judge knows none of a list.
    """
    if truth is None:
        return
    if len(truth) != n_prompts or any(isinstance(names, str) for names in truth):
        raise MetricError(
            f"truth has {len(truth)} entries for {n_prompts} prompts; wanted a list of"
            " names for each, in their order."
        )
    for i, names in enumerate(truth):
        if not names:
            continue
        text = _listed(names)
        known = judge.compare(text, reference=text).reference
        if not known:
            raise MetricError(
                f"the judge ({judge.name}) finds no object in the truth of prompt {i},"
                f" {list(names)}. Usual cause: its vocabulary has other names."
            )
        if len(known) < len(names):
            warnings.warn(
                f"the judge ({judge.name}) finds {list(known)} in the truth of prompt"
                f" {i}, {list(names)}: it does not know the others, or they are other"
                " words for the same.",
                MechVLMWarning,
                stacklevel=3,
            )


def judged(
    judge: Judge,
    reference: str,
    said: Sequence[str],
    truth: Sequence[str] | None,
    prompt: int,
) -> Heard:
    """Verdicts on one prompt's descriptions; each distinct one is judged once."""
    texts = tuple(dict.fromkeys(said))
    by_reference = {x: judge.compare(x, reference=reference) for x in texts}
    if not any(verdict.reference for verdict in by_reference.values()):
        warnings.warn(
            f"the description of prompt {prompt}, {reference!r}, names no object that"
            f" the judge ({judge.name}) knows: it has no score.",
            MechVLMWarning,
            stacklevel=3,
        )
    if truth is None:
        return Heard(by_reference, {})
    shown = _listed(truth)
    return Heard(by_reference, {x: judge.compare(x, reference=shown) for x in texts})


def with_scores(
    described: xr.Dataset, heard: Sequence[Heard], judge: Judge
) -> xr.Dataset:
    """Descriptions with their scores, the means of these, and the objects named.

    Raises:
        MetricError: No description named an object that the judge knows.
    """
    verdicts = _each(described, [each.by_reference for each in heard])
    sides = {"": verdicts}
    if all(each.by_truth for each in heard):
        sides["truth_"] = _each(described, [each.by_truth for each in heard])
    scores = {
        side + score: _array(described, _numbers(of_side, score), side + score, "1")
        for side, of_side in sides.items()
        for score in _READ
    }
    if bool(scores["f1"].isnull().all()):
        raise MetricError(
            f"no description names an object that the judge ({judge.name}) knows; the"
            f" first is {str(described['reference'].values[0])!r}. Usual causes: the"
            " vocabulary has other words, or max_new_tokens is too small."
        )
    named = {
        "named": [json.dumps(verdict.candidate) for verdict in verdicts.flat],
        "lost": [json.dumps(verdict.lost) for verdict in verdicts.flat],
    }
    objects = {
        name: _array(described, np.reshape(texts, verdicts.shape), name, "JSON list")
        for name, texts in named.items()
    }
    return described.assign(
        {
            **scores,
            **objects,
            **means(scores, described["identical"]),
            **changes(scores["f1"]),
        }
    ).assign_attrs(judge=judge.name)


def _listed(names: Sequence[str]) -> str:
    """Objects as a text that a judge can read."""
    return ", ".join(names)


def _each(
    described: xr.Dataset, of_prompts: Sequence[Mapping[str, Verdict]]
) -> np.ndarray:
    """The verdict on every arm."""
    texts = described["text"].values
    found = np.empty(texts.shape, dtype=object)
    for at in np.ndindex(texts.shape):
        found[at] = of_prompts[at[0]][str(texts[at])]
    return found


def _numbers(verdicts: np.ndarray, score: str) -> Float[np.ndarray, "prompt flow cut"]:
    """A score of every arm; nan where the reference names nothing to lose."""
    values = [
        _READ[score](verdict) if verdict.reference else np.nan
        for verdict in verdicts.flat
    ]
    return np.reshape(values, verdicts.shape)


def _array(
    described: xr.Dataset, values: np.ndarray, name: str, units: str
) -> xr.DataArray:
    dims = {dim: described[dim].values.tolist() for dim in _ARM}
    return labelled(values, name=name, units=units, paper=PAPER, attrs={}, **dims)
