"""Claim: text streams of all layers are patched 45 times faster than in a loop.

python benchmarks/residual_patching.py --size s --repeats 5 --device cpu --dtype float32
"""

from __future__ import annotations

from arena.command import tell, told
from arena.contest import held
from arena.ring import Ring

SWEEPS = ("S1",)


def main() -> None:
    """Compare, time and print one line."""
    given = told(__doc__)
    with Ring.open(given) as ring:
        found = held(ring, SWEEPS)
        libraries = ring.versions
    tell("residual_patching", __doc__, given, libraries=libraries, sweeps=found)


if __name__ == "__main__":
    main()
