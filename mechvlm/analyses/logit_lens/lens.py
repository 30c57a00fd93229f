"""The logit lens at every layer and position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Int, Shaped

from mechvlm.analyses.logit_lens.reading import (
    CONVENTION,
    Norm,
    depths,
    streams,
    top_words,
)
from mechvlm.axes import labelled
from mechvlm.errors import LayoutError
from mechvlm.layout import Positions
from mechvlm.models.hooked import HookedVLM
from mechvlm.progress import bar_of
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of
from mechvlm.wanted import one

__all__ = ["PAPER", "logit_lens"]

PAPER = "arXiv:2410.07149"


def logit_lens(
    vlm: HookedVLM,
    prompt: Prompt | Run,
    *,
    at: str | Positions = "image",
    topk: int = 5,
    norm: Norm = "final",
    layers: Sequence[int] | range | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Read every layer's stream with the model's own unembedding.

    Args:
        vlm: The model.
        prompt: The prompt, or its `base_run` (or any run with its resid_pre and last
            resid_post recorded).
        at: Positions, or a group of the layout.
        topk: Words to keep of each layer and position.
        norm: "final" reads through the model's final norm, as Neo et al. do; "none"
            leaves it out, as Zhang et al. do.
        layers: Which h[k]: 0 is what enters layer 0, the number of layers what leaves
            the last one, before the final norm. None takes all.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Dataset over (layer, position, k), best word first: "word", the token as text;
        "token_id"; "probability", of 1 over the vocabulary. With norm="final" the last
        layer at the last position is the model's own prediction.

    Raises:
        ArgumentError: `at` or `layers` is of another kind.
        LayoutError: There is no such position.
        LayerError: A layer does not exist.
        MetricError: `topk` or `norm` means nothing.
        RunError: The run did not record the stream.

    Paper: Neo et al. 2024, arXiv:2410.07149, logit lens; without the norm, Zhang et al.
        2024, arXiv:2411.18620.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> lens = mv.logit_lens(vlm, prompt, at="last", topk=3)
        >>> lens["word"].dims, lens.sizes["layer"] == vlm.cfg.n_layers + 1
        (('layer', 'position', 'k'), True)
        >>> said = vlm.to_string(vlm(prompt)[0, -1].argmax())
        >>> str(lens["word"][-1, 0, 0].item()) == said
        True
    """
    asked, chosen = prompt_of(prompt), depths(vlm, layers)
    positions = places(asked, at)
    stream = streams(vlm, prompt, positions, chosen)
    shown = False if progress is False else "logit lens"
    with bar_of(len(chosen) * len(positions), shown) as bar:
        tops = top_words(vlm, stream, topk=topk, norm=norm, done=bar.update)
    ids, probabilities = tops.ids.numpy(), tops.probabilities.numpy()
    found = {
        "word": (words_of(vlm, ids), "word"),
        "token_id": (ids, "token id"),
        "probability": (probabilities, "probability"),
    }
    each = {
        name: labelled(
            values,
            name=name,
            units=units,
            paper=PAPER,
            layer=chosen,
            position=list(positions),
            k=range(topk),
        )
        for name, (values, units) in found.items()
    }
    attrs = {
        **asked.described,
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "norm": norm,
        "layer_convention": CONVENTION,
    }
    return xr.Dataset(each, attrs=attrs).assign_coords(asked.labels(at=positions))


def places(prompt: Prompt, at: str | Positions) -> Positions:
    """Positions of a group, or those given.

    Raises:
        LayoutError: There is none, or one is outside the prompt.
    """
    one(at, (str, Positions), "at", 'at="image", or at=Positions.of(3, 4)')
    positions = prompt.layout[at] if isinstance(at, str) else at
    if not positions or positions.indices[-1] > prompt.layout.last:
        raise LayoutError(
            f"at={at!r}: no such position in this prompt, whose positions are"
            f" 0..{prompt.layout.last}. Was it built without its image, or are the"
            " positions another prompt's?"
        )
    return positions


def words_of(
    vlm: HookedVLM, ids: Int[np.ndarray, "layer position k"]
) -> Shaped[np.ndarray, "layer position k"]:
    """Each token as text; every token is decoded once."""
    unique, places_of = np.unique(ids, return_inverse=True)
    words = np.array(vlm.to_str_tokens(unique.tolist()))
    return np.asarray(words[places_of].reshape(ids.shape))
