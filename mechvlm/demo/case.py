"""One answer to trace: the user's own, or a scene drawn for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mechvlm.errors import PromptError, TokenError
from mechvlm.layout import Box
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.prompting import opened
from mechvlm.prompts import Prompt
from mechvlm.scenes import questions, sample

__all__ = ["SCENES", "Case", "case_of", "drawn", "favourite", "own"]

SCENES = ("demo", "demo-control")
"""Models that were trained on scenes, so that one can be drawn for them."""


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
        thing: What the object is called; "" where it is not known.
    """

    question: str
    image: Image.Image
    twin: Image.Image
    answer: str
    foil: str | None
    outline: Box | None
    twin_says: str
    thing: str = ""


def case_of(
    model: str,
    *,
    image: Path | None,
    question: str | None,
    answer: str | None,
    foil: str | None,
    counterfactual: Path | None,
) -> Case:
    """The user's own picture and question, or a scene that is drawn for them."""
    given = (image, question, answer, foil, counterfactual)
    if model in SCENES and all(each is None for each in given):
        return drawn()
    if image is None or question is None or answer is None:
        raise PromptError(
            "a picture or model of your own needs all of --image FILE, --question"
            ' "..." and --answer WORD; with none of them a scene is drawn for the demo'
            " model."
        )
    return own(image, question, answer, foil=foil, counterfactual=counterfactual)


def own(
    image: Path,
    question: str,
    answer: str,
    *,
    foil: str | None = None,
    counterfactual: Path | None = None,
    outline: Box | None = None,
) -> Case:
    """A picture of one's own; its twin a second one, or a plain one of its colour.

    Raises:
        UnreadableImageError: A file is no picture.
    """
    picture = opened(image)
    if counterfactual is not None:
        twin, words = opened(counterfactual), f"the picture {counterfactual.name}"
    else:
        mean = np.asarray(picture).reshape(-1, 3).mean(axis=0).round().astype(int)
        colour = (int(mean[0]), int(mean[1]), int(mean[2]))
        twin, words = Image.new("RGB", picture.size, colour), "a plain picture"
    return Case(question, picture, twin, answer, foil, outline, words)


def drawn() -> Case:
    """A scene of three objects, and its twin in which one has another colour."""
    scene = sample(seed=11, n=3)
    asked = questions(scene, "color")[0]
    at = asked.about or 0
    taken = {asked.answer, *(q.answer for q in questions(scene, "color"))}
    foil = next(c for c in ("blue", "red", "green", "yellow") if c not in taken)
    twin = scene.recolored(at, foil)
    name = scene.things[at].words.split()[-1]
    return Case(
        asked.text,
        scene.image,
        twin.image,
        asked.answer,
        foil,
        scene.box(at),
        f"the same scene with that object in {foil}",
        name,
    )


@torch.no_grad()
def favourite(vlm: HookedVLM, prompt: Prompt, *, but: str) -> str:
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
