"""What a judge says of two descriptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mechvlm.errors import JudgeError

__all__ = ["Judge", "Verdict", "check_judge"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The objects of two descriptions, and which are the same; each counts once.

    Attributes:
        reference: Distinct objects that the reference names.
        candidate: Distinct objects that the candidate names.
        matched: Pairs (object of the reference, object of the candidate) that are the
            same object; none is in two pairs.

    Example:
        >>> said = Verdict(("dog", "sofa"), ("couch",), (("sofa", "couch"),))
        >>> said.precision, said.recall, round(said.f1, 2), said.lost
        (1.0, 0.5, 0.67, ('dog',))
    """

    reference: tuple[str, ...]
    candidate: tuple[str, ...]
    matched: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        """Refuse objects named twice, and pairs of what was not named or twice."""
        theirs = [pair[0] for pair in self.matched]
        ours = [pair[1] for pair in self.matched]
        for side, named, paired in (
            ("reference", self.reference, theirs),
            ("candidate", self.candidate, ours),
        ):
            if len(set(named)) < len(named):
                raise JudgeError(
                    f"the {side}'s objects {list(named)} hold one twice; each counts"
                    " once."
                )
            if len(set(paired)) < len(paired) or not set(paired) <= set(named):
                raise JudgeError(
                    f"the matches pair {paired} of the {side}, whose objects are"
                    f" {list(named)}: every match must pair two of the objects listed,"
                    " and none twice."
                )

    @property
    def lost(self) -> tuple[str, ...]:
        """Objects of the reference that the candidate does not name."""
        found = {pair[0] for pair in self.matched}
        return tuple(each for each in self.reference if each not in found)

    @property
    def invented(self) -> tuple[str, ...]:
        """Objects of the candidate that the reference does not name."""
        found = {pair[1] for pair in self.matched}
        return tuple(each for each in self.candidate if each not in found)

    @property
    def precision(self) -> float:
        """Share of the candidate's objects that the reference names; see `f1`."""
        return self._share(self.candidate)

    @property
    def recall(self) -> float:
        """Share of the reference's objects that the candidate names; see `f1`."""
        return self._share(self.reference)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall: 1 if the objects are the same.

        Two descriptions that name nothing agree: precision, recall and F1 are 1. If
        only one of them names nothing, all three are 0.
        """
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    def _share(self, of: tuple[str, ...]) -> float:
        if not self.reference and not self.candidate:
            return 1.0
        return len(self.matched) / len(of) if of else 0.0


@runtime_checkable
class Judge(Protocol):
    """Anything that can tell which objects two descriptions share."""

    @property
    def name(self) -> str:
        """What results call it."""
        ...

    def compare(self, candidate: str, *, reference: str) -> Verdict:
        """The objects of both descriptions and their matches.

        Args:
            candidate: The description that is judged.
            reference: The description that it is held against.
        """
        ...


def check_judge(given: object) -> None:
    """Refuse what cannot compare descriptions, before any is made.

    Raises:
        JudgeError: It is no judge, or the class of one.
    """
    # A class has the names of its instances, so that it would pass for one.
    if isinstance(given, type):
        raise JudgeError(
            f"judge is the class {given.__name__}; wanted a judge of it:"
            f" judge={given.__name__}(...)."
        )
    if not isinstance(given, Judge):
        raise JudgeError(
            f"judge is {given!r} ({type(given).__name__}); wanted something with a"
            " `name` and a `compare`, such as judges.ObjectListJudge()."
        )
