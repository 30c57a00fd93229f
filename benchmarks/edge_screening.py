"""Claim: every edge of a pair is scored by two forwards and one backward.

Passes are counted on the Hugging Face model. The scores that matter most are compared
with exact effects of a hundredth of the change, and the time with that of the same
passes alone.

python benchmarks/edge_screening.py --size s --device cpu --dtype float32
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from arena.command import tell, told
from arena.contest import WrongAnswerError, rounded, summed
from arena.geometry import Scene, build
from arena.rivals import synchronised
from torch import Tensor

import mechvlm as mv

SHARE = 0.01
"""How much of its change an edge carries where its slope is measured."""

CHECKED, TOLERANCE = 8, 0.1
"""Edges that are compared, and how far a slope may bend over that share."""


class Nearer:
    """Values between two runs: what is ablated by a small share of the change."""

    def __init__(self, own: mv.Run, other: mv.Run) -> None:
        """Take the run, and the one it goes towards."""
        self.own, self.other = own, other

    def __getitem__(self, site: mv.Site) -> Tensor:
        """Activation at a site."""
        return torch.lerp(self.own[site], self.other[site], SHARE)


@contextmanager
def counted(scene: Scene) -> Iterator[Counter[str]]:
    """Forwards and backwards of the language model."""
    counts: Counter[str] = Counter()
    layer = scene.vlm.hf_model.model.language_model.layers[-1]

    def forward(*_: object) -> None:
        counts["forward"] += 1

    def backward(*_: object) -> None:
        counts["backward"] += 1

    handles = [
        layer.register_forward_hook(forward),
        layer.register_full_backward_hook(backward),
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def pair_of(scene: Scene) -> mv.Pair:
    """Both prompts; the picture has a box for an object."""
    at = mv.Positions.of(scene.geometry.box(6, 6))
    groups = mv.groups_of(scene.base, {"object": at})
    metric = mv.logit_difference(scene.vlm, 7, 9)
    return mv.Pair(scene.base, scene.donor, metric, groups)


def check(scene: Scene, pair: mv.Pair) -> dict[str, Any]:
    """Scores beside slopes that are measured exactly."""
    sites = ["embed", "z", "mlp_out"]
    runs = [mv.record(scene.vlm, x, sites) for x in (pair.clean, pair.corrupted)]
    ranked = mv.screening.edge_scores(scene.vlm, pair).ranked()
    best = ranked[:CHECKED]
    nearer = Nearer(*runs)
    edges = [edge for edge, _ in best]
    slopes = mv.screening.edge_effects(scene.vlm, pair, edges, ablated=nearer) / SHARE
    off = [
        abs(float(slope) / score - 1)
        for slope, (_, score) in zip(slopes, best, strict=True)
    ]
    if not max(off) <= TOLERANCE:
        raise WrongAnswerError(f"scores are off by up to {max(off):.2g} of themselves")
    return {"edges": len(ranked), "checked": CHECKED, "off": rounded(max(off))}


def passes(scene: Scene, pair: mv.Pair) -> None:
    """Two plain forwards, and a backward through one of them."""
    model, embeds = scene.vlm.hf_model, scene.base_embeds
    leaf = embeds.detach().clone().requires_grad_()
    given = {"use_cache": False, "logits_to_keep": 1}
    logits = model(inputs_embeds=leaf, **given).logits[0, -1]
    torch.autograd.grad(pair.metric(logits[None]).sum(), leaf)
    with torch.no_grad():
        model(inputs_embeds=scene.donor_embeds, **given)


def main() -> None:
    """Count, compare, time in turns, and print one line."""
    given = told(__doc__, repeats=3)
    scene = build(given.geometry)
    pair = pair_of(scene)
    checked = check(scene, pair)
    with counted(scene) as counts:
        mv.screening.edge_scores(scene.vlm, pair)
    runs = {
        "screening": lambda: mv.screening.edge_scores(scene.vlm, pair),
        "passes": lambda: passes(scene, pair),
    }
    took: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(given.repeats):
        for name in sorted(runs, reverse=repeat % 2 == 1):
            before = synchronised(given.geometry.device)
            runs[name]()
            took[name].append(synchronised(given.geometry.device) - before)
    ratios = [a / b for a, b in zip(took["screening"], took["passes"], strict=True)]
    tell(
        "edge_screening",
        __doc__,
        given,
        passes=dict(counts),
        mark={"forward": 2, "backward": 1},
        reached=dict(counts) == {"forward": 2, "backward": 1},
        checked=checked,
        times_its_passes=summed(ratios),
        seconds={name: rounded(statistics.median(x)) for name, x in took.items()},
    )


if __name__ == "__main__":
    main()
