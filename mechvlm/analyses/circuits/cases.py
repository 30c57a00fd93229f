"""Pairs made ready for circuits: base runs, ablated values, and the gap between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvlm.ablating import Ablation, ablated_run
from mechvlm.axes import Labelled, labelled
from mechvlm.errors import CircuitError, EngineError, MetricError
from mechvlm.graph import LOGITS, Circuit, Edge, Shape
from mechvlm.metrics import recovery
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.lowering import RunLike
from mechvlm.models.rowwise.packing import most_rows
from mechvlm.pairs import Pair
from mechvlm.posing import ids_of
from mechvlm.progress import bar_of
from mechvlm.screening.bound import Bound, bound, metrics_of
from mechvlm.statistics import mean_of
from mechvlm.subgraph import Ground, Wiring, answers
from mechvlm.wanted import one

__all__ = [
    "PAPER",
    "UNITS",
    "Case",
    "Kept",
    "cases",
    "check_circuit",
    "column",
    "described",
    "exists",
    "kept_by",
    "live",
    "named",
    "over_pairs",
    "settled",
    "spread",
]

PAPER = "arXiv:2211.00593"

UNITS = "fraction of the gap between the whole model and all ablated"

_MOST_AT_ONCE = 50
"""Parts of a model that are run together: their rows share the layers' weights."""


@dataclass(frozen=True, eq=False)
class Case:
    """One pair, ready to be asked of circuits.

    Attributes:
        bound: The pair with its runs.
        ground: What circuits are run on.
        empty: The metric where everything is ablated.
    """

    bound: Bound
    ground: Ground
    empty: float

    @property
    def gap(self) -> float:
        """The metric of the whole model, less that of everything ablated; above 0."""
        return self.bound.clean - self.empty

    def kept(
        self, vlm: HookedVLM, wirings: Iterable[Wiring]
    ) -> Float[Tensor, " wiring"]:
        """What several parts of the model keep of the gap, in the metric's unit.

        Raises:
            MetricError: It is no number.
        """
        metric = self.bound.pair.metric
        most = at_once(vlm, self.ground)
        found = [
            answers(vlm, self.ground, part, metric).double().cpu() - self.empty
            for part in batched(wirings, most)
        ]
        kept = torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)
        if not kept.isfinite().all():
            raise MetricError(
                f"{metric.name!r} is no number in a part of the model that is run"
                " alone. A probability that falls to 0 has no logarithm: take a logit"
                " difference."
            )
        return kept


def at_once(vlm: HookedVLM, ground: Ground) -> int:
    """How many parts fit into memory together: each keeps what all its nodes give."""
    n, cfg = ground.base.prompt.layout.n, vlm.cfg
    n_kept = 3 * cfg.n_layers + len(ground.groups) + 8
    own_bytes = n_kept * n * cfg.d_model * max(cfg.dtype.itemsize, 4)
    return min(_MOST_AT_ONCE, most_rows(cfg, own_bytes, None))


def batched(wirings: Iterable[Wiring], most: int) -> Iterator[list[Wiring]]:
    """So many at a time, each made only then."""
    left = iter(wirings)
    while part := list(islice(left, most)):
        yield part


def settled(vlm: HookedVLM, pairs: Sequence[Pair], ablation: Ablation) -> Ablation:
    """An ablation whose mean over all prompts of the pairs, if it is one, is made."""
    prompts = [prompt for each in pairs for prompt in (each.clean, each.corrupted)]
    if ablation == "mean":
        return ablated_run(vlm, prompts[0], ablation, prompts)
    return ablation


def cases(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    ablation: Ablation,
    progress: str | bool | None,
) -> Iterator[Case]:
    """Each pair in its turn, ready; the one before may then be let go.

    Raises:
        ArgumentError: The ablation is no name and no run.
        EngineError: The model has hooks of its own.
        InterventionError: No ablation has this name.
        MetricError: A pair's metric is not larger in the model than with all ablated.
        PairError: "mean" is over prompts of different layouts.
        PromptError: "mean" is over fewer than two prompts.
        RunError: The ablated values do not fit a prompt.
    """
    if vlm.has_hooks:
        raise EngineError(
            "the model has hooks of its own, which a circuit's parts would not pass as"
            " they expect. Take them away with vlm.reset_hooks()."
        )
    own = settled(vlm, pairs, ablation)
    with bar_of(len(pairs), progress) as bar:
        for name, pair in zip(named(pairs), pairs, strict=True):
            yield _case(vlm, pair, ablated_run(vlm, pair.corrupted, own), name)
            bar.update(1)


