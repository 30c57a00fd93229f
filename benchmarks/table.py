"""Put the table of results between two markers of the README.

python benchmarks/table.py            # write it
python benchmarks/table.py --check    # fail if the README says something else
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
START, END = "<!-- benchmarks -->\n", "<!-- end of benchmarks -->\n"
COLUMNS = {
    "prefix": "kept prefix",
    "nnsight": "nnsight",
    "pyvene": "pyvene",
    "bridge": "TL 4 bridge",
    "transformer-lens-3": "TL 3.9",
}
NAMES = {
    "S1": "patch the stream, all layers x 40 text positions",
    "S2": "patch a head at every position",
    "S2text": "patch a head at the text positions",
    "S2last": "patch a head at the last position",
    "S3": "cut image -> last, windows of layers",
    "S3x16": "cut 16 regions -> last, windows",
    "S4": "cut image -> query, windows",
    "S5map": "cut 64 boxes -> last, windows",
    "S6": "blank 36 image tokens",
    "S7": "direct paths from heads to the logits",
    "S8": "direct paths from heads to a late head's query",
}


def digits(x: float) -> str:
    """Two or three digits, no exponent."""
    return f"{x:.0f}" if x >= 100 else f"{x:.2g}" if x < 10 else f"{x:.1f}"


def row(name: str, layers: int, found: dict[str, Any]) -> str:
    """One sweep at one size."""
    ours = found["speedup"]["mechvlm"]
    low, high = (digits(x) for x in ours["range"])
    cells = [
        NAMES[name],
        str(layers),
        str(found["interventions"]),
        f"**{digits(ours['median'])}** ({low}-{high})",
        digits(found["speedup_with_base"]["mechvlm"]["median"]),
        digits(whole["median"]) if (whole := found["speedup_all_logits"]) else "",
        *(
            digits(found["speedup"][who]["median"]) if who in found["speedup"] else "-"
            for who in COLUMNS
        ),
        # Paths that go through no layer leave next to nothing to compute.
        f"{100 * found['share_of_bound']:.0f} %" if found["bound"] < 1e4 else "-",
    ]
    return f"| {' | '.join(cells)} |"


def table(lines: list[dict[str, Any]]) -> str:
    """The words and the table; nothing where nothing was measured."""
    sweeps = [line for line in lines if "sweeps" in line]
    if not sweeps:
        return ""
    setting = sweeps[0]["setting"]
    heads = ["what is swept", "layers", "runs", "mechvlm", "with base run"]
    heads += ["all logits"]
    heads += [*COLUMNS.values(), "of the bound"]
    rows = [
        row(name, line["setting"]["layers"], found)
        for line in sweeps
        for name, found in line["sweeps"].items()
    ]
    words = (
        f"Times faster than a loop of plain Hugging Face forwards (SDPA) with hooks:"
        f" random LLaVAs of {setting['image_positions']} image tokens and"
        f" {setting['positions']} positions, {setting['dtype']}, {setting['device']},"
        f" threads: {setting['threads']}, torch {setting['torch']}. Medians (and range)"
        " of repetitions in turns, answers compared first. mechvlm reads a logit"
        " difference of every run, and with *all logits* the whole vocabulary, as the"
        " others do at the last position. *Kept prefix* is the loop"
        " over a KV cache of what stands before the first changed position; *of the"
        " bound* is the speed-up's share of what the fewest possible operations allow;"
        " `-`: it cannot express this, was not run at this size, or has no such bound."
    )
    head = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    return "\n".join([words, "", *head, *rows, ""])


def placed(readme: str, made: str) -> str:
    """The README with the table between its markers."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"the README lacks {START!r} or {END!r}")
    inside = f"\n{made}\n" if made else ""
    return before + start + inside + end + after


def main() -> None:
    """Write the table, or compare."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--check", action="store_true")
    told = words.parse_args()
    kept = HERE / "results" / "cpu.json"
    lines = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    readme = README.read_text(encoding="utf-8")
    made = placed(readme, table(lines))
    if told.check and made != readme:
        sys.exit("the README's table is stale: run `python benchmarks/table.py`")
    if not told.check:
        README.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
