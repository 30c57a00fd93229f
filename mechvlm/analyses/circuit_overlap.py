"""Two circuits side by side: what they share, and where in depth each of them lies."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy import stats

from mechvlm.axes import labelled
from mechvlm.errors import CircuitError
from mechvlm.graph import Circuit, Edge, Node, Shape
from mechvlm.wanted import mapping_to, one, whole_number

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

    Chance draws the nodes of a circuit from all heads, or MLPs, of the model, and its
    edges from those that its own nodes can have: circuits of the same nodes are
    expected to share many edges, circuits of other nodes few. For edges that says what
    to expect and no more. The edges of a circuit hang together (a head that gives must
    be given to), and a probability that took each for a draw of its own would be far
    too small, so that "p" of edges is nan.

    Args:
        first: A circuit.
        second: Another one.
        groups: Token group of the first -> the one of the second that stands for it,
            such as an object's picture for its name; others are the same by name. No
            two groups may become one.
        bands: Equal parts of the depth to count by, 1 or more.

    Returns:
        Dataset over (part): "heads", "mlps", "tokens" and "edges". "first" and "second"
        count each circuit's, "shared" those in both, "jaccard" is shared by all that is
        in either (1 the same, 0 nothing in common), "chance" what random draws of as
        many would share on average, as above, and "p" the chance that draws of heads,
        or of MLPs, would share as many or more. Token groups are not drawn: their
        "chance" and "p" are nan. "alike" is 1 less the total variation between the two
        spreads over depth: 1 the same spread. Over (part, band), "first_by_depth",
        "second_by_depth" and "shared_by_depth" count by where in depth a node or an
        edge's receiver is. What models of other shapes cannot share is nan.

    Raises:
        CircuitError: A circuit is empty, or `groups` names a token group that a circuit
            does not have, or makes one of two.
        ArgumentError: One is no circuit, `groups` is no mapping of names to names, or
            `bands` is no number of 1 or more.

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
    n_bands = whole_number(bands, 1, "bands")
    names = mapping_to(groups, str, "groups", '{"name": "object"}')
    named = _renamed(first, second, names)
    rows = {part: _row(part, named, second, n_bands) for part in _PARTS}
    part = {"part": list(rows)}
    units = {"jaccard": "fraction", "p": "probability", "alike": "fraction"}
    both = {**part, "band": range(n_bands)}
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
    tokens = first.of_kind("tokens")
    renamed = {node: Node.tokens(groups.get(node.group, node.group)) for node in tokens}
    times = Counter(renamed.values())
    if one_of_two := [str(node) for node, new in renamed.items() if times[new] > 1]:
        raise CircuitError(
            f"groups makes one token group of {', '.join(one_of_two)} of the first"
            " circuit, so that their edges could not be told apart. Give each another"
            " name: a group that is left out keeps its own."
        )
    edges = [
        Edge(renamed.get(edge.sender, edge.sender), edge.receiver)
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
    if part == "edges":
        found["chance"] = _shared_by_chance(first, second)
    elif part != "tokens":
        n = len(first.shape.heads if part == "heads" else first.shape.mlps)
        found["chance"] = len(ours) * len(theirs) / n
        drawn = stats.hypergeom(n, len(ours), len(theirs))
        found["p"] = float(drawn.sf(len(shared) - 1))
    return found


def _shared_by_chance(first: Circuit, second: Circuit) -> float:
    """Edges shared on average by draws of as many among each circuit's own nodes."""
    ours, theirs = _ends(first), _ends(second)
    common = ours[0] & theirs[0], ours[1] & theirs[1]
    of_ours, of_theirs = (
        len(circuit) / _n_possible(*ends)
        for circuit, ends in ((first, ours), (second, theirs))
    )
    return of_ours * of_theirs * _n_possible(*common)


def _ends(circuit: Circuit) -> tuple[frozenset[Node], frozenset[Node]]:
    """What gives in a circuit, and all that could take from it."""
    givers = frozenset(node for node in circuit.nodes if node.gives)
    given = (edge.receiver for edge in circuit.edges)
    return givers, circuit.shape.takers(givers).union(given)


def _n_possible(givers: Iterable[Node], takers: Iterable[Node]) -> int:
    """Number of edges from some nodes to others: each gives to all that take later."""
    places = sorted(node.place for node in takers)
    return sum(len(places) - bisect_right(places, node.place) for node in givers)


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
