"""A judge that looks objects up in a list: deterministic, offline, and plain."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import groupby, pairwise
from typing import NamedTuple, TypeAlias

from mechvlm.errors import JudgeError
from mechvlm.judges.coco import COCO, NO_OBJECTS
from mechvlm.judges.verdict import Verdict
from mechvlm.matching import words
from mechvlm.wanted import several, words_of

__all__ = ["Mention", "ObjectListJudge"]

Phrase: TypeAlias = tuple[str, ...]

_PLURALS = {
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "mouse": "mice",
    "person": "people",
    "scarf": "scarves",
    "shelf": "shelves",
    "tooth": "teeth",
    "wolf": "wolves",
}
_SAME = frozenset({"deer", "fish", "scissors", "sheep", "skis"})
"""Words whose plural is the word itself."""

_BREAK = re.compile(r"[.,;:!?()\n]")
"""What no name of an object goes across."""


class Mention(NamedTuple):
    """An object named in a text: its name in the list, and where the text says it."""

    name: str
    start: int
    stop: int


class _Word(NamedTuple):
    """A word without case and accents, and the part of the text that it is of."""

    plain: str
    start: int
    stop: int


class ObjectListJudge:
    """Find the objects of a list in both descriptions, and compare the sets.

    An object is there if the text holds its name or another word for it, in whole
    words, in singular or plural. The longest name wins: in "traffic light" there is no
    light, and in "hot dog" no dog. It counts once however often it is named, so "two
    dogs" and "a dog" are the same; an attribute matters only where it is part of the
    name, as in "red circle". Case, accents and wide letters do not matter, as in
    `matching.words`.

    It knows no context: "no cat" names a cat. A comparison by a language model is
    kinder to unusual words but noisier.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
        *,
        ignoring: Sequence[str] = (),
    ) -> None:
        """Make a judge of a list of objects.

        Args:
            vocabulary: Name of each object -> other words for it; or names alone. None
                takes `COCO`, the 80 classes of MS COCO, and ignores `NO_OBJECTS`.
            ignoring: Phrases that hold an object's name and do not mean it, such as
                "bus stop".

        Raises:
            JudgeError: There is no object, a name has no word, or two objects share
                one.
            ArgumentError: The words are given as one string, or are none.

        Example:
            >>> judge = ObjectListJudge()
            >>> judge.objects("Two men on bikes wait for the traffic lights.")
            ('person', 'bicycle', 'traffic light')
            >>> pairs = ObjectListJudge(["red circle", "blue ring"])
            >>> said = pairs.compare("a blue ring", reference="a red circle")
            >>> said.f1, said.lost, said.invented
            (0.0, ('red circle',), ('blue ring',))
        """
        if isinstance(vocabulary, str):
            raise JudgeError(
                f"the vocabulary is the word {vocabulary!r}; wanted a list of names,"
                " or a mapping from each name to other words for it."
            )
        if vocabulary is None:
            vocabulary, ignoring = COCO, (*NO_OBJECTS, *ignoring)
        if not isinstance(vocabulary, Mapping):
            names = several(vocabulary, str, "vocabulary", '["red circle", "ring"]')
            vocabulary = dict.fromkeys(names, ())
        self.vocabulary = {
            name: words_of(more, f"vocabulary[{name!r}]")
            for name, more in vocabulary.items()
        }
        self.ignoring = words_of(ignoring, "ignoring")
        if not self.vocabulary:
            raise JudgeError(
                "the vocabulary is empty, so that every description would agree with"
                ' every other. Give names of objects: ["red circle", "blue ring"].'
            )
        self._longest = max(map(len, self._forms))

    def __repr__(self) -> str:
        """Its name, which says how long the list is."""
        return f"ObjectListJudge({self.name})"

    @property
    def name(self) -> str:
        """What results call it."""
        return f"list of {len(self.vocabulary)} objects"

    def compare(self, candidate: str, *, reference: str) -> Verdict:
        """Objects of both descriptions; those of one name match.

        Args:
            candidate: The description that is judged.
            reference: The description that it is held against.
        """
        ours, theirs = self.objects(candidate), self.objects(reference)
        both = tuple((name, name) for name in theirs if name in ours)
        return Verdict(theirs, ours, both)

    def objects(self, text: str) -> tuple[str, ...]:
        """Names of the objects in a text, each once, in the order of first mention."""
        return tuple(dict.fromkeys(mention.name for mention in self.mentions(text)))

    def mentions(self, text: str) -> tuple[Mention, ...]:
        """Every mention of an object, with the part `text[start:stop]` that is it.

        Example:
            >>> (dog,) = ObjectListJudge().mentions("The puppies sleep")
            >>> dog.name, "The puppies sleep"[dog.start : dog.stop]
            ('dog', 'puppies')
        """
        return tuple(self._found(text))

    def _found(self, text: str) -> Iterator[Mention]:
        spoken = list(_spoken(text))
        plain = [word.plain for word in spoken]
        after = [_together(text, *pair) for pair in pairwise(spoken)]
        at = 0
        while at < len(spoken):
            n, name = self._longest_at(plain, after, at)
            if name is not None:
                yield Mention(name, spoken[at].start, spoken[at + n - 1].stop)
            at += n

    def _longest_at(
        self, plain: list[str], after: list[bool], at: int
    ) -> tuple[int, str | None]:
        """Words that the longest name from here on takes, and whose it is."""
        for n in range(min(self._longest, len(plain) - at), 0, -1):
            phrase = tuple(plain[at : at + n])
            if phrase in self._forms and all(after[at : at + n - 1]):
                return n, self._forms[phrase]
        return 1, None

    @cached_property
    def _forms(self) -> dict[Phrase, str | None]:
        """Every phrase that is looked for -> its object; None if it names none."""
        forms: dict[Phrase, str | None] = {}
        for name, more in self.vocabulary.items():
            for phrase in (name, *more):
                for form in _inflected(phrase):
                    if forms.setdefault(form, name) != name:
                        raise JudgeError(
                            f"{' '.join(form)!r} is a word for both"
                            f" {forms[form]!r} and {name!r}; give it to one of them."
                        )
        for phrase in self.ignoring:
            for form in _inflected(phrase):
                if forms.setdefault(form, None) is not None:
                    raise JudgeError(
                        f"{' '.join(form)!r} is to be ignored and is a word for"
                        f" {forms[form]!r}; it cannot be both."
                    )
        return forms


