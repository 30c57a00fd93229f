"""How success is read: what is asked, and when the answer counts as right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mechvlm.errors import PromptError
from mechvlm.items import Item
from mechvlm.matching import Matcher, begins, mentions, names, words, yes_or_no

__all__ = ["Ask", "Reading", "counting", "generative", "polling", "vqa"]


@dataclass(frozen=True)
class Ask:
    """A question, how long the answer may be, and what counts as right.

    Attributes:
        question: What is asked; one for each kind of entity as a mapping; None where
            each fact brings its own.
        matcher: Whether an answer names one of the right ones; see `mechvlm.matching`.
        max_new_tokens: Longest answer.
    """

    question: str | Mapping[str, str] | None = None
    matcher: Matcher = names
    max_new_tokens: int = 20

    def of(self, kind: str) -> str:
        """The question for a kind of entity.

        Raises:
            PromptError: There is none for it.
        """
        found = (
            self.question.get(kind)
            if isinstance(self.question, Mapping)
            else self.question
        )
        if found is None:
            raise PromptError(
                f"no question is given for entities of kind {kind!r}. Give"
                ' Ask("Who is this ?"), or a mapping with this kind among its keys.'
            )
        return found


def _no_prefix(item: Item) -> str:
    return ""


@dataclass(frozen=True)
class Reading:
    """One way to ask about an item's target, and to read success off the answer.

    Attributes:
        name: What tables call it.
        question: What is asked of an item.
        right: Whether what was said counts.
        first: The word that a right answer begins with, whose probability is watched;
            None where a right answer may begin with anything.
        max_new_tokens: Longest answer.
        prefix: Start of the assistant's answer, which the model goes on from; what is
            said begins after it.
    """

    name: str
    question: Callable[[Item], str]
    right: Callable[[Item, str], bool]
    first: Callable[[Item], str] | None = None
    max_new_tokens: int = 20
    prefix: Callable[[Item], str] = _no_prefix


def generative(
    question: str = "Describe the image.", *, max_new_tokens: int = 200
) -> Reading:
    """A free description; right if it mentions the target, in whole words.

    Paper: Neo et al. 2024, arXiv:2410.07149, ablation of tokens (table 1).

    Example:
        >>> generative().name
        'generative'
    """
    return Reading(
        "generative",
        lambda item: question,
        lambda item, said: mentions(said, [_target(item)]),
        None,
        max_new_tokens,
    )


def polling(
    question: str = "Is there a {} in the image?", *, max_new_tokens: int = 10
) -> Reading:
    """A question of presence; right if the answer begins with yes.

    Args:
        question: What is asked, with `{}` in the place of the target's name.
        max_new_tokens: Longest answer.

    Raises:
        PromptError: The question has no place for the name, or another brace.

    Paper: Neo et al. 2024, arXiv:2410.07149, ablation of tokens (table 1).
    """
    rest = question.replace("{}", "")
    if rest == question or "{" in rest or "}" in rest:
        raise PromptError(
            f"polling asks {question!r}; wanted {{}} where the target's name stands,"
            ' and no other brace: "Is there a {} in the image?". Without it, every item'
            " would be asked the same."
        )
    return Reading(
        "polling",
        lambda item: question.replace("{}", _target(item)),
        lambda item, said: yes_or_no(said) is True,
        lambda item: "yes",
        max_new_tokens,
    )


def vqa(*, matcher: Matcher = begins, max_new_tokens: int = 10) -> Reading:
    """The item's own question and answer, begun by the item's own prefix.

    Paper: Neo et al. 2024, arXiv:2410.07149, ablation of tokens (table 1).
    """
    return Reading(
        "VQA",
        lambda item: item.question,
        lambda item, said: matcher(said, [_answer(item)]),
        lambda item: _answer(item).split()[0],
        max_new_tokens,
        lambda item: item.prefix,
    )


def counting(
    question: str = "How many objects are in the image?", *, max_new_tokens: int = 10
) -> Reading:
    """A question of number; right if the first number said is that of the objects.

    What an item does not list in `objects` is not counted, so that its objects must be
    all that the question asks about. Asked while an object's tokens are ablated, it
    tells whether the rest of the image still holds that the object is there.

    Args:
        question: What is asked.
        max_new_tokens: Longest answer.

    Paper: Neo et al. 2024, arXiv:2410.07149 (global features in background tokens).

    Example:
        >>> two = Item("a.png", "?", objects={"a": (0, 0, 9, 9), "b": (5, 5, 9, 9)})
        >>> counting().right(two, "There are 2."), counting().right(two, "three")
        (True, False)
    """
    return Reading(
        "counting",
        lambda item: question,
        lambda item, said: _number(said) == len(item.objects),
        lambda item: _in_words(len(item.objects)),
        max_new_tokens,
    )


_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve"),
)


def _in_words(n: int) -> str:
    return _NUMBERS[n] if n < len(_NUMBERS) else str(n)


def _number(said: str) -> int | None:
    """The first number in an answer, in digits or as a word; None if there is none."""
    for word in words(said):
        if word.isdecimal():
            return int(word)
        if word in _NUMBERS:
            return _NUMBERS.index(word)
    return None


def _answer(item: Item) -> str:
    if not words(item.answer):
        raise PromptError(
            f"item {item.id or item.question!r} has no answer to compare with. Give"
            " Item(..., answer=...)."
        )
    return item.answer


def _target(item: Item) -> str:
    if item.target is None:
        raise PromptError(
            f"item {item.id or item.question!r} names no target to ask about. Give"
            " Item(..., objects={name: box}, target=name)."
        )
    return item.target
