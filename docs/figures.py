"""Make the picture that the README shows: `python docs/figures.py`."""

from __future__ import annotations

from pathlib import Path

import mechvlm as mv

HERE = Path(__file__).parent


def main() -> None:
    """Patch the colour of one object into its twin and draw where it travels."""
    vlm = mv.load("demo")
    scene = mv.scenes.sample(seed=11, n=3)
    asked = mv.scenes.questions(scene, "color")[0]
    clean = vlm.prompt(asked.text, scene.image)
    corrupted = vlm.prompt(asked.text, scene.recolored(asked.about, "blue").image)
    metric = mv.logit_difference(vlm, asked.answer, "blue")
    heat = mv.activation_patching(vlm, clean, corrupted, metric=metric, progress=True)
    mv.viz.heatmap(heat).save(HERE / "patching.png")


if __name__ == "__main__":
    main()
