"""Claim: a map of 768 cuts takes a 450th of the loop's time, a 300th with its base run.

python benchmarks/knockout_map.py --size s --repeats 5 --device cpu --dtype float32
"""

from __future__ import annotations

from arena.command import tell, told
from arena.contest import held
from arena.ring import Ring

SWEEPS = ("S5map",)


def main() -> None:
    """Compare, time and print one line."""
    given = told(__doc__)
    with Ring.open(given) as ring:
        found = held(ring, SWEEPS)
        libraries = ring.versions
    tell("knockout_map", __doc__, given, libraries=libraries, sweeps=found)


if __name__ == "__main__":
    main()
