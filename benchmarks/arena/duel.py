"""mechvlm against the plain loop alone, on any list of acts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from arena.contest import TOLERANCE, WrongAnswerError, far, rounded
from arena.geometry import Scene
from arena.ours import Ours
from arena.plain import Plain
from arena.rivals import drawn, synchronised
from arena.sweeps import Act


@dataclass
class Duel:
    """Both sides of one list of acts.

    Attributes:
        sample: Acts of each repetition that the loop is timed on.
    """

    scene: Scene
    plain: Plain
    acts: Sequence[Act]
    repeats: int
    sample: int

    @torch.no_grad()
    def result(self) -> dict[str, Any]:
        """Compare some answers, then time both in turns."""
        ours = Ours(self.scene, self.acts)
        self._check(ours)
        took: dict[str, list[float]] = {"loop": [], "base": [], "sweep": []}
        for repeat in range(self.repeats):
            for name in sorted(took, reverse=repeat % 2 == 1):
                took[name].append(self._seconds(name, ours, repeat))
        middle = {name: statistics.median(x) for name, x in took.items()}
        turns = list(zip(took["loop"], took["sweep"], took["base"], strict=True))
        return {
            "interventions": len(self.acts),
            "seconds": {name: rounded(x) for name, x in middle.items()},
            "speedup": rounded(statistics.median(a / b for a, b, _ in turns)),
            "speedup_with_base": rounded(
                statistics.median(a / (b + base) for a, b, base in turns)
            ),
        }

    def _check(self, ours: Ours) -> None:
        whole = ours.run(self.scene.base)
        exact = self.scene.geometry.dtype == "float32"
        for index in sorted({0, len(self.acts) // 2, len(self.acts) - 1}):
            off = far(whole[index].float(), self.plain.run(self.acts[index]).float())
            if exact and not off <= TOLERANCE:
                raise WrongAnswerError(f"{self.acts[index]}: off by {off:.2g}")

    def _seconds(self, name: str, ours: Ours, repeat: int) -> float:
        device = self.scene.geometry.device
        given = ours.base() if name == "sweep" else None
        indices = drawn(len(self.acts), 1 + repeat * self.sample)
        before = synchronised(device)
        if name == "sweep":
            ours.run(given)
        elif name == "base":
            ours.base()
        else:
            for _ in range(self.sample):
                self.plain.run(self.acts[next(indices)])
        took = synchronised(device) - before
        return took * len(self.acts) / self.sample if name == "loop" else took
