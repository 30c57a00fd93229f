"""`mechvlm knockout`: in which layers the answer needs one group to read another."""

from __future__ import annotations

from typing import NamedTuple

from mechvlm.analyses.knockout import Mode, knockout_windows
from mechvlm.axes import Labelled, save_result
from mechvlm.cli.asked import Asked, asked, case_for
from mechvlm.cli.files import check_out, write_all
from mechvlm.cli.given import Given, Output, Which
from mechvlm.cli.told import Told
from mechvlm.layout import Positions
from mechvlm.viz import lines

__all__ = ["knockout"]

_NOTHING = 5
"""Percent of the answer's probability; a cut that costs less is not spoken of."""


class _Cost(NamedTuple):
    """Where a cut costs most; `change` in percent of the clean probability."""

    cut: str
    layer: int
    layers: tuple[int, int]
    change: float
    each: list[float]

    @property
    def where(self) -> str:
        """The window, in words."""
        first, last = self.layers
        return f"layer {first}" if first == last else f"layers {first} to {last}"

    def __str__(self) -> str:
        """One line of the table."""
        return f"{self.change:+7.1f} %  {self.cut}, cut in {self.where}"


def knockout(
    which: Which,
    given: Given,
    output: Output,
    *,
    mode: Mode,
    width: int | None,
) -> Told:
    """Cut attention in windows of layers, write the curves, and say what costs most."""
    check_out(output.out)
    case = case_for(which, given, "image", "question", "answer")
    one = asked(which, case, quiet=output.quiet)
    drop = knockout_windows(
        one.vlm,
        one.prompt,
        _cuts(one),
        answer=case.answer,
        width=width,
        mode=mode,
        progress=output.progress,
    )
    figure = lines(drop)
    files = {
        "knockout.nc": lambda path: save_result(drop, path),
        "knockout.html": figure.save,
        "knockout.png": figure.save,
    }
    clean = float(drop.attrs["clean"])
    asked_for = f"question   {case.question}", f"answer     {case.answer} ({clean:.3f})"
    costs = [_cost(drop, name) for name in drop["cut"].values]
    return Told(
        "knockout",
        [*asked_for, "", "   change  cut", *map(str, costs), "", _sentence(costs)],
        {
            **one.facts,
            "mode": mode,
            "width": drop.attrs.get("width"),
            "clean": clean,
            "cuts": [cost._asdict() for cost in costs],
            "found": _sentence(costs),
            "n": int(drop.size),
            "units": drop.attrs["units"],
            "paper": drop.attrs["paper"],
        },
        write_all(output.out, files, quiet=output.quiet),
    )


def _cuts(one: Asked) -> dict[str, tuple[str | Positions, str | Positions]]:
    """Who no longer reads whom: the image, and of a known box object and rest."""
    layout = one.prompt.layout
    cuts: dict[str, tuple[str | Positions, str | Positions]] = {
        "image → last": ("last", "image"),
        "image → question": ("query", "image"),
        "question → last": ("last", "query"),
    }
    if one.case.outline is not None:
        thing = layout.region(one.case.outline)
        parts = {"object": thing, "background": layout["image"] - thing}
        cuts |= {
            f"{name} → {reader}": (group, part)
            for name, part in parts.items()
            for reader, group in (("last", "last"), ("question", "query"))
            if part
        }
    return cuts


def _cost(drop: Labelled, name: str) -> _Cost:
    line = drop.sel(cut=name)
    each = [float(value) for value in line]
    at = each.index(min(each))
    return _Cost(str(name), int(line["layer"][at]), _window(drop, at), each[at], each)


def _window(drop: Labelled, at: int) -> tuple[int, int]:
    """First and last layer of the window that a layer stands for."""
    end, mode = drop.sizes["layer"] - 1, drop.attrs["mode"]
    wide = int(drop.attrs["width"])
    if mode == "from":
        return at, end
    if mode == "upto":
        return 0, at
    first = at - wide // 2 if mode == "centred" else at
    return max(0, first), min(first + wide - 1, end)


def _sentence(costs: list[_Cost]) -> str:
    """Which cut costs most, in one plain sentence."""
    worst = min(costs, key=lambda cost: cost.change)
    if worst.change > -_NOTHING:
        return (
            f"No cut in such a window costs more than {_NOTHING} % of the answer's"
            " probability: longer windows (--width, --mode from) may."
        )
    return (
        f"Cutting {worst.cut} in {worst.where} costs most: {-worst.change:.0f} % of the"
        " answer's probability."
    )
