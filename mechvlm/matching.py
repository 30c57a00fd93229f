"""Whether an answer in words says what it should: plug-ins, from strict to lenient.

A matcher takes what a model said and the names that count as right. It is given the
answer alone, never the prompt, whose words would match by themselves. Golds are always
several: a single string would be taken apart into letters, and is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TypeAlias

from mechvlm.wanted import words_of

__all__ = ["Matcher", "begins", "mentions", "names", "words", "yes_or_no"]

Matcher: TypeAlias = Callable[[str, Sequence[str]], bool]
"""(what was said, names that count) -> whether one of them was said."""

_ACCENTS = re.compile("[\u0300-\u036f]")
"""Marks over and under letters of European scripts; elsewhere marks are vowels."""

_LONG = 4
"""Letters from which on a word of a name is telling by itself."""

_SHARED = 2
"""Telling words of a longer name that must be said."""


def words(text: str) -> tuple[str, ...]:
    """The words of a text: lower case, without punctuation and without accents.

    Models write accents or leave them out, so that neither may decide.

    Example:
        >>> words("It's the Château, İstanbul.")
        ('it', 's', 'the', 'chateau', 'istanbul')
    """
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    return tuple(re.findall(r"\w+", unicodedata.normalize("NFC", plain).casefold()))


def mentions(said: str, golds: Sequence[str]) -> bool:
    """Whether one of the names stands in the answer, whole words in a row.

    Raises:
        ArgumentError: The golds are one string.

    Example:
        >>> mentions("a traffic light", ["light"]), mentions("located", ["cat"])
        (True, False)
    """
    spoken = words(said)
    return any(_within(words(gold), spoken) for gold in words_of(golds, "golds"))


def names(said: str, golds: Sequence[str]) -> bool:
    """Whether the answer names one of the golds, loosely.

    Of a gold with several words of four letters or more, two must be said; of one with
    a single such word, that one. A gold of short words alone ("IBM") must be said
    whole, so that it can match at all and "it" does not match "IT Crowd".

    Example:
        >>> names("Leonardo da Vinci painted it", ["Leonardo di ser Piero da Vinci"])
        True
        >>> names("an IBM machine", ["IBM"]), names("a submarine", ["IBM"])
        (True, False)

    Raises:
        ArgumentError: The golds are one string.

    Paper: recognition of Cohen et al. 2024, arXiv:2412.14133; short names and accents
        mended.
    """
    spoken = words(said)
    return any(_named(words(gold), spoken) for gold in words_of(golds, "golds"))


def begins(said: str, golds: Sequence[str]) -> bool:
    """Whether the answer begins with one of the names, whole words.

    Raises:
        ArgumentError: The golds are one string.

    Example:
        >>> begins("red and blue", ["red"]), begins("a red ring", ["red"])
        (True, False)
    """
    spoken = words(said)
    wanted = map(words, words_of(golds, "golds"))
    return any(gold != () and spoken[: len(gold)] == gold for gold in wanted)


def yes_or_no(said: str) -> bool | None:
    """What a yes-or-no answer begins with; None if with neither.

    Example:
        >>> yes_or_no("Yes, it is."), yes_or_no("no"), yes_or_no("Nobody knows")
        (True, False, None)
    """
    first = next(iter(words(said)), "")
    return {"yes": True, "no": False}.get(first)


def _named(gold: tuple[str, ...], spoken: tuple[str, ...]) -> bool:
    telling = {word for word in gold if len(word) >= _LONG}
    if not telling:
        return _within(gold, spoken)
    return len(telling & set(spoken)) >= min(_SHARED, len(telling))


def _within(gold: tuple[str, ...], spoken: tuple[str, ...]) -> bool:
    n = len(gold)
    return n > 0 and any(
        spoken[at : at + n] == gold for at in range(len(spoken) - n + 1)
    )
