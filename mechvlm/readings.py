"""How success is read: what is asked, and when the answer counts as right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mechvlm.errors import PromptError
from mechvlm.items import Item
from mechvlm.matching import Matcher, begins, mentions, names, yes_or_no

__all__ = ["Ask", "Reading", "generative", "polling", "vqa"]


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
    """

    name: str
    question: Callable[[Item], str]
    right: Callable[[Item, str], bool]
    first: Callable[[Item], str] | None = None
    max_new_tokens: int = 20


def generative(
    question: str = "Describe the image.", *, max_new_tokens: int = 200
) -> Reading:
    """A free description; right if it mentions the target, in whole words.

    Paper: Neo et al. 2024, arXiv:2410.07149, section 3.

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

    Paper: Neo et al. 2024, arXiv:2410.07149, section 3.
    """
    return Reading(
        "polling",
        lambda item: question.format(_target(item)),
        lambda item, said: yes_or_no(said) is True,
        lambda item: "yes",
        max_new_tokens,
    )


def vqa(*, matcher: Matcher = begins, max_new_tokens: int = 10) -> Reading:
    """The item's own question and answer.

    Paper: Neo et al. 2024, arXiv:2410.07149, section 3.
    """
    return Reading(
        "VQA",
        lambda item: item.question,
        lambda item, said: matcher(said, [item.answer]),
        lambda item: item.answer.split()[0],
        max_new_tokens,
    )


def _target(item: Item) -> str:
    if item.target is None:
        raise PromptError(
            f"item {item.id or item.question!r} names no target to ask about. Give"
            " Item(..., objects={name: box}, target=name)."
        )
    return item.target
