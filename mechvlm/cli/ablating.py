"""`mechvlm ablate`: does the answer need the object's tokens, or any as many?"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Literal

import numpy as np

from mechvlm.analyses.token_ablation import token_ablation
from mechvlm.axes import Labelled, labelled, save_result
from mechvlm.cli.asked import case_for, loaded
from mechvlm.cli.drawing import picture_pairs
from mechvlm.cli.files import check_out, write_all
from mechvlm.cli.given import Given, Output, Which
from mechvlm.cli.told import Told, percent
from mechvlm.items import Item
from mechvlm.readings import vqa
from mechvlm.selecting import object_tokens
from mechvlm.viz import bars

__all__ = ["ablate"]

_LEAST = 5
"""Fewest items of which a share is drawn; of fewer, what the answer lost."""


def ablate(
    which: Which,
    given: Given,
    output: Output,
    *,
    pairs: str | None,
    value: Literal["mean", "zero", "resample"],
    n_random: int,
    buffers: tuple[int, ...],
    seed: int,
) -> Told:
    """Ablate the object and random cells of its size; write and say what is lost."""
    check_out(output.out)
    items = _items(which, given, pairs)
    sets = {_named(buffer): object_tokens(buffer=buffer) for buffer in buffers}
    lost = token_ablation(
        loaded(which, quiet=output.quiet),
        items,
        sets,
        metric=vqa(),
        value=value,
        n_random=n_random,
        seed=seed,
        progress=output.progress,
    )
    found = [
        {"set": name} | {what: float(lost[what].sel(set=name)[0]) for what in _NUMBERS}
        for name in sets
    ]
    n_right = int(lost["n_correct"][0])
    figure = bars(_compared(found, lost.attrs, n_right))
    files = {
        "ablation.nc": lambda path: save_result(lost, path),
        "ablation.html": figure.save,
        "ablation.png": figure.save,
    }
    sentence = _sentence(found[0], n_right, n_random)
    facts = {
        **{name: lost.attrs[name] for name in ("model", "value", "paper")},
        **{"items": len(items), "n_right": n_right, "n": n_right},
        **{"n_random": n_random, "sets": found, "found": sentence},
        "units": {"decrease": _SHARE, "control": _SHARE, "log_p_change": "nats"},
    }
    right = f"items      {n_right} of {len(items)} are right before"
    written = write_all(output.out, files, quiet=output.quiet)
    return Told("ablate", [right, "", sentence], facts, written)


_NUMBERS = (
    *("n", "n_tokens", "decrease", "decrease_low", "decrease_high", "control"),
    *("excess", "excess_low", "excess_high", "p", "log_p_change", "log_p_control"),
)
_SHARE = "share of items right before"


def _items(which: Which, given: Given, pairs: str | None) -> list[Item]:
    """The clean pictures of pairs, or the one question that is asked."""
    if pairs is not None:
        return [
            Item(
                each.clean,
                each.question,
                each.answer,
                objects=each.objects,
                target=each.target,
                prefix=each.prefix,
                id=each.id,
            )
            for each in picture_pairs(which, pairs, least=1)
        ]
    case = case_for(which, given, "image", "question", "answer", "box")
    name = case.thing or "object"
    objects = {} if case.outline is None else {name: case.outline}
    return [Item(case.image, case.question, case.answer, objects, name)]


def _named(buffer: int) -> str:
    if buffer == 0:
        return "object"
    return f"object and {buffer} ring{'s' if buffer > 1 else ''} around it"


def _compared(
    found: list[dict[str, str | float]], about: Mapping[str, object], n: int
) -> Labelled:
    """Each set beside random cells: the share lost, or of few items the probability."""
    few = n < _LEAST
    both = ("log_p_change", "log_p_control") if few else ("decrease", "control")
    return labelled(
        np.array([[float(each[what]) for each in found] for what in both]),
        name="Log-probability of the answer" if few else "Answers lost",
        units="change, nats" if few else _SHARE,
        paper=str(about["paper"]),
        attrs={"model": about["model"]},
        tokens=["these tokens", "random, as many"],
        set=[str(each["set"]) for each in found],
    )


def _sentence(found: dict[str, str | float], n: int, n_random: int) -> str:
    """What is lost without the object, in one plain sentence."""
    number = {name: value for name, value in found.items() if isinstance(value, float)}
    random = f"{n_random} random set{'' if n_random == 1 else 's'} of as many cells"
    if n == 1:
        lost = "lost" if number["decrease"] else "kept"
        beside = f"without {random} it is lost in {percent(number['control'])} of them"
        told = (
            f"Without the {_cells(number['n_tokens'])} of the {found['set']} the"
            f" answer is {lost}"
        )
    else:
        beside = f"without {random}, {percent(number['control'])}"
        told = (
            f"Without the {found['set']} ({_cells(number['n_tokens'])}),"
            f" {percent(number['decrease'])} of {n} right answers are lost"
        )
    if not isfinite(number["control"]):
        beside = "no random cells are left to compare it with"
    return f"{told}; {beside}.{_changed(number, n)}"


def _changed(number: Mapping[str, float], n: int) -> str:
    """What becomes of the log-probability, where it is measured."""
    own, control = number["log_p_change"], number["log_p_control"]
    if not isfinite(own):
        return ""
    whose = "The answer's" if n == 1 else "On average the answers'"
    words = f" {whose} log-probability changes by {_tenths(own)} nats"
    if isfinite(control):
        words += f", without the random ones by {_tenths(control)}"
    return f"{words}."


def _cells(n: float) -> str:
    """A number of cells, which may be a mean over items."""
    return "1 cell" if n == 1 else f"{n:.4g} cells"


def _tenths(value: float) -> str:
    """A number with one place, and no sign before 0."""
    return f"{round(value, 1) + 0.0:.1f}"
