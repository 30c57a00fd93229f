"""How much faster interventions are than whole passes: answers first, seconds after.

Each sweep runs as it is meant to, from the prompt to its last number. Some of its
interventions are also run one whole forward pass each (`mechvlm.reference`): their
logits must agree, and only then are both sides timed, in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from mechvlm.engine import intervene
from mechvlm.errors import ArgumentError
from mechvlm.interventions import Ablate, Intervention, Knockout, Patch
from mechvlm.layout import Positions
from mechvlm.models.checks import tolerance
from mechvlm.models.hooked import HookedVLM
from mechvlm.plan import plan
from mechvlm.prompts import Prompt
from mechvlm.record import Run, record
from mechvlm.reference import intervene as whole_passes
from mechvlm.sites import Site
from mechvlm.wanted import whole_number

__all__ = ["FULL", "QUICK", "SWEEPS", "Effort", "Race", "race"]

_DONOR = "corrupted"

Logits = Float[Tensor, "run vocab"]


@dataclass(frozen=True)
class Effort:
    """How much is done.

    Attributes:
        budget: Work of a sweep, in whole passes; a sweep of more is thinned evenly.
        checked: Interventions of each sweep that are run as whole passes as well.
        repeats: Turns that are timed.
    """

    budget: int
    checked: int
    repeats: int


FULL = Effort(budget=60, checked=12, repeats=5)
QUICK = Effort(budget=12, checked=6, repeats=3)


@dataclass(frozen=True)
class Race:
    """One sweep: its claim, whether the answers agree, and what it took.

    Attributes:
        sweep: Its name, one of `SWEEPS`.
        claim: What is said of it, in a sentence.
        n: Interventions.
        n_possible: Interventions of the sweep before it was thinned.
        checked: Interventions that were compared with whole passes.
        off: Largest difference of a logit, as a share of the largest logit.
        allowed: The same, as far as this precision allows.
        sweep_s: Seconds of the sweep, of each turn; none where the answers differ.
        passes_s: Seconds of as many whole passes, likewise.
    """

    sweep: str
    claim: str
    n: int
    n_possible: int
    checked: int
    off: float
    allowed: float
    sweep_s: tuple[float, ...] = ()
    passes_s: tuple[float, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether the answers are the same, without which there is nothing to time."""
        return self.off <= self.allowed

    @property
    def ratios(self) -> tuple[float, ...]:
        """How many times as long the whole passes take, of each turn."""
        turns = zip(self.passes_s, self.sweep_s, strict=True)
        return tuple(passes / sweep for passes, sweep in turns)

    @property
    def ratio(self) -> float | None:
        """Their median; None where nothing was timed."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def holds(self) -> bool:
        """Whether the claim is true here: the same answers, in less time."""
        return self.ratio is not None and self.ratio > 1


def _patches(vlm: HookedVLM, prompt: Prompt) -> list[Intervention]:
    return [
        Patch(Site("resid_pre", layer), Positions.of(at), _DONOR)
        for layer in range(vlm.cfg.n_layers)
        for at in range(prompt.layout.n)
    ]


def _heads(vlm: HookedVLM, prompt: Prompt) -> list[Intervention]:
    every = Positions.of(range(prompt.layout.n))
    return [
        Patch(Site("z", layer, head), every, _DONOR)
        for layer in range(vlm.cfg.n_layers)
        for head in range(vlm.cfg.n_heads)
    ]


def _knockouts(vlm: HookedVLM, prompt: Prompt) -> list[Intervention]:
    layers, last = range(vlm.cfg.n_layers), prompt.layout["last"]
    return [
        Knockout(range(first, vlm.cfg.n_layers), last, Positions.of(at))
        for first in layers
        for at in prompt.layout["image"]
    ]


def _ablations(vlm: HookedVLM, prompt: Prompt) -> list[Intervention]:
    return [Ablate(Site("embed"), Positions.of(at)) for at in prompt.layout["image"]]


Made = Callable[[HookedVLM, Prompt], list[Intervention]]

SWEEPS: Mapping[str, tuple[str, Made]] = MappingProxyType(
    {
        "patch": ("patching the stream at one layer and position", _patches),
        "heads": ("patching one head at all positions", _heads),
        "knockout": ("cutting one image token off the last position", _knockouts),
        "ablate": ("ablating one image token before layer 0", _ablations),
    }
)
"""What can be timed: a name, what is done each time, and what makes the sweep."""


@torch.no_grad()
def race(
    vlm: HookedVLM,
    clean: Prompt,
    corrupted: Prompt,
    sweep: str,
    *,
    effort: Effort = FULL,
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """Check a sweep's answers against whole passes, then time both in turns.

    Args:
        vlm: The model.
        clean: The prompt that is run.
        corrupted: Its twin, whose activations are patched in.
        sweep: One of `SWEEPS`.
        effort: How much is done.
        clock: Seconds, rising.

    Returns:
        The race; without times where the answers differ.

    Raises:
        ArgumentError: There is no such sweep, or the effort is none.

    Example:
        >>> import mechvlm as mv
        >>> from mechvlm.bench import Effort, race
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> ask = f"what color is the {scene.things[0].shape} ?"
        >>> twins = [vlm.prompt(ask, scene.recolored(0, color).image)
        ...     for color in ("red", "blue")]
        >>> found = race(vlm, *twins, "ablate", effort=Effort(2, checked=2, repeats=1))
        >>> found.agrees, len(found.ratios)
        (True, 1)
    """
    if sweep not in SWEEPS:
        raise ArgumentError(
            f"no sweep is called {sweep!r}; there are {', '.join(SWEEPS)}."
        )
    for name in ("budget", "checked", "repeats"):
        whole_number(vars(effort)[name], 1, name)
    doing, made = SWEEPS[sweep]
    every = made(vlm, clean)
    todo = _thinned(vlm, clean, every, effort.budget)
    sample = _spread(len(todo), effort.checked)
    given = _Given(vlm, clean, {_DONOR: record(vlm, corrupted, ["resid_pre", "z"])})
    few = [todo[i] for i in sample]
    off = _apart(given.swept(todo)[sample], given.passed(few))
    found = Race(
        sweep,
        f"{len(todo)} runs of {doing} take less time than as many whole passes,"
        " and answer the same",
        n=len(todo),
        n_possible=len(every),
        checked=len(few),
        off=off,
        allowed=tolerance(vlm.cfg.dtype),
    )
    if not found.agrees:
        return found
    sides = {"sweep": lambda: given.swept(todo), "passes": lambda: given.passed(few)}
    took = _turns(sides, effort.repeats, vlm.cfg.device, clock)
    share = len(todo) / len(few)
    return replace(
        found,
        sweep_s=tuple(took["sweep"]),
        passes_s=tuple(share * seconds for seconds in took["passes"]),
    )


@dataclass(frozen=True, eq=False)
class _Given:
    """What both sides run on."""

    vlm: HookedVLM
    prompt: Prompt
    runs: Mapping[str, Run]

    def swept(self, todo: Sequence[Intervention]) -> Logits:
        """The answers of the sweep."""
        return intervene(self.vlm, self.prompt, todo, runs=self.runs, progress=False)

    def passed(self, todo: Sequence[Intervention]) -> Logits:
        """The answers of whole passes, one each."""
        return whole_passes(self.vlm, self.prompt, todo, runs=self.runs, progress=False)


def _thinned(
    vlm: HookedVLM, prompt: Prompt, every: list[Intervention], budget: int
) -> list[Intervention]:
    """Every so many of the interventions, as the budget of work allows."""
    work = plan(vlm, prompt, every).share * len(every)
    return every[:: max(1, ceil(work / budget))]


def _spread(n: int, most: int) -> list[int]:
    """Indices of some of `n` things, the first and the last among them."""
    few = min(n, most)
    return sorted({round(i * (n - 1) / max(1, few - 1)) for i in range(few)})


def _apart(own: Logits, truth: Logits) -> float:
    """Largest difference, as a share of the largest logit."""
    difference = (own.float() - truth.float()).abs().max()
    return float(difference / truth.float().abs().max())


def _turns(
    sides: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Seconds of each side, in turns, each first in every second one."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name in sorted(sides, reverse=turn % 2 == 1):
            start = _settled(device, clock)
            sides[name]()
            took[name].append(_settled(device, clock) - start)
    return took


def _settled(device: torch.device, clock: Callable[[], float]) -> float:
    """The time when all that the device was given to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return clock()
