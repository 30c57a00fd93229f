"""`mechvlm demo`, `reproduce` and `report`: pages out of results.

`report` needs no model, so what the other two load is imported where they run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import typer

from mechvlm.axes import Labelled, LabelledSet, open_result
from mechvlm.cli.given import Given, Output
from mechvlm.cli.told import Told, say
from mechvlm.errors import ArgumentError, OutputError
from mechvlm.graph import Circuit

__all__ = ["demo", "report", "reproduce"]


def demo(which: str, given: Given, output: Output) -> Told:
    """Trace one answer and write a report; people read along while it is made."""
    from mechvlm.cli.asked import hush
    from mechvlm.demo import run as run_demo

    said: list[str] = []
    hush(quiet=output.quiet)
    page = run_demo(
        model=which,
        image=given.image,
        question=given.question,
        answer=given.answer,
        foil=given.foil,
        counterfactual=given.counterfactual,
        out=output.out,
        say=_both(said.append, _aside(output) if output.as_json else _aloud),
        progress=output.progress,
    )
    way = _array(output.out / "activation_patching_sets.nc")
    drop = _array(output.out / "knockout_windows.nc")
    facts = {
        "model": way.attrs["model"],
        "question": said[0].removeprefix("question").strip(),
        "answer": drop.attrs["answer"],
        "said": said,
        "recovery": _by_name(way, "set"),
        "change": _by_name(drop, "cut"),
        "n": int(way.size + drop.size),
        "units": {"recovery": way.attrs["units"], "change": drop.attrs["units"]},
        "paper": [way.attrs["paper"], drop.attrs["paper"]],
    }
    return Told("demo", (), facts, (page, *sorted(output.out.glob("*.nc"))))


def reproduce(
    paper: str, which: str, data: Path | None, scenes: int | None, output: Output
) -> Told:
    """Run a paper's analyses, and tell its findings."""
    from mechvlm.cli.asked import hush
    from mechvlm.reproduce import run as run_study

    hush(quiet=output.quiet)
    page = run_study(
        paper, model=which, data=data, scenes=scenes, out=output.out, say=_aside(output)
    )
    found = json.loads((page.parent / "findings.json").read_text(encoding="utf-8"))
    counted = {"n": found["pictures"], "units": "pictures"}
    files = sorted(each for each in page.parent.rglob("*") if each.is_file())
    facts = {"model": which, **found, **counted}
    return Told("reproduce", (), facts, (page, *(f for f in files if f != page)))


def report(results: Sequence[Path], output: Output) -> Told:
    """Put saved results on one page."""
    from mechvlm.report import report as write_report

    page = output.out
    if page.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"--out {page}: a report is one page; wanted a name in .html")
    opened = [_opened(each) for each in results]
    if page.exists() and not output.quiet:
        typer.echo(f"replaced   {page}", err=True)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        written = write_report(opened, page)
    except OSError as cause:
        if isinstance(cause, OutputError):
            raise
        raise OutputError(f"cannot write {page}: {cause}.") from cause
    papers = [_paper(each) for each in opened]
    facts = {
        "results": [str(each) for each in results],
        "n": len(results),
        "units": "results",
        "paper": list(dict.fromkeys(each for each in papers if each)),
    }
    return Told("report", (), facts, (written,))


def _opened(file: Path) -> Labelled | LabelledSet | Circuit:
    """A saved result: a circuit of a .json, an array or a set of them of a .nc.

    Raises:
        OutputError, CircuitError: It is none.
        ArgumentError: Its suffix is neither.
    """
    match file.suffix.lower():
        case ".nc":
            return open_result(file)
        case ".json":
            return Circuit.open(file)
    raise ArgumentError(
        f"{file} is no result: wanted files in .nc, as the commands write them, or"
        " circuits in .json."
    )


def _paper(result: Labelled | LabelledSet | Circuit) -> str:
    """Key of the paper behind a result; "" where it tells none."""
    about = result.about if isinstance(result, Circuit) else result.attrs
    return str(about.get("paper", ""))


def _array(file: Path) -> Labelled:
    """A saved array."""
    result = open_result(file)
    if not isinstance(result, Labelled):
        raise OutputError(f"{file} holds several arrays; wanted one.")
    return result


def _by_name(result: Labelled, dim: str) -> dict[str, list[float]]:
    """Values by layer, of every set or cut."""
    return {
        str(name): result.sel({dim: name}).values.tolist()
        for name in result[dim].values
    }


Say = Callable[[str], object]


def _aloud(line: str) -> None:
    """Tell people; a reader who has left does not stop the work."""
    with suppress(typer.Exit):
        say(line)


def _aside(output: Output) -> Say:
    """Tell standard error, or nobody."""
    return (lambda line: None) if output.quiet else partial(typer.echo, err=True)


def _both(one: Say, other: Say) -> Say:
    """Two that hear the same."""

    def heard(line: str) -> None:
        one(line)
        other(line)

    return heard
