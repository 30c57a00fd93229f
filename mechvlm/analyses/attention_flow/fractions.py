"""How a row's attention is shared out among groups of positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mechvlm.analyses.attention_flow.rows import (
    Rows,
    continued,
    reduced,
    row_labels,
    rows_of,
)
from mechvlm.axes import labelled
from mechvlm.errors import LayoutError, PairError
from mechvlm.layout import GROUPS, Layout, Positions
from mechvlm.models.generation import Generation
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.record import Run
from mechvlm.statistics import mean_of
from mechvlm.wanted import one, several

__all__ = ["attention_fraction", "pool_fractions"]

PAPER = "arXiv:2411.17491"

Grouping: TypeAlias = Literal["layout", "paper"] | Mapping[str, str | Positions]

_OF_PAPER = {"image": "image", "text": "prompt_text", "generated": "generated"}
"""Kaduri et al.'s img, txt and gen. Their txt is all of the prompt but the image: the
beginning of the sequence and the template are in it."""


def attention_fraction(
    vlm: HookedVLM,
    prompt: Prompt | Run,
    *,
    generation: Generation | None = None,
    groups: Grouping = "layout",
    rows: Rows = "last",
    exclude: str | Positions | Sequence[str | Positions] = (),
) -> xr.Dataset:
    """Share out each row's attention among groups of positions.

    The prompt is run once, with what was generated after it: causal attention gives
    each row what it had while generating. That holds for a generation with nothing
    done to it; one under interventions is only read as its words.

    Args:
        vlm: The model.
        prompt: The prompt.
        generation: What `vlm.generate` made of it; None reads the prompt alone.
        groups: "layout" takes the layout's groups (bos, system, image, query, template,
            generated); "paper" Kaduri et al.'s three, whose "text" is all of the prompt
            but the image, beginning of sequence included; or names -> positions or a
            group. What is in none of them is "other".
        rows: "last", the last position's row; "generated", for each generated token the
            row that it was chosen from: the first of them (step 0) is the prompt's last
            row; or positions.
        exclude: A group, positions, or several of them, left out as sources; such as
            "bos", the usual sink. What is left of a row is then divided by its sum over
            all heads.

    Returns:
        Dataset over (layer, row, group): "fraction", the mean over heads of the share
        of the row's attention that the group's positions take together, 0 to 1, summing
        to 1 over groups; "head_std", its standard deviation over heads; "per_token",
        the fraction divided by "n_sources", the group's positions that the row may
        read (NaN where there are none). "by_head" has a dimension (head) more: its mean
        over heads is "fraction". "kept" (layer, row) is the share of the row that was
        not excluded: where it is near 0, the fractions divide next to nothing. Layer l
        is the attention inside layer l.

    Raises:
        LayoutError: A group, of those excluded too, is empty or overlaps another,
            nothing is left to read, or a row does not exist.
        ArgumentError: A group is neither a name nor positions.
        PairError: The generation is another prompt's.

    Paper: Kaduri et al. 2024, arXiv:2411.17491, figure 1.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0)
        >>> prompt = vlm.prompt("describe the image .", scene.image)
        >>> made = vlm.generate(prompt, max_new_tokens=3)
        >>> found = mv.attention_fraction(
        ...     vlm, prompt, generation=made, groups="paper", rows="generated")
        >>> found["fraction"].dims, found["group"].values.tolist()
        (('layer', 'row', 'group'), ['image', 'text', 'generated'])
        >>> int(found["row"][0]) == prompt.layout.last
        True
    """
    longer = continued(vlm, prompt, generation)
    left_out = _left_out(exclude)
    at, sets = rows_of(longer, rows), _sets(longer.layout, groups, left_out)
    member = torch.zeros(longer.layout.n, len(sets), device=vlm.cfg.device)
    for i, positions in enumerate(sets.values()):
        member[list(positions), i] = 1
    targets = list(at)

    def share(pattern: Float[Tensor, "head target source"]) -> Tensor:
        picked = pattern[:, targets].float()
        return picked @ member.to(picked.device)

    layers = range(vlm.cfg.n_layers)
    sums = torch.stack(reduced(vlm, longer, layers, share)).numpy()
    kept = sums.sum(axis=3).mean(axis=1)
    with np.errstate(invalid="ignore"):
        by_head = sums / kept[:, None, :, None]
    counts = _counts(vlm, longer, at, member)
    attrs = {
        **longer.described,
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "excluded": [str(each) for each in left_out],
        "layer_convention": "attention inside layer l",
    }
    found = _arrays(by_head, counts, list(sets), at)
    found["kept"] = labelled(
        kept,
        name="kept",
        units="share of the row",
        paper=PAPER,
        layer=layers,
        row=list(at),
    )
    return xr.Dataset(found, attrs=attrs).assign_coords(row_labels(longer, at))


def _arrays(
    by_head: Float[np.ndarray, "layer head row group"],
    counts: Int[np.ndarray, "layer row group"],
    groups: list[str],
    rows: Positions,
) -> dict[str, xr.DataArray]:
    fraction = by_head.mean(axis=1)
    per_token = np.where(counts > 0, fraction / np.maximum(counts, 1), np.nan)
    each = {
        "fraction": ("share of the row", fraction),
        "head_std": ("share of the row", by_head.std(axis=1)),
        "per_token": ("share of the row, per position", per_token),
        "n_sources": ("positions", counts),
    }
    layers, heads = range(by_head.shape[0]), range(by_head.shape[1])
    found = {
        name: labelled(
            values,
            name=name,
            units=units,
            paper=PAPER,
            layer=layers,
            row=list(rows),
            group=groups,
        )
        for name, (units, values) in each.items()
    }
    found["by_head"] = labelled(
        by_head,
        name="by_head",
        units="share of the row",
        paper=PAPER,
        layer=layers,
        head=heads,
        row=list(rows),
        group=groups,
    )
    return found


def _sets(
    layout: Layout, groups: Grouping, exclude: Sequence[str | Positions]
) -> dict[str, Positions]:
    """Each group's positions that count as sources; "other" holds what is in none."""
    if isinstance(groups, str):
        if groups not in ("layout", "paper"):
            raise LayoutError(
                f"groups={groups!r}: wanted 'layout', 'paper' or a mapping of names."
            )
        named = {g: g for g in GROUPS if layout[g] and g != "pad"}
        asked: Mapping[str, str | Positions] = _OF_PAPER if groups == "paper" else named
        may_be_empty = {"generated"}
    else:
        asked, may_be_empty = groups, set()
    sets = {name: _at(layout, given) for name, given in asked.items()}
    _check(layout, sets, may_be_empty)
    out = Positions.of(*(_excluded(layout, each) for each in exclude))
    rest = Positions.of(range(layout.n)) - Positions.of(*sets.values()) - layout["pad"]
    if rest:
        sets["other"] = rest
    if not Positions.of(*sets.values()) - out:
        raise LayoutError(f"exclude={exclude!r} leaves no position to attend to.")
    return {
        name: positions - out
        for name, positions in sets.items()
        if positions - out or not positions
    }


