"""Attention knockout: in which layers does one group read another?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import xarray as xr

from mechvlm.axes import labelled
from mechvlm.cutting import answer_token, ends, whole
from mechvlm.engine import intervene
from mechvlm.errors import ArgumentError, InterventionError, LayerError
from mechvlm.interventions import NOTHING, Knockout
from mechvlm.layout import Positions
from mechvlm.metrics import probability, probability_change
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of
from mechvlm.wanted import mapping_to, one

__all__ = ["knockout_windows"]

PAPER = "arXiv:2411.18620"

Cut = tuple[str | Positions, str | Positions]

Mode = Literal["window", "centred", "from", "upto"]


def knockout_windows(
    vlm: HookedVLM,
    prompt: Prompt | Run,
    cuts: Mapping[str, Cut],
    *,
    answer: str | int,
    width: int | None = None,
    mode: Mode = "window",
    windows: Mapping[str, range] | None = None,
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
            at an end are cut short.
        mode: "window" cuts layers l..l+width-1; "centred", as Zhang et al. do, l and
            the layers around it, l-width//2 and later (an even width has one layer more
            before l than after it); "from" layers l and later; "upto" layers up to and
            including l.
        windows: Layers to cut, by name, in the place of `width` and `mode`; such as
            `named_windows(vlm.cfg.n_layers)`.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Change of the answer's probability in percent of its clean probability: 0
        changes nothing, -100 erases the answer. Dimensions (cut, layer); layer is the
        window's first layer, with "centred" its middle, with "upto" its last. With
        `windows`, dimensions (cut, window), and the coordinates "first" and "last" hold
        the layers of each. Layer l means the attention inside layer l.

    Raises:
        BlindRowError: A cut leaves a row nothing to read.
        InterventionError: There is no cut or window, one names no position or layer, or
            both `windows` and `width` or `mode` are given.
        TokenError: The answer is not exactly one token, or no token has this id.
        ArgumentError: A cut is no pair, `answer` neither a word nor an id, `width` no
            whole number, or `windows` are no names to ranges of layers.
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
    cuts = _pairs(cuts)
    token = answer_token(vlm, answer)
    n_layers = vlm.cfg.n_layers
    how: dict[str, str | int] = {"mode": mode if windows is None else "named"}
    if windows is None:
        wide = _width(n_layers) if width is None else whole(width, "width", "width=3")
        how["width"] = wide
        ranges = _windows(n_layers, wide, mode)
    else:
        ranges = _named(windows, width, mode)
    asked = prompt_of(prompt)
    planned = [
        Knockout(layers, _positions(asked, target), _positions(asked, source))
        for target, source in cuts.values()
        for layers in ranges
    ]
    shown = False if progress is False else f"knockout, {how['mode']}"
    logits = intervene(vlm, prompt, [NOTHING, *planned], progress=shown)
    change = probability_change(vlm, token, logits[0])(logits[1:])
    return labelled(
        change.reshape(len(cuts), len(ranges)).cpu().numpy(),
        name="change of the answer's probability",
        units="% of clean probability",
        paper=PAPER,
        attrs={
            **asked.described,
            "model": vlm.cfg.model_name,
            "answer": str(answer),
            "clean": float(probability(vlm, token)(logits[:1])[0]),
            "layer_convention": "attention inside layer l is cut",
            **how,
        },
        cut=list(cuts),
        **(
            {"layer": range(n_layers)} if windows is None else {"window": list(windows)}
        ),
    ).assign_coords({} if windows is None else ends(ranges, "window"))


def _pairs(cuts: Mapping[str, Cut]) -> Mapping[str, Cut]:
    """Cuts by name, each of which is a pair: a string would be read letter by letter.

    Raises:
        ArgumentError: They are not that.
        InterventionError: There is none.
    """
    example = '{"image->last": ("last", "image")}'
    pairs = mapping_to(cuts, tuple, "cuts", example)
    if not pairs:
        raise InterventionError(f"no cut is given; wanted {example}.")
    for name, pair in pairs.items():
        if len(pair) != 2:
            raise ArgumentError(
                f"cuts[{name!r}] has {len(pair)} parts; wanted (target, source), as in"
                ' ("last", "image").'
            )
        for side in pair:
            one(side, (str, Positions), f"a side of cuts[{name!r}]", "a group's name")
    return cuts


def _width(n_layers: int) -> int:
    """Zhang et al.'s window: 9 layers of 32."""
    return max(1, round(n_layers * 9 / 32))


def _named(windows: Mapping[str, range], width: int | None, mode: str) -> list[range]:
    """Windows given by name, with nothing beside them that would be ignored."""
    if width is not None or mode != "window":
        raise InterventionError(
            f"windows are given by name, and width={width}, mode={mode!r} as well:"
            " named windows say themselves which layers they cut."
        )
    fix = '{"early": range(0, 10)}'
    found = mapping_to(windows, range, "windows", fix)
    empty = [name for name, layers in found.items() if not layers]
    if not found or empty:
        raise InterventionError(
            f"windows {empty or 'given'} hold no layer, so they cut nothing; wanted"
            f" {fix}."
        )
    return list(found.values())


def _windows(n_layers: int, width: int, mode: str) -> list[range]:
    if not 1 <= width <= n_layers:
        raise LayerError(
            f"width={width}: a window has 1 to {n_layers} layers in this model."
        )
    each = range(n_layers)
    if mode == "window":
        return [range(at, min(at + width, n_layers)) for at in each]
    if mode == "centred":
        before, after = width // 2, -(-width // 2)
        return [range(max(0, at - before), min(at + after, n_layers)) for at in each]
    if mode == "from":
        return [range(at, n_layers) for at in each]
    if mode == "upto":
        return [range(at + 1) for at in each]
    raise InterventionError(
        f"mode={mode!r}: wanted 'window', 'centred', 'from' or 'upto'."
    )


def _positions(prompt: Prompt, named: str | Positions) -> Positions:
    return prompt.layout[named] if isinstance(named, str) else named
