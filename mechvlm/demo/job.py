"""The main job, start to end: trace one answer through a model and write a report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mechvlm import __version__
from mechvlm.analyses.attention_flow import attention_patterns
from mechvlm.axes import Labelled, output_folder, save_result
from mechvlm.demo.case import Case, case_of, favourite
from mechvlm.demo.story import where_read, where_written
from mechvlm.demo.sweeps import handed_over, knocked_out, patched
from mechvlm.metrics import logit_difference
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.load import load
from mechvlm.prompts import Prompt
from mechvlm.report import Section, write
from mechvlm.viz import attention, attention_from_last, heatmap, lines, overlay

__all__ = ["run"]

Say = Callable[[str], object]

SHOWN_LAYERS = 8
"""Layers whose attention goes into the report."""


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
    progress: bool | None = None,
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
        progress: None shows progress bars in a terminal, False shows none.

    Returns:
        Path of the report.

    Raises:
        PromptError: A picture of one's own without question or answer.
        OutputError: `out` exists and is not a finished output.
    """
    say = _to_stdout if say is None else say
    with output_folder(out) as folder:
        case = case_of(
            model,
            image=image,
            question=question,
            answer=answer,
            foil=foil,
            counterfactual=counterfactual,
        )
        vlm = load(model)
        clean = vlm.prompt(case.question, case.image)
        corrupted = vlm.prompt(case.question, case.twin)
        foil = case.foil or favourite(vlm, corrupted, but=case.answer)
        sections = [_opening(vlm, case, clean, corrupted, foil, say)]
        metric = logit_difference(vlm, case.answer, foil)
        heat = patched(vlm, clean, corrupted, metric, progress=progress)
        way = handed_over(vlm, clean, corrupted, metric, case, progress=progress)
        drop = knocked_out(vlm, clean, case, progress=progress)
        sentences = [where_read(drop), where_written(way)]
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


def _results(
    case: Case, heat: Labelled, way: Labelled, drop: Labelled, sentences: list[str]
) -> list[Section]:
    """What the two analyses found, in four pictures."""
    return [
        Section(
            "The way of the answer",
            sentences[1] + " Each line: all positions of a set are patched at once.",
            figure=lines(way.rename(set="cut").transpose("cut", "layer")),
        ),
        Section(
            "Who reads whom",
            sentences[0] + " Each line: a cut in this layer and all later ones.",
            figure=lines(drop),
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
