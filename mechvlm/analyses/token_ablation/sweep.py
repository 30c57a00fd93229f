"""Replace image tokens and see which answers are lost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from torch import Tensor

from mechvlm.analyses.token_ablation.filling import Filling, Value, asked, filling
from mechvlm.analyses.token_ablation.means import PAPER
from mechvlm.analyses.token_ablation.table import Before, Lost, table
from mechvlm.errors import InterventionError, MechVLMWarning, MetricError
from mechvlm.interventions import NOTHING, Intervention
from mechvlm.items import Item
from mechvlm.layout import Positions
from mechvlm.models.generation import Generation
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.pieces import spelled
from mechvlm.posing import ids_of
from mechvlm.progress import bar_of
from mechvlm.prompts import Prompt
from mechvlm.readings import Reading
from mechvlm.record import shared
from mechvlm.selecting import Selector, image_tokens
from mechvlm.statistics import random_sets
from mechvlm.wanted import mapping_to, one, several

__all__ = ["token_ablation"]


def token_ablation(
    vlm: HookedVLM,
    items: Sequence[Item],
    sets: Mapping[str, Selector],
    *,
    metric: Reading | Sequence[Reading],
    value: Value = "mean",
    n_random: int = 5,
    pool: Selector | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """Replace sets of image tokens before layer 0 and count the answers that are lost.

    Each item is asked as each reading says, and answers greedily. Where the answer is
    right, it is asked again with each set of its image tokens replaced, and as often
    with `n_random` random sets of the same size: what random tokens of that number
    cost too is no effect of the set. They are drawn from the whole image, as in the
    paper, so that a large set and its random ones share tokens, and the control is
    strict; a set that is the whole pool has no random set but itself, and no control
    (nan). Tokens are replaced once, in the prompt; what is
    generated is not touched, but reads what has become of them.

    To ask whether other tokens know of an object, replace the object's own and read a
    count or its presence: `metric=[readings.counting(), readings.polling()]`.

    An answer is right if the reading's matcher finds it in the text that is said, in
    whole words; `knockout_accuracy` reads the next token alone, by its first piece.

    Args:
        vlm: The model.
        items: Questions about pictures; see `grounded_items` for whether their answers
            are seen in the picture at all.
        sets: Name -> selector of image tokens; see `mechvlm.selecting`.
        metric: How items are asked and when an answer counts; see `mechvlm.readings`.
        value: What replaces tokens: "mean" of all image tokens of the items' pictures;
            "zero"; "resample", the tokens at the same positions of another item's
            picture; or a vector, as `mean_token` or `mean_token_per_position` makes it
            of other pictures.
        n_random: Random sets for each set and item, 1 or more.
        pool: Tokens that random sets are drawn from; None draws from the whole image.
            `background_tokens()` keeps the controls off the object, where there is
            enough else.
        seed: Of the random sets and of whose tokens are taken.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        A dataset. Over (reading, set): "decrease", the share of items, right before,
        that become wrong (0: none, 1: all), with Wilson's interval "decrease_low",
        "decrease_high"; "control", the same for random sets of equal size; "excess",
        decrease minus control, paired by item, with a bootstrap interval
        "excess_low", "excess_high" and Wilcoxon's "p"; "n_control", the items of these,
        nan where there is none; "n", items counted: right before and with a set that is
        not empty; "n_empty", right before but with an empty set;
        "n_tokens", mean size of the set. "log_p_change" is the change of the log
        probability of the first right word, in nats (0: none; nan where a reading or
        its word has no single token to watch), with "log_p_low", "log_p_high",
        "log_p_control" and "n_log_p". Over (reading): "n_correct", items right before.
        Over (reading, item) and (reading, item, set), each item's own: "item_before",
        "item_n_tokens", "item_right", "item_control_right" (share of random sets),
        "item_log_p_change", "item_log_p_control"; nan where the item was not asked.

    Raises:
        ArgumentError: `items`, `sets`, `metric` or `pool` hold other things.
        PromptError: An item lacks what a reading or a selector asks by, or two items
            share an id.
        RegionError: An object lies outside its picture.
        InterventionError: There is nothing to do, a value does not fit, or a set is
            empty in every item.
        MetricError: No item is right before, or a random set cannot be as large.
        PairError: With "resample": two pictures are laid out differently.

    Paper: Neo et al. 2024, arXiv:2410.07149, ablation of tokens (table 1).

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> thing = scene.things[0]
        >>> item = mv.Item(scene.image, f"what color is the {thing.shape} ?",
        ...     thing.color, {thing.shape: scene.box(0)}, thing.shape)
        >>> sets = {"object": mv.selecting.object_tokens()}
        >>> lost = mv.token_ablation(
        ...     vlm, [item], sets, metric=mv.readings.vqa(), value="zero", n_random=2)
        >>> lost.decrease.dims, int(lost.n[0, 0]), bool(lost.log_p_change[0, 0] < 0)
        (('reading', 'set'), 1, True)
    """
    items = several(items, Item, "items", "[Item(image, question, answer)]")
    sets = mapping_to(sets, Selector, "sets", '{"object": object_tokens()}')
    readings = [metric] if isinstance(metric, Reading) else _readings(metric)
    pool = image_tokens() if pool is None else one(pool, Selector, "pool", _POOL)
    _check(items, sets, readings, n_random)
    ids = ids_of([item.id for item in items], "item")
    put = filling(vlm, items, value, seed)
    shown = False if progress is False else "token ablation"
    with bar_of(2 * len(items) * len(readings), shown) as bar:
        before: list[list[Before]] = []
        for reading in readings:
            before.append([])
            for item in items:
                before[-1].append(_before(vlm, item, reading))
                bar.update()
            _check_some_right(items, reading, before[-1])
        control = _Control(pool, n_random, seed)
        lost: list[list[list[Lost] | None]] = []
        for reading, answers in zip(readings, before, strict=True):
            lost.append([])
            for i, answer in enumerate(answers):
                ask = _Ask(vlm, items, i, reading)
                lost[-1].append(ask.lost(sets, put, control) if answer.right else None)
                bar.update()
    _tell_empty(readings, items, list(sets), lost)
    described = {
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "layer_convention": "tokens are replaced in h[0], what enters layer 0",
        "value": put.name,
        "sets": {name: selector.name for name, selector in sets.items()},
        "control": f"{n_random} random sets of equal size out of: {control.pool.name}",
        "n_items": len(items),
        "seed": seed,
    }
    names = [reading.name for reading in readings]
    return table(names, ids, list(sets), before, lost, described)


_POOL = "pool=background_tokens()"


def _readings(metric: object) -> list[Reading]:
    return several(metric, Reading, "metric", "[readings.vqa(), readings.polling()]")


def _check(
    items: Sequence[Item],
    sets: Mapping[str, Selector],
    readings: Sequence[Reading],
    n_random: int,
) -> None:
    for what, given in (("items", items), ("sets", sets), ("metric", readings)):
        if not given:
            raise InterventionError(f"{what} is empty: there is nothing to ablate.")
    names = [reading.name for reading in readings]
    if len(set(names)) < len(names):
        raise InterventionError(
            f"readings are called {names}: two have one name, and the result could not"
            " tell them apart. Give them names with dataclasses.replace."
        )
    if n_random < 1:
        raise InterventionError(
            f"n_random={n_random}: wanted at least 1 random set of equal size. Without"
            " a control, losing many tokens looks like losing the right ones."
        )


def _check_some_right(
    items: Sequence[Item], reading: Reading, before: Sequence[Before]
) -> None:
    if not any(answer.right for answer in before):
        raise MetricError(
            f"none of the {len(items)} items is right before anything is ablated, as"
            f" {reading.name!r} reads it, so there is nothing to lose. To"
            f" {reading.question(items[0])!r} the model said {before[0].text!r}. Does"
            " the reading's question suit the model, and its matcher the answer?"
        )


def _before(vlm: HookedVLM, item: Item, reading: Reading) -> Before:
    prompt = asked(vlm, item, reading)
    (said,) = _said(vlm, prompt, [NOTHING], reading)
    return Before(reading.right(item, said.text), said.text)


def _said(
    vlm: HookedVLM, prompt: Prompt, arms: Sequence[Intervention], reading: Reading
) -> list[Generation]:
    most = reading.max_new_tokens
    return vlm.generate_many(
        prompt, arms, max_new_tokens=most, logits="first", progress=False
    )


@dataclass(frozen=True)
class _Control:
    """How random sets are drawn."""

    pool: Selector
    n: int
    seed: int

    def drawn(self, among: Positions, at: Positions, *place: int) -> list[Positions]:
        """Random sets of a set's size; `place` tells draws of one seed apart.

        None where the set is the whole pool: all of them would be the set itself.
        """
        if at == among:
            return []
        return random_sets(among, len(at), n=self.n, seed=(self.seed, *place))


@dataclass(frozen=True)
class _Ask:
    """One item, asked in one way."""

    vlm: HookedVLM
    items: Sequence[Item]
    i: int
    reading: Reading

    def lost(
        self, sets: Mapping[str, Selector], put: Filling, control: _Control
    ) -> list[Lost]:
        """What ablating each set does, and random ones of its size."""
        vlm, item = self.vlm, self.items[self.i]
        prompt = asked(vlm, item, self.reading)
        chosen = [selector(vlm, prompt, item) for selector in sets.values()]
        among = control.pool(vlm, prompt, item)
        drawn = [
            control.drawn(among, at, self.i, j) if at else []
            for j, at in enumerate(chosen)
        ]
        every = [
            each
            for at, random in zip(chosen, drawn, strict=True)
            for each in ([at, *random] if at else [])
        ]
        arms: list[Intervention] = [NOTHING]
        vectors: dict[str, Tensor] = {}
        for k, at in enumerate(every):
            arm, named = put.arm(prompt, at, f"absent {k}")
            arms.append(arm)
            vectors |= named
        said = vlm.generate_many(
            shared(vlm, prompt),
            arms,
            max_new_tokens=self.reading.max_new_tokens,
            runs=put.runs(vlm, self.items, self.i, self.reading),
            vectors=vectors,
            logits="first",
            progress=False,
        )
        outcomes = self._outcomes(said)
        return [
            Lost(len(at), next(outcomes), [next(outcomes) for _ in random])
            if at
            else Lost(0, None, [])
            for at, random in zip(chosen, drawn, strict=True)
        ]

    def _outcomes(self, said: Sequence[Generation]) -> Iterator[tuple[bool, float]]:
        """Whether each ablated answer is right, and what the first word lost."""
        item, first = self.items[self.i], self.reading.first
        tokens = [] if first is None else list(spelled(self.vlm, first(item)))
        logs = [_log_p(each, tokens) for each in said]
        for answer, log_p in zip(said[1:], logs[1:], strict=True):
            yield self.reading.right(item, answer.text), log_p - logs[0]


def _log_p(said: Generation, tokens: list[int]) -> float:
    """Log probability that the answer begins with one of the tokens."""
    if not tokens:
        return np.nan
    return float(said.logits[0].float().log_softmax(dim=-1)[tokens].logsumexp(dim=0))


def _tell_empty(
    readings: Sequence[Reading],
    items: Sequence[Item],
    sets: Sequence[str],
    lost: Sequence[Sequence[Sequence[Lost] | None]],
) -> None:
    """Say which sets have no token; refuse one that never has any."""
    for reading, rows in zip(readings, lost, strict=True):
        asked = [(item, row) for item, row in zip(items, rows, strict=True) if row]
        for j, name in enumerate(sets):
            without = [item for item, row in asked if not row[j].n_tokens]
            if not without:
                continue
            told = (
                f"set {name!r} has no token in {len(without)} of the {len(asked)} items"
                f" that {reading.name!r} finds right, the first of them"
                f" {without[0].id or without[0].question!r}"
            )
            if len(without) == len(asked):
                raise InterventionError(
                    f"{told}: nothing was ablated. Is the object cropped away by the"
                    " processor, or does the picture have none of what is chosen?"
                )
            warnings.warn(
                f"{told}; they do not count for this set (n_empty).",
                MechVLMWarning,
                stacklevel=3,
            )
