"""Answers followed through the layers, at the last position."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import xarray as xr

from mechvlm.analyses.logit_lens.reading import (
    CONVENTION,
    Norm,
    chunks,
    depths,
    logits_of,
    streams,
)
from mechvlm.axes import labelled
from mechvlm.cutting import answer_token
from mechvlm.errors import MetricError
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of
from mechvlm.wanted import mapping_to

__all__ = ["answer_track"]

PAPER = "arXiv:2411.18620"


@torch.no_grad()
def answer_track(
    vlm: HookedVLM,
    prompt: Prompt | Run,
    answers: Mapping[str, str | int],
    *,
    norm: Norm = "final",
) -> xr.Dataset:
    """Follow answers through the layers: where does the last position decide?

    Args:
        vlm: The model.
        prompt: The prompt, or its `base_run`.
        answers: What the result calls each answer -> one word, or a token id. Zhang et
            al. follow each answer capitalised and in lower case.
        norm: "final" reads through the model's final norm, so that the last layer is
            its own prediction; "none" leaves it out, as Zhang et al. do.

    Returns:
        Dataset over (answer, layer): "probability", of 1 over the vocabulary; "logit";
        "rank", the number of tokens with a higher logit, 0 for the layer's choice.
        Layer k is h[k], the stream that enters layer k; the last one leaves the last
        layer.

    Raises:
        ArgumentError: `answers` are not names to words or ids.
        MetricError: There is no answer, or `norm` means nothing.
        TokenError: An answer is not exactly one token.

    Paper: Zhang et al. 2024, arXiv:2411.18620.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> track = mv.answer_track(vlm, prompt, {"one": "one", "two": "two"})
        >>> track["rank"].dims, track.sizes["layer"] == vlm.cfg.n_layers + 1
        (('answer', 'layer'), True)
    """
    answers = mapping_to(answers, (str, int), "answers", '{"right": "red"}')
    if not answers:
        raise MetricError('no answer is given; wanted {"red": "red"}.')
    tokens = [answer_token(vlm, answer) for answer in answers.values()]
    chosen, asked = depths(vlm, None), prompt_of(prompt)
    stream = streams(vlm, prompt, asked.layout["last"], chosen)
    found: dict[str, list[torch.Tensor]] = {"probability": [], "logit": [], "rank": []}
    for rows in chunks(vlm, stream):
        logits = logits_of(vlm, rows, norm)
        own = logits[:, tokens]
        found["probability"].append(logits.softmax(dim=-1)[:, tokens])
        found["logit"].append(own)
        above = [(logits > own[:, i, None]).sum(dim=-1) for i in range(len(tokens))]
        found["rank"].append(torch.stack(above, dim=1))
    units = {"probability": "probability", "logit": "logit", "rank": "tokens above"}
    each = {
        name: labelled(
            torch.cat(parts).T.cpu().numpy(),
            name=name,
            units=units[name],
            paper=PAPER,
            answer=list(answers),
            layer=chosen,
        )
        for name, parts in found.items()
    }
    attrs = {
        **asked.described,
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "norm": norm,
        "layer_convention": CONVENTION,
    }
    return xr.Dataset(each, attrs=attrs).assign_coords(token_id=("answer", tokens))
