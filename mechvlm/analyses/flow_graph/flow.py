"""Attention knockout between all groups, in all bands of layers, over a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import xarray as xr

from mechvlm.analyses.flow_graph.groups import Grouped, bands_of, grouped, sizes_of
from mechvlm.analyses.flow_graph.sweep import Found, Sweep
from mechvlm.analyses.flow_graph.table import PAPER, Table, fewest_draws
from mechvlm.axes import labelled
from mechvlm.cutting import answer_token, ends
from mechvlm.errors import MetricError
from mechvlm.models.hooked import HookedVLM
from mechvlm.progress import bar_of
from mechvlm.record import prompt_of

__all__ = ["flow_graph"]

_CONVENTION = {
    "layer_convention": "attention inside layer l is cut, for every l of the band",
    "node_convention": (
        "(group, band) is the group's stream as it enters the band; an edge of a band"
        " goes from (source, band) to (target, next band), behind the last to 'end'"
    ),
    "control": (
        "in each layer each target reads as many other positions less, drawn at random"
        " from those it may read outside bos and both groups"
    ),
    "rule": (
        "kept: effect and excess over the control below -least, both intervals wholly;"
        " of fewer than 6 prompts both means, and every prompt's effect below all its"
        " draws, by chance in at most 5 %"
    ),
    "status_values": (
        "measured; no control: a target may read too few other positions; never reads:"
        " the mask forbids it; blind row: a target would have nothing left to read"
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
    stand random ones of the same size, in which every target reads as many other
    positions less, in every layer, drawn from those that it may read outside both
    groups and outside BOS, on which attention rests that reads nothing. An edge of the
    graph is a cut that costs the answer more than they do.

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
        n_random: Random sets of each cut; where there are fewer, all that were found.
        least: Loss, in percent of the clean probability, under which an edge is not
            kept however sure it is.
        seed: Of the random sets.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Dataset. Over (target, source, band): "effect", mean change of the answer's
        probability in percent of its clean probability, 0 where the cut changes
        nothing, -100 where it erases the answer; "control", the same of the random
        sets; "excess", effect minus control, paired; each with "_low" and "_high"
        (bootstrap, 95 %, nan for fewer than 6 prompts), and again as "log_effect" and
        so on, in nats of log-probability; "p" (Wilcoxon, of the excess); "n" prompts
        that have the cut and "n_control" that have a control; "kept", whether it is an
        edge. Over (item, target, source, band): "status"; "item_effect",
        "item_control", "item_log_effect", "item_log_control"; "n_draws", different
        random sets, and "item_rank_p", the share of them and the cut itself that cost
        no less. Over item: "clean", the answer's probability, "right", whether it is
        the likeliest token, "text" and "answer"; "size", positions of each group, over
        (item, source).

        An edge is kept where effect and excess lie below -`least` with their whole
        intervals. Fewer than 6 prompts have no interval: their edge is kept where both
        means do, and in every prompt the cut costs more than each of its random sets,
        which must be so many that chance does it at most once in 20. Without a control
        an edge cannot be kept. `attrs["n_cuts"]` counts what was tried: each of them
        may be kept by chance.

        Cuts that "status" does not call "measured" or "no control" are nan: "never
        reads", the mask forbids all their pairs; "blind row", a target would have
        nothing left to read, as within the first group.

    Raises:
        ArgumentError: An argument is of another kind.
        PromptError: There is no prompt, two share an id, or their groups differ.
        LayerError: A band has a layer that does not exist.
        InterventionError: A band is empty, or two overlap.
        TokenError: An answer is not exactly one token.
        MetricError: A clean run gives the answer no probability, or `n_random` is too
            low for an edge to be kept.

    Paper: Geva et al. 2023, arXiv:2304.14767; Zhang et al. 2024, arXiv:2411.18620.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> asked = mv.Grouped(prompt, {"image": "image", "last": "last"}, "one")
        >>> bands = {"early": range(4), "late": range(4, 8)}
        >>> flows = mv.flow_graph(vlm, [asked], bands=bands)
        >>> flows["effect"].dims
        ('target', 'source', 'band')
        >>> flows["status"].sel(target="image", source="last").values.tolist()
        [['never reads', 'never reads']]
    """
    names, posed = grouped(asked)
    layers = bands_of(vlm.cfg.n_layers, bands)
    _check_numbers(n_random, least, len(posed))
    for each in posed:
        answer_token(vlm, each.answer)
    groups = list(posed[0].groups)
    found = _found(Sweep(vlm, tuple(groups), layers, n_random), posed, seed, progress)
    coords = {"item": names, "target": groups, "source": groups, "band": list(layers)}
    arrays = Table(found, coords, float(least)).arrays()
    texts = {
        "text": [prompt_of(each.prompt).text for each in posed],
        "answer": [str(each.answer) for each in posed],
    }
    for name, words in texts.items():
        arrays[name] = labelled(words, name=name, units="-", paper=PAPER, item=names)
    arrays["size"] = labelled(
        sizes_of(posed),
        name="size of a group",
        units="positions",
        paper=PAPER,
        item=names,
        source=groups,
    )
    attrs = {
        "paper": PAPER,
        "papers": ["arXiv:2304.14767", PAPER],
        "model": vlm.cfg.model_name,
        "n_items": len(posed),
        "n_right": int(arrays["right"].sum()),
        "n_cuts": int((arrays["n"] > 0).sum()),
        "n_random": n_random,
        "least": float(least),
        "seed": seed,
        **_CONVENTION,
    }
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


def _check_numbers(n_random: int, least: float | int, n_items: int) -> None:
    """Refuse what keeps no edge, whatever is found, or keeps what gains."""
    enough = fewest_draws(n_items)
    if n_random < enough:
        raise MetricError(
            f"n_random={n_random}: with {n_items} prompts, wanted {enough} random sets"
            " or more for each cut. With fewer, a cut beyond all of them may well be"
            " chance, and no edge could be kept."
        )
    if not isfinite(least) or not 0 <= least < 100:
        raise MetricError(
            f"least={least}: wanted a loss in percent of the clean probability, from 0"
            " to below 100."
        )
