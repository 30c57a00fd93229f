"""The sweeps as mechvlm says them: a list of values, and one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

import mechvlm as mv
from arena.geometry import Scene
from arena.sweeps import Act, Blank, Cut, Direct, IntoQuery, SwapHead, SwapStream


def said(act: Act, n: int, n_layers: int) -> Any:
    """An act as an intervention."""
    at = mv.Positions.of
    match act:
        case SwapStream(layer, where):
            return mv.Patch(mv.Site("resid_pre", layer), at(where), run="donor")
        case SwapHead(layer, head, start):
            site = mv.Site("z", layer, head=head)
            return mv.Patch(site, at(range(start, n)), run="donor")
        case Cut(layers, target, source):
            return mv.Knockout(layers, at(target), at(source))
        case Blank(where):
            return mv.Ablate(mv.Site("embed"), at(where), "mean")
        case Direct(layer, head):
            stream = mv.Site("resid_post", n_layers - 1)
            return direct((layer, head), stream, at(n - 1))
        case IntoQuery(layer, head, into_layer, into_head):
            query = mv.Site("q", into_layer, head=into_head)
            return direct((layer, head), query, at(n - 1))


def direct(head: tuple[int, int], receiver: mv.Site, at: mv.Positions) -> mv.PathPatch:
    """A head's direct path to a receiver at some positions."""
    ends = (mv.Site("z", *head),), (receiver,)
    return mv.PathPatch(*ends, "donor", at=at, to=at, mlps="frozen")


NEEDS: dict[type, str] = {SwapStream: "resid_pre"} | dict.fromkeys(
    (SwapHead, Direct, IntoQuery), "z"
)
"""What an act needs of recorded runs."""


class Ours:
    """A whole sweep in one call."""

    name = "mechvlm"

    def __init__(self, scene: Scene, acts: Sequence[Act]) -> None:
        """Record what is patched in; every contestant has that beforehand."""
        n, n_layers = scene.geometry.n, scene.geometry.n_layers
        self.scene, self.kinds = scene, {type(act) for act in acts}
        self.todo = [said(act, n, n_layers) for act in acts]
        sites = {NEEDS[kind] for kind in self.kinds if kind in NEEDS}
        self.runs: dict[str, mv.Run] = {}
        if sites:
            self.runs["donor"] = mv.record(scene.vlm, scene.donor, sites)

    def base(self) -> Any:
        """The base pass that every sweep on this prompt shares."""
        return mv.base_run(self.scene.vlm, self.scene.base)

    def run(self, given: Any, metric: mv.Metric | None = None) -> Tensor:
        """The sweep's logits, or a metric of them; `given` a base run or the prompt."""
        return mv.intervene(
            self.scene.vlm,
            given,
            self.todo,
            runs=self.runs,
            vectors=self.vectors(),
            metric=metric,
        )

    def vectors(self) -> dict[str, Tensor]:
        """Vectors that the interventions name."""
        return {"mean": self.scene.mean} if Blank in self.kinds else {}

    def metric(self) -> mv.Metric:
        """A metric that reads two words."""
        return mv.logit_difference(self.scene.vlm, 7, 9)

    def planned(self, given: Any) -> dict[str, int]:
        """Operations that the plan says, base run excluded; it counts multiplications.

        Its own count of the least and of whole passes stands beside the independent
        one.
        """
        plan = mv.plan(self.scene.vlm, given, self.todo)
        counts = {"done": plan.work, "least": plan.least, "whole_passes": plan.whole}
        return {name: 2 * count for name, count in counts.items()}