def _left_out(
    exclude: str | Positions | Sequence[str | Positions],
) -> list[str | Positions]:
    if isinstance(exclude, str | Positions):
        return [exclude]
    return list(several(exclude, (str, Positions), "exclude", '("bos",)'))


def _excluded(layout: Layout, given: str | Positions) -> Positions:
    """What is left out, which must be there, or nothing would be done in silence."""
    found = _at(layout, given)
    if not found:
        raise LayoutError(
            f"exclude names {str(given)!r}, of which this prompt has no position, so"
            f" that nothing would be left out. It has {', '.join(layout.groups)}."
        )
    return found


def _at(layout: Layout, given: str | Positions) -> Positions:
    one(given, (str, Positions), "a group", '"image", or layout.region(box)')
    return layout[given] if isinstance(given, str) else given


def _check(layout: Layout, sets: Mapping[str, Positions], empty: set[str]) -> None:
    for name, positions in sets.items():
        if not positions and name not in empty:
            raise LayoutError(
                f"group {name!r} holds no position of this prompt, so it could take no"
                " attention. Leave it out, or build the prompt with its image."
            )
        if positions and positions.indices[-1] > layout.last:
            raise LayoutError(
                f"group {name!r} names positions {positions}, outside 0..{layout.last}."
            )
    if sum(map(len, sets.values())) > len(Positions.of(*sets.values())):
        raise LayoutError(
            f"groups {', '.join(sets)} overlap, so that shares would add up to more"
            " than 1. Take one from the other: layout['image'] - object."
        )


