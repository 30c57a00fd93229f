"""Claim: 36 image tokens are blanked 1.5 times faster than in a loop.

python benchmarks/input_ablation.py --size s --repeats 5 --device cpu --dtype float32
"""

from __future__ import annotations

from arena.contest import claim

if __name__ == "__main__":
    claim("input_ablation", __doc__, ("S6",), repeats=3)
