"""The main job, start to end: trace one answer through a model and write a report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from mechvlm import __version__
from mechvlm.analyses.activation_patching import activation_patching
from mechvlm.analyses.attention_flow import attention_patterns
from mechvlm.analyses.knockout import knockout_windows
from mechvlm.axes import Labelled, output_folder, save_result
from mechvlm.errors import PromptError, TokenError
from mechvlm.layout import Box, Positions
from mechvlm.metrics import Metric, logit_difference
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.load import load
from mechvlm.models.prompting import opened
from mechvlm.prompts import Prompt
from mechvlm.report import Section, write
from mechvlm.scenes import questions, sample
from mechvlm.viz import attention, attention_from_last, curves, heatmap, overlay

__all__ = ["Case", "run"]

Say = Callable[[str], object]
Floats = Float[np.ndarray, " layer"]

MOST_PATCHES = 1000
"""Above this many patches, neighbouring positions are patched together."""

SHOWN_LAYERS = 8
"""Layers whose attention goes into the report."""


@dataclass(frozen=True)
class Case:
    """One answer to trace: a question, a picture, and a twin where it is false.

    Attributes:
        question: What is asked of both pictures.
        image: The picture that makes `answer` right.
        twin: The picture that does not.
        answer: The word whose way is traced.
        foil: The word that the twin makes right; None takes the model's own.
        outline: Box of the object in pixels; None where it is not known.
        twin_says: What the twin is, in words.
    """

    question: str
    image: Image.Image
    twin: Image.Image
    answer: str
    foil: str | None
    outline: Box | None
    twin_says: str


def run(
    *,
    model: str = "demo",
    image: Path | None = None,
    question: str | None = None,
    answer: str | None = None,
    foil: str | None = None,
    counterfactual: Path | None = None,
    out: Path = Path("mechvlm-demo"),
    say: Say | None = None,
) -> Path:
    """Ask a model about a picture, trace the answer, and write a report.

    Args:
        model: "demo", a checkpoint folder, or a name on the hub.
        image: The picture; None draws a scene (only for the demo model).
        question: What is asked about it.
        answer: The word that the picture makes right.
        foil: The word to compare it with; None takes what the twin is answered with.
        counterfactual: A second picture for which the answer is wrong; None takes a
            plain one of the same mean colour.
        out: Folder for report and results.
        say: Where the words go; None writes them to standard output.

    Returns:
        Path of the report.

    Raises:
        PromptError: A picture of one's own without question or answer.
        OutputError: `out` exists and is not a finished output.
    """
    say = _to_stdout if say is None else say
    with output_folder(out) as folder:
        case = _case(model, image, question, answer, foil, counterfactual)
        vlm = load(model)
        clean = vlm.prompt(case.question, case.image)
        corrupted = vlm.prompt(case.question, case.twin)
        foil = case.foil or _favourite(vlm, corrupted, but=case.answer)
        sections = [_opening(vlm, case, clean, corrupted, foil, say)]
        metric = logit_difference(vlm, case.answer, foil)
        heat = _patched(vlm, clean, corrupted, metric)
        way = _handed_over(vlm, clean, corrupted, metric, case)
        drop = _knocked_out(vlm, clean, case)
        sentences = [_where_read(drop), _where_written(way)]
        for sentence in sentences:
            say(sentence)
        sections += _results(case, heat, way, drop, sentences)
        sections += _attention(vlm, clean, drop)
        save_result(heat, folder / "activation_patching.nc")
        save_result(way, folder / "activation_patching_sets.nc")
        save_result(drop, folder / "knockout_windows.nc")
        title = f"Where does “{case.answer}” come from?"
        write(
            folder / "mechvlm-demo.html",
            title,
            sections,
            lead=" ".join(sentences),
            version=__version__,
        )
    return out / "mechvlm-demo.html"


def _to_stdout(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def _case(
    model: str,
    image: Path | None,
    question: str | None,
    answer: str | None,
    foil: str | None,
    counterfactual: Path | None,
) -> Case:
    """The user's own picture and question, or a scene that is drawn for them."""
    given = (image, question, answer, foil, counterfactual)
    if model == "demo" and all(each is None for each in given):
        return _drawn()
    if image is None or question is None or answer is None:
        raise PromptError(
            "a picture or model of your own needs all of --image FILE, --question"
            ' "..." and --answer WORD; with none of them a scene is drawn for the demo'
            " model."
        )
    picture = opened(image)
    if counterfactual is not None:
        twin, words = opened(counterfactual), f"the picture {counterfactual.name}"
    else:
        mean = np.asarray(picture).reshape(-1, 3).mean(axis=0).round().astype(int)
        colour = (int(mean[0]), int(mean[1]), int(mean[2]))
        twin, words = Image.new("RGB", picture.size, colour), "a plain picture"
    return Case(question, picture, twin, answer, foil, None, words)


