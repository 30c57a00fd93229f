"""Run every benchmark, one after the other, and keep their lines in a JSON file.

`make bench` calls this. On the CPU: all at 12 layers of width 512, and the sweeps whose
marks speak of it at 24 layers of width 1024.

python benchmarks/everything.py
python benchmarks/everything.py --device cuda --dtype bfloat16 --sizes 7b 13b
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ALL = (
    "residual_patching",
    "head_patching",
    "knockout_last",
    "knockout_query",
    "knockout_map",
    "input_ablation",
    "direct_paths",
    "edge_screening",
    "memory",
    "growth",
    "never_slower",
)
LARGE = ("residual_patching", "knockout_query", "knockout_map")
SMALL = ("--repeats", "3")
FEWER = ("--repeats", "2", "--sample", "1", "--against", "prefix")


def plan(sizes: list[str]) -> list[tuple[str, list[str]]]:
    """Benchmarks with their words: all at the first size, some at the others."""
    first, *others = sizes
    todo = [(name, ["--size", first, *SMALL]) for name in ALL]
    todo += [(name, ["--size", size, *FEWER]) for size in others for name in LARGE]
    return todo


def line(name: str, words: list[str]) -> dict[str, Any]:
    """What a benchmark prints, or that it failed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / f"{name}.py"), *words],
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    print(done.stderr, file=sys.stderr)
    said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    return {"bench": name, "words": words, "failed": said}


def keep(lines: list[dict[str, Any]], out: Path) -> None:
    """Write all lines so far, in one go."""
    made = out.with_suffix(".new")
    made.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    made.replace(out)


def main() -> None:
    """Run, keep, and end with an error where one failed."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--sizes", nargs="+", default=["s", "m"])
    words.add_argument("--device", default="cpu")
    words.add_argument("--dtype", default="float32")
    words.add_argument("--out", type=Path)
    told = words.parse_args()
    out = told.out or HERE / "results" / f"{told.device.partition(':')[0]}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    began = time.monotonic()
    for name, given in plan(told.sizes):
        given = [*given, "--device", told.device, "--dtype", told.dtype]
        lines.append(line(name, given))
        keep(lines, out)  # a run that is cut short has not been in vain
        minutes = (time.monotonic() - began) / 60
        print(f"{minutes:5.1f} min  {name} {' '.join(given)}", file=sys.stderr)
    if any("failed" in each for each in lines):
        sys.exit("some benchmarks failed; see above")


if __name__ == "__main__":
    main()
