"""MME: how many yes-or-no questions, and how many pairs of them, are answered right?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import xarray as xr
from jaxtyping import Bool

from mechvlm.axes import labelled
from mechvlm.errors import MetricError
from mechvlm.items import Item, by_picture
from mechvlm.matching import yes_or_no
from mechvlm.models.hooked import HookedVLM
from mechvlm.posing import ids_of
from mechvlm.progress import bar_of
from mechvlm.statistics import share_of
from mechvlm.wanted import mapping_to, several

__all__ = ["mme"]

PAPER = "arXiv:2411.17491"

Answerer = Callable[[Item], str]

_QUESTIONS = 2
"""Questions about each picture."""


def mme(
    vlm: HookedVLM,
    items: Mapping[str, Sequence[Item]],
    *,
    answerer: Answerer | None = None,
    max_new_tokens: int = 10,
    progress: bool | None = None,
) -> xr.Dataset:
    """Score yes-or-no questions about pictures, two about each.

    Args:
        vlm: The model.
        items: Subset -> questions, as `datasets.mme.read` gives them.
        answerer: What answers an item, such as a `context_answerer`; None asks the
            model with the picture itself.
        max_new_tokens: Longest answer of the model itself.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        By subset: "acc", share of questions answered right; "acc_plus", share of
        pictures with both answers right, 0.25 where answers are tosses; both with
        Wilson's interval (".._low", ".._high"); "n_questions", "n_images", and
        "unparsed", answers that begin with neither yes nor no, which count as wrong. By
        item: "said" and "correct", with the coordinates "item_subset", the name of the
        item's subset, and "item_image", which of the subset's pictures it is about. The
        attributes "mean_acc" and "mean_acc_plus" are means over subsets, each of the
        same weight.

    Raises:
        ArgumentError: There is a list in place of subsets by name, or one item in place
            of a list.
        PromptError: Two items share an id.
        MetricError: There is no item, a picture has not two questions, or an answer
            that should be right is neither yes nor no.

    Paper: Kaduri et al. 2024, arXiv:2411.17491; the benchmark of Fu et al. 2023,
    arXiv:2306.13394.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> image, shape = scene.image, scene.things[0].shape
        >>> other = "ring" if shape != "ring" else "square"
        >>> two = [mv.Item(image, f"is there a {shape} ?", "Yes"),
        ...        mv.Item(image, f"is there a {other} ?", "No")]
        >>> score = mv.mme(vlm, {"existence": two})
        >>> int(score["n_questions"][0]), int(score["n_images"][0])
        (2, 1)
        >>> score["said"]["item_subset"].values.tolist()
        ['existence', 'existence']
    """
    asked = _listed(items)
    every = [item for of_subset in asked.values() for item in of_subset]
    pairs = _pairs(asked)
    names = ids_of([item.id for item in every], "item")
    answer = answerer or partial(_naive, vlm, max_new_tokens)
    said = []
    with bar_of(len(every), False if progress is False else "MME") as bar:
        for item in every:
            said.append(answer(item))
            bar.update()
    read = [yes_or_no(words) for words in said]
    gold = [yes_or_no(item.answer) for item in every]
    right = np.array([a == b for a, b in zip(read, gold, strict=True)])
    unparsed = np.array([each is None for each in read])
    label = partial(labelled, paper=PAPER)
    found = {
        "said": label(said, name="said", units="words", item=names),
        "correct": label(
            right.astype(int), name="correct", units="1: right, 0: not", item=names
        ),
    }
    for name, (values, units) in _scores(pairs, right, unparsed).items():
        found[name] = label(values, name=name, units=units, subset=list(pairs))
    places = [(name, k) for name, two in pairs.items() for k in _places(two)]
    attrs = {
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "answerer": "naive" if answerer is None else "given",
        "n": len(every),
        "mean_acc": float(found["acc"].mean()),
        "mean_acc_plus": float(found["acc_plus"].mean()),
    }
    return xr.Dataset(found, attrs=attrs).assign_coords(
        item_subset=("item", [name for name, _ in places]),
        item_image=("item", [k for _, k in places]),
    )


def _listed(items: Mapping[str, Sequence[Item]]) -> dict[str, list[Item]]:
    """Subset -> its questions, if they are given so."""
    shown = '{"existence": [Item(image, question, "Yes"), ...]}'
    by_name = mapping_to(items, (list, tuple), "items", shown)
    return {
        subset: several(asked, Item, f"items[{subset!r}]", shown)
        for subset, asked in by_name.items()
    }


def _naive(vlm: HookedVLM, max_new_tokens: int, item: Item) -> str:
    """What the model says with the picture before it."""
    prompt = vlm.prompt(item.question, item.image, prefix=item.prefix)
    return vlm.generate(prompt, max_new_tokens=max_new_tokens).text


def _pairs(items: Mapping[str, Sequence[Item]]) -> dict[str, list[list[int]]]:
    """Subset -> the places of each picture's two questions among all of them."""
    found: dict[str, list[list[int]]] = {}
    start = 0
    for subset, asked in items.items():
        groups = by_picture(asked)
        odd = sorted({len(group) for group in groups} - {_QUESTIONS})
        if odd:
            raise MetricError(
                f"subset {subset!r} has pictures with {odd} questions; ACC+ is the"
                f" share of pictures with both of {_QUESTIONS} right. Items of one"
                " picture must hold the same picture object, or the same path."
            )
        unknown = [item.answer for item in asked if yes_or_no(item.answer) is None]
        if unknown or not asked:
            raise MetricError(
                f"subset {subset!r} has {len(asked)} questions, with right answers"
                f" {unknown[:3]} that are neither yes nor no. Wanted some, each with"
                ' answer="Yes" or "No".'
            )
        found[subset] = [[start + at for at in group] for group in groups]
        start += len(asked)
    if not found:
        raise MetricError("no subset is given, so there is no share of it to tell.")
    return found


def _places(groups: Sequence[Sequence[int]]) -> list[int]:
    """For each item of a subset, in their order, which of its pictures it is about."""
    of = {at: k for k, group in enumerate(groups) for at in group}
    return [of[at] for at in sorted(of)]


def _scores(
    pairs: Mapping[str, Sequence[Sequence[int]]],
    right: Bool[np.ndarray, " item"],
    unparsed: Bool[np.ndarray, " item"],
) -> dict[str, tuple[list[float] | list[int], str]]:
    """Numbers of each subset, and their units."""
    acc, plus, n_unparsed = [], [], []
    for groups in pairs.values():
        by_image = right[np.array(groups)]
        acc.append(share_of(by_image.ravel()))
        plus.append(share_of(by_image.all(axis=1)))
        n_unparsed.append(int(unparsed[np.array(groups)].sum()))
    found: dict[str, tuple[list[float] | list[int], str]] = {
        "n_questions": ([each.n for each in acc], "questions"),
        "n_images": ([each.n for each in plus], "pictures"),
        "unparsed": (n_unparsed, "answers"),
    }
    for name, of, unit in (("acc", acc, "questions"), ("acc_plus", plus, "pictures")):
        found[name] = [each.mean for each in of], f"share of {unit}"
        found[f"{name}_low"] = [each.low for each in of], f"share of {unit}"
        found[f"{name}_high"] = [each.high for each in of], f"share of {unit}"
    return found
