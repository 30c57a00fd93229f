"""The `mechvlm` command: words in, the same public calls as from Python.

Nothing heavy is imported before a command needs it, so that help answers at once.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from mechvlm.errors import MechVLMError

__all__ = ["app", "main"]


app = typer.Typer(
    name="mechvlm",
    help="Find where in a vision-language model an answer comes from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


Model: TypeAlias = Annotated[
    str, typer.Option(help="'demo', a checkpoint folder, or a name on the hub.")
]
"""The model of a command that runs one."""


@app.command()
def demo(
    *,
    model: Model = "demo",
    image: Annotated[
        Path | None, typer.Option(help="The image. Left out: a scene drawn for you.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="What is asked about the image.")
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="The word that the image makes right.")
    ] = None,
    foil: Annotated[
        str | None, typer.Option(help="The word to compare the answer with.")
    ] = None,
    counterfactual: Annotated[
        Path | None, typer.Option(help="A second image, for which the foil is right.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the report and its pictures.")
    ] = Path("mechvlm-demo"),
) -> None:
    """Trace one answer through a model and write a report with pictures."""
    from mechvlm.demo import run

    page = run(
        model=model,
        image=image,
        question=question,
        answer=answer,
        foil=foil,
        counterfactual=counterfactual,
        out=out,
    )
    typer.echo(page)


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help="cohen, neo or kaduri.")],
    *,
    model: Model = "demo",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Pictures for a real model. cohen: a folder in PopVQA's layout."
            " neo: a folder with instances.json (COCO) and images/. kaduri: a folder"
            " of pictures, with a folder mme/ in MME's layout if you have it."
        ),
    ] = None,
    scenes: Annotated[
        int | None, typer.Option(help="Most pictures; left out: enough for the demo.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; left out: mechvlm-cohen, ...")
    ] = None,
) -> None:
    """Run a paper's whole set of analyses; write tables, results and a report.

    Example: mechvlm reproduce neo --scenes 40
    """
    from mechvlm.reproduce import run

    page = run(paper, model=model, data=data, scenes=scenes, out=out)
    typer.echo(page)


@app.command()
def info() -> None:
    """Tell what is installed, where models would run, and where the demo is."""
    from mechvlm.models.demo import PATH

    facts = {"python": f"{platform.python_version()} on {platform.system()}"}
    for package in ("mechvlm", "torch", "transformers", "transformer-lens"):
        facts[package] = _version(package)
    facts["device"] = _device()
    facts["torchvision"] = _torchvision()
    there = (PATH / "config.json").exists()
    facts["demo"] = str(PATH) if there else f"missing from {PATH}"
    width = max(map(len, facts))
    for name, fact in facts.items():
        typer.echo(f"{name:<{width}}  {fact}")


def _version(package: str) -> str:
    """Version of an installed package, by its name on PyPI."""
    if package == "mechvlm":
        from mechvlm import __version__

        return __version__
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return "not installed"


def _device() -> str:
    """The best device that is there, with what tells it from others."""
    import torch

    if torch.cuda.is_available():
        _, total_bytes = torch.cuda.mem_get_info()
        return f"cuda ({torch.cuda.get_device_name()}, {total_bytes / 2**30:.0f} GiB)"
    if torch.backends.mps.is_available():
        return "mps"
    return f"cpu ({torch.get_num_threads()} threads)"


def _torchvision() -> str:
    """Whether a torchvision is there, and whether it lets LLaVA be imported.

    Transformers imports any torchvision that it finds, so one built for another torch
    (the one on PyPI beside a CPU torch) breaks every model that reads images.
    """
    found = _version("torchvision")
    if found == "not installed":
        return f"{found} (not needed)"
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as broken:
        return (
            f"{found} cannot be imported beside torch {_version('torch')}"
            f" ({broken}); no image model can be loaded."
            " Fix: pip uninstall torchvision (mechvlm does not need it)"
        )
    return f"{found} (works, not needed)"


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        words: What was typed after `mechvlm`; None reads the shell's own.

    Raises:
        SystemExit: Always: 0 done, 2 refused, with one message and no traceback.
    """
    try:
        app(words)
    except MechVLMError as refused:
        typer.echo(f"mechvlm: {refused}", err=True)
        raise SystemExit(2) from refused
