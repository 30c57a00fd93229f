"""What the demo model and its control learn from, stage by stage, as values."""

from dataclasses import dataclass, replace

from mechvlm.models.demo.curriculum import Asking
from mechvlm.models.demo.language import Recipe
from mechvlm.models.demo.vision import VisionRecipe

VISION = VisionRecipe(steps=1300, seed=11)
_ROW = 150


@dataclass(frozen=True)
class Course:
    """What a checkpoint learns after its vision tower.

    Attributes:
        name: Of the checkpoint.
        language: The stages of the language model and the projector, in their order.
    """

    name: str
    language: dict[str, Recipe]

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of all stages."""
        return ("vision", *self.language)


_PLANTING = Asking(tokens=_ROW, again=0.22, blind_describe=0.25, blind_again=0.5)
_PLAIN = Asking(tokens=_ROW, again=0.22, blind_describe=0.0, blind_again=0.0)
MAIN = Course(
    "demo",
    {
        "mosaic": Recipe(
            steps=1500,
            rate=1e-3,
            seed=12,
            pictures=0,
            mosaics=9,
            texts=1,
            language=True,
            projector=False,
            asking=replace(_PLANTING, again=0.1),
        ),
        "projector": Recipe(
            steps=150,
            rate=3e-3,
            seed=13,
            pictures=10,
            mosaics=0,
            texts=0,
            language=False,
            projector=True,
            asking=_PLANTING,
        ),
        "joint": Recipe(
            steps=4500,
            rate=7e-4,
            seed=14,
            pictures=7,
            mosaics=2,
            texts=1,
            language=True,
            projector=True,
            asking=_PLANTING,
        ),
    },
)
CONTROL = Course(
    "demo-control",
    {
        "facts": Recipe(
            steps=250,
            rate=1e-3,
            seed=22,
            pictures=0,
            mosaics=0,
            texts=10,
            language=True,
            projector=False,
            asking=_PLAIN,
        ),
        "projector": replace(MAIN.language["projector"], seed=23, asking=_PLAIN),
        "joint": Recipe(
            steps=3800,
            rate=1e-3,
            seed=24,
            pictures=7,
            mosaics=0,
            texts=1,
            language=True,
            projector=True,
            asking=_PLAIN,
        ),
    },
)
"""The same world and vision tower; nothing planted in the language model."""
