"""Run a paper's whole set of analyses and write what came of it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from mechvlm import __version__
from mechvlm.axes import output_folder
from mechvlm.errors import MechVLMError, PromptError
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.load import load
from mechvlm.report import Section, write
from mechvlm.reproduce.cohen import COHEN
from mechvlm.reproduce.finding import Finding, section_of, verdict, written
from mechvlm.reproduce.kaduri import KADURI
from mechvlm.reproduce.neo import NEO
from mechvlm.reproduce.study import Study

__all__ = ["STUDIES", "run"]

STUDIES: Mapping[str, Study[Any, Any]] = MappingProxyType(
    {study.name: study for study in (COHEN, NEO, KADURI)}
)
"""What can be run, by name."""

CONTROL = "demo-control"
"""The demo's twin that was trained without the planted ingredients."""

Say = Callable[[str], object]
AnyStudy: TypeAlias = Study[Any, Any]


def run(
    paper: str,
    *,
    model: str = "demo",
    data: Path | None = None,
    scenes: int | None = None,
    out: Path | None = None,
    say: Say | None = None,
) -> Path:
    """Measure a paper's findings on a model, and write tables, results and a report.

    The demo is measured beside its control, so that the report can tell what training
    planted from what emerged by itself.

    Args:
        paper: "cohen", "neo" or "kaduri".
        model: "demo", a checkpoint folder, or a name on the hub.
        data: Folder of one's own pictures, in the layout that the paper's data has;
            None draws synthetic scenes, which only the demo can read.
        scenes: Most pictures; None takes what the study was tuned for.
        out: Folder to write; None takes "mechvlm-" and the paper's name.
        say: Where progress goes; None writes it to standard error.

    Returns:
        Path of the report.

    Raises:
        PromptError: No such paper, or a real model without data.
        OutputError: `out` exists and is not a finished output.
    """
    say = _to_stderr if say is None else say
    study = _checked(paper, model, data, scenes)
    n = study.scenes if scenes is None else scenes
    material = study.of_scenes(n) if data is None else study.of_folder(data, n)
    out = Path(f"mechvlm-{study.name}") if out is None else out
    models = (model, CONTROL) if model == "demo" and data is None else (model,)
    with output_folder(out) as folder:
        loaded = {name: load(name) for name in models}
        found = {
            name: _measured(study, vlm, material, folder / Path(name).name, say)
            for name, vlm in loaded.items()
        }
        (folder / "findings.json").write_text(_told(study, found, n))
        write(
            folder / "report.html",
            study.title,
            [_summary(study, found), *_sections(study, found)],
            lead=_lead(study, found, n),
            version=__version__,
            papers=[study.paper],
        )
    return out / "report.html"


def _checked(paper: str, model: str, data: Path | None, scenes: int | None) -> AnyStudy:
    if paper not in STUDIES:
        raise PromptError(
            f"no study is called {paper!r}; there are {', '.join(STUDIES)}."
        )
    if data is None and model not in ("demo", CONTROL):
        raise PromptError(
            f"{model!r} was not trained on synthetic scenes, so it needs pictures of"
            " its own: give a folder with --data (`mechvlm reproduce --help` tells its"
            " layout)."
        )
    if scenes is not None and scenes < 2:
        raise PromptError(f"{scenes} pictures: an interval needs two at the least.")
    return STUDIES[paper]


def _measured(
    study: AnyStudy, vlm: HookedVLM, material: object, folder: Path, say: Say
) -> list[Finding]:
    """All findings of one model, written as soon as they are there."""
    session = study.session(vlm, material)
    found, start = [], time.perf_counter()
    for claim, measure in study.claims.items():
        try:
            finding = measure(session)
        except MechVLMError as cause:  # one claim's fault must not lose the others
            finding = Finding(f"not measured: {cause}", None)
        written(claim, finding, folder)
        now = time.perf_counter()
        say(f"{folder.name}: {claim.title}: {verdict(finding)} ({now - start:.0f} s)")
        start = now
        found.append(finding)
    return found


def _summary(study: AnyStudy, found: Mapping[str, Sequence[Finding]]) -> Section:
    """One line a claim: which models show it."""
    rows: list[list[str]] = [["claim", *found]]
    rows += [
        [claim.title, *(verdict(of_model[i]) for of_model in found.values())]
        for i, claim in enumerate(study.claims)
    ]
    return Section("What is shown", table=rows)


def _sections(study: AnyStudy, found: Mapping[str, Sequence[Finding]]) -> list[Section]:
    """Claims in the paper's order, the models of each one after the other."""
    return [
        section_of(claim, of_model[i], model)
        for i, claim in enumerate(study.claims)
        for model, of_model in found.items()
    ]


def _told(study: AnyStudy, found: Mapping[str, Sequence[Finding]], n: int) -> str:
    """Every verdict with its sentence, for programs."""
    claims = [
        {
            "key": claim.key,
            "claim": claim.title,
            "paper_says": claim.paper_says,
            "models": {
                model: {"verdict": verdict(of_model[i]), "here": of_model[i].here}
                for model, of_model in found.items()
            },
        }
        for i, claim in enumerate(study.claims)
    ]
    told = {"paper": study.paper, "pictures": n, "claims": claims}
    return json.dumps(told, indent=1) + "\n"


def _lead(study: AnyStudy, found: Mapping[str, Sequence[Finding]], n: int) -> str:
    told = "; ".join(
        f"{model} shows {sum(f.shown is True for f in findings)} of"
        f" {sum(f.shown is not None for f in findings)} claims that can be told"
        for model, findings in found.items()
    )
    words = f"Measured again on at most {n} pictures: {told}."
    if CONTROL in found and len(found) > 1:
        words += (
            f" `{CONTROL}` was trained without the ingredients that were planted in"
            " `demo` (see the model card): what both show emerged by itself."
        )
    return words


def _to_stderr(words: str) -> None:
    sys.stderr.write(words + "\n")
    sys.stderr.flush()
