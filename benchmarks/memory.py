"""Claim: a whole sweep (S1) needs under half the memory of one run with a full cache.

The cache is that of TransformerLens's bridge. Each runs in a process of its own, and
the model itself is not counted.

python benchmarks/memory.py --size s --device cpu --dtype float32
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from arena.command import Told, tell, told

MARK = 0.5


def peak(who: str, given: Told) -> float:
    """MiB that it adds to the model's own, at its worst moment."""
    words = [sys.executable, "-W", "ignore", "-m", "arena.peak", who]
    done = subprocess.run(
        [*words, json.dumps(asdict(given.geometry))],
        cwd=Path(__file__).parent,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1])["mib"])


def main() -> None:
    """Watch three processes and print one line."""
    given = told(__doc__, repeats=1)
    found = {who: peak(who, given) for who in ("mechvlm", "bridge", "hf")}
    share = round(found["mechvlm"] / found["bridge"], 3)
    tell(
        "memory",
        __doc__,
        given,
        peak_mib=found,
        share=share,
        mark=MARK,
        reached=share < MARK,
    )


if __name__ == "__main__":
    main()
