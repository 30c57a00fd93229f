"""Accuracy that is left after each cut in each window of layers, over items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mechvlm.analyses.knockout_table.cuts import Cut, named_windows, object_cuts
from mechvlm.axes import labelled
from mechvlm.engine import intervene
from mechvlm.errors import InterventionError, MetricError
from mechvlm.interventions import NOTHING, Knockout
from mechvlm.items import Item
from mechvlm.layout import Layout, Positions, Rule
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.pieces import first_pieces
from mechvlm.posing import ids_of
from mechvlm.progress import bar_of
from mechvlm.readings import Reading, vqa
from mechvlm.record import shared
from mechvlm.selecting import seen, tell_unseen
from mechvlm.statistics import (
    Estimate,
    Paired,
    mean_of,
    paired,
    random_sets,
    share_of,
)
from mechvlm.wanted import mapping_to, one, several

__all__ = ["knockout_accuracy"]

PAPER = "arXiv:2410.07149"

_VQA = vqa()


def knockout_accuracy(
    vlm: HookedVLM,
    items: Sequence[Item],
    *,
    cuts: Callable[[Layout, Positions], Mapping[str, Cut]] = object_cuts,
    windows: Mapping[str, range] | None = None,
    reading: Reading = _VQA,
    rule: Rule = "any",
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """Which cuts of attention, in which layers, cost the answer, over many items.

    One forward pass and the next token, as in the paper: an answer is right if its
    first token begins the right word, so that "tra" passes for "traffic light".
    (`token_ablation` lets the model speak and looks for the whole word.)

    Every cut of image tokens stands beside a control, in which the same target does not
    read as many random image tokens that the cut leaves alone. A cut of more than half
    the image, or of other tokens, has none (NaN): a random set would be made of the
    cut's own tokens, or of other kinds.

    Args:
        vlm: The model.
        items: Questions with a target in the picture and an answer.
        cuts: From a prompt's layout and the target's positions to named cuts, such as
            `object_cuts` or `flow_cuts`.
        windows: Layers by name; None takes `named_windows`, the paper's.
        reading: What is asked, and the word that a right answer begins with.
        rule: Which cells of the image grid are the target's; see `Layout.region`.
        seed: Of the random sets.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Dataset of the items that are right with nothing cut, others left out. Over
        (cut, window): "accuracy", the share of them that stay right, 1 where the cut
        has no effect, with "accuracy_low" and "_high" (Wilson, 95 %); "control", the
        same of the random sets; "difference", accuracy minus control, paired, with
        "_low", "_high" and "difference_p" (Wilcoxon), over the "n_control" items that
        have both; "change" and "control_change",
        mean change of the answer's probability in percent of its clean probability,
        with bounds; "n", items that have the cut. Over (item, cut, window): "right" and
        "control_right", 1 or 0, and "item_change", NaN where an item has no such cut or
        the cut no control. `attrs["n_items"]` counts all items, `attrs["n_cropped"]`
        those whose target no token sees, which are left out with a warning, and
        `attrs["n_right"]` those right with nothing cut.

    Raises:
        ArgumentError: `items`, `reading` or `windows` hold other things.
        PromptError: There is no item, or one names no target.
        RegionError: A target lies outside its picture, or no token sees any of them.
        MetricError: No item is answered right, or the reading has no first word.
        InterventionError: There is no cut or no window.
        BlindRowError: A cut leaves a row nothing to read.

    Paper: Neo et al. 2024, arXiv:2410.07149, table 2.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> ask = mv.scenes.questions(scene, "color")[0]
        >>> said = vlm.generate(vlm.prompt(ask.text, scene.image), max_new_tokens=1)
        >>> item = mv.Item(scene.image, ask.text, said.text,
        ...     objects={"it": scene.box(0)}, target="it")
        >>> table = mv.knockout_accuracy(vlm, [item], windows={"all": range(8)})
        >>> table["accuracy"].dims, "object+1->last" in table["cut"]
        (('cut', 'window'), True)
    """
    items = several(items, Item, "items", "[Item(image, question, answer)]")
    one(reading, Reading, "reading", "readings.vqa()")
    names = ids_of([item.id for item in items], "item")
    layers = _windows(vlm, windows)
    if not layers:
        raise InterventionError('no window is given; wanted {"early": range(0, 10)}.')
    kept: dict[str, _Rows] = {}
    n_cropped = 0
    with bar_of(len(items), False if progress is False else "knockout") as bar:
        for i, item in enumerate(items):
            todo = _Todo(vlm, item, reading, rule, (seed, i))
            rows = todo.run(cuts, layers)
            n_cropped += rows is None
            if rows:
                kept[names[i]] = rows
            bar.update(1)
    tell_unseen(n_cropped, len(items), "items' targets")
    if not kept:
        raise MetricError(
            f"none of {len(items) - n_cropped} items is answered right with nothing"
            " cut, so there is no accuracy to lose. Does the question fit the model,"
            " and the answer begin as the model begins it?"
        )
    attrs = {
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "reading": reading.name,
        "n_items": len(items),
        "n_cropped": n_cropped,
        "n_right": len(kept),
        "seed": seed,
        "layer_convention": "attention inside layer l is cut",
    }
    table = _Table(kept, layers)
    ends = {"first": [at[0] for at in layers.values()]}
    ends["last"] = [at[-1] for at in layers.values()]
    coords = {name: ("window", at) for name, at in ends.items()}
    return xr.Dataset(table.arrays(), attrs=attrs).assign_coords(coords)


def _windows(vlm: HookedVLM, windows: Mapping[str, range] | None) -> dict[str, range]:
    if windows is None:
        return named_windows(vlm.cfg.n_layers)
    return mapping_to(windows, range, "windows", '{"early": range(0, 10)}')


_Rows = Mapping[str, Mapping[str, Float[np.ndarray, " window"]]]
"""What came of one item: cut -> "right", "control_right" and the changes, by window."""


@dataclass(frozen=True, eq=False)
class _Todo:
    """One item's sweep."""

    vlm: HookedVLM
    item: Item
    reading: Reading
    rule: Rule
    seed: tuple[int, int]

    def run(
        self,
        cuts: Callable[[Layout, Positions], Mapping[str, Cut]],
        windows: Mapping[str, range],
    ) -> _Rows | None:
        """What comes of every cut.

        Nothing if the answer is wrong with nothing cut; None if no token sees the
        target.
        """
        item, reading = self.item, self.reading
        if reading.first is None:
            raise MetricError(
                f"reading {reading.name!r} has no word that a right answer begins with,"
                " so one forward pass does not tell. Wanted vqa() or polling()."
            )
        prompt = self.vlm.prompt(
            reading.question(item), item.image, prefix=reading.prefix(item)
        )
        right = list(first_pieces(self.vlm, reading.first(item)))
        at = seen(prompt.layout, item.area, rule=self.rule)
        if not at:
            return None
        found = cuts(prompt.layout, at)
        if not found:
            raise InterventionError(f"there is no cut for item {item.id or item!r}.")
        own = shared(self.vlm, prompt)
        clean = intervene(self.vlm, own, NOTHING, progress=False)[0].float()
        if int(clean.argmax()) not in right:
            return {}
        image = prompt.layout["image"]
        pairs = {
            name: (cut, self._control(image, cut, j))
            for j, (name, cut) in enumerate(found.items())
        }
        todo = [
            Knockout(layers, *cut)
            for both in pairs.values()
            for cut in both
            if cut is not None
            for layers in windows.values()
        ]
        logits = intervene(self.vlm, own, todo, progress=False).float()
        return _rows(logits, clean, right, pairs, len(windows))

    def _control(self, image: Positions, cut: Cut, place: int) -> Cut | None:
        """The same target, cut off as many random image tokens outside the source.

        None where the source is not of image tokens, or not so many are outside.
        """
        target, source = cut
        outside = image - source
        if source - image or len(outside) < len(source):
            return None
        seed = (*self.seed, place)
        return target, random_sets(outside, len(source), seed=seed)[0]


