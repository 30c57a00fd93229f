"""Accuracy against what is kept, beside the picture itself and chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
import xarray as xr
from jaxtyping import Int

from mechvlm.analyses.compressed_context.asking import (
    DESCRIBE,
    Answer,
    Arm,
    Asker,
)
from mechvlm.axes import labelled
from mechvlm.errors import LayoutError, PromptError
from mechvlm.items import Item, by_picture
from mechvlm.models.asking import Render
from mechvlm.models.compressing import SELECTORS, Random, Select
from mechvlm.models.hooked import HookedVLM
from mechvlm.posing import ids_of
from mechvlm.progress import bar_of
from mechvlm.readings import Reading, vqa
from mechvlm.statistics import Paired, paired, share_of
from mechvlm.wanted import several, words_of

__all__ = ["KEEPS", "context_accuracy"]

PAPER = "arXiv:2411.17491"

KEEPS = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.0)
"""Shares of the image positions; the paper's own are 5 % and 2 %."""

_Read = Callable[[Answer], int | float | str]

_PER_ITEM: Mapping[str, tuple[_Read, str]] = MappingProxyType(
    {
        "correct": (lambda x: int(x.right), "1: the answer is right, 0: it is not"),
        "said": (lambda x: x.said, "words"),
        "seconds": (lambda x: x.seconds, "s"),
        "seconds_context": (lambda x: x.seconds_context, "s, once per image"),
        "image_tokens": (lambda x: x.image_tokens, "positions in each layer"),
        "tokens": (lambda x: x.tokens, "positions in each layer, with the question"),
        "bytes": (lambda x: x.n_bytes, "B of keys and values, with the question"),
    }
)
"""Variable -> how it is read off an answer, and its unit."""