def _drawn() -> Case:
    """A scene of three objects, and its twin in which one has another colour."""
    scene = sample(seed=11, n=3)
    asked = questions(scene, "color")[0]
    at = asked.about or 0
    taken = {asked.answer, *(q.answer for q in questions(scene, "color"))}
    foil = next(c for c in ("blue", "red", "green", "yellow") if c not in taken)
    twin = scene.recolored(at, foil)
    words = f"the same scene with that object in {foil}"
    return Case(
        asked.text, scene.image, twin.image, asked.answer, foil, scene.box(at), words
    )


@torch.no_grad()
def _favourite(vlm: HookedVLM, prompt: Prompt, *, but: str) -> str:
    """The word that the model would rather say to a prompt than any other but one."""
    for token in vlm(prompt)[0, -1].argsort(descending=True).tolist():
        word = vlm.to_string(token).strip()
        if word not in ("", but) and _is_word(vlm, word, token):
            return word
    raise PromptError("the model has no word to compare the answer with; give --foil.")


def _is_word(vlm: HookedVLM, word: str, token: int) -> bool:
    """Whether a word stands for this token and no special one."""
    if token in vlm.tokenizer.all_special_ids:
        return False
    try:
        return vlm.to_single_token(word) == token
    except TokenError:
        return False


@torch.no_grad()
def _opening(
    vlm: HookedVLM, case: Case, clean: Prompt, corrupted: Prompt, foil: str, say: Say
) -> Section:
    """Say what is asked and answered, and show it as the report's first section."""
    rows: list[tuple[str, ...]] = [
        ("picture", "answer", f"P({case.answer})", f"P({foil})")
    ]
    say(f"question   {case.question}")
    for name, prompt in (("this one", clean), ("its twin", corrupted)):
        p = vlm(prompt)[0, -1].softmax(dim=-1)
        words = vlm.to_string(int(p.argmax()))
        pair = [float(p[vlm.to_single_token(word)]) for word in (case.answer, foil)]
        rows.append((name, words, *(f"{x:.3f}" for x in pair)))
        say(f"{name:<10} {words}  ({case.answer} {pair[0]:.3f}, {foil} {pair[1]:.3f})")
    gap = case.image.width // 12
    wide = case.image.width + gap + case.twin.width
    high = max(case.image.height, case.twin.height)
    both = Image.new("RGB", (wide, high), "white")
    both.paste(case.image, (0, 0))
    both.paste(case.twin, (case.image.width + gap, 0))
    return Section(
        "The question",
        f"Asked of two pictures: `{case.question}` The twin is {case.twin_says}.",
        image=_enlarged(both),
        alt="The picture on the left, its twin on the right",
        table=rows,
    )


