"""Pairs of pictures: those of a folder, or scenes drawn for the demo."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

from mechvlm.cli.given import Which
from mechvlm.datasets import pairs as files
from mechvlm.demo.case import SCENES
from mechvlm.errors import DatasetError, PromptError, SceneError
from mechvlm.items import PicturePair
from mechvlm.scenes import counterfactual, sample

__all__ = ["picture_pairs"]


def picture_pairs(which: Which, given: str, *, least: int) -> tuple[PicturePair, ...]:
    """The pairs of a folder with `pairs.json`, or as many scenes as a number says.

    Args:
        which: The model that they are for.
        given: A number or a path, as typed.
        least: Fewest pairs that will do.

    Raises:
        PromptError: A number for a model that does not know the scenes.
        DatasetError: There are too few, or the folder holds no pairs.
    """
    is_number = given.isdecimal() and not Path(given).exists()
    if is_number and which.name not in SCENES:
        raise PromptError(
            f"{which.name!r} was not trained on synthetic scenes, so --pairs {given}"
            " cannot draw any for it. Give a folder that holds pairs.json; `python -c"
            ' "import mechvlm; help(mechvlm.datasets.pairs)"` shows how it is written.'
        )
    n = int(given) if is_number else None
    found = _drawn(n) if n is not None and n >= least else ()
    found = files.read(given) if n is None else found
    if len(found) < least:
        raise DatasetError(
            f"--pairs {given} are {n if n is not None else len(found)} pairs; wanted"
            f" {least} or more."
        )
    return found


def _drawn(n: int) -> tuple[PicturePair, ...]:
    """Scenes in which the thing that is asked about has another colour."""
    found: list[PicturePair] = []
    for seed in count():
        if len(found) == n:
            break
        try:
            twin = counterfactual(sample(seed=seed), change="color", seed=seed)
        except SceneError:  # nothing in it can be asked about
            continue
        found.append(replace(twin.pair, id=f"scene {seed}"))
    return tuple(found)
