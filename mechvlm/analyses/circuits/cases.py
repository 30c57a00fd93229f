"""Pairs made ready for circuits: base runs, ablated values, and the gap between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvlm.ablating import Ablation, ablated_run
from mechvlm.axes import Labelled, labelled
from mechvlm.errors import CircuitError, EngineError, PairError
from mechvlm.graph import Circuit, Shape
from mechvlm.metrics import Metric, recovery
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.lowering import RunLike
from mechvlm.pairs import Pair
from mechvlm.posing import ids_of
from mechvlm.progress import bar_of
from mechvlm.screening.bound import Bound, bound
from mechvlm.statistics import mean_of
from mechvlm.subgraph import Ground, Wiring, answers
from mechvlm.wanted import one, several

__all__ = [
    "PAPER",
    "UNITS",
    "Case",
    "cases",
    "check_circuit",
    "column",
    "described",
    "named",
    "paired_up",
    "spread",
]

PAPER = "arXiv:2211.00593"
_AT_ONCE = 50
"""Parts that are run together: their rows share the layers' weights, and memory."""

UNITS = "fraction of the gap between the whole model and all ablated"


@dataclass(frozen=True, eq=False)
class Case:
    """One pair, ready to be asked of circuits.

    Attributes:
        bound: The pair with its runs.
        ground: What circuits are run on.
        empty: The metric where everything is ablated.
        share: The metric as a share of the gap between the whole model (1) and
            everything ablated (0).
    """

    bound: Bound
    ground: Ground
    empty: float
    share: Metric

    @property
    def gap(self) -> float:
        """The metric of the whole model, less that of everything ablated."""
        return self.bound.clean - self.empty

    def shares(
        self, vlm: HookedVLM, wirings: Sequence[Wiring]
    ) -> Float[Tensor, " wiring"]:
        """What several parts of the model keep of the gap."""
        found = [
            answers(vlm, self.ground, wirings[at : at + _AT_ONCE], self.share)
            for at in range(0, len(wirings), _AT_ONCE)
        ]
        return torch.cat(found).float().cpu()


def paired_up(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs of the same token groups.

    Raises:
        ArgumentError: They are no list of pairs.
        PairError: Groups are called differently, or there is no pair.
    """
    found = several(pairs, Pair, "pairs", "[mechvlm.bind(vlm, picture_pair), ...]")
    if not found:
        raise PairError("no pair is given, so there is nothing to explain.")
    for other in found[1:]:
        if set(other.groups) != set(found[0].groups):
            raise PairError(
                f"one pair has token groups {sorted(found[0].groups)} and another"
                f" {sorted(other.groups)}: a circuit's edges start at groups that all"
                " prompts have. Name them alike in all pairs."
            )
    return found


def cases(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    ablation: Ablation,
    progress: str | bool | None,
) -> Iterator[Case]:
    """Each pair in its turn, ready; the one before may then be let go.

    Raises:
        EngineError: The model has hooks of its own.
        MetricError: A pair's metric is the same in the model and with all ablated.
        PairError: And other kinds; see `paired_up` and `ablated_run`.
    """
    if vlm.has_hooks:
        raise EngineError(
            "the model has hooks of its own, which a circuit's parts would not pass as"
            " they expect. Take them away with vlm.reset_hooks()."
        )
    prompts = [prompt for each in pairs for prompt in (each.clean, each.corrupted)]
    kept: RunLike | None = None
    if ablation == "mean":
        kept = ablated_run(vlm, prompts[0], ablation, prompts)
    with bar_of(len(pairs), progress) as bar:
        for pair in pairs:
            ablated = (
                ablated_run(vlm, pair.corrupted, ablation) if kept is None else kept
            )
            yield _case(vlm, pair, ablated)
            bar.update(1)


@torch.no_grad()
def _case(vlm: HookedVLM, pair: Pair, ablated: RunLike) -> Case:
    once = bound(vlm, pair, ablated=ablated)
    ground = Ground.of(vlm, once.base, ablated, pair.groups)
    empty = float(answers(vlm, ground, [Wiring({})], pair.metric)[0])
    share = recovery(pair.metric, clean=once.clean, corrupted=empty)
    return Case(once, ground, empty, share)


def check_circuit(vlm: HookedVLM, circuit: object, what: str = "circuit") -> Circuit:
    """A circuit of a model of this shape, with at least one edge.

    Raises:
        ArgumentError: It is none.
        CircuitError: It is of another shape, or empty.
    """
    found = one(circuit, Circuit, what, "mechvlm.discover(vlm, pairs)")
    ours = Shape.of(vlm.cfg)
    if found.shape != ours:
        raise CircuitError(
            f"the {what} is of a model of {found.shape}, and this one has {ours}. Was"
            " it found in another model?"
        )
    if not found.edges:
        raise CircuitError(f"the {what} has no edge, so there is nothing to run.")
    return found


def spread(
    each: Float[np.ndarray, "row pair"],
    name: str,
    pairs: Sequence[Pair],
    **rows: Sequence[str],
) -> dict[str, Labelled]:
    """Values per row and pair, and their means over pairs with intervals.

    Args:
        each: The values.
        name: What they are called; "<name>_each" are the values themselves.
        pairs: The pairs.
        **rows: The dimension of the rows and its labels.
    """
    means = np.array([mean_of(row)[:3] for row in each.astype(float)]).reshape(-1, 3)
    ends = zip(("", "_low", "_high"), means.T, strict=True)
    found = {name + end: column(name + end, x, UNITS, **rows) for end, x in ends}
    alone, pair = f"{name}_each", {"pair": named(pairs)}
    return found | {alone: column(alone, each, UNITS, **rows, **pair)}


def column(
    name: str, values: object, units: str, **dims: Sequence[str] | range
) -> Labelled:
    """An array of a result about circuits."""
    return labelled(values, name=name, units=units, paper=PAPER, attrs=None, **dims)


def described(
    vlm: HookedVLM, pairs: Sequence[Pair], ablation: Ablation
) -> dict[str, str | int]:
    """What results about circuits say of how they came about."""
    return {
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "metric": pairs[0].metric.name,
        "pairs": len(pairs),
        "ablation": ablation if isinstance(ablation, str) else "given run",
    }


def named(pairs: Sequence[Pair]) -> list[str]:
    """What tables call the pairs."""
    return ids_of([pair.id for pair in pairs], "pair")
