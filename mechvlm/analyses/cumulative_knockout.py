"""Cumulative knockout: how many layers must read the image for the answer to stand?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import xarray as xr

from mechvlm.errors import InterventionError
from mechvlm.interventions import NOTHING, Knockout
from mechvlm.layout import Positions
from mechvlm.matching import Matcher, names
from mechvlm.models.hooked import HookedVLM
from mechvlm.posing import Arms, Posed, outcome, tables
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of

__all__ = ["cumulative_knockout"]

PAPER = "arXiv:2412.14133"


def cumulative_knockout(
    vlm: HookedVLM,
    posed: Sequence[Posed],
    *,
    direction: Literal["top-down", "bottom-up"] = "top-down",
    source: str | Positions = "image",
    matcher: Matcher = names,
    max_new_tokens: int = 20,
    progress: bool | None = None,
) -> xr.Dataset:
    """Cut the text off the image in more and more layers, from above or from below.

    In the layers that are cut no head of a text position behind the image reads an
    image position, neither in the prompt nor while generating; image positions read one
    another as before. Nothing cut is the control at 0. A random set of equal size does
    not exist where all image positions are cut off; for an object's positions, give
    `random_sets` of the others as `source` in a second call.

    Args:
        vlm: The model.
        posed: What is asked, and what counts as right.
        direction: "top-down" cuts the last layers, "bottom-up" the first ones.
        source: What is no longer read: a group of the layout, or positions that mean
            the same in every prompt.
        matcher: Whether an answer, without its prompt, is right.
        max_new_tokens: Longest answer, in tokens.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Over `n_cut`, the number of layers that are cut, 0 to n_layers, each with an
        interval of 95 % ("_low", "_high"): "rate", the fraction of items answered
        right; "kept" and "gained", the same of items that are right or wrong in the
        clean run, nan if there are none; "change", the rate minus the clean run's, item
        by item, 0 where the cut changes nothing, without interval (nan) for fewer than
        six items. Over (item, n_cut): "right", "said", and "p_answer", the probability
        that the first token is a right answer in one of its spellings, nan where none
        is a single token. Over `item`, with "_clean", the same with nothing done. The
        coordinate "layer" of `n_cut` is the cut layer farthest from where the cutting
        began, -1 where none is cut.

    Raises:
        ArgumentError: What is posed is no list of `Posed`.
        PromptError: There is no item, or ids are not unique.
        PairError: `source` are positions, and the prompts' layouts differ.
        InterventionError: A prompt has no position of `source`, ends before, or has no
            text behind it; the direction is unknown.
        BlindRowError: A cut leaves a row nothing to read.

    Paper: Cohen et al. 2024, arXiv:2412.14133, appendix (knockout of attention).

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> ask = vlm.prompt("how many objects are there ?", scene.image)
        >>> cut = mv.cumulative_knockout(
        ...     vlm, [mv.Posed(ask, ("one",))], max_new_tokens=2)
        >>> cut["rate"].dims, cut.sizes["n_cut"], bool(cut["change"][0] == 0)
        (('n_cut',), 9, True)
    """
    n_layers = vlm.cfg.n_layers
    counts = range(1, n_layers + 1)
    if direction == "top-down":
        windows = [range(n_layers - n_cut, n_layers) for n_cut in counts]
        edges = [window.start for window in windows]
    elif direction == "bottom-up":
        windows = [range(n_cut) for n_cut in counts]
        edges = [window.stop - 1 for window in windows]
    else:
        raise InterventionError(
            f"direction={direction!r}: wanted 'top-down' or 'bottom-up'."
        )

    def arms_of(own: Prompt | Run, where: Positions) -> Arms:
        readers = _behind(prompt_of(own), where, max_new_tokens)
        cuts = [Knockout(window, readers, where) for window in windows]
        return Arms([NOTHING, *cuts])

    found = outcome(
        vlm,
        posed,
        source,
        arms_of,
        matcher=matcher,
        max_new_tokens=max_new_tokens,
        progress=False if progress is False else f"knockout, {direction}",
    )
    attrs = {
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "layer_convention": "a cut acts on the attention inside a layer; top-down cuts"
        " layers n_layers-n_cut..n_layers-1, bottom-up layers 0..n_cut-1",
        "direction": direction,
        "source": str(source),
        "n": len(posed),
        "max_new_tokens": max_new_tokens,
    }
    result = tables(found, posed, lambda x: x, PAPER, n_cut=[0, *counts])
    made = xr.Dataset(result, attrs=attrs)
    return made.assign_coords(layer=("n_cut", [-1, *edges]))


def _behind(prompt: Prompt, source: Positions, max_new_tokens: int) -> Positions:
    """Text behind the source's first position, and what is generated and fed back."""
    layout = prompt.layout
    text = Positions.of(at for at in layout["text"] if at > min(source))
    readers = (text - source) - layout["pad"]
    if not readers:
        raise InterventionError(
            f"no text position stands behind {source!r}, so no reader can be cut off."
        )
    return readers | Positions.of(range(layout.n, layout.n + max_new_tokens - 1))
