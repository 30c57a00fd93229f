"""A contest on one sweep: answers compared first, then repetitions in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from arena import cost
from arena.command import tell, told
from arena.ours import Ours
from arena.ring import Ring
from arena.rivals import LEAST_S, LeftOut, Rival, spread, sweep_of, synchronised

TOLERANCE = 1e-4
"""Largest difference of a logit from the plain loop's, in fp32."""

COARSE = 0.1
"""The same in other precisions, as a share of the logits' standard deviation."""

CHECKED = 3
"""Acts whose answers are compared, each with an effect above the tolerance."""

CANDIDATES = 24
"""Acts that are tried for that."""

MARKED_AT_M = ("S1", "S4", "S5map")
SHARE_MARK, OVER_MARK = 0.6, 1.5
"""At 24 layers of width 1024: least share of the bound, most over bare products."""

SLOW_S = 3.0
"""A sweep that takes longer is not run again for all logits or bare products."""


class WrongAnswerError(AssertionError):
    """An answer that is not the plain loop's, so that its speed means nothing."""


def claim(bench: str, doc: str | None, names: Iterable[str], repeats: int = 5) -> None:
    """Compare, time and print one line: a claim about some sweeps."""
    given = told(doc, repeats=repeats)
    with Ring.open(given) as ring:
        found = {name: Contest(ring, name).result() for name in names}
        libraries = ring.versions
    tell(bench, doc, given, libraries=libraries, sweeps=found)


