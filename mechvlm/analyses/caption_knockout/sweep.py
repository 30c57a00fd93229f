"""Descriptions made with the image cut off in many ways, and their scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from mechvlm.analyses.caption_knockout.cutting import (
    FLOWS,
    Cut,
    Flow,
    cuts_of,
    knockout_of,
)
from mechvlm.analyses.caption_knockout.scoring import check_truth, judged, with_scores
from mechvlm.analyses.caption_knockout.tables import PAPER
from mechvlm.axes import labelled
from mechvlm.errors import InterventionError, MissingImageError
from mechvlm.interventions import NOTHING, Intervention
from mechvlm.judges.verdict import Judge, check_judge
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of
from mechvlm.wanted import several, words_of

__all__ = ["caption_knockout"]

_OF_THE_PAPER: tuple[Flow, ...] = (
    "image->generated",
    "image->prompt_text",
    "image->both",
)


class _Said(NamedTuple):
    """What is kept of a generation; all its logits would fill the memory."""

    text: str
    n_tokens: int


def caption_knockout(
    vlm: HookedVLM,
    prompts: Sequence[Prompt | Run],
    *,
    judge: Judge,
    flows: Sequence[Flow] = _OF_THE_PAPER,
    start_layers: Sequence[int] | None = None,
    bands: Mapping[str, range] | None = None,
    n_random: int = 1,
    max_new_tokens: int = 300,
    truth: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """Describe pictures with the image cut off, and see which objects stay.

    The model's own description, with nothing cut, is the reference. Four flows can be
    cut; positions of the image go on reading one another in each of them:

    - "image->generated": generated positions do not read the image. The first generated
      token stays as it is, because it is chosen at the prompt's last position.
    - "image->last+generated": nor does the prompt's last position.
    - "image->prompt_text": no position of the prompt beside the image reads it, the
      last one included; generated ones do.
    - "image->both": none of all these do.

    Args:
        vlm: The model.
        prompts: One for each picture, such as "Describe the image.", or its `base_run`.
        judge: Compares descriptions by the objects they name; see `mechvlm.judges`. To
            pay for a language model only once all is described, use `rejudge`.
        flows: Which flows are cut, each by itself.
        start_layers: A flow is cut in this layer and all above, for each of these; 0
            cuts every layer. None takes about eight, evenly from 0; an empty list none.
        bands: Name -> half-open range of layers, such as range(8, 16). A flow is cut
            "in" these layers, and in all but them ("not in").
        n_random: Random sets of as many layers beside each band, as its controls.
        max_new_tokens: Longest description, tokens; 2 or more.
        truth: Objects that each picture really shows, as a second reference.
        seed: Of the random layers.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        A dataset over (prompt, flow, cut); the cut "nothing" comes first in each flow
        and tells how much of 1 the judge alone takes away. Variables:

        - f1, precision, recall: 1 names the objects of the reference and no others, 0
          none of them; nan where the reference names none.
        - text, n_tokens, identical: the description, its length with the
          end-of-sequence token, and whether it is the reference to the letter.
        - named, lost: objects, as JSON; see `lost_objects`.
        - mean, low, high, n (measure, flow, cut): over prompts, with intervals of 95 %
          (nan where too few prompts have a score; see `statistics.mean_of`).
        - change, change_low, change_high, change_n, change_p (flow, cut): F1 less F1
          with nothing cut, paired over prompts; 0 changes nothing.

        With `truth` there are truth_f1, truth_precision and truth_recall too. To cut
        layer l is to cut the attention that reads h[l], the stream entering it.

    Raises:
        ArgumentError: There is one prompt in place of a list, or a band is no range.
        JudgeError: The judge is none, or the class of one.
        InterventionError: There is no prompt, no flow or nothing to cut, a flow is
            unknown, or max_new_tokens leaves no generated position.
        MissingImageError: A prompt has no image.
        LayerError: A layer or band does not exist.
        MetricError: No description names an object that the judge knows, or the truth
            does not fit the prompts.

    Paper: Kaduri et al. 2024, arXiv:2411.17491, knockout of attention.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=2)
        >>> prompt = vlm.prompt("describe the image .", scene.image)
        >>> judge = mv.judges.ObjectListJudge(
        ...     [f"{color} {shape}" for color in mv.scenes.COLORS
        ...      for shape in mv.scenes.SHAPES])
        >>> found = mv.caption_knockout(
        ...     vlm, [prompt], judge=judge, start_layers=[0], max_new_tokens=20)
        >>> found["f1"].dims, found["cut"].values.tolist()
        (('prompt', 'flow', 'cut'), ['nothing', 'from 0'])
        >>> float(found["f1"].sel(flow="image->both", cut="nothing")[0])
        1.0
    """
    given: list[Prompt | Run] = several(
        prompts, (Prompt, Run), "prompts", '[vlm.prompt("Describe the image.", image)]'
    )
    words_of(flows, "flows")
    check_judge(judge)
    asked = [prompt_of(each) for each in given]
    _check(asked, flows, max_new_tokens)
    layers = vlm.cfg.n_layers
    cuts = cuts_of(layers, start_layers, bands or {}, n_random=n_random, seed=seed)
    arms = [_arms(prompt, flows, cuts, max_new_tokens) for prompt in asked]
    check_truth(judge, len(asked), truth)
    said, heard = [], []
    for i, start in enumerate(given):
        shown = False if progress is False else f"description {i + 1} of {len(asked)}"
        made = vlm.generate_many(
            start,
            arms[i],
            max_new_tokens=max_new_tokens,
            logits="first",
            progress=shown,
        )
        said.append([_Said(each.text, len(each.ids)) for each in made])
        texts = [each.text for each in made]
        known = None if truth is None else truth[i]
        heard.append(judged(judge, texts[0], texts, known, i))
    described = _described(vlm, asked, flows, cuts, said)
    described.attrs |= {"max_new_tokens": max_new_tokens, "seed": seed}
    return with_scores(described, heard, judge)


def _check(asked: Sequence[Prompt], flows: Sequence[Flow], max_new_tokens: int) -> None:
    """Refuse what has nothing to cut."""
    if not asked:
        raise InterventionError(
            "there is no prompt to describe. Give a list, one for each picture:"
            ' [vlm.prompt("Describe the image.", image)].'
        )
    for i, prompt in enumerate(asked):
        if not prompt.layout["image"]:
            raise MissingImageError(
                f"prompt {i} ({prompt.text[:60]!r}) has no image, so that there is"
                ' nothing to cut off. Make it with vlm.prompt("...", image).'
            )
    unknown = [flow for flow in flows if flow not in FLOWS]
    if unknown or not flows or len(set(flows)) < len(flows):
        raise InterventionError(
            f"flows={list(flows)}: wanted one or more different ones of"
            f" {', '.join(FLOWS)}."
        )
    if max_new_tokens < 2:
        raise InterventionError(
            f"max_new_tokens={max_new_tokens}: wanted 2 or more. The first token is"
            " chosen by the prompt, so that only the second has a generated position."
        )


def _arms(
    prompt: Prompt, flows: Sequence[Flow], cuts: Sequence[Cut], max_new_tokens: int
) -> list[Intervention]:
    """The reference, the same once more as an arm, and every flow in every cut."""
    return [
        NOTHING,
        NOTHING,
        *(
            knockout_of(flow, cut, prompt, max_new_tokens)
            for flow in flows
            for cut in cuts[1:]
        ),
    ]


def _described(
    vlm: HookedVLM,
    asked: Sequence[Prompt],
    flows: Sequence[Flow],
    cuts: Sequence[Cut],
    said: Sequence[Sequence[_Said]],
) -> xr.Dataset:
    """Every description with its length, in the table of flows and cuts."""
    tables = [_table(each, len(flows), len(cuts)) for each in said]
    text = np.array([[[one.text for one in row] for row in each] for each in tables])
    length = np.array(
        [[[one.n_tokens for one in row] for row in each] for each in tables]
    )
    reference = np.array([each[0].text for each in said])
    dims: dict[str, Sequence[object]] = {
        "prompt": range(len(asked)),
        "flow": list(flows),
        "cut": [cut.name for cut in cuts],
    }

    def one(values: np.ndarray, name: str, units: str) -> xr.DataArray:
        return labelled(values, name=name, units=units, paper=PAPER, attrs={}, **dims)

    described = xr.Dataset(
        {
            "text": one(text, "description", "text"),
            "n_tokens": one(length, "length of the description", "tokens"),
            "identical": one(
                text == reference[:, None, None], "is the reference", "boolean"
            ),
        },
        attrs={
            "paper": PAPER,
            "model": vlm.cfg.model_name,
            "layer_convention": "cut layer l reads h[l], the input of layer l",
        },
    )
    described["reference"] = labelled(
        reference,
        name="description with nothing cut",
        units="text",
        paper=PAPER,
        prompt=range(len(asked)),
    )
    return described.assign_coords(
        question=("prompt", [prompt.text for prompt in asked]),
        start=("cut", [cut.start for cut in cuts]),
        n_layers=("cut", [len(cut.layers) for cut in cuts]),
        layers=("cut", [json.dumps(cut.layers) for cut in cuts]),
    )


def _table(said: Sequence[_Said], n_flows: int, n_cuts: int) -> list[list[_Said]]:
    """The arms of one prompt by flow and cut; nothing is cut first in each flow."""
    _, nothing, *cut = said
    n = n_cuts - 1
    return [[nothing, *cut[n * i : n * (i + 1)]] for i in range(n_flows)]
