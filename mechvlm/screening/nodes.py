"""Attribution patching: what patches of single places would do, to first order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechvlm.ablating import giving
from mechvlm.gradients import midpoints
from mechvlm.graph.nodes import Node, Shape
from mechvlm.metrics import Metric
from mechvlm.models.attention import wide
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.lowering import RunLike
from mechvlm.models.slopes import Slopes, slopes
from mechvlm.pairs import Pair
from mechvlm.prompts import Prompt
from mechvlm.record import record
from mechvlm.screening.bound import Bound, ends_of, gap_of
from mechvlm.screening.scored import NodeScores
from mechvlm.sites import Site

__all__ = ["Point", "changed", "node_scores", "points", "site_slopes"]


@dataclass(frozen=True, eq=False)
class Point:
    """A place on the way between two runs: what is there, and how much it weighs.

    Attributes:
        here: The run and its gradients.
        own: The run that is changed; a point at its end is that run itself.
        value: Metric of that run.
        weight: Share of the mean over all places.
    """

    here: Slopes
    own: RunLike
    value: float
    weight: float


def points(
    vlm: HookedVLM,
    prompt: Prompt,
    metric: Metric,
    *,
    other: RunLike,
    sites: Sequence[Site],
    steps: int,
    into_mlps: range = range(0),
) -> Iterator[Point]:
    """Places where gradients are taken: the prompt itself, or ways to another run.

    Args:
        vlm: The model.
        prompt: The prompt that is changed.
        metric: What the gradients are of.
        other: The run that it is changed towards.
        sites: Where gradients are taken.
        steps: 1 takes the gradient at the prompt. More take it at the middles of as
            many equal steps between the embeddings of the two runs.
        into_mlps: Layers of which the gradient into the MLP is taken.

    Raises:
        InterventionError: There is no step.
    """
    middles = midpoints(steps)
    if steps == 1:
        here = slopes(vlm, prompt, metric, sites=sites, into_mlps=into_mlps)
        yield Point(here, here, here.value, 1.0)
        return
    own = record(vlm, prompt, [Site("embed"), *sites])
    value = float(metric(own.logits[None])[0])
    embed = own[Site("embed")]
    way = embed - other[Site("embed")].to(embed)
    for middle in middles:
        here = slopes(
            vlm,
            prompt,
            metric,
            sites=sites,
            into_mlps=into_mlps,
            embedding=embed - (1 - middle) * way,
        )
        yield Point(here, own, value, 1 / steps)


def changed(own: RunLike, other: RunLike, site: Site) -> Float[Tensor, "position ..."]:
    """What a patch from another run would add at a site, in fp32 or wider."""
    before = wide(own[site])
    return other[site].to(before) - before


def site_slopes(
    vlm: HookedVLM,
    prompt: Prompt,
    other: RunLike,
    *,
    metric: Metric,
    sites: Sequence[Site],
    steps: int = 1,
) -> tuple[float, dict[Site, Float[Tensor, "position ..."]]]:
    """What patches of single positions add to a metric, to first order.

    Args:
        vlm: The model.
        prompt: The prompt that is run.
        other: The run that values are taken from, at the same sites, and at "embed"
            where there are several steps.
        metric: What is measured.
        sites: Where, heads together.
        steps: 1 takes the gradient at the prompt. More take its mean over the middles
            of as many equal steps between the embeddings of the two runs.

    Returns:
        The metric of the prompt; and for each site what a patch there adds to it, in
        the metric's unit, by position (and head).

    Raises:
        InterventionError: There is no step.
        MetricError: The metric has no gradient.

    Paper: Syed et al. 2023, arXiv:2310.10348; with steps, inputs as in Hanna et al.
    2024, arXiv:2403.17806.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=1)
        >>> prompt = vlm.prompt("what color is it ?", scene.image)
        >>> twin = vlm.prompt("what color is it ?", scene.recolored(0, "cyan").image)
        >>> metric, z = mv.log_probability(vlm, "cyan"), mv.Site("z", 3)
        >>> other = mv.record(vlm, twin, [z])
        >>> value, added = site_slopes(vlm, prompt, other, metric=metric, sites=[z])
        >>> list(added[z].shape) == [prompt.layout.n, vlm.cfg.n_heads]
        True
    """
    value, found = 0.0, dict[Site, Tensor]()
    for point in points(vlm, prompt, metric, other=other, sites=sites, steps=steps):
        value = point.value
        for site in sites:
            change = changed(point.own, other, site)
            added = (change * wide(point.here.at(site))).sum(dim=-1) * point.weight
            found[site] = found[site] + added if site in found else added
    return value, found


def node_scores(
    vlm: HookedVLM,
    pair: Pair | Bound,
    *,
    ablated: RunLike | None = None,
    steps: int = 1,
) -> NodeScores:
    """First-order estimate of `node_effects`, for all nodes at once.

    Args:
        vlm: The model; no weight's `requires_grad` is touched.
        pair: The pair, or what `bound` made of it.
        ablated: As for `edge_scores`.
        steps: As for `edge_scores`.

    Returns:
        A score for every token group, head and MLP: the estimated share of the
        clean-corrupted gap that is lost where the node gives the other run's value;
        0 nothing, 1 all of it.

    Raises:
        InterventionError: There is no step.
        MetricError: The metric has no gradient, or is the same for both prompts.
        RunError: Ablated values lack a site, or are not as long as the prompts.

    Paper: Syed et al. 2023, arXiv:2310.10348; with steps, Hanna et al. 2024,
    arXiv:2403.17806.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=2)
        >>> twin = scene.recolored(0, "cyan")
        >>> words = "what color is it ?", scene.things[0].color, "cyan"
        >>> pair = mv.bind(vlm, mv.PicturePair(scene.image, twin.image, *words))
        >>> scores = node_scores(vlm, pair)
        >>> len(scores.nodes) == len(pair.groups) + 8 * (vlm.cfg.n_heads + 1)
        True
    """
    ends = ends_of(vlm, pair, ablated)
    given = pair.pair if isinstance(pair, Bound) else pair
    value, added = site_slopes(
        vlm,
        given.clean,
        ends.ablated,
        metric=given.metric,
        sites=giving(vlm.cfg),
        steps=steps,
    )
    gap = gap_of(given.metric, value, ends.corrupted)
    shape = Shape.of(vlm.cfg)
    groups = [Node.tokens(group) for group in given.groups]
    nodes = tuple(sorted([*groups, *shape.heads, *shape.mlps]))
    every = [_of_node(node, given, added) for node in nodes]
    return NodeScores(nodes, torch.stack(every) / -gap)


def _of_node(node: Node, pair: Pair, added: Mapping[Site, Tensor]) -> Tensor:
    here = added[Site(node.site.component, node.layer)]
    if node.kind == "tokens":
        return here[list(pair.groups[node.group])].sum().cpu()
    return (here if node.head is None else here[:, node.head]).sum().cpu()
