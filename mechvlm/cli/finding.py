"""`mechvlm circuit`: which edges an answer flows along, judged on other pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

from mechvlm.analyses.circuits import (
    discover,
    discover_heads,
    faithfulness,
)
from mechvlm.axes import save_result
from mechvlm.cli.asked import loaded
from mechvlm.cli.drawing import picture_pairs
from mechvlm.cli.files import check_out, write_all
from mechvlm.cli.given import Output, Which
from mechvlm.cli.told import Told, percent
from mechvlm.graph import Circuit
from mechvlm.models.hooked import HookedVLM
from mechvlm.pairs import Pair, bind
from mechvlm.viz import circuit as pictured

__all__ = ["circuit"]

_SHOWN = 8
"""Strongest edges that are told to people."""


def circuit(
    which: Which,
    output: Output,
    *,
    pairs: str,
    size: int,
    n_heads: int | None,
    top: int,
) -> Told:
    """Find a circuit on half of the pairs and judge it by the others."""
    check_out(output.out)
    asked = picture_pairs(which, pairs, least=2)
    vlm = loaded(which, quiet=output.quiet)
    every = [_numbered(bind(vlm, each), i) for i, each in enumerate(asked)]
    own, others = every[::2], every[1::2]
    found = _found(vlm, own, size, n_heads, top, output)
    judged = faithfulness(vlm, others, found, progress=output.progress)
    figure = pictured(found)
    files = {
        "circuit.json": found.save,
        "faithfulness.nc": lambda path: save_result(judged, path),
        "circuit.html": figure.save,
        "circuit.png": figure.save,
    }
    kept = {
        name: float(judged[name][0])
        for name in ("faithfulness", "faithfulness_low", "faithfulness_high", "without")
    }
    sentence = _sentence(found, kept, len(own), len(others))
    return Told(
        "circuit",
        [*_strongest(found), "", sentence],
        {
            "model": vlm.cfg.model_name,
            "edges": len(found),
            "heads": [str(node) for node in found.of_kind("head")],
            "share_of_heads": found.share_of_heads,
            "effects": dict(found.effects),
            "found_on": [pair.id for pair in own],
            "judged_on": [pair.id for pair in others],
            **kept,
            "found": sentence,
            "n": len(others),
            "units": judged["faithfulness"].attrs["units"],
            "paper": judged.attrs["paper"],
        },
        write_all(output.out, files, quiet=output.quiet),
    )


def _numbered(pair: Pair, place: int) -> Pair:
    """A pair that has a name: its place where it has none of its own."""
    return pair if pair.id else replace(pair, id=str(place))


def _found(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    size: int,
    n_heads: int | None,
    top: int,
    output: Output,
) -> Circuit:
    """The best edges of the whole model, or of the heads that explain most."""
    shown = output.progress
    if n_heads is None:
        return discover(vlm, pairs, size=size, top=top, progress=shown)
    heads = discover_heads(vlm, pairs, n_heads, progress=shown)
    return discover(vlm, pairs, within=heads, size=size, top=None, progress=shown)


def _strongest(found: Circuit) -> list[str]:
    ranked = sorted(found.effects.items(), key=lambda item: -abs(item[1]))[:_SHOWN]
    return ["  effect  edge", *(f"{100 * x:+6.1f} %  {edge}" for edge, x in ranked)]


def _sentence(found: Circuit, kept: dict[str, float], n: int, n_others: int) -> str:
    """What the circuit explains, in one plain sentence."""
    low, high = kept["faithfulness_low"], kept["faithfulness_high"]
    between = (
        f" (between {percent(low)} and {percent(high)})"
        if isfinite(low) and isfinite(high)
        else ""
    )
    heads = len(found.of_kind("head"))
    return (
        f"{len(found)} edges with {heads} head{'' if heads == 1 else 's'}, found on"
        f" {n} pair{'' if n == 1 else 's'}, keep {percent(kept['faithfulness'])}"
        f"{between} of what tells {n_others} other pair{'' if n_others == 1 else 's'}"
        f" apart; all the rest keeps {percent(kept['without'])}."
    )
