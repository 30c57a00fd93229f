"""The edges of a flow graph, as a list and as a networkx graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
import xarray as xr

from mechvlm.analyses.flow_graph.groups import END
from mechvlm.errors import ResultError
from mechvlm.wanted import one

if TYPE_CHECKING:
    import networkx

__all__ = ["FlowEdge", "flow_edges", "flow_networkx"]

FlowNode: TypeAlias = tuple[str, str]
"""A group and a band: the group's stream as it enters the band; "end": behind all."""


Which: TypeAlias = Literal["kept", "all"]
"""Edges that are told from chance, or those without a control as well."""

_NUMBERS = ("effect", "effect_low", "effect_high", "control", "excess", "beyond")
_COUNTS = ("n", "n_control")


class FlowEdge(NamedTuple):
    """A cut that costs: in this band the target reads the source, the answer needs it.

    Numbers are in percent of the answer's clean probability, as `flow_graph` returns
    them; effect, low and high are of all `n` prompts, and the bounds nan for fewer than
    6 of them. Control, excess and beyond are of the `n_control` prompts that have
    draws. `controlled`: whether the edge is kept, or its cut has no control that could
    tell it from chance.
    """

    source: FlowNode
    target: FlowNode
    effect: float
    low: float
    high: float
    control: float
    excess: float
    beyond: float
    n: int
    n_control: int
    controlled: bool

    @property
    def band(self) -> str:
        """The band whose layers are cut."""
        return self.source[1]


def flow_edges(result: xr.Dataset, *, which: Which = "kept") -> tuple[FlowEdge, ...]:
    """The edges of a flow graph, in the order of time.

    Args:
        result: What `flow_graph` returns.
        which: "kept" lists the kept edges; "all" also the uncontrolled ones, which cost
            the answer, be it by chance.

    Returns:
        Edges from (source, band) to (target, next band), by band, then source, then
        target; maybe none.

    Raises:
        ArgumentError: It is no Dataset.
        ResultError: It is another result, or `which` means nothing.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> asked = mv.Grouped(prompt, {"query": "query", "last": "last"}, "one")
        >>> flows = mv.flow_graph(vlm, [asked], bands={"all": range(8)})
        >>> all(edge.effect < -1 for edge in mv.flow_edges(flows))
        True
    """
    _check(result, which)
    after = _after(result)
    listed = result["kept"] | result["uncontrolled"] & (which == "all")
    edges = []
    for k, j, i in np.argwhere(listed.transpose("band", "source", "target").values):
        band = str(result["band"].values[k])
        source, target = (
            str(result[dim].values[place])
            for dim, place in (("source", j), ("target", i))
        )
        cell = result.sel(band=band, source=source, target=target)
        edges.append(
            FlowEdge(
                (source, band),
                (target, after[band]),
                effect=float(cell["effect"]),
                low=float(cell["effect_low"]),
                high=float(cell["effect_high"]),
                control=float(cell["control"]),
                excess=float(cell["excess"]),
                beyond=float(cell["beyond"]),
                n=int(cell["n"]),
                n_control=int(cell["n_control"]),
                controlled=bool(cell["kept"]),
            )
        )
    return tuple(edges)


def flow_networkx(result: xr.Dataset, *, which: Which = "kept") -> networkx.DiGraph:
    """A flow graph for networkx, in which every path runs forward in time.

    Args:
        result: What `flow_graph` returns.
        which: "kept" draws the kept edges; "all" also the uncontrolled ones.

    Returns:
        Directed graph. Nodes are (group, band), the group's stream as it enters the
        band, with "group", "band", "first" and "last", the band's layers; behind the
        last band the band is "end", and both layers are the number of layers cut up to
        there. Edges have a "kind": "attention", an edge of `flow_edges` with its
        numbers as there; "stream", the same group from one band to the next; "both", an
        edge of a group to itself, which is on its stream.

    Raises:
        ArgumentError: It is no Dataset.
        ResultError: It is another result, or `which` means nothing.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> asked = mv.Grouped(prompt, {"query": "query", "last": "last"}, "one")
        >>> flows = mv.flow_graph(vlm, [asked], bands={"all": range(8)})
        >>> sorted(mv.flow_networkx(flows))
        [('last', 'all'), ('last', 'end'), ('query', 'all'), ('query', 'end')]
    """
    import networkx as nx

    edges = flow_edges(result, which=which)
    graph = nx.DiGraph()
    groups = [str(group) for group in result["target"].values]
    after = _after(result)
    ends = {
        str(band): {"first": int(first), "last": int(last)}
        for band, first, last in zip(
            result["band"].values,
            result["first"].values,
            result["last"].values,
            strict=True,
        )
    }
    behind = int(result["last"].values[-1]) + 1
    ends[END] = {"first": behind, "last": behind}
    for band, layers in ends.items():
        for group in groups:
            graph.add_node((group, band), group=group, band=band, **layers)
    for band, following in after.items():
        for group in groups:
            graph.add_edge((group, band), (group, following), kind="stream")
    for edge in edges:
        kind = "both" if graph.has_edge(edge.source, edge.target) else "attention"
        values = edge._asdict()
        del values["source"], values["target"]
        graph.add_edge(edge.source, edge.target, kind=kind, **values)
    return graph


def _after(result: xr.Dataset) -> dict[str, str]:
    """The band that follows each; behind the last one, the end."""
    bands = [str(band) for band in result["band"].values]
    return dict(zip(bands, [*bands[1:], END], strict=True))


def _check(result: xr.Dataset, which: str) -> None:
    one(result, xr.Dataset, "result", "mechvlm.flow_graph(vlm, asked)")
    dims = {"target", "source", "band"}
    wanted = ("kept", "uncontrolled", *_NUMBERS, *_COUNTS)
    missing = [
        name for name in wanted if name not in result or set(result[name].dims) != dims
    ]
    missing += [name for name in ("first", "last") if name not in result.coords]
    if missing:
        raise ResultError(
            f"this result has no {missing} over (target, source, band); wanted what"
            f" flow_graph returns. It holds {sorted(map(str, result.data_vars))}."
        )
    if which not in ("kept", "all"):
        raise ResultError(f"which={which!r}: wanted 'kept' or 'all'.")
