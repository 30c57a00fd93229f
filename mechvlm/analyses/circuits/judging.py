"""How much of a behaviour a circuit explains, and how much any other would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from mechvlm.ablating import Ablation
from mechvlm.analyses.circuits.cases import (
    UNITS,
    cases,
    check_circuit,
    column,
    described,
    named,
    paired_up,
    spread,
)
from mechvlm.errors import CircuitError
from mechvlm.graph import Circuit
from mechvlm.models.hooked import HookedVLM
from mechvlm.pairs import Pair
from mechvlm.subgraph import Wiring

__all__ = ["faithfulness", "random_baseline"]


def faithfulness(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    circuits: Circuit | Mapping[str, Circuit],
    *,
    ablation: Ablation = "counterfactual",
    progress: bool | None = None,
) -> xr.Dataset:
    """How much a circuit explains: what it does alone, and what is left without it.

    Alone, every receiver gets its senders' own values along the circuit's edges and
    ablated values along all others. Without it, the other way round.

    Args:
        vlm: The model.
        pairs: Pairs to judge by; best others than those the circuit was found on.
        circuits: One circuit, or several by name.
        ablation: What stands for an ablated sender; see `discover`.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Dataset over (circuit): "faithfulness" of the circuit alone and "without", that
        of all the rest, each a fraction of the gap between the whole model (1) and
        everything ablated (0), averaged over pairs, with "_low" and "_high" ends of an
        interval; "faithfulness_each" and "without_each" over (circuit, pair); "edges",
        "heads" and "share of heads" of each circuit; "clean" and "empty" over (pair),
        the metric at both ends of the gap.

    Raises:
        CircuitError: A circuit is empty, or another model's.
        PairError: The pairs' token groups, or for "mean" their layouts, differ.
        MetricError: A pair's metric is the same clean and ablated.
        EngineError: The model has hooks of its own.

    Paper: faithfulness as in Wang et al. 2022, arXiv:2211.00593; by edges as in Hanna
    et al. 2024, arXiv:2403.17806.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> pair = mv.bind(vlm, mv.scenes.counterfactual(scene, change="color").pair)
        >>> whole = mv.Circuit.whole(mv.Shape.of(vlm.cfg), pair.groups)
        >>> found = mv.faithfulness(vlm, [pair], whole)
        >>> [round(float(found[name][0]), 3) for name in ("faithfulness", "without")]
        [1.0, 0.0]
    """
    given = circuits if isinstance(circuits, Mapping) else {"circuit": circuits}
    several = {name: check_circuit(vlm, each, name) for name, each in given.items()}
    if not several:
        raise CircuitError("no circuit is given, so there is nothing to judge.")
    asked = paired_up(pairs)
    around = [Wiring.around(each, tuple(asked[0].groups)) for each in several.values()]
    wirings = [*map(Wiring.of, several.values()), *around]
    shown = False if progress is False else "faithfulness"
    shares, ends = [], []
    for case in cases(vlm, asked, ablation, shown):
        shares.append(case.shares(vlm, wirings).numpy())
        ends.append((case.bound.clean, case.empty))
    table = np.array(shares).T
    alone, without = table[: len(several)], table[len(several) :]
    name = {"circuit": list(several)}
    pair = {"pair": named(asked)}
    units = asked[0].metric.units
    counts = {
        "edges": [len(each) for each in several.values()],
        "heads": [len(each.of_kind("head")) for each in several.values()],
        "share of heads": [each.share_of_heads for each in several.values()],
    }
    clean, empty = np.array(ends).T
    return xr.Dataset(
        {
            **spread(alone, "faithfulness", asked, **name),
            **spread(without, "without", asked, **name),
            **{
                what: column(what, values, what, **name)
                for what, values in counts.items()
            },
            "clean": column("clean", clean, units, **pair),
            "empty": column("empty", empty, units, **pair),
        },
        attrs=described(vlm, asked, ablation),
    )


def random_baseline(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    circuit: Circuit,
    *,
    n: int = 100,
    ablation: Ablation = "counterfactual",
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """How much random circuits of the same size explain.

    A random circuit has as many heads and MLPs as the circuit, drawn at random, its
    token groups, and as many edges, drawn among those that lie on a way from tokens to
    the logits; where its nodes have fewer, all of them.

    Args:
        vlm: The model.
        pairs: Pairs to judge by.
        circuit: The circuit.
        n: Random circuits.
        ablation: What stands for an ablated sender; see `discover`.
        seed: Of the drawing.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Dataset over (draw): "faithfulness" of each random circuit, averaged over pairs,
        and its "edges". `attrs` hold "circuit", the faithfulness of the circuit itself,
        "beaten", the share of random circuits below it, and "p", the chance of doing as
        well at random: (1 + random circuits that reach it) / (1 + n).

    Raises:
        CircuitError: The circuit is empty or another model's, or `n` is below 1.
        PairError: The pairs' token groups, or for "mean" their layouts, differ.
        MetricError: A pair's metric is the same clean and ablated.
        EngineError: The model has hooks of its own.

    Paper: random circuits of one size as in Wang et al. 2022, arXiv:2211.00593.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> pair = mv.bind(vlm, mv.scenes.counterfactual(scene, change="color").pair)
        >>> nodes = map(mv.Node.parse, ("[object]", "L3.H1", "MLP 4"))
        >>> circuit = mv.Circuit.among(nodes, mv.Shape.of(vlm.cfg))
        >>> found = mv.random_baseline(vlm, [pair], circuit, n=3)
        >>> found.sizes["draw"], 0 < found.attrs["p"] <= 1
        (3, True)
    """
    check_circuit(vlm, circuit)
    if n < 1:
        raise CircuitError(f"n={n}: wanted at least one random circuit.")
    asked = paired_up(pairs)
    rng = np.random.default_rng(seed)
    drawn = [_random(circuit, rng) for _ in range(n)]
    wirings = [Wiring.of(each) for each in (circuit, *drawn)]
    shown = False if progress is False else "random circuits"
    shares = [
        case.shares(vlm, wirings).numpy() for case in cases(vlm, asked, ablation, shown)
    ]
    ours, *theirs = np.mean(shares, axis=0).tolist()
    reached = sum(each >= ours for each in theirs)
    return xr.Dataset(
        {
            "faithfulness": column("faithfulness", theirs, UNITS, draw=range(n)),
            "edges": column("edges", list(map(len, drawn)), "edges", draw=range(n)),
        },
        attrs={
            **described(vlm, asked, ablation),
            "circuit": ours,
            "beaten": 1 - reached / n,
            "p": (1 + reached) / (1 + n),
            "seed": seed,
        },
    )


def _random(circuit: Circuit, rng: np.random.Generator) -> Circuit:
    """A circuit of as many nodes of each kind and as many edges, if there are."""
    shape = circuit.shape
    nodes = [*circuit.of_kind("tokens")]
    for ours, every in (
        (circuit.of_kind("head"), shape.heads),
        (circuit.of_kind("mlp"), shape.mlps),
    ):
        nodes += [every[i] for i in rng.choice(len(every), len(ours), replace=False)]
    edges = Circuit.among(nodes, shape).connected().edges
    chosen = rng.permutation(len(edges))[: len(circuit)]
    return Circuit(tuple(edges[i] for i in chosen), shape, circuit.model)
