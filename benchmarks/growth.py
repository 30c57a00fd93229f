"""Claim: a text sweep costs at most twice as much on a picture nine times as large.

A loop pays for every position of every run. Here the cost of a sweep beside the
loop's, as positions, layers and interventions grow.

python benchmarks/growth.py --size s --repeats 3 --device cpu --dtype float32
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from arena.command import Told, tell, told
from arena.duel import Duel
from arena.geometry import Geometry, build
from arena.plain import Plain
from arena.rivals import spread
from arena.sweeps import residual_patching

SIDES = (12, 18, 24, 36)
LAYERS = (6, 12, 24)
COUNTS = (1, 4, 16, 64, 256)
FIXED = 40
MARK = 2.0


def curve(given: Told, shape: Geometry, counts: Sequence[int]) -> list[dict[str, Any]]:
    """S1 on so many of its acts, with a model of this shape."""
    scene = build(shape)
    plain, acts = Plain(scene), residual_patching(shape).acts
    size = {"positions": shape.n, "layers": shape.n_layers}
    points = []
    for n in counts:
        some = [acts[index] for index in sorted(spread(len(acts), n))]
        duel = Duel(scene, plain, some, given.repeats, given.sample)
        points.append(size | duel.result())
    return points


def main() -> None:
    """Three small curves, and one line."""
    given = told(__doc__, repeats=3)
    shape = given.geometry
    positions = [
        point
        for side in SIDES
        for point in curve(given, replace(shape, side=side), [FIXED])
    ]
    layers = [
        point
        for n in LAYERS
        for point in curve(given, replace(shape, n_layers=n), [FIXED])
    ]
    interventions = curve(given, shape, COUNTS)
    small, large = (positions[at]["seconds"]["sweep"] for at in (0, -1))
    grown = round(large / small, 2)
    found = {
        "positions": positions,
        "layers": layers,
        "interventions": interventions,
        "grown": grown,
        "mark": MARK,
        "reached": grown <= MARK,
    }
    tell("growth", __doc__, given, **found)


if __name__ == "__main__":
    main()
