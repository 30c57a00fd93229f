"""Attention knockout: in which layers does one group read another?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import xarray as xr

from mechvlm.axes import labelled
from mechvlm.engine import intervene
from mechvlm.errors import InterventionError, LayerError
from mechvlm.interventions import NOTHING, Knockout
from mechvlm.layout import Positions
from mechvlm.metrics import probability, probability_change
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of

__all__ = ["knockout_windows"]

PAPER = "arXiv:2411.18620"

Cut = tuple[str | Positions, str | Positions]


def knockout_windows(
    vlm: HookedVLM,
    prompt: Prompt | Run,
    cuts: Mapping[str, Cut],
    *,
    answer: str | int,
    width: int | None = None,
    mode: Literal["window", "from", "upto"] = "window",
    progress: bool | None = None,
) -> xr.DataArray:
    """Cut attention between groups in a window of layers, for every window.

    Args:
        vlm: The model.
        prompt: The prompt, or its `base_run`.
        cuts: Name -> (target, source): target positions do not read source positions.
            Each is positions, or the name of a group of the layout.
        answer: The answer whose probability is watched; one word or a token id.
        width: Layers in a window; None takes the paper's share, 9 layers of 32. Windows
            at the end are cut short.
        mode: "window" cuts layers l..l+width-1, "from" layers l and later, "upto"
            layers up to and including l.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Change of the answer's probability in percent of its clean probability: 0
        changes nothing, -100 erases the answer. Dimensions (cut, layer); layer is the
        window's first layer, with "upto" its last.

    Raises:
        BlindRowError: A cut leaves a row nothing to read.
        InterventionError: There is no cut, or one names no position.
        TokenError: The answer is not exactly one token.
        LayerError: The width is not a number of layers.
        MetricError: The clean run gives the answer no probability.

    Paper: Zhang et al. 2024, arXiv:2411.18620; Geva et al. 2023, arXiv:2304.14767.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> cuts = {"image->last": ("last", "image")}
        >>> drop = mv.knockout_windows(vlm, prompt, cuts, answer="one", mode="from")
        >>> drop.dims, drop.sizes["layer"]
        (('cut', 'layer'), 8)
    """
    if not cuts:
        raise InterventionError(
            'no cut is given; wanted {"image->last": ("last", "image")}.'
        )
    token = vlm.to_single_token(answer) if isinstance(answer, str) else answer
    width = max(1, round(vlm.cfg.n_layers * 9 / 32)) if width is None else width
    windows = _windows(vlm.cfg.n_layers, width, mode)
    asked = prompt_of(prompt)
    planned = [
        Knockout(layers, _positions(asked, target), _positions(asked, source))
        for target, source in cuts.values()
        for layers in windows
    ]
    shown = False if progress is False else f"knockout, {mode}"
    logits = intervene(vlm, prompt, [NOTHING, *planned], progress=shown)
    change = probability_change(vlm, token, logits[0])(logits[1:])
    clean = float(probability(vlm, token)(logits[:1])[0])
    return labelled(
        change.reshape(len(cuts), len(windows)).cpu().numpy(),
        name="change of the answer's probability",
        units="% of clean probability",
        paper=PAPER,
        attrs={
            **asked.described,
            "model": vlm.cfg.model_name,
            "answer": str(answer),
            "clean": clean,
            "width": width,
            "mode": mode,
        },
        cut=list(cuts),
        layer=range(vlm.cfg.n_layers),
    )


def _windows(n_layers: int, width: int, mode: str) -> list[range]:
    if not 1 <= width <= n_layers:
        raise LayerError(
            f"width={width}: a window has 1 to {n_layers} layers in this model."
        )
    each = range(n_layers)
    if mode == "window":
        return [range(at, min(at + width, n_layers)) for at in each]
    if mode == "from":
        return [range(at, n_layers) for at in each]
    if mode == "upto":
        return [range(at + 1) for at in each]
    raise InterventionError(f"mode={mode!r}: wanted 'window', 'from' or 'upto'.")


def _positions(prompt: Prompt, named: str | Positions) -> Positions:
    return prompt.layout[named] if isinstance(named, str) else named
