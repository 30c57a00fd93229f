"""Make the pictures that the README shows: `python docs/figures.py`."""

from __future__ import annotations

from pathlib import Path

import mechvlm as mv

HERE = Path(__file__).parent


def main() -> None:
    """Patch one object's colour into its twin and draw what brings it back."""
    vlm = mv.load("demo")
    scene = mv.scenes.sample(seed=11, n=3)
    asked = mv.scenes.questions(scene, "color")[0]
    foil = "blue" if asked.answer != "blue" else "red"
    twin = scene.recolored(asked.about, foil)
    clean = vlm.prompt(asked.text, scene.image)
    corrupted = vlm.prompt(asked.text, twin.image)
    metric = mv.logit_difference(vlm, asked.answer, foil)
    heat = mv.activation_patching(vlm, clean, corrupted, metric=metric, progress=True)
    box = scene.box(asked.about)
    mv.viz.overlay(heat, scene.image, outline=box).save(HERE / "patching.png")
    mv.viz.heatmap(heat).save(HERE / "patching-by-token.png")


if __name__ == "__main__":
    main()
