"""Claim: text streams of all layers are patched 45 times faster than in a loop.

python benchmarks/residual_patching.py --size s --repeats 5 --device cpu --dtype float32
"""

from __future__ import annotations

from arena.contest import claim

if __name__ == "__main__":
    claim("residual_patching", __doc__, ("S1",))
