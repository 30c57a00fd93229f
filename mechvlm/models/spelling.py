"""A text as the tokenizer reads it: images spelled out, the processor's own words in.

Positions are told by characters, so every character must be known to be the caller's
or the processor's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mechvlm.models.family import Frame

__all__ = ["Span", "Spelling", "spell"]

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Spelling:
    """What the tokenizer reads for a text with at most one image.

    Attributes:
        text: All of it.
        own: Stretches of it that are the caller's: start, start in the caller's text,
            length. The rest is the image's or was put in by the processor.
    """

    text: str
    own: tuple[tuple[int, int, int], ...]

    def moved(self, span: Span) -> list[Span]:
        """Where the characters of a span of the caller's text stand in this one."""
        found = []
        for start, before, length in self.own:
            shift = start - before
            low, high = max(span[0], before), min(span[1], before + length)
            if low < high:
                found.append((low + shift, high + shift))
        return found

    def is_own(self, token: Span) -> bool:
        """Whether a token stands for characters of the caller's, if only for some."""
        return any(overlap(token, (a, a + length)) for a, _, length in self.own)

    def group(self, token: Span, spans: Mapping[str, Span]) -> str:
        """The span whose characters a token shares; "template" where none does."""
        for name, span in spans.items():
            if any(overlap(token, here) for here in self.moved(span)):
                return name
        return "template"


def spell(text: str, frame: Frame, n_positions: int) -> Spelling:
    """Spell out the caller's text as its processor does.

    Args:
        text: The caller's text, with at most one placeholder.
        frame: What the processor puts in.
        n_positions: Positions of the image.
    """
    head, found, tail = text.partition(frame.placeholder)
    image = f"{frame.before}{frame.image * n_positions}{frame.after}" if found else ""
    start, before = len(head) + len(image), len(head) + len(found)
    own = (0, 0, len(head)), (start, before, len(tail))
    return Spelling(f"{head}{image}{tail}{frame.end}", own)


def overlap(one: Span, other: Span) -> bool:
    """Whether two spans share a character."""
    return max(one[0], other[0]) < min(one[1], other[1])
