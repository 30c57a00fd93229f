"""What a question is, and whom it can be about."""

from collections.abc import Iterator
from dataclasses import dataclass

from mechvlm.scenes.scene import Scene
from mechvlm.scenes.world import Emblem, Thing


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its one right answer.

    Attributes:
        text: In the demo model's words.
        answer: One word; two for kind `where`, a whole description for kinds `describe`
            and `detail`.
        kind: One of `KINDS`.
        about: Index of the thing that decides the answer; None if no single one does:
            all are counted, several are of the kind that is asked for, or none is.
    """

    text: str
    answer: str
    kind: str
    about: int | None = None


def plain_things(scene: Scene) -> Iterator[tuple[int, Thing]]:
    """The scene's coloured shapes, each with its index."""
    return (
        (i, thing) for i, thing in enumerate(scene.things) if isinstance(thing, Thing)
    )


def emblems(scene: Scene) -> Iterator[tuple[int, Emblem]]:
    """The scene's emblems, each with its index."""
    return (
        (i, thing) for i, thing in enumerate(scene.things) if isinstance(thing, Emblem)
    )
