"""All cuts of one prompt and their draws, as one list through the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from jaxtyping import Float, Int, Shaped

from mechvlm.analyses.flow_graph.groups import Grouped
from mechvlm.cone import Reads
from mechvlm.cutting import answer_token, draws_of, moved, reach_of
from mechvlm.engine import intervene
from mechvlm.errors import MetricError
from mechvlm.interventions import NOTHING, Intervention, Knockout
from mechvlm.layout import Layout, Positions
from mechvlm.metrics import log_probability, probability
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of, shared
from mechvlm.statistics import LEVEL

__all__ = ["ENOUGH", "MEASURED", "NO_CONTROL", "Found", "Sweep"]

MEASURED, NO_CONTROL = "measured", "no control"
"""What is said of a cut that was run: beside its draws, or alone."""

ENOUGH = round(1 / (1 - LEVEL)) - 1
"""Draws from which on the cut is beyond all of them by chance in at most 5 %."""

_UNDRAWN = "-"
_Place = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Found:
    """What came of one prompt.

    Attributes:
        clean: Probability of the answer with nothing cut.
        right: Whether it is the likeliest token then.
        n_runs: Interventions that were run.
        status: What can be said of each cut.
        pool: Of which positions its draws are.
        log_effect: Change of the answer's log-probability by each cut, nats.
        log_draws: The same of its draws, filled up with nan.
    """

    clean: float
    right: bool
    n_runs: int
    status: Shaped[np.ndarray, "target source band"]
    pool: Shaped[np.ndarray, "target source band"]
    log_effect: Float[np.ndarray, "target source band"]
    log_draws: Float[np.ndarray, "target source band draw"]

    @property
    def n_draws(self) -> Int[np.ndarray, "target source band"]:
        """Different draws of each cut."""
        return np.asarray(np.isfinite(self.log_draws).sum(axis=-1))


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is said of each cut, and of those that run the cut and its draws."""

    status: Shaped[np.ndarray, "target source band"]
    pool: Shaped[np.ndarray, "target source band"]
    cuts: dict[_Place, list[Intervention]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """What is done to every prompt.

    Attributes:
        vlm: The model.
        groups: Names of the groups.
        bands: Layers by name.
        n_random: Draws of a cut.
    """

    vlm: HookedVLM
    groups: tuple[str, ...]
    bands: Mapping[str, range]
    n_random: int

    def of(
        self, asked: Grouped, seed: tuple[int, int], progress: str | bool | None
    ) -> Found:
        """Run every cut of a prompt.

        Raises:
            MetricError: The clean run gives the answer no probability.
            TokenError: The answer is not exactly one token.
        """
        token = answer_token(self.vlm, asked.answer)
        own = shared(self.vlm, asked.prompt)
        clean = intervene(self.vlm, own, NOTHING, progress=False)
        p_clean = float(probability(self.vlm, token)(clean)[0])
        if p_clean == 0:
            raise MetricError(
                f"prompt {asked.id or prompt_of(asked.prompt).text!r}: answer"
                f" {asked.answer!r} has probability 0 in the clean run, so it has none"
                " to lose. Is it the answer that the model gives?"
            )
        plan = self._planned(asked, _reads(self.vlm, own), seed)
        todo = list(dict.fromkeys(each for row in plan.cuts.values() for each in row))
        values = np.full((*plan.status.shape, 1 + self.n_random), np.nan)
        if todo:
            measure = log_probability(self.vlm, token)
            logs = intervene(self.vlm, own, todo, metric=measure, progress=progress)
            change = dict(zip(todo, (logs - measure(clean)).tolist(), strict=True))
            for place, row in plan.cuts.items():
                values[place][: len(row)] = [change[each] for each in row]
        return Found(
            p_clean,
            int(clean[0].argmax()) == token,
            len(todo),
            plan.status,
            plan.pool,
            values[..., 0],
            values[..., 1:],
        )

    def _planned(self, asked: Grouped, reads: Reads, seed: tuple[int, int]) -> _Plan:
        """Every pair's cuts; its draws are the same in every band, so bands compare."""
        n, layout = len(self.groups), prompt_of(asked.prompt).layout
        shape = (n, n, len(self.bands))
        plan = _Plan(np.full(shape, "never reads", "<U24"), np.full(shape, "-", "<U8"))
        for i, j in product(range(n), repeat=2):
            target, source = (asked.at[self.groups[place]] for place in (i, j))
            pools = _pools(layout, target, source)
            known: dict[frozenset[int], tuple[str, Sequence[tuple[Knockout, ...]]]] = {}
            for k, layers in enumerate(self.bands.values()):
                cut = Knockout(layers, target, source)
                reach = reach_of(reads, cut, layout.last)
                if reach != "cuts":
                    plan.status[i, j, k] = reach
                    continue
                masks = frozenset(reads.kind(layer) for layer in layers)
                if masks not in known:
                    known[masks] = self._drawn(reads, cut, pools, (*seed, i, j))
                plan.pool[i, j, k], draws = known[masks]
                plan.status[i, j, k] = MEASURED if draws else NO_CONTROL
                plan.cuts[i, j, k] = [cut, *moved(reads, draws, layers)]
        return plan

    def _drawn(
        self,
        reads: Reads,
        cut: Knockout,
        pools: Mapping[str, Positions],
        seed: Sequence[int],
    ) -> tuple[str, Sequence[tuple[Knockout, ...]]]:
        """Draws from the first pool that has enough of them; maybe none."""
        for name, pool in pools.items():
            draws = draws_of(reads, cut, pool, n=self.n_random, seed=seed)
            if len(draws) >= ENOUGH:
                return name, draws
        return _UNDRAWN, ()


def _pools(
    layout: Layout, target: Positions, source: Positions
) -> dict[str, Positions]:
    """What may be cut in the place of a source: of its own kind, or else anything.

    Attention that reads nothing rests on BOS, or without one on the first position.
    """
    every = Positions.of(range(layout.n))
    sink = layout["bos"] or Positions.of(min(every - layout["pad"]))
    free = every - sink - target - source
    for kind in (layout["image"], layout["text"]):
        if not source - kind:
            return {"own kind": free & kind, "any": free}
    return {"any": free}


def _reads(vlm: HookedVLM, own: Prompt | Run) -> Reads:
    """Who may read whom in a prompt."""
    if isinstance(own, Run) and own.base is not None:
        return own.base.reads
    return vlm.setting(prompt_of(own)).reads
