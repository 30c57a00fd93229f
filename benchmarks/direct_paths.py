"""Claim: heads' direct paths to the logits cost a 1000th of the loop's time.

python benchmarks/direct_paths.py --size s --repeats 5 --device cpu --dtype float32
"""

from __future__ import annotations

from arena.contest import claim

if __name__ == "__main__":
    claim("direct_paths", __doc__, ("S7",))
