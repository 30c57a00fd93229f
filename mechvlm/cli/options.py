"""The options that several commands share, each said once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

__all__ = [
    "Answer",
    "Box",
    "Counterfactual",
    "DType",
    "Device",
    "Foil",
    "Image",
    "Json",
    "Model",
    "Out",
    "Precision",
    "Question",
    "Quiet",
    "example",
]


class Precision(StrEnum):
    """Precisions that weights can be loaded in; "auto" is the checkpoint's own."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT64 = "float64"


Model: TypeAlias = Annotated[
    str, typer.Option(help="'demo', a checkpoint folder, or a name on the hub.")
]

Device: TypeAlias = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, mps; left out: a CUDA device, else the CPU."),
]

DType: TypeAlias = Annotated[Precision, typer.Option(help="Precision of the weights.")]

Image: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="The image. Left out, with --question and --answer: a scene is drawn for"
        " the demo model."
    ),
]

Question: TypeAlias = Annotated[
    str | None, typer.Option(help="What is asked about the image.")
]

Answer: TypeAlias = Annotated[
    str | None, typer.Option(help="The word that the image makes right.")
]

Foil: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="The word to compare the answer with; left out: what the counterfactual is"
        " answered with."
    ),
]

Counterfactual: TypeAlias = Annotated[
    Path | None, typer.Option(help="A second image, for which the foil is right.")
]

Box: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="X0,Y0,X1,Y1",
        help="Box of the object that is asked about: left, top, right, bottom in"
        " pixels.",
    ),
]

Out: TypeAlias = Annotated[
    Path,
    typer.Option(
        help="Folder to write into; made where it is missing. Files of the same names"
        " are replaced."
    ),
]

Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of words.")
]

Quiet: TypeAlias = Annotated[
    bool, typer.Option("--quiet", help="Show no progress; refusals are still shown.")
]


def example(command: str) -> str:
    """What stands below a command's help; it runs as it stands.

    Example:
        >>> example("mechvlm demo").splitlines()[1:]
        ['Example:', '  mechvlm demo']
    """
    return f"\b\nExample:\n  {command}"  # \b keeps the lines as they are
