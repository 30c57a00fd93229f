"""The commands: options in, handed on to the module that does the work."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mechvlm.cli.app import app
from mechvlm.cli.given import Given, Output, Which
from mechvlm.cli.options import (
    Answer,
    Box,
    Counterfactual,
    Device,
    DType,
    Foil,
    Image,
    Json,
    Model,
    Out,
    Precision,
    Question,
    Quiet,
    example,
)
from mechvlm.cli.told import tell

__all__: list[str] = []

AUTO = Precision.AUTO


class Direction(StrEnum):
    """Whose activations go where."""

    DENOISE = "denoise"
    NOISE = "noise"


class Mode(StrEnum):
    """Which layers a window holds."""

    WINDOW = "window"
    CENTRED = "centred"
    FROM = "from"
    UPTO = "upto"


class Value(StrEnum):
    """What stands for a token that is taken away."""

    MEAN = "mean"
    ZERO = "zero"
    RESAMPLE = "resample"


class Patched(StrEnum):
    """What can be patched at a position, or (the last five) head by head."""

    RESID_PRE = "resid_pre"
    RESID_MID = "resid_mid"
    ATTN_OUT = "attn_out"
    MLP_OUT = "mlp_out"
    RESID_POST = "resid_post"
    Q = "q"
    K = "k"
    V = "v"
    Z = "z"
    RESULT = "result"


@app.command(epilog=example("mechvlm demo"))
def demo(
    *,
    model: Model = "demo",
    image: Image = None,
    question: Question = None,
    answer: Answer = None,
    foil: Foil = None,
    counterfactual: Counterfactual = None,
    out: Out = Path("mechvlm-demo"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Trace one answer through a model and write a report.

    Writes mechvlm-demo.html and its results (.nc) into a folder of its own.
    """
    from mechvlm.cli.reporting import demo as work

    output = Output(out, as_json, quiet)
    given = Given(image, question, answer, foil, counterfactual)
    tell(work(model, given, output), output)