def _enlarged(image: Image.Image) -> Image.Image:
    """Small pictures drawn large, pixel by pixel."""
    factor = max(1, 480 // image.width)
    size = image.width * factor, image.height * factor
    return image.resize(size, Image.Resampling.NEAREST)


def _patched(
    vlm: HookedVLM, clean: Prompt, corrupted: Prompt, metric: Metric
) -> Labelled:
    """Recovery by layer and position; large models in blocks of neighbours."""
    blocks = _blocks(clean, MOST_PATCHES // vlm.cfg.n_layers)
    heat = activation_patching(
        vlm, clean, corrupted, metric=metric, at=blocks, progress=True
    )
    names = [name for name, block in blocks.items() for _ in block]
    positions = [position for block in blocks.values() for position in block]
    spread = heat.sel(set=names).rename(set="position")
    spread = spread.assign_coords(position=positions).sortby("position")
    return spread.assign_coords(clean.labels())


def _blocks(prompt: Prompt, most: int) -> dict[str, Positions]:
    """Positions alone; where that is too many, square blocks of image cells."""
    layout = prompt.layout
    side = 1
    while True:
        blocks = {str(at): Positions.of(at) for at in layout["text"]}
        for g, grid in enumerate(layout.grids):
            for row in range(grid.rows):
                for col in range(grid.cols):
                    name = f"{g}/{row // side}/{col // side}"
                    here = Positions.of(grid.position(row, col))
                    blocks[name] = blocks.get(name, Positions()) | here
        if len(blocks) <= most or side >= 8:
            return blocks
        side += 1


def _handed_over(
    vlm: HookedVLM, clean: Prompt, corrupted: Prompt, metric: Metric, case: Case
) -> Labelled:
    """Recovery by layer when a whole set of positions is patched at once."""
    layout = clean.layout
    sets = {"image": layout["image"]}
    if case.outline is not None:
        thing = layout.region(case.outline, buffer=1)
        far = layout["image"] - thing
        sets = {"object": thing, "as much background": _some(far, len(thing))}
    sets |= {"question": layout["query"], "last": layout["last"]}
    return activation_patching(
        vlm, clean, corrupted, metric=metric, at=sets, progress=True
    )


def _some(positions: Positions, n: int) -> Positions:
    """`n` of the positions, evenly spread."""
    chosen = np.linspace(0, len(positions) - 1, min(n, len(positions))).round()
    return Positions.of(positions.indices[int(i)] for i in chosen)


def _knocked_out(vlm: HookedVLM, prompt: Prompt, case: Case) -> Labelled:
    """Curves of the cuts that tell how the image reaches the answer."""
    layout = prompt.layout
    seen = {"image": layout["image"]}
    if case.outline is not None:
        thing = layout.region(case.outline)
        seen = {"object": thing, "background": layout["image"] - thing}
    cuts: dict[str, tuple[str | Positions, str | Positions]] = {
        f"{what} → {reader}": (group, source)
        for reader, group in (("question", "query"), ("last", "last"))
        for what, source in seen.items()
    }
    cuts["question → last"] = ("last", "query")
    return knockout_windows(
        vlm, prompt, cuts, answer=case.answer, mode="from", progress=True
    )


def _reading(line: Floats) -> tuple[int, int]:
    """Layers between which the effect of a cut goes from nine tenths to one tenth."""
    left = np.append(line[1:], 0.0) / line[0]
    first = int(np.flatnonzero(left < 0.9)[0])
    return first, max(first, int(np.flatnonzero(left <= 0.1)[0]))


def _where_read(drop: Labelled) -> str:
    """One sentence: who reads the object (or the image), and in which layers."""
    source = str(drop["cut"].values[0]).split(" → ")[0]
    names = [str(name) for name in drop["cut"].values if str(name).startswith(source)]
    name = min(names, key=lambda each: float(drop.sel(cut=each)[0]))
    line = drop.sel(cut=name).values
    if line[0] > -5:
        return (
            f"Read: cutting {' or '.join(names)} in all layers leaves the answer's"
            f" probability within 5 % ({line[0]:+.0f} %): neither is needed alone."
        )
    first, last = _reading(line)
    reader = "the question" if name.endswith("question") else "the last position"
    after = line[last + 1] if last + 1 < len(line) else 0.0
    return (
        f"Read: {reader} reads the {source} in {_layers(first, last)}; cutting that"
        f" from layer {first} on costs {-line[first]:.0f} % of the answer's"
        f" probability, from layer {last + 1} on {max(0.0, -after):.0f} %."
    )


def _layers(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def _where_written(way: Labelled) -> str:
    """One sentence: from which layer on the last position carries the answer."""
    line = way.sel(set="last").values
    carries = np.flatnonzero(line >= 0.5)
    if not len(carries):
        return "Written: no layer's input has the answer at the last position yet."
    at = int(carries[0])
    return (
        f"Written: from the input of layer {int(way['layer'][at])} on the answer stands"
        " at the last position; patching that one position there restores"
        f" {100 * line[at]:.0f} % of it."
    )


def _results(
    case: Case, heat: Labelled, way: Labelled, drop: Labelled, sentences: list[str]
) -> list[Section]:
    """What the two analyses found, in four pictures."""
    return [
        Section(
            "The way of the answer",
            sentences[1] + " Each line: all positions of a set are patched at once.",
            figure=curves(way.rename(set="cut").transpose("cut", "layer")),
        ),
        Section(
            "Who reads whom",
            sentences[0] + " Each line: a cut in this layer and all later ones.",
            figure=curves(drop),
        ),
        Section(
            "Where on the image",
            "Each cell's residual stream is taken from the clean run into the twin's,"
            " one cell and layer at a time. Blue cells bring the answer back; alone,"
            " each does so only in part, because the object has several.",
            figure=overlay(heat, case.image, outline=case.outline),
        ),
        Section(
            "At which token",
            "The same by layer and position, words included.",
            figure=heatmap(heat),
        ),
    ]


def _attention(vlm: HookedVLM, prompt: Prompt, drop: Labelled) -> list[Section]:
    """What the last position attends to, and every head."""
    step = -(-vlm.cfg.n_layers // SHOWN_LAYERS)
    layers = range(0, vlm.cfg.n_layers, step)
    patterns = attention_patterns(vlm, prompt, layers=layers)
    line = np.append(drop.sel(cut="question → last").values, 0.0)
    reading = int(np.diff(line).argmax())
    shown = min(layers, key=lambda layer: abs(layer - reading))
    return [
        Section(
            "What the last token attends to",
            "Attention of each head from the last position, image positions summed.",
            figure=attention_from_last(patterns, layer=shown),
        ),
        Section(
            "All heads",
            "Choose a layer and a head; image positions are shown as one.",
            figure=attention(patterns, layer=shown),
        ),
    ]
