"""Scenes drawn once, with their pixels and how much of each patch each thing covers."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mechvlm.models.demo.network import N_PATCHES, PATCH_PX, SIDE
from mechvlm.scenes import NAMES, Scene, sample_scene

WITH_EMBLEM = 0.35
OVERLAPPING = 0.25
ALIKE = 0.15


@dataclass(frozen=True)
class Pool:
    """Scenes and what training reads of them.

    Attributes:
        scenes: In the order in which they were drawn.
        pixels: Their pictures.
        cover: For each scene, the share of each patch where each thing is seen, 0..1.
    """

    scenes: list[Scene]
    pixels: UInt8[Tensor, "scene 72 72 3"]
    cover: list[Float[np.ndarray, "_ patch"]]


def draw_scene(rng: np.random.Generator) -> Scene:
    """A scene as training draws it.

    Every third or so shows one entity's emblem; in every fourth two things overlap.
    """
    shows, overlapping, alike = rng.random(3) < (WITH_EMBLEM, OVERLAPPING, ALIKE)
    return sample_scene(
        rng,
        entity=str(rng.choice(NAMES)) if shows else None,
        overlapping=bool(overlapping),
        alike=bool(alike),
    )


def make_pool(n: int, seed: int) -> Pool:
    """Draw `n` scenes."""
    rng = np.random.default_rng(seed)
    scenes = [draw_scene(rng) for _ in range(n)]
    pixels = torch.from_numpy(np.stack([scene.pixels for scene in scenes]))
    return Pool(scenes, pixels, [_cover(scene) for scene in scenes])


def normalised(
    pixels: UInt8[Tensor, "scene 72 72 3"],
) -> Float[Tensor, "scene 3 72 72"]:
    """What the image processor makes of the pixels: -1..1, channels first."""
    return (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def _cover(scene: Scene) -> Float[np.ndarray, "thing patch"]:
    masks = np.stack([scene.mask(i) for i in range(len(scene.things))])
    blocks = masks.reshape(-1, SIDE, PATCH_PX, SIDE, PATCH_PX)
    return np.asarray(blocks.mean(axis=(2, 4)), np.float32).reshape(-1, N_PATCHES)