def _inflected(phrase: str) -> tuple[Phrase, Phrase]:
    """A phrase as it stands and in the plural."""
    singular = words(phrase)
    if not singular:
        raise JudgeError(f"{phrase!r} names no object: it holds no word.")
    return singular, (*singular[:-1], _plural(singular[-1]))


def _plural(word: str) -> str:
    if word in _SAME:
        return word
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("man") and word != "human":
        return word.removesuffix("an") + "en"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word.removesuffix("y") + "ies"
    return word + ("es" if word in ("potato", "tomato") else "s")


def _spoken(text: str) -> Iterator[_Word]:
    """The words of a text as `matching.words` has them, and where each stands."""
    for is_word, chars in groupby(enumerate(text), lambda at: _of_a_word(at[1])):
        if not is_word:
            continue
        (start, first), *rest = chars
        stop = start + 1 + len(rest)
        for plain in words(first + "".join(char for _, char in rest)):
            yield _Word(plain, start, stop)


@cache
def _of_a_word(char: str) -> bool:
    """Whether a word may hold it; marks belong to the letter before them."""
    return bool(words(char)) or unicodedata.category(char).startswith("M")


def _together(text: str, word: _Word, following: _Word) -> bool:
    """Whether nothing between two neighbouring words parts them."""
    return _BREAK.search(text, word.stop, following.start) is None
