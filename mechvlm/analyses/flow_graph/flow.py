"""Attention knockout between all groups, in all bands of layers, over a set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
import xarray as xr

from mechvlm.analyses.flow_graph.groups import Grouped, bands_of, grouped, sizes_of
from mechvlm.analyses.flow_graph.sweep import ENOUGH, Found, Sweep
from mechvlm.analyses.flow_graph.table import PAPER, RULE, Table
from mechvlm.axes import Labelled, labelled
from mechvlm.cutting import answer_token, ends, whole
from mechvlm.errors import ArgumentError, MechVLMWarning, MetricError
from mechvlm.models.hooked import HookedVLM
from mechvlm.progress import bar_of
from mechvlm.record import prompt_of
from mechvlm.wanted import one

__all__ = ["flow_graph"]

_NAMED = 6
"""Cuts that a warning names."""

_CONVENTION = {
    "layer_convention": "attention inside layer l is cut, for every l of the band",
    "node_convention": (
        "(group, band) is the group's stream as it enters the band; an edge of a band"
        " goes from (source, band) to (target, next band), behind the last to 'end'"
    ),
    "control": (
        "mean of the draws, in which in each layer each target reads as many other"
        " positions less, drawn at random from those it may read outside both groups"
        " and BOS, without BOS outside the first position"
    ),
    "pool_values": (
        "own kind: the draws are of image positions for a source inside the image, of"
        " text positions for a source inside the text; any: of both, as there are too"
        f" few of its own kind, or the source has both; -: fewer than {ENOUGH} exist"
    ),
    "rule": RULE,
    "status_values": (
        f"measured; no control: there are not {ENOUGH} different draws, and none is"
        " run; never reads: the mask forbids it; blind row: a target would have nothing"
        " left to read; cannot reach the answer: no later layer reads what it changes"
    ),
}


def flow_graph(
    vlm: HookedVLM,
    asked: Sequence[Grouped],
    *,
    bands: Mapping[str, range] | None = None,
    n_random: int = 20,
    least: float | int = 1.0,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """Along which groups of tokens, in which layers, an answer flows.

    For every pair of groups and every band of layers, the target no longer reads the
    source in all layers of the band, and everything else stays. Beside each such cut
    stand draws, random cuts of the same size, in which every target reads as many other
    positions less, in every layer, drawn from those that it may read outside both
    groups and outside BOS, on which attention rests that reads nothing. An edge of the
    graph is a cut that costs the answer more than they do. A group of more positions
    than are left outside it, such as a whole image, has no draws, and cannot be told
    from chance: part it, such as an object and its background.

    A node is a group's stream as it enters a band. An edge of a band goes from what the
    source holds when the band begins to what the target holds when it ends; all else is
    carried along. What is read twice within one band (object -> query -> last) shows as
    two edges side by side: narrower bands put them in a row. What is read again in a
    later band costs nothing in either alone: wider bands cut it. Layers between two
    bands are not cut.

    Args:
        vlm: The model.
        asked: Prompts with their groups and answers; positions may differ from prompt
            to prompt, names may not. One prompt is a set of one.
        bands: Name -> consecutive layers, no layer twice, in order; None cuts the model
            into four.
        n_random: Draws of each cut, 19 or more. For each prompt, groups * groups *
            bands * (1 + n_random) interventions are run, less those of cuts that are
            not run, or alone, as "status" says; `attrs["n_runs"]` has their number.
        least: Loss, in percent of the clean probability, under which an edge is not
            kept however sure it is.
        seed: Of the draws; 0 or more.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Dataset. Over (target, source, band), in percent of the answer's clean
        probability: "effect", mean change by the cut, 0 where it changes nothing, -100
        where it erases the answer; "control", the same of its draws; "excess", effect
        minus control, paired; "beyond", effect minus the 5 % lower quantile of the same
        prompt's draws, below 0 where hardly a draw costs as much. Each has "_low" and
        "_high" (bootstrap, 95 %, nan for fewer than 6 prompts). Effect, control and
        excess again as "log_effect" and so on, in nats of log-probability; "p"
        (Wilcoxon, of the excess); "n" prompts that have the cut and "n_control" that
        have draws. Effect is of the former, control, excess and beyond of the latter:
        where the two differ, excess is not effect minus control. "kept", whether it is
        an edge; "uncontrolled", whether it costs enough for one, and has no control.
        Over (item, target, source, band): "status"; "pool", of which positions the
        draws are; "item_effect", "item_control", "item_beyond", "item_log_effect",
        "item_log_control"; "n_draws", and "item_rank_p", the share of the draws and the
        cut itself that cost no less. Over item: "clean", the answer's probability,
        "right", whether it is the likeliest token, "text" and "answer"; "size",
        positions of each group, over (item, source).

        An edge is kept if what it costs is not what a random set of its size would
        cost, be it another set in each prompt or the same in all. From 6 prompts on,
        the intervals of effect and of beyond lie below -`least` and below 0 wholly,
        both of the prompts with draws, 6 or more. Fewer than 6 prompts have no
        interval: their mean effect lies below -`least`, and in each prompt that has
        draws, one at least, the cut costs more than all of them. By chance alone at
        most 1 cut in 20 passes; `attrs["n_cuts"]` counts those that were tried.

        Without so many prompts with draws a cut is never kept. It is "uncontrolled" if
        it costs more than `least`, with its whole interval from 6 prompts on;
        `attrs["n_uncontrolled"]` counts these, and a warning names them.

        Cuts that "status" does not call "measured" or "no control" are nan: "never
        reads", the mask forbids all their pairs; "blind row", a target would have
        nothing left to read, as within the first group; "cannot reach the answer", no
        later layer reads what it changes, as in a band of the last layer alone.

    Raises:
        ArgumentError: An argument is of another kind, or `seed` is negative.
        PromptError: There is no prompt, two share an id, or their groups differ.
        LayerError: A band has a layer that does not exist.
        InterventionError: A band is empty, or two overlap.
        TokenError: An answer is not exactly one token.
        MetricError: A clean run gives the answer no probability, `n_random` is too low
            for an edge to be kept, or `least` no loss.

    Paper: Geva et al. 2023, arXiv:2304.14767; Zhang et al. 2024, arXiv:2411.18620.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> thing = prompt.layout.region(scene.mask(0))
        >>> asked = mv.Grouped(prompt, {"object": thing, "last": "last"}, "one")
        >>> bands = {"early": range(4), "late": range(4, 8)}
        >>> flows = mv.flow_graph(vlm, [asked], bands=bands)
        >>> flows["effect"].dims
        ('target', 'source', 'band')
        >>> flows["status"].sel(target="object", source="last").values.tolist()
        [['never reads', 'never reads']]
        >>> flows["pool"].sel(target="last", source="object").values.tolist()
        [['own kind', 'own kind']]
    """
    names, posed = grouped(asked)
    layers = bands_of(vlm.cfg.n_layers, bands)
    _check_numbers(n_random, least, seed)
    for each in posed:
        answer_token(vlm, each.answer)
    groups = list(posed[0].groups)
    found = _found(Sweep(vlm, tuple(groups), layers, n_random), posed, seed, progress)
    coords = {"item": names, "target": groups, "source": groups, "band": list(layers)}
    arrays = Table(found, coords, float(least)).arrays() | _said(posed, names)
    attrs = {
        "paper": PAPER,
        "papers": ["arXiv:2304.14767", PAPER],
        "model": vlm.cfg.model_name,
        "n_items": len(posed),
        "n_right": int(arrays["right"].sum()),
        "n_cuts": int((arrays["n"] > 0).sum()),
        "n_uncontrolled": int(arrays["uncontrolled"].sum()),
        "n_runs": sum(each.n_runs for each in found),
        "n_random": n_random,
        "least": float(least),
        "seed": seed,
        **_CONVENTION,
    }
    _warn(arrays["uncontrolled"])
    at = ends(list(layers.values()), "band")
    return xr.Dataset(arrays, attrs=attrs).assign_coords(at)


def _found(
    sweep: Sweep, posed: Sequence[Grouped], seed: int, progress: bool | None
) -> list[Found]:
    """What comes of every prompt; the bar counts prompts, or one prompt's cuts."""
    shown = False if progress is False else "flow graph"
    alone = len(posed) == 1
    found = []
    with bar_of(len(posed), False if alone else shown) as bar:
        for place, each in enumerate(posed):
            found.append(sweep.of(each, (seed, place), shown if alone else False))
            bar.update(1)
    return found