@app.command(epilog=example("mechvlm patch --site z --out heads"))
def patch(
    *,
    model: Model = "demo",
    device: Device = None,
    dtype: DType = AUTO,
    image: Image = None,
    question: Question = None,
    answer: Answer = None,
    foil: Foil = None,
    counterfactual: Counterfactual = None,
    box: Box = None,
    site: Annotated[
        Patched,
        typer.Option(help="What is patched: at each position; q to result by head."),
    ] = Patched.RESID_PRE,
    direction: Annotated[
        Direction,
        typer.Option(help="denoise restores the answer; noise destroys it."),
    ] = Direction.DENOISE,
    out: Out = Path("mechvlm-patch"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Patch between two pictures: where is the answer read?

    Writes patching.nc, patching.html and .png (layer by position or head), and
    patching-image.html and .png (over the picture). Of a large model, neighbouring
    image cells are patched together. JSON: best (layer, position or head, recovery),
    clean, corrupted, probabilities, found, n, units, paper, files.
    """
    from mechvlm.cli.patching import patch as work

    output = Output(out, as_json, quiet)
    given = Given(image, question, answer, foil, counterfactual, box)
    which = Which(model, device, dtype.value)
    told = work(which, given, output, site=site.value, direction=direction.value)
    tell(told, output)


@app.command(epilog=example("mechvlm knockout --mode from"))
def knockout(
    *,
    model: Model = "demo",
    device: Device = None,
    dtype: DType = AUTO,
    image: Image = None,
    question: Question = None,
    answer: Answer = None,
    box: Box = None,
    mode: Annotated[
        Mode,
        typer.Option(
            help="Layers that are cut: a window from each layer on, one centred on it,"
            " all from it on, all up to it."
        ),
    ] = Mode.WINDOW,
    width: Annotated[
        int | None, typer.Option(help="Layers in a window; left out: 9 of every 32.")
    ] = None,
    out: Out = Path("mechvlm-knockout"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Cut attention in windows of layers: who must read whom?

    Cuts the image off the last position and off the question; with --box, the object
    and the rest of the image by themselves. Writes knockout.nc, .html and .png. JSON:
    cuts (cut, layers, change, each layer's change), clean, found, n, units, paper,
    files.
    """
    from mechvlm.cli.cutting import knockout as work

    output = Output(out, as_json, quiet)
    given = Given(image, question, answer, box=box)
    which = Which(model, device, dtype.value)
    tell(work(which, given, output, mode=mode.value, width=width), output)


@app.command(epilog=example("mechvlm lens --object ring"))
def lens(
    *,
    model: Model = "demo",
    device: Device = None,
    dtype: DType = AUTO,
    image: Image = None,
    question: Question = None,
    answer: Answer = None,
    box: Box = None,
    word: Annotated[
        str | None,
        typer.Option("--object", help="A word to look for in what the cells say."),
    ] = None,
    topk: Annotated[int, typer.Option(help="Words that are kept of each cell.")] = 5,
    out: Out = Path("mechvlm-lens"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read each image cell with the logit lens, at each layer.

    Writes lens.nc, lens.html and lens.png. JSON: words (the most said, by layer), named
    (share of cells that have --object among their words, by layer, in the box and
    outside it), found, n, units, paper, files.
    """
    from mechvlm.cli.seeing import lens as work

    output = Output(out, as_json, quiet)
    given = Given(image, question, answer, box=box)
    which = Which(model, device, dtype.value)
    tell(work(which, given, output, word=word, topk=topk), output)


@app.command(epilog=example("mechvlm ablate --pairs 4 --buffer 0 --buffer 1"))
def ablate(
    *,
    model: Model = "demo",
    device: Device = None,
    dtype: DType = AUTO,
    image: Image = None,
    question: Question = None,
    answer: Answer = None,
    box: Box = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            help="Many questions instead of one: a folder with pairs.json (its clean"
            " pictures are asked), or for the demo how many scenes to draw."
        ),
    ] = None,
    value: Annotated[
        Value,
        typer.Option(help="What stands for an ablated token; resample needs --pairs."),
    ] = Value.MEAN,
    random: Annotated[
        int, typer.Option(help="Random sets of as many cells, for each question.")
    ] = 5,
    buffer: Annotated[
        list[int] | None,
        typer.Option(
            help="Rings of cells around the object to ablate too; repeatable."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random sets.")] = 0,
    out: Out = Path("mechvlm-ablate"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ablate the object's tokens, and random ones beside them.

    Writes ablation.nc, .html and .png. JSON: sets (decrease, control, excess, p,
    log_p_change, log_p_control, n_tokens of each), n_right, found, n, units, paper,
    files.
    """
    from mechvlm.cli.ablating import ablate as work

    output = Output(out, as_json, quiet)
    told = work(
        Which(model, device, dtype.value),
        Given(image, question, answer, box=box),
        output,
        pairs=pairs,
        value=value.value,
        n_random=random,
        buffers=tuple(buffer or (0,)),
        seed=seed,
    )
    tell(told, output)


@app.command(epilog=example("mechvlm circuit --pairs 4 --size 20 --top 60"))
def circuit(
    *,
    model: Model = "demo",
    device: Device = None,
    dtype: DType = AUTO,
    pairs: Annotated[
        str,
        typer.Option(
            help="A folder with pairs.json, or for the demo how many pairs to draw."
            " Every second pair is held out."
        ),
    ] = "8",
    size: Annotated[int, typer.Option(help="Most edges of the circuit.")] = 40,
    heads: Annotated[
        int | None,
        typer.Option(help="Choose so many heads first, and look among them alone."),
    ] = None,
    top: Annotated[
        int, typer.Option(help="Edges that are measured, the best by gradient.")
    ] = 300,
    out: Out = Path("mechvlm-circuit"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find a circuit on pairs of pictures; judge it by others.

    Writes circuit.json, circuit.html and .png, and faithfulness.nc. JSON: edges, heads,
    share_of_heads, effects, faithfulness (and _low, _high), without, found_on,
    judged_on, found, n, units, paper, files.
    """
    from mechvlm.cli.finding import circuit as work

    output = Output(out, as_json, quiet)
    which = Which(model, device, dtype.value)
    told = work(which, output, pairs=pairs, size=size, n_heads=heads, top=top)
    tell(told, output)


@app.command(epilog=example("mechvlm reproduce neo --scenes 40"))
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
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a paper's whole set of analyses.

    Writes tables, results and a report. JSON: claims (key, claim, verdict and sentence
    of each model), paper, pictures, n, files.
    """
    from mechvlm.cli.reporting import reproduce as work

    output = Output(Path(f"mechvlm-{paper}") if out is None else out, as_json, quiet)
    tell(work(paper, model, data, scenes, output), output)


@app.command(
    epilog=example("mechvlm report mechvlm-lens/lens.nc mechvlm-circuit/circuit.json")
)
def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="Saved results: .nc files, circuits in .json."),
    ],
    *,
    out: Annotated[
        Path, typer.Option(help="The page to write; its folder is made.")
    ] = Path("report.html"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put saved results on one page that needs nothing else.

    JSON: results, n, units, paper, files.
    """
    from mechvlm.cli.reporting import report as work

    output = Output(out, as_json, quiet)
    tell(work(results, output), output)


@app.command(epilog=example("mechvlm bench --sweeps ablate,heads --quick"))
def bench(
    *,
    model: Model = "demo",
    device: Device = None,
    dtype: DType = AUTO,
    image: Image = None,
    question: Question = None,
    counterfactual: Counterfactual = None,
    sweeps: Annotated[
        str | None,
        typer.Option(help="Some of patch,heads,knockout,ablate; left out: all."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer turns.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time interventions against whole passes, answers first.

    Each sweep states its claim; the exit code is 1 where answers differ (nothing is
    timed then) or the sweep is no faster. JSON: one object a line for each sweep, with
    claim, holds, agrees, off, allowed, ratio (and _low, _high), sweep_s, passes_s, n,
    checked, device, dtype.
    """
    from mechvlm.cli.racing import bench as work

    output = Output(Path(), as_json, quiet)
    given = Given(image, question, counterfactual=counterfactual)
    which = Which(model, device, dtype.value)
    codes = []
    for told in work(which, given, output, sweeps=sweeps, quick=quick):
        codes.append(told.code)
        tell(replace(told, code=0), output)
    raise typer.Exit(max(codes))


@app.command(epilog=example("mechvlm info demo"))
def info(
    model: Annotated[
        str | None,
        typer.Argument(
            help="'demo', a checkpoint folder, or a name on the hub: tell what it is,"
            " from its config alone."
        ),
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Tell what is installed here, or what a checkpoint is.

    Of a checkpoint that is not supported it tells why and ends with exit code 1; with 2
    where there is none. JSON: what is shown, and for a model supported and why_not.
    """
    from mechvlm.cli.installed import installed, looked_at

    tell(installed() if model is None else looked_at(model), Output(Path(), as_json))
