"""Questions about objects in pictures, for Neo et al.'s measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mechvlm.datasets import coco
from mechvlm.items import Item
from mechvlm.models.hooked import HookedVLM
from mechvlm.readings import Reading, counting, generative, polling, vqa
from mechvlm.reproduce.material import DESCRIBE, HOW_MANY, PRESENCE, items

__all__ = ["Pictures", "Session", "of_folder", "of_scenes"]

SEED = 42


@dataclass(frozen=True, eq=False)
class Pictures:
    """Questions about objects in pictures, and how they are asked.

    Attributes:
        items: Each with its target and all objects of the picture.
        crowded: Pictures with several objects, which overlap or share a class.
        routed: Questions whose answers take different ways through the model.
        readings: Ways to ask and to read success.
        counting: How the number of objects is asked.
        words: What names an object, from its name; None takes its first pieces.
    """

    items: Sequence[Item]
    crowded: Sequence[Item]
    routed: Sequence[Item]
    readings: Sequence[Reading]
    counting: Reading
    words: Callable[[str], Sequence[str]] | None


def of_scenes(n: int) -> Pictures:
    """Synthetic scenes, asked for a thing's colour."""
    readings = (
        generative(DESCRIBE, max_new_tokens=24),
        polling(PRESENCE, max_new_tokens=2),
        vqa(max_new_tokens=2),
    )
    return Pictures(
        items(n, SEED),
        [
            *items(n // 2, SEED + 1, "color_at", overlapping=True),
            *items(n // 2, SEED + 2, "color_at", alike=True),
        ],
        [*items(n // 2, SEED, "shape"), *items(n // 2, SEED, "color_at")],
        readings,
        counting(HOW_MANY, max_new_tokens=2),
        str.split,
    )


def of_folder(folder: Path, n: int) -> Pictures:
    """COCO pictures: `instances.json` and `images/`."""
    found = coco.read(folder / "instances.json", folder / "images", limit=n)
    crowded = [item for item in found if len(item.objects) > 1]
    readings = (generative(), polling(), vqa())
    return Pictures(found, crowded, found, readings, counting(), None)


@dataclass(frozen=True, eq=False)
class Session:
    """Questions before a model."""

    vlm: HookedVLM
    pictures: Pictures
