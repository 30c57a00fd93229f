"""A model, a picture and a question, made ready from what was typed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch

from mechvlm.cli.given import Given, Which, box_of
from mechvlm.demo.case import SCENES, Case, drawn, favourite, own
from mechvlm.errors import ArgumentError, PairError, PromptError
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.load import load, without_bars
from mechvlm.models.prompting import opened
from mechvlm.prompts import Prompt

__all__ = [
    "Asked",
    "Twins",
    "asked",
    "case_for",
    "hush",
    "loaded",
    "place",
    "place_of",
    "twins",
]


@dataclass(frozen=True)
class Asked:
    """A question about a picture, put to a model.

    Attributes:
        vlm: The model.
        case: Picture, question and answer.
        prompt: Both as the model reads them.
    """

    vlm: HookedVLM
    case: Case
    prompt: Prompt

    @property
    def facts(self) -> dict[str, object]:
        """What every command's JSON tells of its question."""
        told = {"question": self.case.question, "answer": self.case.answer or None}
        return {"model": self.vlm.cfg.model_name, **told}


@dataclass(frozen=True)
class Twins(Asked):
    """The same, with the twin that is answered otherwise.

    Attributes:
        corrupted: The question about the twin.
        foil: The word that the twin makes right.
    """

    corrupted: Prompt
    foil: str


def loaded(which: Which, *, quiet: bool = False) -> HookedVLM:
    """The model, on its device.

    Raises:
        ArgumentError: There is no such device.
        CheckpointError, FamilyError, ModelCheckError: See `mechvlm.load`.
    """
    _check_device(which.device)
    hush(quiet=quiet)
    dtype = None if which.dtype == "auto" else which.dtype
    return load(which.name, device=which.device, dtype=dtype)


def hush(*, quiet: bool) -> None:
    """Show no bar while weights are read, where it is not wanted or nobody watches."""
    if quiet or not sys.stderr.isatty():
        without_bars()


def _check_device(name: str | None) -> None:
    if name is None:
        return
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    n_there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if device.type not in n_there:
        raise ArgumentError(
            f"--device {name!r} is no device; wanted cpu, cuda, cuda:1 or mps."
        )
    if (device.index or 0) >= n_there[device.type]:
        raise ArgumentError(
            f"--device {name}: torch {torch.__version__} finds"
            f" {n_there[device.type] or 'no'} {device.type} device here. Leave --device"
            " out to take what is there."
        )


def case_for(which: Which, given: Given, *wanted: str) -> Case:
    """The picture and the question, looked at before the model is loaded.

    Args:
        which: The model.
        given: What was typed.
        *wanted: Options without which a picture of one's own cannot be asked about.

    Raises:
        PromptError: One of them is missing.
        UnreadableImageError: A file is no picture.
        RegionError: The box is none.
    """
    box = box_of(given.box)
    if which.name in SCENES and given.is_empty:
        case = drawn()
        return case if box is None else replace(case, outline=box, thing="")
    there = {
        "image": given.image,
        "question": given.question,
        "answer": given.answer,
        "counterfactual": given.counterfactual,
        "box": box,
    }
    missing = [f"--{name}" for name in wanted if there[name] is None]
    if given.image is None or given.question is None or missing:
        needed = ", ".join(f"--{name}" for name in wanted)
        raise PromptError(
            f"a picture or a model of your own needs {needed}; what is missing is"
            f" {', '.join(missing)}. With no picture, question or answer, a scene is"
            " drawn for --model demo."
        )
    return own(
        given.image,
        given.question,
        given.answer or "",
        foil=given.foil,
        counterfactual=given.counterfactual,
        outline=box,
    )


def asked(which: Which, case: Case, *, quiet: bool = False) -> Asked:
    """A question about one picture, put to the model."""
    vlm = loaded(which, quiet=quiet)
    return Asked(vlm, case, vlm.prompt(case.question, opened(case.image)))


def twins(which: Which, case: Case, *, quiet: bool = False) -> Twins:
    """A question about two pictures, put to the model."""
    one = asked(which, case, quiet=quiet)
    corrupted = one.vlm.prompt(case.question, case.twin)
    one.vlm.to_single_token(case.answer)
    if all(torch.equal(one.prompt.inputs[x], y) for x, y in corrupted.inputs.items()):
        raise PairError(
            "--image and --counterfactual are the same to the model, pixel for pixel:"
            " whatever is patched, nothing would change. Was one file given twice, or"
            " does what differs lie where the processor crops?"
        )
    foil = case.foil or favourite(one.vlm, corrupted, but=case.answer)
    return Twins(one.vlm, case, one.prompt, corrupted, foil)


def place_of(prompt: Prompt, position: int) -> dict[str, object]:
    """What stands at a position, for programs: rows and columns count from 0."""
    layout = prompt.layout
    told: dict[str, object] = {
        "position": position,
        "token": prompt.tokens[position],
        "group": layout.group_of(position),
    }
    for grid in layout.grids:
        if position in grid.positions:
            row, col = divmod(position - grid.start, grid.cols)
            told |= {"row": row, "col": col}
    return told


def place(prompt: Prompt, position: int) -> str:
    """The same for people."""
    told = place_of(prompt, position)
    if "row" in told:
        return f"the image cell in row {told['row']}, column {told['col']}"
    if position == prompt.layout.last:
        return "the last position"
    return f"“{str(told['token']).strip()}” ({told['group']}, position {position})"
