"""Run the notebooks on a model of your own, and keep the copies with their pictures.

python notebooks/run.py                                  # all of them, on the demo
python notebooks/run.py --model PATH 02 03 --out DIR     # two of them, on a checkpoint
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

HERE = Path(__file__).parent


def chosen(starts: list[str]) -> list[Path]:
    """The notebooks whose names begin so; all where nothing is asked for."""
    every = sorted(HERE.glob("*.ipynb"))
    unknown = [s for s in starts if not any(p.name.startswith(s) for p in every)]
    if unknown:
        names = ", ".join(path.stem for path in every)
        raise SystemExit(f"no notebook begins with {', '.join(unknown)}: {names}")
    return [p for p in every if not starts or p.name.startswith(tuple(starts))]


def run(path: Path, out: Path, timeout_s: int | None) -> str | None:
    """Run one notebook and write its copy, also where it stops halfway.

    Returns:
        What stopped it; None where nothing did.
    """
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(HERE)}}
    client = NotebookClient(notebook, timeout=timeout_s, resources=where)
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as cause:
        return str(cause)
    finally:
        nbformat.write(notebook, out / path.name)
    return None


def main() -> int:
    """Run what was asked for; the number of notebooks that stopped halfway."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("notebooks", nargs="*", help="how their names begin; none: all")
    asked.add_argument("--model", default="demo", help="checkpoint folder or hub name")
    asked.add_argument("--out", type=Path, default=Path("mechvlm-notebooks"))
    asked.add_argument("--timeout", type=int, help="seconds for one cell; none: no end")
    told = asked.parse_args()
    paths = chosen(told.notebooks)
    # A notebook runs in its own folder, where a relative path would mean another place.
    folder = Path(told.model).expanduser()
    os.environ["MECHVLM_MODEL"] = (
        str(folder.resolve()) if folder.exists() else told.model
    )
    told.out.mkdir(parents=True, exist_ok=True)
    stopped = 0
    for path in paths:
        start = time.perf_counter()
        cause = run(path, told.out, told.timeout)
        took_s = time.perf_counter() - start
        stopped += cause is not None
        print(f"{told.out / path.name}  {took_s:.0f} s{'  STOPPED' if cause else ''}")
        if cause is not None:
            print(cause, file=sys.stderr)
    return stopped


if __name__ == "__main__":
    sys.exit(main())
