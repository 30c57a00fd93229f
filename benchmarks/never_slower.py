"""Claim: no sweep of eight interventions is slower than the loop, base run excluded.

Eight of each kind, where least can be saved: in the first layers, from the first
position of the picture on.

python benchmarks/never_slower.py --size s --repeats 3 --device cpu --dtype float32
"""

from __future__ import annotations

from arena.command import tell, told
from arena.duel import Duel
from arena.geometry import Geometry, build
from arena.plain import Plain
from arena.sweeps import Act, Blank, Cut, Direct, SwapHead, SwapStream

EIGHT = range(8)
MARK = 1.0


def cases(shape: Geometry) -> dict[str, list[Act]]:
    """Eight acts of each kind, and eight of several."""
    front, last, n = shape.before, shape.n - 1, shape.n
    picture = tuple(range(front, n))
    every = range(shape.n_layers)
    kinds: dict[str, list[Act]] = {
        "streams entering layer 0": [SwapStream(0, front + i) for i in EIGHT],
        "one stream position in several layers": [
            SwapStream(i % shape.n_layers, front) for i in EIGHT
        ],
        "heads at every position": [
            SwapHead(i // shape.n_heads, i % shape.n_heads, front) for i in EIGHT
        ],
        "one image token unread by any row": [
            Cut(every, picture[i + 1 :], (picture[i],)) for i in EIGHT
        ],
        "image unread by the last row": [
            Cut(every[i % shape.n_layers :], (last,), tuple(shape.image)) for i in EIGHT
        ],
        "boxes of the input blanked": [Blank(shape.box(0, i)) for i in EIGHT],
        "direct paths": [Direct(0, i % shape.n_heads) for i in EIGHT],
    }
    some = [acts[i] for i, acts in enumerate(kinds.values())]
    return kinds | {"eight of several kinds": [*some, SwapHead(1, 0, front)]}


def main() -> None:
    """Every case, and one line."""
    given = told(__doc__, repeats=3)
    scene = build(given.geometry)
    plain = Plain(scene)
    found = {
        name: Duel(scene, plain, acts, given.repeats, given.sample).result()
        for name, acts in cases(given.geometry).items()
    }
    slowest = min(case["speedup"] for case in found.values())
    with_base = min(case["speedup_with_base"] for case in found.values())
    tell(
        "never_slower",
        __doc__,
        given,
        cases=found,
        slowest=slowest,
        slowest_with_base=with_base,
        mark=MARK,
        reached=slowest >= MARK,
    )


if __name__ == "__main__":
    main()
