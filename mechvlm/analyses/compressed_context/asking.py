"""A question answered with the picture, and from what is left of a description."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from types import MappingProxyType
from typing import Literal, TypeVar

from PIL import Image

from mechvlm.errors import LayoutError
from mechvlm.items import Item, by_picture
from mechvlm.layout import Positions
from mechvlm.models.asking import Render, ask
from mechvlm.models.compressing import (
    Keep,
    Random,
    Select,
    compressed_context,
    image_scores,
    n_kept,
    narrowed,
)
from mechvlm.models.context import Context, whole_context
from mechvlm.models.generation import Generation
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.prompting import opened
from mechvlm.readings import Reading

__all__ = ["DESCRIBE", "Answer", "Arm", "Asker", "context_answerer"]

DESCRIBE = "Describe the image."

Strategy = Literal["naive", "query only", "query + image", "image only"]

_TEXT: Mapping[str, str | Positions] = MappingProxyType(
    {
        "query only": "prompt_text",
        "query + image": "prompt_text",
        "image only": Positions.of(),
    }
)
"""What each strategy keeps besides image positions."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Arm:
    """One way to answer: with the picture, or from a context.

    Attributes:
        strategy: What the answer may read.
        select: Name of what chose the image positions; "" where nothing did.
        share: Share of the image positions that is kept; nan with the picture.
    """

    strategy: Strategy
    select: str = ""
    share: float = 0.0

    @property
    def name(self) -> str:
        """What tables call it."""
        if self.strategy in ("naive", "query only"):
            return self.strategy
        return f"{self.strategy}, {self.share:.4g} {self.select}".strip()


@dataclass(frozen=True)
class Answer:
    """What was said to one item in one way, and what it cost.

    Attributes:
        said: The answer.
        right: Whether it counts.
        seconds: From the question in words to the answer in words.
        seconds_context: Spent once per picture on the context; 0 with the picture.
        image_tokens: Image positions kept in each layer.
        tokens: Positions in the cache when the first token of the answer is chosen.
        n_bytes: Keys and values of these.
    """

    said: str
    right: bool
    seconds: float
    seconds_context: float
    image_tokens: int
    tokens: int
    n_bytes: int


@dataclass(frozen=True)
class _Made:
    """A context and the seconds that it took to make."""

    context: Context
    seconds: float