def _rows(
    logits: Float[Tensor, "run vocab"],
    clean: Float[Tensor, " vocab"],
    right: list[int],
    pairs: Mapping[str, tuple[Cut, Cut | None]],
    n_windows: int,
) -> _Rows:
    answer = int(clean.argmax())
    p = torch.cat([clean[None], logits]).softmax(dim=-1)[:, answer]
    change = (100 * (p[1:] / p[0] - 1)).cpu().numpy().astype(float)
    hits = np.isin(logits.argmax(dim=-1).cpu().numpy(), right).astype(float)
    runs = iter(range(0, len(logits), n_windows))
    none = np.full(n_windows, np.nan)
    rows: dict[str, dict[str, Float[np.ndarray, " window"]]] = {}
    for name, both in pairs.items():
        rows[name] = {}
        for lead, cut in zip(("", "control_"), both, strict=True):
            right_, change_ = none, none
            if cut is not None:
                start = next(runs)
                at = slice(start, start + n_windows)
                right_, change_ = hits[at], change[at]
            rows[name][f"{lead}right"] = right_
            rows[name][f"{lead}change"] = change_
    return rows


class _Table:
    """The items' rows as arrays."""

    def __init__(self, kept: Mapping[str, _Rows], windows: Mapping[str, range]) -> None:
        """Stack them; cuts that only some items have are NaN for the others."""
        self.items, self.windows = list(kept), list(windows)
        self.cuts = list(dict.fromkeys(cut for rows in kept.values() for cut in rows))
        blank = np.full(len(self.windows), np.nan)
        self.values = {
            name: np.array(
                [
                    [rows.get(cut, {}).get(name, blank) for cut in self.cuts]
                    for rows in kept.values()
                ]
            )
            for name in ("right", "control_right", "change", "control_change")
        }

    def arrays(self) -> dict[str, xr.DataArray]:
        """Per item, and over items with intervals."""
        each = {
            "right": ("1 right, 0 wrong", self.values["right"]),
            "control_right": ("1 right, 0 wrong", self.values["control_right"]),
            "item_change": ("% of clean probability", self.values["change"]),
        }
        found = {
            name: labelled(
                values,
                name=name,
                units=units,
                paper=PAPER,
                item=self.items,
                cut=self.cuts,
                window=self.windows,
            )
            for name, (units, values) in each.items()
        }
        cells = [
            self._cell(i, j)
            for i in range(len(self.cuts))
            for j in range(len(self.windows))
        ]
        for name in cells[0]:
            grid = np.array([cell[name] for cell in cells])
            found[name] = labelled(
                grid.reshape(len(self.cuts), len(self.windows)),
                name=name,
                units=_UNITS[name.removesuffix("_low").removesuffix("_high")],
                paper=PAPER,
                cut=self.cuts,
                window=self.windows,
            )
        return found

    def _cell(self, cut: int, window: int) -> dict[str, float]:
        """One cell of the table, of the items that have it."""
        column = {name: values[:, cut, window] for name, values in self.values.items()}
        have = {name: each[~np.isnan(each)] for name, each in column.items()}
        both = ~np.isnan(column["right"] + column["control_right"])
        over = paired(column["right"][both], column["control_right"][both])
        estimates: dict[str, Estimate | Paired] = {
            "accuracy": share_of(have["right"]),
            "control": share_of(have["control_right"]),
            "difference": over,
            "change": mean_of(have["change"]),
            "control_change": mean_of(have["control_change"]),
        }
        cell: dict[str, float] = {}
        for name, estimate in estimates.items():
            cell |= {
                name: estimate.mean,
                f"{name}_low": estimate.low,
                f"{name}_high": estimate.high,
            }
        counts = {"n": len(have["right"]), "n_control": over.n}
        return (
            cell | {"difference_p": over.p} | {k: float(n) for k, n in counts.items()}
        )


_UNITS = {
    "accuracy": "share of items right with nothing cut",
    "control": "share of items right with nothing cut",
    "difference": "accuracy minus the control's",
    "difference_p": "p value",
    "change": "% of clean probability",
    "control_change": "% of clean probability",
    "n": "items",
    "n_control": "items",
}
