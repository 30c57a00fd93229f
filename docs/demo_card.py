"""Print the tables of the demo models' card: `python docs/demo_card.py [model ...]`."""

from __future__ import annotations

import json
import sys

import numpy as np
import torch

import mechvlm as mv
from mechvlm.scenes import Thing

N_TWINS = 48
N_PICTURES = 100
MOST_OF_A_CELL = 0.4


def rounded(values: np.ndarray) -> list[float]:
    """Two decimals, and no negative zero."""
    return [round(float(value), 2) + 0.0 for value in values]


def handed_over(vlm: mv.HookedVLM, rng: np.random.Generator) -> dict[str, list[float]]:
    """Mean recovery by layer when a set of positions is patched, over twins."""
    found: list[np.ndarray] = []
    while len(found) < N_TWINS:
        scene = mv.scenes.sample_scene(rng)
        asked = mv.scenes.questions(scene, "color")
        if not asked or asked[0].about is None or len(scene.things) > 3:
            continue
        about = asked[0].about
        twin = mv.scenes.twin(scene, about, rng=rng)
        clean = vlm.prompt(asked[0].text, scene.image)
        corrupted = vlm.prompt(asked[0].text, twin.image)
        layout = clean.layout
        thing = layout.region(scene.mask(about))
        far = list(layout["image"] - layout.region(scene.mask(about), buffer=1))
        background = rng.choice(far, size=min(len(thing), len(far)), replace=False)
        sets = {
            "the thing's image tokens": thing,
            "as many background tokens": mv.Positions.of(background.tolist()),
            "the question's words": layout["query"],
            "last position": layout["last"],
        }
        foil = mv.scenes.questions(twin, "color")
        wrong = next(each.answer for each in foil if each.about == about)
        metric = mv.logit_difference(vlm, asked[0].answer, wrong)
        heat = mv.activation_patching(vlm, clean, corrupted, metric=metric, at=sets)
        found.append(heat.values)
    mean = np.mean(found, axis=0)
    return {name: rounded(mean[:, i]) for i, name in enumerate(sets)}


@torch.no_grad()
def own_word(vlm: mv.HookedVLM, rng: np.random.Generator) -> list[float]:
    """Share of things' tokens whose top word is their own shape or colour, by layer.

    Through the final norm and head; one entry per layer's input and one for the output.
    """
    hits: list[list[float]] = []
    for _ in range(N_PICTURES):
        scene = mv.scenes.sample_scene(rng)
        prompt = vlm.prompt("describe the image .", scene.image)
        run = mv.record(vlm, prompt, ["resid_pre", "resid_post"])
        streams = [
            run[mv.Site("resid_pre", layer)] for layer in range(vlm.cfg.n_layers)
        ]
        streams.append(run[mv.Site("resid_post", vlm.cfg.n_layers - 1)])
        for i, thing in enumerate(scene.things):
            if not isinstance(thing, Thing):
                continue
            own = {vlm.to_single_token(word) for word in (thing.shape, thing.color)}
            grid = prompt.layout.grids[0]
            covered = np.flatnonzero(grid.coverage(scene.mask(i)) >= MOST_OF_A_CELL)
            at = (grid.start + covered).tolist()
            tops = [(vlm.ln_final(x[at]) @ vlm.W_U).argmax(dim=-1) for x in streams]
            hits += [
                [int(row) in own for row in rows] for rows in zip(*tops, strict=True)
            ]
    return rounded(np.mean(hits, axis=0))


def main() -> None:
    """Print both tables of both models as JSON."""
    for name in sys.argv[1:] or ["demo", "demo-control"]:
        vlm = mv.load(name)
        tables = {
            "model": name,
            "recovery before each layer": handed_over(
                vlm, np.random.default_rng(20_001)
            ),
            "own word at things' tokens": own_word(vlm, np.random.default_rng(20_002)),
        }
        print(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