@dataclass(frozen=True)
class Asker:
    """How questions are asked, in every way alike."""

    vlm: HookedVLM
    describe: str
    reading: Reading
    render: Render | None

    def answers(
        self,
        items: Sequence[Item],
        arms: Sequence[Arm],
        selects: Mapping[str, Select],
        *,
        done: Callable[[], object],
    ) -> Iterator[list[Answer]]:
        """Answers to each of several questions about one picture, in every way.

        Args:
            items: The questions; all have the same picture.
            arms: The ways. They take turns on each question.
            selects: What chooses image positions, by the names that the arms use.
            done: Called after each answer.
        """
        picture = opened(items[0].image)
        prompt = self.vlm.prompt(self.describe, picture)
        whole, seconds = _timed(partial(whole_context, self.vlm, prompt))
        made = self._contexts(_Made(whole, seconds), arms, selects)
        for arm in arms[:2]:
            self._asked(items[0], picture, made.get(arm))  # warms up
        for item in items:
            found = []
            for arm in arms:
                said, took = self._asked(item, picture, made.get(arm))
                found.append(self._answer(item, said, took, whole, made.get(arm)))
                done()
            yield found

    def _contexts(
        self, whole: _Made, arms: Sequence[Arm], selects: Mapping[str, Select]
    ) -> dict[Arm, _Made]:
        """The context of each arm that has one."""
        vlm, prompt = self.vlm, whole.context.prompt
        used = {arm.select for arm in arms} & set(selects)
        scored = {
            name: _timed(partial(image_scores, vlm, prompt, selects[name]))
            for name in sorted(used)
        }
        # What keeps none of the image, or all of it, chooses nothing.
        either = image_scores(vlm, prompt, Random()), 0.0
        made = {}
        for arm in arms:
            if arm.strategy == "naive":
                continue
            if arm.share and not n_kept(arm.share, prompt):
                raise LayoutError(
                    f"a share of {arm.share} of {len(prompt.layout['image'])} image"
                    " positions is less than one of them. Keep a larger share; 0.0"
                    " keeps the text alone."
                )
            scores, choosing = scored.get(arm.select, either)
            kept = narrowed(
                whole.context, scores, keep=arm.share, text=_TEXT[arm.strategy]
            )
            made[arm] = _Made(kept, whole.seconds + choosing)
        return made

    def _asked(
        self, item: Item, picture: Image.Image, made: _Made | None
    ) -> tuple[Generation, float]:
        """What is said from a context, or with the picture; and the seconds taken."""
        vlm, reading = self.vlm, self.reading
        question, prefix = reading.question(item), reading.prefix(item)
        longest = reading.max_new_tokens
        if made is None:
            return _timed(
                lambda: vlm.generate(
                    vlm.prompt(question, picture, prefix=prefix),
                    max_new_tokens=longest,
                )
            )
        return _timed(
            lambda: ask(
                vlm,
                made.context,
                question,
                prefix=prefix,
                max_new_tokens=longest,
                render=self.render,
            )
        )

    def _answer(
        self,
        item: Item,
        said: Generation,
        seconds: float,
        whole: Context,
        made: _Made | None,
    ) -> Answer:
        context = None if made is None else made.context
        n_asked = said.layout.n - len(said.ids)
        n_image = len(said.layout["image"])
        if context is not None:
            n_asked += context.n_tokens - context.prompt.layout.n
            n_image = context.n_image
        return Answer(
            said=said.text,
            right=self.reading.right(item, said.text),
            seconds=seconds,
            seconds_context=0.0 if made is None else made.seconds,
            image_tokens=n_image,
            tokens=n_asked,
            # Every position has as many bytes, so that those of the whole tell.
            n_bytes=n_asked * (whole.n_bytes // whole.n_tokens),
        )


def context_answerer(
    vlm: HookedVLM,
    *,
    keep: Keep,
    select: Select = "generated",
    text: str | Positions = "prompt_text",
    describe: str = DESCRIBE,
    max_new_tokens: int = 10,
    render: Render | None = None,
) -> Callable[[Item], str]:
    """What answers items from compressed contexts, such as for `mme`.

    It holds the context of the last picture, so items of one picture should follow each
    other.

    Args:
        vlm: The model.
        keep: Share of the image positions to keep, or `Count` of them; see
            `compressed_context`.
        select: What chooses them; see there.
        text: What is kept besides; see there.
        describe: What is asked first.
        max_new_tokens: Longest answer.
        render: How a question is put after the description's prompt; None takes the
            model's chat template.

    Returns:
        Item -> what the model said.

    Paper: Kaduri et al. 2024, arXiv:2411.17491, image re-prompting.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> answer = mv.context_answerer(
        ...     vlm, keep=0.5, select="last", describe="describe the image .")
        >>> len(answer(mv.Item(scene.image, "how many objects are there ?"))) > 0
        True
    """
    held: list[tuple[Item, Context]] = []

    def answer(item: Item) -> str:
        if not held or len(by_picture([held[0][0], item])) > 1:
            held.clear()
            prompt = vlm.prompt(describe, item.image)
            made = compressed_context(vlm, prompt, keep=keep, select=select, text=text)
            held.append((item, made))
        said = ask(
            vlm,
            held[0][1],
            item.question,
            prefix=item.prefix,
            max_new_tokens=max_new_tokens,
            render=render,
        )
        return said.text

    return answer


def _timed(run: Callable[[], _T]) -> tuple[_T, float]:
    """What a call returns, and the seconds that it takes.

    Answers end in numbers on the CPU, so that a device has finished by then.
    """
    start = perf_counter()
    found = run()
    return found, perf_counter() - start
