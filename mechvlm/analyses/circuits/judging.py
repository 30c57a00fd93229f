"""How much of a behaviour a circuit explains, and how much any other would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import xarray as xr

from mechvlm.ablating import Ablation
from mechvlm.analyses.circuits.cases import (
    UNITS,
    cases,
    check_circuit,
    column,
    described,
    exists,
    kept_by,
    live,
    named,
    spread,
)
from mechvlm.errors import CircuitError
from mechvlm.graph import Circuit
from mechvlm.models.hooked import HookedVLM
from mechvlm.pairs import Pair
from mechvlm.screening.bound import paired_up
from mechvlm.subgraph import Wiring
from mechvlm.wanted import mapping_to, whole_number

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
        everything ablated (0): what is kept over all pairs, by all that there is to
        keep, with "_low" and "_high" ends of an interval; "faithfulness_each" and
        "without_each" over (circuit, pair); "edges", "heads" and "share of heads" of
        each circuit, edges that can carry nothing in these prompts left out; "clean"
        and "empty" over (pair), the metric at both ends of the gap.

    Raises:
        ArgumentError: Something is no circuit or no pair.
        CircuitError: A circuit is empty, another model's, or of other token groups.
        EngineError, InterventionError, MetricError, PairError, RunError: As `discover`.

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
    fix = '{"found": mechvlm.discover(vlm, pairs)}'
    given = (
        {"circuit": circuits}
        if isinstance(circuits, Circuit)
        else mapping_to(circuits, Circuit, "circuits", fix)
    )
    asked = paired_up(pairs)
    several = {
        name: live(check_circuit(vlm, each, name), asked, name)
        for name, each in given.items()
    }
    if not several:
        raise CircuitError("no circuit is given, so there is nothing to judge.")
    around = [Wiring.around(each, tuple(asked[0].groups)) for each in several.values()]
    wirings = [*map(Wiring.of, several.values()), *around]
    shown = False if progress is False else "faithfulness"
    table, gaps, clean = kept_by(vlm, cases(vlm, asked, ablation, shown), wirings)
    alone, without = table[: len(several)], table[len(several) :]
    name = {"circuit": list(several)}
    pair = {"pair": named(asked)}
    units = asked[0].metric.units
    counts = {
        "edges": [len(each) for each in several.values()],
        "heads": [len(each.of_kind("head")) for each in several.values()],
        "share of heads": [each.share_of_heads for each in several.values()],
    }
    return xr.Dataset(
        {
            **spread(alone, gaps, "faithfulness", asked, **name),
            **spread(without, gaps, "without", asked, **name),
            **{
                what: column(what, values, what, **name)
                for what, values in counts.items()
            },
            "clean": column("clean", clean, units, **pair),
            "empty": column("empty", clean - gaps, units, **pair),
        },
        attrs=described(vlm, asked, ablation),
    )


def random_baseline(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    circuit: Circuit,
    *,
    n: int = 100,
    nodes: Literal["random", "same"] = "random",
    ablation: Ablation = "counterfactual",
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """How much random circuits of the same size explain.

    A random circuit has the circuit's token groups, as many heads and MLPs, drawn at
    random, and at least as many edges, drawn until as many lie on ways from tokens to
    the logits; where its nodes have fewer, all of them.

    Args:
        vlm: The model.
        pairs: Pairs to judge by.
        circuit: The circuit.
        n: Random circuits.
        nodes: Whether heads and MLPs are drawn too ("random"), or the circuit's own are
            kept and only their edges are drawn ("same").
        ablation: What stands for an ablated sender; see `discover`.
        seed: Of the drawing.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Dataset over (draw): "faithfulness" of each random circuit over all pairs, and
        its "edges". `attrs` hold "circuit", the faithfulness of the circuit itself,
        "beaten", the share of random circuits below it, and "p", the chance of doing as
        well at random: (1 + random circuits that reach it) / (1 + n).

    Raises:
        ArgumentError: `n` or `seed` is no whole number, or below 1 or 0.
        CircuitError: The circuit is empty, another model's, of other token groups, or
            has no way from tokens to the logits.
        EngineError, InterventionError, MetricError, PairError, RunError: As `discover`.

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
    asked = paired_up(pairs)
    own = live(check_circuit(vlm, circuit), asked)
    whole_number(n, 1, "n")
    rng = np.random.default_rng(whole_number(seed, 0, "seed"))
    if nodes not in ("random", "same"):
        raise CircuitError(f"nodes={nodes!r}: wanted 'random' or 'same'.")
    if not own.connected().edges:
        raise CircuitError(
            "the circuit has no way from tokens to the logits, so that it does nothing,"
            " and random circuits of its size need not do more. Are the token groups'"
            " edges in it?"
        )
    drawn = [_random(own, asked, nodes, rng) for _ in range(n)]
    wirings = [Wiring.of(each) for each in (own, *drawn)]
    shown = False if progress is False else "random circuits"
    table, gaps, _ = kept_by(vlm, cases(vlm, asked, ablation, shown), wirings)
    ours, *theirs = (table.sum(axis=1) / gaps.sum()).tolist()
    reached = sum(each >= ours - _ROUNDING for each in theirs)
    return xr.Dataset(
        {
            "faithfulness": column("faithfulness", theirs, UNITS, draw=range(n)),
            "edges": column("edges", list(map(len, drawn)), "edges", draw=range(n)),
        },
        attrs={
            **described(vlm, asked, ablation),
            "circuit": ours,
            "circuit_edges": len(own),
            "nodes": nodes,
            "beaten": 1 - reached / n,
            "p": (1 + reached) / (1 + n),
            "seed": seed,
        },
    )


_ROUNDING = 1e-6
"""Two circuits that keep as much to within this keep the same."""


def _random(
    circuit: Circuit,
    pairs: Sequence[Pair],
    nodes: Literal["random", "same"],
    rng: np.random.Generator,
) -> Circuit:
    """A circuit of as many nodes of each kind and as many edges, if there are.

    Edges are taken in random order until as many lie on ways from tokens to logits.
    """
    shape = circuit.shape
    chosen = list(circuit.nodes)
    if nodes == "random":
        chosen = [*circuit.of_kind("tokens")]
        for ours, every in (
            (circuit.of_kind("head"), shape.heads),
            (circuit.of_kind("mlp"), shape.mlps),
        ):
            drawn = rng.choice(len(every), len(ours), replace=False)
            chosen += [every[i] for i in drawn]
    edges = [e for e in Circuit.among(chosen, shape).edges if exists(e, pairs)]
    order = [edges[i] for i in rng.permutation(len(edges))]

    def of_first(most: int) -> Circuit:
        return Circuit(tuple(order[:most]), shape, circuit.model).connected()

    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if len(of_first(middle)) >= len(circuit) else (middle, high)
        )
    return of_first(high)
