"""Two circuits side by side: what they share, and where in depth each of them lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy import stats

from mechvlm.axes import labelled
from mechvlm.errors import CircuitError
from mechvlm.graph import Circuit, Edge, Node, Shape
from mechvlm.wanted import one

__all__ = ["circuit_overlap"]

PAPER = "arXiv:2211.00593"

_SAME: Mapping[str, str] = MappingProxyType({})


def circuit_overlap(
    first: Circuit,
    second: Circuit,
    *,
    groups: Mapping[str, str] = _SAME,
    bands: int = 4,
) -> xr.Dataset:
    """What two circuits share, and how they are spread over the depth of their models.

    Nodes and edges of models of one shape are compared one by one: of one model asked
    two questions, or of a model and one fine-tuned from it. Of models of other shapes
    no two nodes are the same, and only depth is compared.

    Args:
        first: A circuit.
        second: Another one.
        groups: Token group of the first -> the one of the second that stands for it,
            such as an object's picture for its name; others are the same by name.
        bands: Equal parts of the depth to count by, 1 or more.

    Returns:
        Dataset over (part): "heads", "mlps", "tokens" and "edges". "first" and "second"
        count each circuit's, "shared" those in both, "jaccard" is shared by all that is
        in either (1 the same, 0 nothing in common), "chance" what random draws of as
        many would share, and "p" the chance that they would share as many. "alike" is 1
        less the total variation between the two spreads over depth: 1 the same spread.
        Over (part, band), "first_by_depth", "second_by_depth" and "shared_by_depth"
        count by where in depth a node or an edge's receiver is. What models of other
        shapes cannot share is nan.

    Raises:
        CircuitError: A circuit is empty, `bands` is below 1, or `groups` names a token
            group that a circuit does not have.
        ArgumentError: One is no circuit.

    Paper: heads and edges as the circuits of Wang et al. 2022, arXiv:2211.00593.

    Example:
        >>> import mechvlm as mv
        >>> shape = mv.Shape(2, 2, 2)
        >>> named = mv.Circuit.parse(["[name] -> L0.v0", "L0.H0 -> logits"], shape)
        >>> shown = mv.Circuit.parse(["[object] -> L0.v0", "L0.H0 -> logits"], shape)
        >>> found = mv.circuit_overlap(named, shown, groups={"name": "object"})
        >>> float(found["jaccard"].sel(part="edges"))
        1.0
    """
    for name, circuit in (("first", first), ("second", second)):
        one(circuit, Circuit, name, "mechvlm.discover(vlm, pairs)")
        if not circuit.edges:
            raise CircuitError(f"the {name} circuit has no edge to compare.")
    if bands < 1:
        raise CircuitError(f"bands={bands}: wanted 1 or more parts of the depth.")
    named = _renamed(first, second, groups)
    rows = {part: _row(part, named, second, bands) for part in _PARTS}
    part = {"part": list(rows)}
    units = {"jaccard": "fraction", "p": "probability", "alike": "fraction"}
    both = {**part, "band": range(bands)}
    found = {
        name: labelled(
            np.array([each[name] for each in rows.values()]),
            name=name,
            units=units.get(name, "number in the circuit"),
            paper=PAPER,
            attrs=None,
            **(both if name.endswith("_by_depth") else part),
        )
        for name in rows["heads"]
    }
    attrs = {
        "paper": PAPER,
        "first_model": first.model,
        "second_model": second.model,
        "same_shape": int(first.shape == second.shape),
        "layer_convention": "depth of a node's layer; of an edge, its receiver's",
    }
    return xr.Dataset(found, attrs=attrs)


Part = Node | Edge

_PARTS: Mapping[str, Callable[[Circuit], frozenset[Part]]] = MappingProxyType(
    {
        "heads": lambda circuit: frozenset(circuit.of_kind("head")),
        "mlps": lambda circuit: frozenset(circuit.of_kind("mlp")),
        "tokens": lambda circuit: frozenset(circuit.of_kind("tokens")),
        "edges": lambda circuit: frozenset(circuit.edges),
    }
)
"""What circuits are made of."""


def _renamed(first: Circuit, second: Circuit, groups: Mapping[str, str]) -> Circuit:
    """The first circuit with its token groups called as the second's."""
    for side, circuit, names in (
        ("first", first, groups.keys()),
        ("second", second, groups.values()),
    ):
        known = {node.group for node in circuit.of_kind("tokens")}
        unknown = sorted(set(names) - known)
        if unknown:
            raise CircuitError(
                f"groups names {unknown} of the {side} circuit, whose token groups are"
                f" {sorted(known)}."
            )
    edges = [
        Edge(
            Node.tokens(groups.get(edge.sender.group, edge.sender.group)), edge.receiver
        )
        if edge.sender.kind == "tokens"
        else edge
        for edge in first.edges
    ]
    return Circuit(tuple(edges), first.shape, first.model)


def _row(
    part: str, first: Circuit, second: Circuit, bands: int
) -> dict[str, float | Float[np.ndarray, " band"]]:
    ours, theirs = _PARTS[part](first), _PARTS[part](second)
    depths = [
        _depths(each, circuit.shape, bands)
        for each, circuit in ((ours, first), (theirs, second))
    ]
    alike = (
        1 - abs(np.subtract(*(each / max(each.sum(), 1) for each in depths))).sum() / 2
    )
    found: dict[str, float | Float[np.ndarray, " band"]] = {
        "first": float(len(ours)),
        "second": float(len(theirs)),
        "shared": np.nan,
        "jaccard": np.nan,
        "chance": np.nan,
        "p": np.nan,
        "alike": float(alike) if depths[0].sum() and depths[1].sum() else np.nan,
        "first_by_depth": depths[0],
        "second_by_depth": depths[1],
        "shared_by_depth": np.full(bands, np.nan),
    }
    if first.shape != second.shape:
        return found
    shared, either = ours & theirs, ours | theirs
    found["shared"] = float(len(shared))
    found["jaccard"] = len(shared) / len(either) if either else np.nan
    found["shared_by_depth"] = _depths(shared, first.shape, bands)
    n = _n_possible(part, first, second)
    if n:
        found["chance"] = len(ours) * len(theirs) / n
        drawn = stats.hypergeom(n, len(ours), len(theirs))
        found["p"] = float(drawn.sf(len(shared) - 1))
    return found


def _n_possible(part: str, first: Circuit, second: Circuit) -> int:
    """How many of a part a model has to choose from; 0 where nothing is chosen."""
    shape = first.shape
    groups = {n.group for c in (first, second) for n in c.of_kind("tokens")}
    return {
        "heads": len(shape.heads),
        "mlps": len(shape.mlps),
        "tokens": 0,
        "edges": len(Circuit.whole(shape, groups)),
    }[part]


def _depths(
    parts: frozenset[Part], shape: Shape, bands: int
) -> Float[np.ndarray, " band"]:
    """How many lie in each part of the depth; embeddings lie in none."""
    found = np.zeros(bands)
    for part in parts:
        node = part.receiver if isinstance(part, Edge) else part
        if node.kind == "tokens":
            continue
        layer = shape.n_layers - 1 if node.layer is None else node.layer
        found[layer * bands // shape.n_layers] += 1
    return found
