"""What was typed, as values: which model, which question, where the results go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mechvlm.errors import RegionError

__all__ = ["Given", "Output", "Which", "box_of"]

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Which:
    """A model, where it runs, and in which precision ("auto": its own)."""

    name: str
    device: str | None = None
    dtype: str = "auto"


@dataclass(frozen=True)
class Given:
    """A question about a picture; None for what was left out."""

    image: Path | None = None
    question: str | None = None
    answer: str | None = None
    foil: str | None = None
    counterfactual: Path | None = None
    box: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was asked, so that a scene is drawn."""
        asked = self.image, self.question, self.answer, self.foil, self.counterfactual
        return all(each is None for each in asked)


@dataclass(frozen=True)
class Output:
    """Where results go, and how they are told."""

    out: Path
    as_json: bool = False
    quiet: bool = False

    @property
    def progress(self) -> bool | None:
        """What the analyses are told of progress bars."""
        return False if self.quiet else None


def box_of(text: str | None) -> Corners | None:
    """The box that was typed as four numbers.

    Raises:
        RegionError: They are not four numbers of a box that holds a pixel.

    Example:
        >>> box_of("12,30,84,101")
        (12.0, 30.0, 84.0, 101.0)
    """
    if text is None:
        return None
    try:
        left, top, right, bottom = map(float, text.split(","))
    except ValueError:
        raise RegionError(
            f"--box {text!r} is not four numbers. Wanted left, top, right and bottom in"
            " pixels of the image, with nothing but commas between: --box 12,30,84,101"
        ) from None
    if not (left < right and top < bottom):
        raise RegionError(
            f"--box {text} holds no pixel: left {left:g} must lie before right"
            f" {right:g}, and top {top:g} above bottom {bottom:g}, counted from the top"
            " left corner."
        )
    return left, top, right, bottom
