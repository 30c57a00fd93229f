"""Where a model looks while it names each object of its description."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechvlm.analyses.attention_flow.localization import localization
from mechvlm.analyses.attention_flow.maps import attention_map
from mechvlm.analyses.attention_flow.rows import word_rows
from mechvlm.axes import labelled
from mechvlm.errors import InterventionError, MetricError, PromptError
from mechvlm.interventions import NOTHING, Knockout
from mechvlm.items import Item, class_of
from mechvlm.layout import Positions, Rule
from mechvlm.matching import mentions
from mechvlm.models.generation import Generation
from mechvlm.models.hooked import HookedVLM
from mechvlm.posing import ids_of
from mechvlm.progress import bar_of
from mechvlm.prompts import Prompt
from mechvlm.readings import Reading, generative
from mechvlm.selecting import seen, tell_unseen
from mechvlm.statistics import mean_of, share_of
from mechvlm.wanted import one, several

__all__ = ["localization_accuracy"]

PAPER = "arXiv:2411.17491"

_DESCRIBE = generative()


def localization_accuracy(
    vlm: HookedVLM,
    items: Sequence[Item],
    *,
    reading: Reading = _DESCRIBE,
    objects: Literal["named", "lost"] = "lost",
    word: Callable[[str], str] = class_of,
    rule: Rule = "any",
    tolerance_cells: int = 1,
    progress: bool | None = None,
) -> xr.Dataset:
    """In which layers does attention lie on an object while the model names it?

    Every item is described; for each of its objects that the description names, the
    attention of the steps that chose its word (mean over heads and over the word's
    tokens) is laid over the picture. Each object counts by itself, so that two of one
    class are told apart.

    Args:
        vlm: The model.
        items: Pictures with their objects.
        reading: What is asked; its question and longest answer count.
        objects: "lost" takes the objects that are named no more once no generated token
            reads the image, as in the paper: those that the model looks up while it
            speaks. "named" takes all that are named.
        word: From an object's key in `Item.objects` to the word that names it; as it
            stands, the key without its number ("person" for "person 2").
        rule: Which cells of the image grid are an object's; see `Layout.region`.
        tolerance_cells: How far beside an object a peak still counts as near.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Dataset. Over (object, layer): "hit", "near", "mass" and "iou" as
        `localization` has them, and the control "other", 1 where the peak lies on
        another object of the picture and not on this one (NaN where there is none).
        Over (object): "chance" and "chance_near", what a random cell would hit. Over
        (layer), with "_low" and "_high" (95 %): "accuracy", the share of objects hit,
        "accuracy_near", and "over_chance", mean of hit minus chance, paired: 0 where
        attention finds objects no better than a random cell. `attrs` count "n_objects"
        that were looked at, "n_named", "n_all" and, of all, the "n_cropped" that no
        token sees: they are left out, with a warning, named or not. Layer l is the
        attention inside layer l.

    Raises:
        ArgumentError: `items` are no items, or `reading` is no reading.
        PromptError: There is no item, or one has no object.
        MetricError: No object is named (or lost).
        RegionError: An object lies outside its picture, or no token sees any of them.

    Paper: Kaduri et al. 2024, arXiv:2411.17491, figures 6 and 7.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> ask = mv.readings.generative("describe the image .", max_new_tokens=8)
        >>> said = vlm.generate(vlm.prompt("describe the image .", scene.image)).text
        >>> objects = {said.split()[1]: scene.mask(0)}
        >>> item = mv.Item(scene.image, "", objects=objects)
        >>> found = mv.localization_accuracy(vlm, [item], reading=ask, objects="named")
        >>> found["hit"].dims, found["accuracy"].dims
        (('object', 'layer'), ('layer',))
    """
    if objects not in ("named", "lost"):
        raise InterventionError(f"objects={objects!r}: wanted 'named' or 'lost'.")
    items = _with_objects(items)
    one(reading, Reading, "reading", "readings.generative()")
    names = ids_of([item.id for item in items], "item")
    todo = _Todo(vlm, reading, objects, word, rule, tolerance_cells)
    found: dict[str, _Measures] = {}
    n_named = n_cropped = 0
    with bar_of(len(items), False if progress is False else "describing") as bar:
        for name, item in zip(names, items, strict=True):
            measures, named, cropped = todo.run(item)
            found |= {f"{name}: {key}": each for key, each in measures.items()}
            n_named += named
            n_cropped += cropped
            bar.update(1)
    n_all = sum(len(item.objects) for item in items)
    tell_unseen(n_cropped, n_all, "objects")
    if not found:
        raise MetricError(
            f"of {n_all} objects {n_named} are named in the descriptions, and none is"
            f" {objects}. Does the question ask for a description, and do the objects'"
            " keys (or word=) say them as the model does? A model whose question rows"
            ' hold all that it says loses none: see objects="named".'
        )
    attrs = {
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "objects": objects,
        "n_objects": len(found),
        "n_named": n_named,
        "n_all": n_all,
        "n_cropped": n_cropped,
        "tolerance_cells": tolerance_cells,
        "layer_convention": "attention inside layer l",
    }
    return xr.Dataset(_table(found, vlm.cfg.n_layers), attrs=attrs)


def _with_objects(items: Sequence[Item]) -> list[Item]:
    """The items in a list, each of which has objects."""
    found = several(items, Item, "items", "[Item(image, question, objects={...})]")
    if not all(item.objects for item in found):
        raise PromptError(
            "an item has no objects to look for. Give Item(..., objects={name: box or"
            " mask})."
        )
    return found


_Measures = Mapping[str, Float[np.ndarray, " layer"]]
"""Of one object: hit, near, mass, iou, other, chance and chance_near, by layer."""


@dataclass(frozen=True, eq=False)
class _Todo:
    """What is done with each item."""

    vlm: HookedVLM
    reading: Reading
    objects: str
    word: Callable[[str], str]
    rule: Rule
    tolerance_cells: int

    def run(self, item: Item) -> tuple[dict[str, _Measures], int, int]:
        """Measures of each object that counts; how many are named, and how many unseen.

        An object that no token sees is no more than counted.
        """
        reading = self.reading
        question, prefix = reading.question(item), reading.prefix(item)
        prompt = self.vlm.prompt(question, item.image, prefix=prefix)
        cells = {
            key: seen(prompt.layout, area, rule=self.rule)
            for key, area in item.objects.items()
        }
        at = {key: positions for key, positions in cells.items() if positions}
        n_cropped = len(cells) - len(at)
        if not at:
            return {}, 0, n_cropped
        said, blind = self._described(prompt)
        named = [key for key in at if mentions(said.text, [self.word(key)])]
        if self.objects == "lost":
            chosen = [k for k in named if not mentions(blind.text, [self.word(k)])]
        else:
            chosen = named
        measures = {k: self._measured(prompt, said, k, at) for k in chosen}
        return measures, len(named), n_cropped

    def _described(self, prompt: Prompt) -> tuple[Generation, Generation]:
        """What is said, and what is said if no generated token reads the image."""
        n, most = prompt.layout.n, self.reading.max_new_tokens
        arms: list[Knockout] = []
        if self.objects == "lost" and most > 1:
            new = Positions.of(range(n, n + most - 1))
            every = range(self.vlm.cfg.n_layers)
            arms = [Knockout(every, new, prompt.layout["image"])]
        made = self.vlm.generate_many(
            prompt,
            [NOTHING, *arms],
            max_new_tokens=most,
            logits="first",
            progress=False,
        )
        return made[0], made[-1]

    def _measured(
        self,
        prompt: Prompt,
        said: Generation,
        key: str,
        at: Mapping[str, Positions],
    ) -> _Measures:
        rows = word_rows(self.vlm, prompt, said, self.word(key))
        maps = attention_map(self.vlm, prompt, generation=said, rows=rows)
        # One map of the word: its row keeps the name of the first token's.
        mean = maps.mean("row", keep_attrs=True).expand_dims(row=[rows.indices[0]])
        own = localization(
            mean, at[key], rule=self.rule, tolerance_cells=self.tolerance_cells
        )
        others = Positions.of(*(at[k] for k in at if k != key)) - at[key]
        found = {name: own[name].values[:, 0] for name in _PER_LAYER}
        blank = np.full(self.vlm.cfg.n_layers, np.nan)
        found["other"] = (
            localization(mean, others)["hit"].values[:, 0] if others else blank
        )
        for name in ("chance", "chance_near"):
            found[name] = np.full_like(blank, own.attrs[name])
        return found


_PER_LAYER = ("hit", "near", "mass", "iou")


def _table(found: Mapping[str, _Measures], n_layers: int) -> dict[str, xr.DataArray]:
    values = {
        name: np.array([each[name] for each in found.values()])
        for name in (*_PER_LAYER, "other", "chance", "chance_near")
    }
    arrays = {
        name: labelled(
            values[name],
            name=name,
            units="fraction",
            paper=PAPER,
            object=list(found),
            layer=range(n_layers),
        )
        for name in (*_PER_LAYER, "other")
    }
    for name in ("chance", "chance_near"):
        arrays[name] = labelled(
            values[name][:, 0],
            name=name,
            units="fraction of cells",
            paper=PAPER,
            object=list(found),
        )
    hit, near = values["hit"].T, values["near"].T
    over = (values["hit"] - values["chance"]).T
    for name, estimates in (
        ("accuracy", [share_of(_known(each) > 0) for each in hit]),
        ("accuracy_near", [share_of(_known(each) > 0) for each in near]),
        ("over_chance", [mean_of(_known(each)) for each in over]),
    ):
        for i, end in enumerate(("", "_low", "_high")):
            arrays[name + end] = labelled(
                [each[i] for each in estimates],
                name=name + end,
                units="fraction of objects",
                paper=PAPER,
                layer=range(n_layers),
            )
    return arrays


def _known(values: Float[np.ndarray, " object"]) -> Float[np.ndarray, " object"]:
    """Without the objects whose map is empty in this layer."""
    return np.asarray(values[~np.isnan(values)])