@dataclass
class Contest:
    """One sweep.

    Attributes:
        took: Seconds of the whole sweep, by contestant, one per repetition.
    """

    ring: Ring
    name: str
    took: dict[str, list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def result(self) -> dict[str, Any]:
        """Compare, time, and tell."""
        self.sweep = sweep_of(self.ring.told.geometry, self.name)
        self.ours = Ours(self.ring.scene, self.sweep.acts)
        self.rivals = dict(self.ring.rivals)
        self.left_out = dict(self.ring.left_out)
        checked = self.check()
        for repeat in range(self.ring.told.repeats):
            self.repeat(repeat)
        return {
            "what": self.sweep.what,
            "interventions": len(self.sweep.acts),
            "checked": checked,
            **self.times(),
            **self.counted(),
            "left_out": self.left_out,
        }

    # -- answers -------------------------------------------------------------------

    def check(self) -> dict[str, Any]:
        """Every contestant's answers beside the plain loop's; ours must be its own."""
        truth, effects, tolerance = self.truth()
        whole = self.ours.run(self.ring.scene.base)
        deviation = {
            "mechvlm": max(far(whole[i].float().cpu(), x) for i, x in truth.items())
        }
        if not deviation["mechvlm"] <= tolerance:
            raise WrongAnswerError(f"{self.name}: off by {deviation['mechvlm']:.2g}")
        for name, rival in list(self.rivals.items()):
            if name == "hf":
                continue
            try:
                found = [far(rival.answer(self.name, i), x) for i, x in truth.items()]
            except LeftOut as reason:
                self._leave_out(name, str(reason))
                continue
            deviation[name] = max(found)
            if not deviation[name] <= tolerance:
                self._leave_out(name, f"its answers are off by {deviation[name]:.2g}")
        return {
            "tolerance": tolerance,
            "acts": len(truth),
            "effect": [rounded(min(effects)), rounded(max(effects))],
            "deviation": {name: rounded(off) for name, off in deviation.items()},
        }

    def truth(self) -> tuple[dict[int, Tensor], list[float], float]:
        """The plain loop's answers where an act shows, its effects, the tolerance."""
        plain: Any = self.rivals["hf"]
        untouched = plain.contestant.logits(self.ring.scene.base_embeds).float().cpu()
        exact = self.ring.told.geometry.dtype == "float32"
        tolerance = TOLERANCE if exact else rounded(COARSE * float(untouched.std()))
        truth: dict[int, Tensor] = {}
        effects = []
        for index in spread(len(self.sweep.acts), CANDIDATES):
            answer = plain.answer(self.name, index)
            if (effect := far(answer, untouched)) > tolerance:
                truth[index] = answer
                effects.append(effect)
            if len(truth) == CHECKED:
                break
        if not truth:
            raise WrongAnswerError(f"{self.name}: no act has an effect, so none shows")
        return truth, effects, tolerance

    def _leave_out(self, name: str, reason: str) -> None:
        del self.rivals[name]
        self.left_out[name] = reason

    # -- times ---------------------------------------------------------------------

    def repeat(self, repeat: int) -> None:
        """Everyone once, in the other order every other time."""
        runs: dict[str, Callable[[], float]] = {
            "mechvlm": lambda: self.whole(),
            "base": lambda: self.timed(self.ours.base),
        }
        for name, rival in self.rivals.items():
            runs[name] = lambda rival=rival: self.looped(rival, repeat)
        for name in sorted(runs, reverse=repeat % 2 == 1):
            self.took.setdefault(name, []).append(runs[name]())
        quick = self.took["mechvlm"][-1] < SLOW_S
        if quick or repeat == 0:
            bare = self.timed(self.bare)
            self.took.setdefault("bare", []).append(bare)
        if quick:
            given = self.ours.base()
            took = self.timed(lambda: self.ours.run(given))
            self.took.setdefault("all logits", []).append(took)

    def whole(self) -> float:
        """Our whole sweep, read by a metric, on a base run that is there already."""
        given, metric = self.ours.base(), self.ours.metric()
        return self.timed(lambda: self.ours.run(given, metric))

    def looped(self, rival: Rival, repeat: int) -> float:
        """A loop over the sweep, from a sample of it."""
        sample = self.ring.told.sample
        try:
            each = rival.seconds(self.name, 1 + repeat * sample, sample)
        except LeftOut as reason:
            raise RuntimeError(f"{rival.name}: {reason}") from reason
        return each * len(self.sweep.acts)

    def bare(self) -> None:
        """The matrix products of the least work, and nothing else."""
        cost.bare(self.ring.scene, self.least)

    def timed(self, run: Callable[[], object]) -> float:
        """Mean seconds; what is quick is repeated."""
        device = self.ring.told.geometry.device
        before, done = synchronised(device), 0
        while True:
            run()
            done += 1
            took = synchronised(device) - before
            if took >= LEAST_S:
                return took / done

    def times(self) -> dict[str, Any]:
        """Seconds and speed-ups; a speed-up compares within one repetition."""
        excluded = {name: self.ratios(name) for name in ("mechvlm", *self.rivals)}
        del excluded["hf"]
        included = {  # the others share no base run
            name: self.ratios(name, "base")
            for name in ("mechvlm", "prefix")
            if name in excluded
        }
        sweep, reached = self.sweep, statistics.median(excluded["mechvlm"])
        marks: dict[str, Any] = {"mark": sweep.mark, "reached": reached >= sweep.mark}
        if sweep.mark_with_base is not None:
            reached = statistics.median(included["mechvlm"])
            marks["mark_with_base"] = sweep.mark_with_base
            marks["reached_with_base"] = reached >= sweep.mark_with_base
        return {
            **marks,
            "speedup_all_logits": self.of_all_logits(),
            "speedup": {name: summed(x) for name, x in excluded.items()},
            "speedup_with_base": {name: summed(x) for name, x in included.items()},
            "seconds": {
                name: rounded(statistics.median(x)) for name, x in self.took.items()
            },
        }

    def of_all_logits(self) -> dict[str, Any] | None:
        """The same where the whole vocabulary of every run is read, of quick sweeps."""
        took = self.took.get("all logits", [])
        loops = self.took["hf"]
        if len(took) < len(loops):
            return None
        return summed(loop / ours for loop, ours in zip(loops, took, strict=True))

    def ratios(self, name: str, *besides: str) -> list[float]:
        """The loop's time over theirs, and what they need besides, per repetition."""
        theirs = zip(*(self.took[each] for each in (name, *besides)), strict=True)
        return [loop / sum(x) for loop, x in zip(self.took["hf"], theirs, strict=True)]

    # -- work ----------------------------------------------------------------------

    @property
    def least(self) -> list[cost.Work]:
        """The least work of the sweep, by layer; counted once."""
        if not self._least:
            shape = self.ring.told.geometry
            self._least = cost.least(shape, self.sweep.acts)
        return self._least

    _least: list[cost.Work] = field(default_factory=list)

    def counted(self) -> dict[str, Any]:
        """Operations, and how near to their bound the time comes."""
        shape, n_acts = self.ring.told.geometry, len(self.sweep.acts)
        loop = n_acts * cost.flops(shape, cost.whole(shape), 1)
        least = cost.flops(shape, self.least, 0)  # two words of each, not all
        planned = self.ours.planned(self.ours.base())
        took = {name: statistics.median(x) for name, x in self.took.items()}
        share = statistics.median(self.ratios("mechvlm")) * least / loop
        over = took["mechvlm"] / took["bare"]
        found: dict[str, Any] = {
            "flops": {"whole_passes": loop, "least": least, "planned": planned},
            "bound": rounded(loop / least),
            "share_of_bound": rounded(share),
            "over_bare_products": rounded(over),
        }
        if self.ring.told.size == "m" and self.name in MARKED_AT_M:
            found["share_of_bound_mark"] = SHARE_MARK
            found["share_of_bound_reached"] = share >= SHARE_MARK
            found["over_bare_products_mark"] = OVER_MARK
            found["over_bare_products_reached"] = over <= OVER_MARK
        return found


def far(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference; of what is no number, infinitely far."""
    return float((ours - theirs).abs().max().nan_to_num(nan=torch.inf))


def rounded(x: float) -> float:
    """Three digits."""
    return float(f"{x:.3g}")


def summed(ratios: Iterable[float]) -> dict[str, Any]:
    """Median and range."""
    found = sorted(ratios)
    return {
        "median": rounded(statistics.median(found)),
        "range": [rounded(found[0]), rounded(found[-1])],
    }
