"""Choosing heads for a circuit: each next one adds most to what it explains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from jaxtyping import Float
from torch import Tensor

from mechvlm.ablating import Ablation
from mechvlm.analyses.circuits.cases import (
    Case,
    cases,
    described,
    live,
    over_pairs,
    settled,
)
from mechvlm.errors import CircuitError
from mechvlm.graph import Circuit, Node, Shape
from mechvlm.models.hooked import HookedVLM
from mechvlm.pairs import Pair
from mechvlm.screening import node_scores
from mechvlm.screening.bound import paired_up
from mechvlm.subgraph import Wiring
from mechvlm.wanted import whole_number

__all__ = ["discover_heads"]


def discover_heads(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    n: int,
    *,
    ablation: Ablation = "counterfactual",
    top: int | None = 64,
    progress: bool | None = None,
) -> Circuit:
    """Choose heads one by one, each the one that adds most to the circuit so far.

    The circuit starts with all token groups and MLPs, every edge among them, and no
    head. Each step runs it once with every head that is left to choose from.

    Args:
        vlm: The model.
        pairs: Pairs with the same token groups; what a circuit keeps is summed over
            them.
        n: Heads to choose.
        ablation: What stands for an ablated sender; see `discover`.
        top: Heads to choose from, the best by gradient; None takes all.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        The circuit of every edge among tokens, MLPs and the heads. `about["gains"]`
        holds the heads' labels in the order of choice, with the faithfulness of the
        circuit then: a fraction of the gap, see `faithfulness`.

    Raises:
        ArgumentError: `n` or `top` is no whole number of 1 or more.
        CircuitError: There are fewer than `n` heads to choose from.
        EngineError, InterventionError, MetricError, PairError, RunError: As `discover`.

    Paper: what is made largest is the faithfulness of Wang et al. 2022,
    arXiv:2211.00593.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> pair = mv.bind(vlm, mv.scenes.counterfactual(scene, change="color").pair)
        >>> circuit = mv.discover_heads(vlm, [pair], 2, top=6, progress=False)
        >>> len(circuit.of_kind("head")), len(circuit.of_kind("mlp"))
        (2, 8)
    """
    given = paired_up(pairs)
    shape = Shape.of(vlm.cfg)
    own = settled(vlm, given, ablation)
    shown = False if progress is False else "heads"
    left = list(shape.heads)
    if top is not None and whole_number(top, 1, "top") < len(left):
        left = _screened(vlm, cases(vlm, given, own, shown), shape)[:top]
    if whole_number(n, 1, "n") > len(left):
        raise CircuitError(
            f"n={n}: there are {len(left)} heads to choose from. Raise top, or choose"
            " fewer."
        )
    fixed = [*map(Node.tokens, given[0].groups), *shape.mlps]
    chosen: list[Node] = []
    gains: list[tuple[str, float]] = []
    for _ in range(n):
        several = [[*fixed, *chosen, head] for head in left]
        kept = _kept(vlm, cases(vlm, given, own, shown), several, shape)
        best = int(kept.argmax())
        gains.append((str(left[best]), float(kept[best])))
        chosen.append(left.pop(best))
    about = {**described(vlm, given, ablation), "gains": gains}
    name = vlm.cfg.model_name
    found = Circuit.among([*fixed, *chosen], shape, model=name, about=about)
    return live(found, given)


def _kept(
    vlm: HookedVLM,
    ready: Iterable[Case],
    several: Sequence[Sequence[Node]],
    shape: Shape,
) -> Float[Tensor, " circuit"]:
    """What circuits of some nodes keep of the gap, over pairs."""
    wirings = [Wiring.of(Circuit.among(nodes, shape)) for nodes in several]
    kept, gaps = [], []
    for case in ready:
        kept.append(case.kept(vlm, wirings))
        gaps.append(case.gap)
    return over_pairs(kept, gaps)


def _screened(vlm: HookedVLM, ready: Iterable[Case], shape: Shape) -> list[Node]:
    """Heads by the size of their scores over pairs, the largest first."""
    scores: dict[Node, float] = defaultdict(float)
    for case in ready:
        for node, score in node_scores(vlm, case.bound).ranked():
            scores[node] += score * case.bound.gap
    return sorted(shape.heads, key=lambda head: -abs(scores[head]))
