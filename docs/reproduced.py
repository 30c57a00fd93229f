"""Put what the demo shows of three papers between two markers of the README.

python docs/reproduced.py --run      # measure again (minutes), keep, write
python docs/reproduced.py            # write what was kept
python docs/reproduced.py --check    # fail if the README says something else
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from section import keep

KEPT = Path(__file__).parent / "reproduced"
PAPERS = {"cohen": "Cohen et al.", "neo": "Neo et al.", "kaduri": "Kaduri et al."}
MARKS = {"shown": "yes", "not shown": "no", "cannot be told": "-"}


def measured() -> None:
    """Run every study and keep its verdicts."""
    from mechvlm.reproduce import run

    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for paper in PAPERS:
            page = run(paper, out=Path(scratch) / paper)
            shutil.copy(page.parent / "findings.json", KEPT / f"{paper}.json")


def shortened(told: dict[str, str]) -> str:
    """The first sentence of what a model shows; the report has all of it."""
    first = told["here"].split(". ")[0].rstrip(".")
    return first.replace("|", "/")


def rows(paper: str) -> list[str]:
    """One line for each claim of a paper."""
    told: dict[str, Any] = json.loads((KEPT / f"{paper}.json").read_text())
    found = []
    for claim in told["claims"]:
        models = claim["models"]
        marks = [MARKS[models[name]["verdict"]] for name in ("demo", "demo-control")]
        cells = [PAPERS[paper], claim["claim"], *marks, shortened(models["demo"])]
        found.append(f"| {' | '.join(cells)} |")
    return found


ABOUT = """\
`mechvlm reproduce cohen` (or `neo`, `kaduri`) measures a paper's claims on the demo and
on its control, a model of the same world that was trained without the ingredients
planted in the demo, and writes tables (CSV), results (netCDF), figures and a report;
`--model` and `--data` take a checkpoint and pictures of your own. A dash is what the
paper leaves open or the model cannot be asked.

| paper | claim | demo | control | the demo, in numbers |
|---|---|---|---|---|
"""


def table() -> str:
    """All claims, as a section of the README."""
    return ABOUT + "\n".join(line for paper in PAPERS for line in rows(paper)) + "\n"


if __name__ == "__main__":
    keep(__doc__, "reproduced", measure=measured, write=table)
