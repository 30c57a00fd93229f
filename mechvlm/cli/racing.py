"""`mechvlm bench`: how much faster interventions are than whole passes, here."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence

import torch

from mechvlm.bench import FULL, QUICK, SWEEPS, Race, race
from mechvlm.cli.asked import asked, case_for
from mechvlm.cli.given import Given, Output, Which
from mechvlm.cli.told import Told
from mechvlm.errors import ArgumentError
from mechvlm.models.hooked import HookedVLM

__all__ = ["bench"]


def bench(
    which: Which,
    given: Given,
    output: Output,
    *,
    sweeps: str | None,
    quick: bool,
) -> Iterator[Told]:
    """Race every sweep; each is told as soon as it is done."""
    names = list(SWEEPS) if sweeps is None else [s.strip() for s in sweeps.split(",")]
    if unknown := [name for name in names if name not in SWEEPS]:
        raise ArgumentError(
            f"--sweeps {', '.join(map(repr, unknown))}: there are {', '.join(SWEEPS)}."
        )
    case = case_for(which, given, "image", "question")
    one = asked(which, case, quiet=output.quiet)
    corrupted = one.vlm.prompt(case.question, case.twin)
    effort = QUICK if quick else FULL
    for name in names:
        found = race(one.vlm, one.prompt, corrupted, name, effort=effort)
        yield Told(
            "bench",
            _lines(found, one.vlm),
            _facts(found, one.vlm, one.prompt.layout.n),
            code=0 if found.holds else 1,
        )


def _lines(found: Race, vlm: HookedVLM) -> Sequence[str]:
    """The claim, the check, and the ratio with its range."""
    thinned = f" (of {found.n_possible})" if found.n < found.n_possible else ""
    lines = [
        f"{found.sweep}: {found.claim}.",
        f"  checked  {found.checked} of {found.n}{thinned} against whole passes:"
        f" logits differ by {found.off:.1e} of the largest (allowed {found.allowed:g})",
    ]
    if found.ratio is None:
        return [*lines, "  FALSE    the answers differ, so nothing was timed"]
    ratios = f"{found.ratio:.1f} x ({min(found.ratios):.1f} to {max(found.ratios):.1f})"
    verdict = "true" if found.holds else "FALSE"
    return [*lines, f"  {verdict:<7}  {ratios}, {_machine(vlm)}"]


def _facts(found: Race, vlm: HookedVLM, n_positions: int) -> dict[str, object]:
    ratios = found.ratios
    return {
        "bench": found.sweep,
        "claim": found.claim,
        "holds": found.holds,
        "agrees": found.agrees,
        "off": found.off,
        "allowed": found.allowed,
        "n": found.n,
        "n_possible": found.n_possible,
        "checked": found.checked,
        "ratio": found.ratio,
        "ratio_low": min(ratios) if ratios else None,
        "ratio_high": max(ratios) if ratios else None,
        "sweep_s": found.sweep_s,
        "passes_s": found.passes_s,
        "units": {"ratio": "seconds of whole passes / seconds of the sweep"},
        "model": vlm.cfg.model_name,
        "positions": n_positions,
        "device": _machine(vlm),
        "dtype": str(vlm.cfg.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "paper": None,
    }


def _machine(vlm: HookedVLM) -> str:
    """What it ran on."""
    device = vlm.cfg.device
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    kind = platform.processor() or platform.machine()
    return f"{device}, {kind}, {threads} thread{'' if threads == 1 else 's'}"
