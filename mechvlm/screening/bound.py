"""What several calls on one pair share: its clean run, and what replaces it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mechvlm.ablating import giving
from mechvlm.errors import ArgumentError
from mechvlm.metrics import Metric, recovery
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.lowering import RunLike
from mechvlm.pairs import Pair
from mechvlm.record import Run, base_run, record
from mechvlm.wanted import one

__all__ = ["Bound", "Ends", "bound", "ends_of", "gap_of"]


@dataclass(frozen=True, eq=False)
class Bound:
    """A pair whose runs were made, to be used by several calls.

    Attributes:
        pair: The pair.
        base: Clean prompt's base run.
        ablated: What stands in for a value that is taken away, at the sites embed, z
            and mlp_out; the corrupted prompt's run unless another was given.
        clean: Metric of the clean prompt.
        corrupted: Metric of the corrupted prompt.
    """

    pair: Pair
    base: Run
    ablated: RunLike
    clean: float
    corrupted: float

    @property
    def gap(self) -> float:
        """The metric's difference between clean and corrupted prompt, never 0."""
        return self.clean - self.corrupted


@dataclass(frozen=True, eq=False)
class Ends:
    """Where changes lead: another run's values, and the metric at its end."""

    ablated: RunLike
    corrupted: float


def bound(vlm: HookedVLM, pair: Pair, *, ablated: RunLike | None = None) -> Bound:
    """Run both prompts of a pair once, for all that will be asked about it.

    Args:
        vlm: The model.
        pair: The two prompts.
        ablated: Values at the sites embed, z and mlp_out that take the place of the
            clean ones, such as means over many prompts; None takes the corrupted
            prompt's. The gap stays that between clean and corrupted prompt.

    Raises:
        EngineError: The model has hooks.
        MetricError: The metric is the same for both prompts.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=2)
        >>> twin = scene.recolored(0, "cyan")
        >>> words = "what color is it ?", scene.things[0].color, "cyan"
        >>> pair = mv.bind(vlm, mv.PicturePair(scene.image, twin.image, *words))
        >>> once = bound(vlm, pair)
        >>> once.gap == once.clean - once.corrupted
        True
    """
    one(pair, Pair, "pair", "mechvlm.bind(vlm, ...)")
    ends = ends_of(vlm, pair, ablated)
    base = base_run(vlm, pair.clean)
    clean = float(pair.metric(base.logits[None])[0])
    gap_of(pair.metric, clean, ends.corrupted)
    return Bound(pair, base, ends.ablated, clean, ends.corrupted)


@torch.no_grad()
def ends_of(vlm: HookedVLM, pair: Pair | Bound, ablated: RunLike | None) -> Ends:
    """What replaces the clean values: one forward, or none where a pair is bound.

    Raises:
        ArgumentError: A bound pair came with other values beside its own.
    """
    if isinstance(pair, Bound):
        if ablated is not None:
            raise ArgumentError(
                "ablated was given beside a bound pair, which has values of its own."
                " Give it to bound(vlm, pair, ablated=...)."
            )
        return Ends(pair.ablated, pair.corrupted)
    one(pair, Pair, "pair", "mechvlm.bind(vlm, ...), or bound(vlm, pair)")
    run = record(vlm, pair.corrupted, () if ablated is not None else giving(vlm.cfg))
    corrupted = float(pair.metric(run.logits[None])[0])
    return Ends(run if ablated is None else ablated, corrupted)


def gap_of(metric: Metric, clean: float, corrupted: float) -> float:
    """The metric's difference between the two prompts.

    Raises:
        MetricError: There is none.
    """
    recovery(metric, clean=clean, corrupted=corrupted)
    return clean - corrupted
