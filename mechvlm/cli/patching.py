"""`mechvlm patch`: which activations carry what differs between two pictures."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from mechvlm.analyses.activation_patching import activation_patching
from mechvlm.axes import Labelled, save_result
from mechvlm.cli.asked import Twins, case_for, place, place_of, twins
from mechvlm.cli.files import check_out, write_all
from mechvlm.cli.given import Given, Output, Which
from mechvlm.cli.told import Told, percent
from mechvlm.demo.story import carried_from
from mechvlm.demo.sweeps import patched
from mechvlm.metrics import logit_difference
from mechvlm.sites import PER_HEAD, Component
from mechvlm.viz import heatmap, overlay
from mechvlm.viz.labels import shown

__all__ = ["patch"]

_SHOWN = 5
"""Best places that are told to people."""

_TOLD = 20
"""Best places that are told to programs."""

_STREAM = ("resid_pre", "resid_mid", "resid_post")
"""Sites where an answer that is there stays, unlike in what one part adds."""


def patch(
    which: Which,
    given: Given,
    output: Output,
    *,
    site: Component,
    direction: Literal["denoise", "noise"],
) -> Told:
    """Patch one place at a time, write what each restores, and say where it is read."""
    check_out(output.out)
    wanted = "image", "question", "answer", "counterfactual"
    one = twins(which, case_for(which, given, *wanted), quiet=output.quiet)
    metric = logit_difference(one.vlm, one.case.answer, one.foil)
    heat = (activation_patching if site in PER_HEAD else patched)(
        one.vlm,
        one.prompt,
        one.corrupted,
        metric=metric,
        site=site,
        direction=direction,
        progress=output.progress,
    )
    files = {"patching.nc": lambda path: save_result(heat, path)}
    figures = {"patching": heatmap(heat)}
    if "position" in heat.dims:
        figures["patching-image"] = overlay(
            heat, one.case.image, outline=one.case.outline
        )
    for name, figure in figures.items():
        files |= {f"{name}.html": figure.save, f"{name}.png": figure.save}
    return Told(
        "patch",
        [*_answers(one), "", *_table(one, heat), "", _sentence(one, heat)],
        _facts(one, heat) | {"found": _sentence(one, heat)},
        write_all(output.out, files, quiet=output.quiet),
    )


@torch.no_grad()
def _probabilities(one: Twins) -> dict[str, tuple[str, float, float]]:
    """What each picture is answered with, and P(answer) and P(foil) there."""
    words = [one.vlm.to_single_token(word) for word in (one.case.answer, one.foil)]
    found = {}
    for name, prompt in (("clean", one.prompt), ("corrupted", one.corrupted)):
        p = one.vlm(prompt)[0, -1].float().softmax(dim=-1)
        said = one.vlm.to_string(int(p.argmax())).strip()
        found[name] = said, float(p[words[0]]), float(p[words[1]])
    return found


def _answers(one: Twins) -> list[str]:
    answer, foil = one.case.answer, one.foil
    return [f"question   {one.case.question}"] + [
        f"{name:<10} {shown(said)}  ({answer} {own:.3f}, {foil} {other:.3f})"
        for name, (said, own, other) in _probabilities(one).items()
    ]


def _ranked(heat: Labelled) -> list[tuple[int, int, float]]:
    """Layer, position or head, and recovery; what changes the answer most first."""
    second = str(heat.dims[1])
    restores = heat.attrs["direction"] == "denoise"
    signed = -heat.values if restores else heat.values
    order = np.argsort(signed, axis=None, kind="stable")
    rows, cols = np.unravel_index(order, heat.shape)
    layers, seconds = heat["layer"].values[rows], heat[second].values[cols]
    values = heat.values[rows, cols]
    return [
        (int(layer), int(at), float(value))
        for layer, at, value in zip(layers, seconds, values, strict=True)
    ]


def _table(one: Twins, heat: Labelled) -> list[str]:
    """The best places, one a line."""
    lines = ["recovery  layer  where"]
    for layer, at, value in _ranked(heat)[:_SHOWN]:
        where = f"head {at}" if "head" in heat.dims else place(one.prompt, at)
        lines.append(f"{percent(value):>9}  {layer:>5}  {where}")
    return lines


def _sentence(one: Twins, heat: Labelled) -> str:
    """Where the answer is read, in one plain sentence."""
    layer, at, value = _ranked(heat)[0]
    restores = heat.attrs["direction"] == "denoise"
    if "head" in heat.dims:
        does = "restores" if restores else "leaves"
        return (
            f"One head at a time, L{layer}.H{at} counts most: patching it {does}"
            f" {percent(value)} of what tells “{one.case.answer}” from “{one.foil}”."
        )
    if not restores:
        return (
            f"One position at a time, {place(one.prompt, at)} is needed most: with the"
            f" counterfactual's activation there, at layer {layer}, {percent(value)} of"
            " the answer is left."
        )
    return f"{_in_image(one, heat)}; {_at_last(one, heat)}."


def _in_image(one: Twins, heat: Labelled) -> str:
    image = set(one.prompt.layout["image"])
    layer, at, value = next(each for each in _ranked(heat) if each[1] in image)
    if value <= 0:
        return "No image cell that is patched alone restores anything"
    side = int(heat.attrs["cells_together"])
    block = f" and its block of {side} x {side}" if side > 1 else ""
    return (
        f"In the image the answer is read most at layer {layer}: patching"
        f" {place(one.prompt, at)}{block} restores {percent(value)}"
    )


def _at_last(one: Twins, heat: Labelled) -> str:
    line = heat.sel(position=one.prompt.layout.last)
    at = carried_from(line.values)
    if heat.attrs["site"] not in _STREAM or at is None:
        best = line[int(line.values.argmax())]
        return (
            f"the last position alone restores most at layer {int(best['layer'])}"
            f" ({percent(float(best))})"
        )
    return (
        f"from layer {int(line['layer'][at])} on it stands at the last position"
        f" ({percent(float(line[at]))})"
    )


def _facts(one: Twins, heat: Labelled) -> dict[str, object]:
    """What programs are told."""
    best = [
        {"layer": layer, "recovery": value}
        | ({"head": at} if "head" in heat.dims else place_of(one.prompt, at))
        for layer, at, value in _ranked(heat)[:_TOLD]
    ]
    probabilities = {
        name: {"says": said, "answer": own, "foil": other}
        for name, (said, own, other) in _probabilities(one).items()
    }
    return {
        **one.facts,
        "foil": one.foil,
        "site": heat.attrs["site"],
        "direction": heat.attrs["direction"],
        "metric": heat.attrs["metric"],
        "clean": heat.attrs["clean"],
        "corrupted": heat.attrs["corrupted"],
        "probabilities": probabilities,
        "best": best,
        "n": int(heat.size),
        "units": heat.attrs["units"],
        "paper": heat.attrs["paper"],
    }
