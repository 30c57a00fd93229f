"""All cuts of one prompt and their random likes, as one list through the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Int, Shaped

from mechvlm.analyses.flow_graph.groups import Grouped
from mechvlm.cone import Reads
from mechvlm.cutting import answer_token, like, reach_of
from mechvlm.engine import intervene
from mechvlm.errors import MetricError
from mechvlm.interventions import NOTHING, Intervention, Knockout
from mechvlm.layout import Positions
from mechvlm.metrics import log_probability, probability
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of, shared

__all__ = ["MEASURED", "UNCONTROLLED", "Found", "Sweep"]

MEASURED, UNCONTROLLED = "measured", "no control"
"""What is said of a cut that was run: with random likes, or without."""


@dataclass(frozen=True, eq=False)
class Found:
    """What came of one prompt.

    Attributes:
        clean: Probability of the answer with nothing cut.
        right: Whether it is the likeliest token then.
        status: What can be said of each cut.
        log_effect: Change of the answer's log-probability by each cut, nats.
        log_draws: The same of its random likes, filled up with nan.
    """

    clean: float
    right: bool
    status: Shaped[np.ndarray, "target source band"]
    log_effect: Float[np.ndarray, "target source band"]
    log_draws: Float[np.ndarray, "target source band draw"]

    @property
    def n_draws(self) -> Int[np.ndarray, "target source band"]:
        """Different random likes of each cut."""
        return np.asarray(np.isfinite(self.log_draws).sum(axis=-1))


@dataclass(frozen=True)
class Sweep:
    """What is done to every prompt.

    Attributes:
        vlm: The model.
        groups: Names of the groups.
        bands: Layers by name.
        n_random: Random likes of a cut.
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
        status, planned = self._planned(asked, _reads(self.vlm, own), seed)
        todo = list(dict.fromkeys(each for row in planned.values() for each in row))
        values = np.full((*status.shape, 1 + self.n_random), np.nan)
        if todo:
            measure = log_probability(self.vlm, token)
            logs = intervene(self.vlm, own, todo, metric=measure, progress=progress)
            change = dict(zip(todo, (logs - measure(clean)).tolist(), strict=True))
            for place, row in planned.items():
                values[place][: len(row)] = [change[each] for each in row]
        right = int(clean[0].argmax()) == token
        return Found(p_clean, right, status, values[..., 0], values[..., 1:])

    def _planned(
        self, asked: Grouped, reads: Reads, seed: tuple[int, int]
    ) -> tuple[
        Shaped[np.ndarray, "target source band"],
        dict[tuple[int, int, int], list[Intervention]],
    ]:
        """What is said of each cut, and of those that run the cut and its likes.

        A pair's draws are the same in every band, so that bands compare.
        """
        n, layout = len(self.groups), prompt_of(asked.prompt).layout
        status = np.full((n, n, len(self.bands)), "never reads", dtype="<U11")
        planned: dict[tuple[int, int, int], list[Intervention]] = {}
        free = Positions.of(range(layout.n)) - layout["bos"]
        for i, j in product(range(n), repeat=2):
            target, source = (asked.at[self.groups[place]] for place in (i, j))
            pool = free - target - source
            for k, layers in enumerate(self.bands.values()):
                cut = Knockout(layers, target, source)
                reach = reach_of(reads, cut)
                if reach != "cuts":
                    status[i, j, k] = reach
                    continue
                likes = like(reads, cut, pool, n=self.n_random, seed=(*seed, i, j))
                status[i, j, k] = MEASURED if likes else UNCONTROLLED
                planned[i, j, k] = [cut, *likes]
        return status, planned


def _reads(vlm: HookedVLM, own: Prompt | Run) -> Reads:
    """Who may read whom in a prompt."""
    if isinstance(own, Run) and own.base is not None:
        return own.base.reads
    return vlm.setting(prompt_of(own)).reads
