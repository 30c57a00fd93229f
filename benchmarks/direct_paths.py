"""Claim: heads' direct paths to the logits cost a 1000th of the loop's time.

python benchmarks/direct_paths.py --size s --repeats 5 --device cpu --dtype float32
"""

from __future__ import annotations

from arena.command import tell, told
from arena.contest import held
from arena.ring import Ring

SWEEPS = ("S7",)


def main() -> None:
    """Compare, time and print one line."""
    given = told(__doc__)
    with Ring.open(given) as ring:
        found = held(ring, SWEEPS)
        libraries = ring.versions
    tell("direct_paths", __doc__, given, libraries=libraries, sweeps=found)


if __name__ == "__main__":
    main()