@torch.no_grad()
def _case(vlm: HookedVLM, pair: Pair, ablated: RunLike, name: str) -> Case:
    once = bound(vlm, pair, ablated=ablated)
    ground = Ground.of(vlm, once.base, ablated, pair.groups)
    empty = float(answers(vlm, ground, [Wiring({})], pair.metric)[0])
    recovery(pair.metric, clean=once.clean, corrupted=empty)  # refuses an empty gap
    if once.clean < empty:
        raise MetricError(
            f"pair {name!r}: {pair.metric.name} is {once.clean:.4g} in the model and"
            f" {empty:.4g} with everything ablated: there is nothing that a circuit"
            " could bring back. Does the model answer this prompt right? Leave such"
            " pairs out."
        )
    return Case(once, ground, empty)


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


def live(circuit: Circuit, pairs: Sequence[Pair], what: str = "circuit") -> Circuit:
    """A circuit without edges that can carry nothing in these prompts.

    The logits are read at the last position alone: of all token groups only the one
    that holds it gives to them directly.

    Raises:
        CircuitError: Nothing else is in it, or it has tokens of groups that the pairs
            do not have.
    """
    kept = tuple(edge for edge in circuit.edges if exists(edge, pairs, what))
    if not kept:
        raise CircuitError(
            f"the {what} has only edges from token groups to the logits, which read the"
            " last position alone: none of these groups holds it, so nothing flows."
        )
    return replace(circuit, edges=kept)


def exists(edge: Edge, pairs: Sequence[Pair], what: str = "circuit") -> bool:
    """Whether an edge joins positions in every pair.

    Raises:
        CircuitError: A pair has no token group of this name.
    """
    group = edge.sender.group
    if edge.sender.kind != "tokens":
        return True
    if group not in pairs[0].groups:
        raise CircuitError(
            f"the {what} has tokens of {group!r}, and the pairs have groups"
            f" {sorted(pairs[0].groups)}. Was it found on other groups?"
        )
    if edge.receiver != LOGITS:
        return True
    return all(pair.clean.layout.last in pair.groups[group] for pair in pairs)


class Kept(NamedTuple):
    """What parts of a model keep of each pair's gap, in the metric's unit.

    Attributes:
        values: What each part keeps.
        gaps: What there is to keep: the whole model's metric, less that of everything
            ablated.
        clean: The whole model's metric.
    """

    values: Float[np.ndarray, "wiring pair"]
    gaps: Float[np.ndarray, " pair"]
    clean: Float[np.ndarray, " pair"]


def kept_by(vlm: HookedVLM, ready: Iterable[Case], wirings: Sequence[Wiring]) -> Kept:
    """What parts of the model keep of every pair."""
    found = [
        (case.kept(vlm, wirings).numpy(), case.gap, case.bound.clean) for case in ready
    ]
    values, gaps, clean = zip(*found, strict=True)
    return Kept(np.array(values).T, np.array(gaps), np.array(clean))


def spread(
    kept: Float[np.ndarray, "row pair"],
    gaps: Float[np.ndarray, " pair"],
    name: str,
    pairs: Sequence[Pair],
    **rows: Sequence[str],
) -> dict[str, Labelled]:
    """Shares of the gap per row and pair, and over all pairs with intervals.

    Over pairs it is all that is kept, by all that there is to keep: a pair whose gap is
    small weighs little, where the mean of shares would hang on it.

    Args:
        kept: What is kept of each pair's gap, in the metric's unit.
        gaps: The gaps.
        name: What the shares are called; "<name>_each" are those of each pair.
        pairs: The pairs.
        **rows: The dimension of the rows and its labels.
    """
    means = [mean_of(row)[:3] for row in kept / gaps.mean()]
    ends = zip(("", "_low", "_high"), np.array(means).reshape(-1, 3).T, strict=True)
    found = {name + end: column(name + end, x, UNITS, **rows) for end, x in ends}
    alone, pair = f"{name}_each", {"pair": named(pairs)}
    return found | {alone: column(alone, kept / gaps, UNITS, **rows, **pair)}


def column(
    name: str, values: object, units: str, **dims: Sequence[str] | range
) -> Labelled:
    """An array of a result about circuits."""
    return labelled(values, name=name, units=units, paper=PAPER, attrs=None, **dims)


def described(
    vlm: HookedVLM, pairs: Sequence[Pair], ablation: Ablation
) -> dict[str, str | int | list[str]]:
    """What results about circuits say of how they came about."""
    return {
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "pairs": len(pairs),
        "ablation": ablation if isinstance(ablation, str) else "given run",
        **metrics_of(pairs),
    }


def named(pairs: Sequence[Pair]) -> list[str]:
    """What tables call the pairs."""
    return ids_of([pair.id for pair in pairs], "pair")


def over_pairs(kept: Sequence[Tensor], gaps: Sequence[float]) -> Float[Tensor, " row"]:
    """What is kept over all pairs, by all that there is to keep."""
    return torch.stack(list(kept)).double().sum(dim=0) / sum(gaps)
