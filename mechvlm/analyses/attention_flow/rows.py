"""Which rows of attention are read, and how: each layer's pattern is reduced at once.

All patterns of LLaVA-1.5-7B on one image with its description, 32 layers x 32 heads x
900 x 900, take 3.3 GB; one layer's at a time, 0.1 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mechvlm.errors import LayoutError, PairError, TokenError
from mechvlm.layout import Positions
from mechvlm.matching import words
from mechvlm.models.generation import Generation
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of
from mechvlm.wanted import layers_in

__all__ = [
    "Rows",
    "chosen_layers",
    "continued",
    "reduced",
    "row_labels",
    "rows_of",
    "word_rows",
]

Rows: TypeAlias = Literal["last", "generated"] | Positions
"""Rows that are read: the last position's; of every generated token the row that it was
chosen from, so that the first is the prompt's last row; or these."""

Reduce: TypeAlias = Callable[[Float[Tensor, "head target source"]], Tensor]


def continued(
    vlm: HookedVLM, given: Prompt | Run, generation: Generation | None
) -> Prompt:
    """The prompt with what was generated after it, if anything was.

    Raises:
        PairError: The generation is another prompt's.
    """
    prompt = prompt_of(given)
    if generation is None:
        return prompt
    longer = prompt.extended(generation.ids, tuple(vlm.to_str_tokens(generation.ids)))
    if longer.layout != generation.layout:
        raise PairError(
            f"the generation has {generation.layout.n} positions, and this prompt with"
            f" its {len(generation.ids)} tokens {longer.layout.n} or other groups: it"
            " was generated from another prompt. Give the one that vlm.generate got."
        )
    return longer


def rows_of(prompt: Prompt, rows: Rows) -> Positions:
    """Positions of the rows that are read.

    Raises:
        LayoutError: There is none, or one is outside the prompt.
    """
    layout = prompt.layout
    if rows == "last":
        return layout["last"]
    if isinstance(rows, Positions):
        if not rows or rows.indices[-1] > layout.last:
            raise LayoutError(
                f"rows {rows or 'none'} were asked for, and there are 0..{layout.last}."
            )
        return rows
    if rows != "generated":
        raise LayoutError(
            f"rows={rows!r}: wanted 'last', 'generated' or positions, such as those of"
            " a group: prompt.layout['query']."
        )
    new = layout["generated"]
    if not new:
        raise LayoutError(
            "rows='generated', and nothing was generated after this prompt. Give"
            " generation=vlm.generate(prompt)."
        )
    return Positions.of(range(new.indices[0] - 1, new.indices[-1]))


def row_labels(prompt: Prompt, rows: Positions) -> dict[str, tuple[str, list[str]]]:
    """What stands at each row, its group, and what comes next, as coordinates."""
    after = [*prompt.tokens[1:], ""]
    own = {f"row_{k}": v for k, v in prompt.labels("row", rows).items()}
    return own | {"next_token": ("row", [after[row] for row in rows])}


def chosen_layers(vlm: HookedVLM, layers: Sequence[int] | range | None) -> list[int]:
    """Layers whose attention is read.

    Raises:
        ArgumentError: They are no list of whole numbers.
        LayerError: One does not exist, or there is none.
    """
    every = range(vlm.cfg.n_layers)
    otherwise = f"have no attention: it is there in layers 0..{every[-1]}."
    return layers_in(layers, every, "layers", otherwise)


@torch.no_grad()
def reduced(
    vlm: HookedVLM, prompt: Prompt, layers: Sequence[int], reduce: Reduce
) -> list[Tensor]:
    """What a function makes of each layer's attention, layer by layer in one pass.

    Args:
        vlm: The model.
        prompt: The prompt.
        layers: Layers to read.
        reduce: Called on each layer's whole pattern, in rising order of layers; no part
            of the pattern's own memory may be in what it returns.
    """
    found: dict[int, Tensor] = {}

    def keeping(layer: int) -> Callable[..., None]:
        def keep(pattern: Tensor, **_: object) -> None:
            found[layer] = reduce(pattern[0]).cpu()

        return keep

    hooks = [
        (f"blocks.{layer}.attn.hook_pattern", keeping(layer))
        for layer in sorted({*layers})
    ]
    vlm.run_with_hooks(prompt, fwd_hooks=hooks, stop_at_layer=max(layers) + 1)
    return [found[layer] for layer in layers]


def word_rows(
    vlm: HookedVLM,
    prompt: Prompt | Run,
    generation: Generation,
    word: str,
    *,
    side: Literal["predicting", "at"] = "predicting",
) -> Positions:
    """Rows of attention that belong to a word of what was generated.

    Args:
        vlm: The model.
        prompt: The prompt.
        generation: What `vlm.generate` made of it.
        word: Word or words, sought whole as `mechvlm.matching.mentions` seeks them, so
            that case, accents and hyphens do not count; the first mention counts.
        side: "predicting" gives the row that each of its tokens was chosen from, which
            is the row of its step of generation; "at" the rows of the tokens
            themselves, once they are fed back in.

    Returns:
        One row per token of the word, and of what stands between its first letter and
        its last; positions in the prompt with its generation.

    Raises:
        TokenError: The word was not said.
        PairError: The generation is another prompt's.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> made = vlm.generate(prompt, max_new_tokens=1)
        >>> mv.word_rows(vlm, prompt, made, made.text) == prompt.layout["last"]
        True
    """
    longer = continued(vlm, prompt, generation)
    ids = generation.ids.tolist()
    heard = [_text(vlm, ids[: i + 1]) for i in range(len(ids))]
    steps = spanned(heard, word)
    if not steps:
        raise TokenError(f"{word!r} was not said; the answer is {generation.text!r}.")
    first = longer.layout.n - len(ids) - (side == "predicting")
    return Positions.of(first + i for i in steps)


def _text(vlm: HookedVLM, ids: Sequence[int]) -> str:
    """What a generation of these tokens says, as `Generation.text` has it."""
    text: str = vlm.tokenizer.decode(ids, skip_special_tokens=True)
    return text


def spanned(heard: Sequence[str], word: str) -> range:
    """Steps at which the first mention of a word begins and goes on until it is whole.

    All is compared as words (`mechvlm.matching.words`), so that what counts as said
    has its steps.

    Args:
        heard: What has been said by the end of each step, from the beginning on.
        word: Word or words.

    Returns:
        Steps in a row; empty if it was not said.
    """
    known, wanted = [words(each) for each in heard], words(word)
    said, n = known[-1] if known else (), len(wanted)
    found = [i for i in range(len(said) - n + 1) if n and said[i : i + n] == wanted]
    if not found:
        return range(0)
    at, stop = found[0], found[0] + n
    begun = next(i for i, each in enumerate(known) if len(each) > at)
    whole = next(i for i, each in enumerate(known) if each[:stop] == said[:stop])
    return range(begun, whole + 1)
