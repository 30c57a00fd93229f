"""Circuits taken apart: is anything missing, and is every part needed?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr

from mechvlm.ablating import Ablation
from mechvlm.analyses.circuits.cases import (
    cases,
    check_circuit,
    described,
    kept_by,
    live,
    spread,
)
from mechvlm.errors import CircuitError
from mechvlm.graph import Circuit, Node
from mechvlm.models.hooked import HookedVLM
from mechvlm.pairs import Pair
from mechvlm.screening.bound import paired_up
from mechvlm.subgraph import Wiring
from mechvlm.wanted import whole_number

__all__ = ["completeness", "minimality"]


def completeness(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    circuit: Circuit,
    *,
    n_sets: int = 20,
    ablation: Ablation = "counterfactual",
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """Does the circuit without some nodes do what the model without them does?

    Where the model gets along without nodes that the circuit cannot spare, something
    stands in for them that the circuit lacks. Tried are no nodes, each head and MLP of
    the circuit alone, and random sets of them.

    Args:
        vlm: The model.
        pairs: Pairs to judge by.
        circuit: The circuit.
        n_sets: Random sets, each of a random number of the circuit's heads and MLPs.
        ablation: What stands for an ablated sender; see `discover`.
        seed: Of the sets.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Dataset over (set), whose label names the nodes that are taken away: "circuit"
        and "model", what each keeps without them, and "difference", model less circuit,
        each a fraction of the gap over all pairs (see `faithfulness`), with
        "_low", "_high" and "_each" over (set, pair). A complete circuit differs by 0
        everywhere; `attrs["incompleteness"]` is the mean size of the difference.

    Raises:
        ArgumentError: `n_sets` or `seed` is no whole number of 0 or more.
        CircuitError: The circuit is empty, another model's, of other token groups, or
            has no head or MLP.
        EngineError, InterventionError, MetricError, PairError, RunError: As `discover`.

    Paper: Wang et al. 2022, arXiv:2211.00593, completeness.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> pair = mv.bind(vlm, mv.scenes.counterfactual(scene, change="color").pair)
        >>> nodes = map(mv.Node.parse, ("[object]", "L3.H1", "MLP 4"))
        >>> circuit = mv.Circuit.among(nodes, mv.Shape.of(vlm.cfg))
        >>> found = mv.completeness(vlm, [pair], circuit, n_sets=1)
        >>> [str(label) for label in found["set"].values[:3]]
        ['nothing', 'L3.H1', 'MLP 4']
    """
    asked = paired_up(pairs)
    own = live(check_circuit(vlm, circuit), asked)
    rng = np.random.default_rng(whole_number(seed, 0, "seed"))
    sets = _sets(own, whole_number(n_sets, 0, "n_sets"), rng)
    both = Wiring.of(own), Wiring.whole(own.shape, asked[0].groups)
    wirings = [wiring.less(gone) for wiring in both for gone in sets]
    shown = False if progress is False else "completeness"
    kept, gaps, _ = kept_by(vlm, cases(vlm, asked, ablation, shown), wirings)
    ours, theirs = np.split(kept, 2)
    name = {"set": [" + ".join(map(str, gone)) or "nothing" for gone in sets]}
    return xr.Dataset(
        {
            **spread(ours, gaps, "circuit", asked, **name),
            **spread(theirs, gaps, "model", asked, **name),
            **spread(theirs - ours, gaps, "difference", asked, **name),
        },
        attrs={
            **described(vlm, asked, ablation),
            "incompleteness": float(
                np.abs((theirs - ours).sum(axis=1) / gaps.sum()).mean()
            ),
            "seed": seed,
        },
    )


def minimality(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    circuit: Circuit,
    *,
    of: Literal["edges", "nodes"] = "nodes",
    ablation: Ablation = "counterfactual",
    progress: bool | None = None,
) -> xr.Dataset:
    """What a circuit loses with each of its parts.

    Args:
        vlm: The model.
        pairs: Pairs to judge by.
        circuit: The circuit.
        of: Whether each edge is taken away in turn, or each token group, head and MLP
            with all its edges.
        ablation: What stands for an ablated sender; see `discover`.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Dataset over (part): "loss", the circuit's faithfulness less that without the
        part, a fraction of the gap over all pairs, with "_low", "_high" and "_each"
        over (part, pair). Parts whose loss is 0 are not needed where all others
        are; below 0, they hold the answer back.

    Raises:
        CircuitError: The circuit is empty, another model's or of other token groups, or
            `of` names no parts.
        EngineError, InterventionError, MetricError, PairError, RunError: As `discover`.

    Paper: Wang et al. 2022, arXiv:2211.00593, minimality, with no other part taken
    away.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> pair = mv.bind(vlm, mv.scenes.counterfactual(scene, change="color").pair)
        >>> nodes = map(mv.Node.parse, ("[object]", "L3.H1", "MLP 4"))
        >>> circuit = mv.Circuit.among(nodes, mv.Shape.of(vlm.cfg))
        >>> [str(part) for part in mv.minimality(vlm, [pair], circuit)["part"].values]
        ['[object]', 'L3.H1', 'MLP 4']
    """
    asked = paired_up(pairs)
    own = live(check_circuit(vlm, circuit), asked)
    whole = Wiring.of(own)
    parts: list[str]
    if of == "edges":
        parts = [str(edge) for edge in own.edges]
        less = [whole.less_edge(edge) for edge in own.edges]
    elif of == "nodes":
        nodes = [node for node in own.nodes if node.gives]
        parts, less = list(map(str, nodes)), [whole.less([node]) for node in nodes]
    else:
        raise CircuitError(f"of={of!r}: wanted 'edges' or 'nodes'.")
    shown = False if progress is False else "minimality"
    kept, gaps, _ = kept_by(vlm, cases(vlm, asked, ablation, shown), [whole, *less])
    return xr.Dataset(
        spread(kept[0] - kept[1:], gaps, "loss", asked, part=parts),
        attrs=described(vlm, asked, ablation),
    )


def _sets(
    circuit: Circuit, n_sets: int, rng: np.random.Generator
) -> list[tuple[Node, ...]]:
    """No nodes, each of a circuit's heads and MLPs alone, and random sets of them."""
    nodes = [*circuit.of_kind("head"), *circuit.of_kind("mlp")]
    if not nodes:
        raise CircuitError(
            "the circuit has no head and no MLP, so there is nothing to take away."
        )
    found: list[tuple[Node, ...]] = [(), *((node,) for node in sorted(nodes))]
    for _ in range(n_sets):
        n = int(rng.integers(1, len(nodes) + 1))
        chosen = rng.choice(len(nodes), n, replace=False)
        found.append(tuple(sorted(nodes[i] for i in chosen)))
    return list(dict.fromkeys(found))
