"""Claim: heads' direct paths cost a 1000th of the loop's time, into a query a 400th.

python benchmarks/direct_paths.py --size s --repeats 5 --device cpu --dtype float32
"""

from __future__ import annotations

from arena.contest import claim

if __name__ == "__main__":
    claim("direct_paths", __doc__, ("S7", "S8"))