def _counts(
    vlm: HookedVLM, prompt: Prompt, rows: Positions, member: Tensor
) -> Int[np.ndarray, "layer row group"]:
    """Positions of each group that each row may read in each layer."""
    reads, found = vlm.setting(prompt).reads, []
    for layer in range(vlm.cfg.n_layers):
        mask = reads.mask(layer)[list(rows)].to(member)
        found.append((mask @ member).round().long().cpu().numpy())
    return np.stack(found)


def pool_fractions(fractions: Sequence[xr.Dataset]) -> xr.Dataset:
    """Attention fractions of many prompts together, layer by layer.

    Args:
        fractions: What `attention_fraction` returned, one for each prompt, of the same
            groups and layers. The prompts' layouts may differ.

    Returns:
        Dataset over (group, layer): "mean" and "std" over all pairs of a prompt and a
        row, as in the paper, so that a long answer counts for more; "prompt_mean", each
        prompt counted once, with an interval of 95 % ("_low", "_high") over prompts.
        `attrs` say "n_prompts" and "n_pairs".

    Raises:
        ArgumentError: They are no list of fractions.
        PairError: There is none, or their models, groups, layers or exclusions differ.

    Paper: Kaduri et al. 2024, arXiv:2411.17491, figure 1.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> one = mv.attention_fraction(vlm, prompt)
        >>> mv.pool_fractions([one, one])["mean"].dims
        ('group', 'layer')
    """
    fractions = several(
        fractions, xr.Dataset, "fractions", "[attention_fraction(vlm, prompt)]"
    )
    kinds = {
        (
            each.attrs["model"],
            tuple(each["group"].values),
            each.sizes["layer"],
            str(each.attrs["excluded"]),
        )
        for each in fractions
    }
    if len(kinds) != 1:
        models = sorted({kind[0] for kind in kinds})
        raise PairError(
            f"{len(fractions)} fractions of {len(kinds)} kinds (models"
            f" {', '.join(models)}; groups; layers; exclusions): only what was measured"
            " alike can be pooled."
        )
    values = [each["fraction"].transpose("group", "layer", "row") for each in fractions]
    pairs = np.concatenate([each.values for each in values], axis=2)
    means = np.stack([each.values.mean(axis=2) for each in values], axis=2)
    cells = [mean_of(cell) for cell in means.reshape(-1, means.shape[2])]
    columns = np.array([cell[:3] for cell in cells]).reshape(*means.shape[:2], 3)
    names = ("prompt_mean", "prompt_mean_low", "prompt_mean_high")
    arrays = {"mean": pairs.mean(axis=2), "std": pairs.std(axis=2)}
    arrays |= {name: columns[:, :, i] for i, name in enumerate(names)}
    found = {
        name: labelled(
            array,
            name=name,
            units="share of the row",
            paper=PAPER,
            group=values[0]["group"].values.tolist(),
            layer=values[0]["layer"].values.tolist(),
        )
        for name, array in arrays.items()
    }
    kept = ("paper", "model", "excluded", "layer_convention")
    attrs = {name: fractions[0].attrs[name] for name in kept}
    counts = {"n_prompts": len(fractions), "n_pairs": pairs.shape[2]}
    return xr.Dataset(found, attrs=attrs | counts)