def _said(posed: Sequence[Grouped], names: Sequence[str]) -> dict[str, Labelled]:
    """What was asked, and of how many positions the groups are."""
    texts = {
        "text": [prompt_of(each.prompt).text for each in posed],
        "answer": [str(each.answer) for each in posed],
    }
    said = {
        name: labelled(words, name=name, units="-", paper=PAPER, item=names)
        for name, words in texts.items()
    }
    size = labelled(
        sizes_of(posed),
        name="size of a group",
        units="positions",
        paper=PAPER,
        item=names,
        source=list(posed[0].groups),
    )
    return said | {"size": size}


def _warn(uncontrolled: Labelled) -> None:
    """Name the cuts that cost the answer and cannot be told from chance."""
    rows = uncontrolled.stack(cut=("band", "source", "target"))
    found = rows[rows.values]["cut"].values
    cuts = [f"{source} -> {target} in {band}" for band, source, target in found]
    if not cuts:
        return
    more = f" and {len(cuts) - _NAMED} more" if len(cuts) > _NAMED else ""
    warnings.warn(
        "these cuts cost the answer, and there are no random cuts of their size to"
        f" compare with, so none is an edge: {', '.join(cuts[:_NAMED])}{more}. Their"
        " groups have more positions than are left outside, or too few prompts have a"
        " control. Part a large group, such as an image into an object and its"
        " background, or measure it alone with knockout_windows. The result calls them"
        " 'uncontrolled', and flow_edges(..., which=\"all\") lists them.",
        MechVLMWarning,
        stacklevel=3,
    )


def _check_numbers(n_random: int, least: float | int, seed: int) -> None:
    """Refuse what keeps no edge, whatever is found, or keeps what gains."""
    n_random = whole(n_random, "n_random", "n_random=20")
    if whole(seed, "seed", "seed=0") < 0:
        raise ArgumentError(f"seed={seed}: wanted 0 or more, such as seed=0.")
    kinds = (int, float, np.integer, np.floating)
    if isinstance(one(least, kinds, "least", "least=1.0"), bool):
        raise ArgumentError(f"least is {least} (bool); wanted a number: least=1.0")
    if n_random < ENOUGH:
        raise MetricError(
            f"n_random={n_random}: wanted {ENOUGH} draws or more for each cut. A cut"
            " beyond fewer of them may well be chance, and no edge could be kept."
        )
    if not isfinite(least) or not 0 <= least < 100:
        raise MetricError(
            f"least={least}: wanted a loss in percent of the clean probability, from 0"
            " to below 100."
        )