def context_accuracy(
    vlm: HookedVLM,
    items: Sequence[Item],
    *,
    keeps: Sequence[float | int] = KEEPS,
    selects: Mapping[str, Select] | Sequence[str] = ("generated",),
    describe: str = DESCRIBE,
    reading: Reading | None = None,
    render: Render | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Answer questions from what is left of a description's context.

    For each image the model is asked once to describe it, and of that run only the text
    and the best image positions of each layer are kept; all questions about the image
    are then asked of that ("query + image"). Beside it stand the question asked with
    the picture itself ("naive"), of the description's text alone ("query only"), of the
    image positions alone ("image only"), and of as many image positions chosen at
    random.

    Args:
        vlm: The model.
        items: Questions with pictures and answers. Those with the same picture object
            or path share one context.
        keeps: Shares of the image positions that are kept, 0 to 1; 1 keeps them all.
        selects: What chooses them: names ("generated", "last", "norm"), or names ->
            selectors; see `compressed_context`. "random" is always added.
        describe: What is asked first.
        reading: How an item is asked and its answer read; None takes `readings.vqa()`.
        render: How a question is put after the description's prompt; None takes the
            model's chat template.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        By (arm, item): "correct"; "said"; "seconds" from the question in words to the
        answer in words (naive: the picture's way through the model included), the arms
        taking turns on each question after a warm-up; "seconds_context", spent once per
        image to read and choose; "image_tokens" kept in each layer; "tokens" and
        "bytes" of keys and values in the cache when the answer's first token is chosen.
        By arm: "accuracy" with Wilson's interval (".._low", ".._high"); "minus_naive"
        and "minus_random", paired differences of accuracy over the same questions (0:
        none) with bootstrap interval and Wilcoxon's p (".._p"); "median_seconds".
        "minus_random" compares with as many random positions, and is nan where nothing
        was chosen.

    Raises:
        ArgumentError: There is one item or one share in place of a list.
        PromptError: There is no item, two share an id, an item has no answer, or no
            selector has this name.
        LayoutError: A share is not one, or is less than one image position.

    Paper: Kaduri et al. 2024, arXiv:2411.17491, image re-prompting.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> items = [mv.Item(scene.image, "how many objects are there ?", "one")]
        >>> table = mv.context_accuracy(vlm, items, keeps=[0.1],
        ...     selects=["last"], describe="describe the image .")
        >>> table["accuracy"].dims, table["image_tokens"].values[2:, 0].tolist()
        (('arm',), [8, 8, 8, 8])
    """
    items = several(items, Item, "items", "[Item(image, question, answer)]")
    names = ids_of([item.id for item in items], "item")
    chosen = _selects(selects)
    arms = _arms(keeps, list(chosen))
    asker = Asker(vlm, describe, reading or vqa(), render)
    groups = by_picture(items)
    answers: dict[int, list[Answer]] = {}
    shown = False if progress is False else "compressed context"
    with bar_of(len(items) * len(arms), shown) as bar:
        for k, group in enumerate(groups):
            own = {"random": Random(seed=k), **chosen}
            each = asker.answers(
                [items[at] for at in group], arms, own, done=bar.update
            )
            answers.update(zip(group, each, strict=True))
    places = {at: k for k, group in enumerate(groups) for at in group}
    attrs = {
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "describe": describe,
        "reading": asker.reading.name,
        "device": str(vlm.cfg.device),
        "dtype": str(vlm.cfg.dtype),
        "n": len(items),
        "n_images": len(groups),
        "layer_convention": "a layer keeps the keys and values of its own attention",
    }
    table = _table(arms, names, [answers[at] for at in range(len(items))])
    pictures = [places[at] for at in range(len(items))]
    return table.assign_coords(image=("item", pictures)).assign_attrs(attrs)


def _selects(selects: Mapping[str, Select] | Sequence[str]) -> dict[str, Select]:
    """Name -> what chooses; "random" is left to each image's own draw."""
    if isinstance(selects, Mapping):
        return dict(selects)
    names = words_of(selects, "selects")
    unknown = [name for name in names if name not in SELECTORS]
    if unknown:
        raise PromptError(
            f"selects={list(names)}: wanted names among {', '.join(SELECTORS)}, as a"
            " list, or a mapping of names to selectors."
        )
    return {name: SELECTORS[name] for name in names if name != "random"}


def _arms(keeps: Sequence[float | int], selects: Sequence[str]) -> list[Arm]:
    """Every way to answer: the picture, the text alone, then from much to little."""
    given = several(keeps, (float, int), "keeps", "[1.0, 0.05, 0.0]")
    if any(not 0 <= keep <= 1 for keep in given):
        raise LayoutError(
            f"keeps={given}: wanted shares of the image positions, 0 to 1."
        )
    shares = sorted({float(keep) for keep in given} - {0.0}, reverse=True)
    arms = [Arm("naive", share=np.nan), Arm("query only")]
    for share in shares:
        chosen = [""] if share == 1 else [*dict.fromkeys([*selects, "random"])]
        for select in chosen:
            arms.append(Arm("query + image", select, share))
            arms.append(Arm("image only", select, share))
    return arms


def _table(
    arms: Sequence[Arm], names: Sequence[str], answers: Sequence[Sequence[Answer]]
) -> xr.Dataset:
    """The answers `[item][arm]` and their summary, labelled."""
    label = partial(labelled, paper=PAPER, arm=[arm.name for arm in arms])
    found = {}
    for name, (read, units) in _PER_ITEM.items():
        values = [[read(row[k]) for row in answers] for k in range(len(arms))]
        found[name] = label(values, name=name, units=units, item=list(names))
    correct, seconds = found["correct"].values, found["seconds"].values
    summary = {
        **_shares(correct),
        **_against("naive", correct, [0] * len(arms)),
        **_against("random", correct, _twins(arms)),
        "median_seconds": (np.median(seconds, axis=1).tolist(), "s per question"),
    }
    for name, (values, units) in summary.items():
        found[name] = label(values, name=name, units=units)
    return xr.Dataset(found).assign_coords(
        strategy=("arm", [arm.strategy for arm in arms]),
        select=("arm", [arm.select for arm in arms]),
        keep=("arm", [arm.share for arm in arms]),
    )


def _twins(arms: Sequence[Arm]) -> list[int | None]:
    """Where the arm stands that keeps as much by chance; None for what chooses none."""
    places = {arm: k for k, arm in enumerate(arms)}
    return [
        None
        if arm.select in ("", "random")
        else places[Arm(arm.strategy, "random", arm.share)]
        for arm in arms
    ]


_Summary = dict[str, tuple[list[float], str]]


def _shares(correct: Int[np.ndarray, "arm item"]) -> _Summary:
    """Accuracy of each arm."""
    found = [share_of(row) for row in correct]
    units = "share of questions"
    return {
        "accuracy": ([x.mean for x in found], units),
        "accuracy_low": ([x.low for x in found], units),
        "accuracy_high": ([x.high for x in found], units),
    }


def _against(
    what: str, correct: Int[np.ndarray, "arm item"], twins: Sequence[int | None]
) -> _Summary:
    """Paired difference of each arm and another one."""
    found = [
        _NO_PAIR if twin is None else paired(mine, correct[twin])
        for mine, twin in zip(correct, twins, strict=True)
    ]
    name, units = f"minus_{what}", f"difference of accuracy to {what}, paired"
    return {
        name: ([x.mean for x in found], units),
        f"{name}_low": ([x.low for x in found], units),
        f"{name}_high": ([x.high for x in found], units),
        f"{name}_p": ([x.p for x in found], "p value of Wilcoxon's signed-rank test"),
    }


_NO_PAIR = Paired(np.nan, np.nan, np.nan, 0, np.nan)
