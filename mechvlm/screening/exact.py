"""Exact effects of nodes and edges, by the engine."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from mechvlm.engine import intervene
from mechvlm.errors import CircuitError
from mechvlm.graph.nodes import Edge, Node, Shape
from mechvlm.interventions import Intervention, Patch, PathPatch
from mechvlm.layout import Positions
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.lowering import RunLike
from mechvlm.pairs import Pair
from mechvlm.screening.bound import Bound, bound, ends_of
from mechvlm.sites import Site
from mechvlm.wanted import several

__all__ = ["edge_effects", "node_effects"]

_RUN = "ablated"


def edge_effects(
    vlm: HookedVLM,
    pair: Pair | Bound,
    edges: Sequence[Edge],
    *,
    ablated: RunLike | None = None,
    progress: str | bool | None = None,
) -> Float[Tensor, " edge"]:
    """What is lost when one edge alone carries another run's value.

    The receiver gets what it would get if its sender had the other value; all other
    nodes between the two keep the clean run's.

    Args:
        vlm: The model.
        pair: The pair, or what `bound` made of it; its clean prompt is run.
        edges: Edges, one run each.
        ablated: Values at the sites embed, z and mlp_out that senders take; None takes
            the corrupted prompt's.
        progress: None shows a progress bar in a terminal for work of over a second;
            words stand in front of it; False shows none.

    Returns:
        Share of the clean-corrupted gap that is lost: 0 nothing, 1 all of it, below 0
        where the metric rises.

    Raises:
        CircuitError: The model or the pair does not have a node.
        InterventionError: There is no edge, or one goes from a token group without the
            last position to the logits, which are read there.
        MetricError: The metric is the same for both prompts.
        RunError: Ablated values lack a site, or are not as long as the prompts.

    Paper: path patching of Wang et al. 2022, arXiv:2211.00593, with MLPs frozen too.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=2)
        >>> twin = scene.recolored(0, "cyan")
        >>> words = "what color is it ?", scene.things[0].color, "cyan"
        >>> pair = mv.bind(vlm, mv.PicturePair(scene.image, twin.image, *words))
        >>> edges = [mv.Edge.parse("[image] -> L0.v0")]
        >>> edge_effects(vlm, pair, edges).shape
        torch.Size([1])
    """
    chosen = several(edges, Edge, "edges", '[mechvlm.Edge.parse("[image] -> L0.v0")]')
    once = _bound(vlm, pair, ablated)
    todo = [_path(vlm, once.pair, edge) for edge in chosen]
    return _lost(vlm, once, todo, progress=progress)


def node_effects(
    vlm: HookedVLM,
    pair: Pair | Bound,
    nodes: Sequence[Node],
    *,
    ablated: RunLike | None = None,
    progress: str | bool | None = None,
) -> Float[Tensor, " node"]:
    """What is lost when one node alone gives another run's value.

    Args:
        vlm: The model.
        pair: The pair, or what `bound` made of it; its clean prompt is run.
        nodes: Heads, MLPs and token groups, one run each, at all of their positions.
        ablated: As for `edge_effects`.
        progress: As for `edge_effects`.

    Returns:
        Share of the clean-corrupted gap that is lost: 0 nothing, 1 all of it.

    Raises:
        CircuitError: A node gives nothing, or the model or the pair does not have it.
        InterventionError: There is no node.
        MetricError: The metric is the same for both prompts.
        RunError: Ablated values lack a site, or are not as long as the prompts.

    Paper: Heimersheim and Nanda 2024, arXiv:2404.15255, noising.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=2)
        >>> twin = scene.recolored(0, "cyan")
        >>> words = "what color is it ?", scene.things[0].color, "cyan"
        >>> pair = mv.bind(vlm, mv.PicturePair(scene.image, twin.image, *words))
        >>> lost = node_effects(vlm, pair, [mv.Node.tokens("image")])
        >>> bool(abs(lost[0] - 1) < 1e-4)
        True
    """
    chosen = several(nodes, Node, "nodes", '[mechvlm.Node.parse("L0.H1")]')
    once = _bound(vlm, pair, ablated)
    todo = [Patch(*_gives_at(vlm, once.pair, node), _RUN) for node in chosen]
    return _lost(vlm, once, todo, progress=progress)


def _bound(vlm: HookedVLM, pair: Pair | Bound, ablated: RunLike | None) -> Bound:
    if isinstance(pair, Bound):
        ends_of(vlm, pair, ablated)  # refuses values beside its own
        return pair
    return bound(vlm, pair, ablated=ablated)


def _lost(
    vlm: HookedVLM,
    once: Bound,
    todo: Sequence[Intervention],
    *,
    progress: str | bool | None,
) -> Float[Tensor, " intervention"]:
    """Shares of the gap that interventions take away."""
    metric, runs = once.pair.metric, {_RUN: once.ablated}
    found = intervene(vlm, once.base, todo, runs=runs, metric=metric, progress=progress)
    return (once.clean - found.cpu()) / once.gap


def _gives_at(vlm: HookedVLM, pair: Pair, node: Node) -> tuple[Site, Positions]:
    """Where a node gives, and at which positions."""
    Shape.of(vlm.cfg).check(node)
    if not node.gives:
        raise CircuitError(
            f"{node} gives nothing to the stream; wanted heads, MLPs and token groups."
        )
    if node.kind != "tokens":
        return node.site, Positions.of(range(pair.clean.layout.n))
    if node.group not in pair.groups:
        raise CircuitError(
            f"the pair has no token group {node.group!r}; it has"
            f" {', '.join(pair.groups)}."
        )
    return node.site, pair.groups[node.group]


def _path(vlm: HookedVLM, pair: Pair, edge: Edge) -> PathPatch:
    """The edge as a path on which everything but its ends is frozen."""
    site, at = _gives_at(vlm, pair, edge.sender)
    Shape.of(vlm.cfg).check(edge.receiver)
    to, receiver = None, Site("resid_post", vlm.cfg.n_layers - 1)
    if edge.receiver.kind == "logits":
        to = Positions.of(pair.clean.layout.last)
    else:
        receiver = edge.receiver.site
    return PathPatch((site,), (receiver,), _RUN, at=at, to=to, mlps="frozen")
