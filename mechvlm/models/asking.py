"""Asking questions of what is left of a prompt: its picture is not seen again.

Every kept position stays at the rotary position that it was read at, so the cache is
shorter than the sequence that it stands for, and position is not cache index. The masks
of what is asked are therefore taken from the whole sequence, layer by layer, and what
was dropped is taken out of them: windows and images that are read both ways stay what
they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import DynamicCache

from mechvlm.errors import EngineError, PromptError
from mechvlm.layout import Layout, Positions
from mechvlm.models.attention import listening
from mechvlm.models.context import Context, position_ids
from mechvlm.models.generation import Generation, ends_of, longest
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.taps import taps
from mechvlm.prompts import Prompt
from mechvlm.wanted import one

__all__ = ["Render", "ask", "follow_up", "question_ids"]

Render = Callable[[str], str]
"""A question -> the text that stands for it after the prompt, answer's cue included."""

_MARK = "\ue000"
"""A private-use character that no template holds: marks where a text will stand."""


@torch.no_grad()
def ask(
    vlm: HookedVLM,
    context: Context,
    question: str,
    *,
    prefix: str = "",
    max_new_tokens: int = 20,
    render: Render | None = None,
) -> Generation:
    """Ask a question of what is left of a prompt; the picture is not seen again.

    The question goes after the prompt, at the positions that follow its last one, as
    `follow_up` puts it. It reads the kept positions and itself, and the answer is
    chosen greedily. The context stays as it is, for more questions.

    Args:
        vlm: The model that made the context.
        context: What it asks.
        question: What is asked, without any image placeholder.
        prefix: Start of the assistant's answer.
        max_new_tokens: Most tokens to add; the end-of-sequence token ends earlier.
        render: Puts the question into words in place of `follow_up`.

    Returns:
        What was said. Its layout is that of the whole sequence: the prompt, the
        question (in group "query") and the answer ("generated").

    Raises:
        ArgumentError: There is no context to ask, or the question is no string.
        EngineError: The context is another model's.
        PromptError: The question is empty or holds an image, or the chat template does
            not show how it is put.
        InterventionError: There is no new token.

    Paper: Kaduri et al. 2024, arXiv:2411.17491, image re-prompting.

    Example:
        >>> import mechvlm as mv
        >>> vlm, image = mv.load("demo"), mv.scenes.sample(seed=0).image
        >>> prompt = vlm.prompt("describe the image .", image)
        >>> context = mv.compressed_context(vlm, prompt, keep=0.5, select="last")
        >>> said = mv.ask(vlm, context, "how many objects are there ?")
        >>> len(said.ids) == len(said.logits) > 0
        True
    """
    one(context, Context, "context", "compressed_context(vlm, prompt, keep=0.05)")
    one(question, str, "question", '"What color is the cat?"')
    _check_own(vlm, context)
    ids = question_ids(vlm, context.prompt, question, prefix=prefix, render=render)
    asked = context.prompt.extended(ids, ("",) * len(ids))
    masks = _masks(vlm, context, longest(asked, max_new_tokens))
    cache, ends = _cache(context), ends_of(vlm.hf_model)
    at = int(position_ids(context.prompt)[0, -1]) + 1
    rows, chosen, logits = range(len(ids)), list[int](), list[Tensor]()
    fed = ids.to(vlm.cfg.device)
    while True:
        here = torch.arange(at + rows.start, at + rows.stop, device=fed.device)
        with _told(vlm, masks, rows), taps(vlm.tapped):
            out = vlm.hf_model(
                input_ids=fed[None],
                position_ids=here[None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits.append(out.logits[0, -1])
        chosen.append(int(logits[-1].argmax()))
        if len(chosen) == max_new_tokens or chosen[-1] in ends:
            break
        fed = torch.tensor(chosen[-1:], device=fed.device)
        rows = range(rows.stop, rows.stop + 1)
    said = vlm.tokenizer.decode(chosen, skip_special_tokens=True).strip()
    layout = _asked(context.prompt.layout, len(ids)).extended(len(chosen))
    return Generation(torch.tensor(chosen), said, torch.stack(logits), layout)


def follow_up(vlm: HookedVLM, prompt: Prompt) -> Render:
    """How a question is put after a prompt: itself, then what follows in the template.

    What follows the user's words in the model's own chat template closes the turn and
    cues the answer. For LLaVA-1.5 that gives the paper's "{question} ASSISTANT:".

    Raises:
        PromptError: There is no chat template, it does not show the user's words, or
            the image follows them.
    """
    if vlm.processor.chat_template is None:
        raise PromptError(
            "this checkpoint has no chat template, so it is not known how a further"
            " question is put. Give render=, which takes a question and returns the"
            ' text after the prompt, such as lambda question: question + "\\n".'
        )
    shown = [] if prompt.image is None else [{"type": "image"}]
    content = [*shown, {"type": "text", "text": _MARK}]
    rendered = str(
        vlm.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=False,
        )
    )
    _, mark, after = rendered.partition(_MARK)
    if not mark or vlm.family.frame(vlm.processor).placeholder in after:
        raise PromptError(
            "the chat template hides the user's words or puts the image after them, so"
            " a further question cannot be put in the same way. Give render=."
        )
    return partial(_followed, after=after)


def _followed(question: str, after: str) -> str:
    return question + after


def question_ids(
    vlm: HookedVLM,
    prompt: Prompt,
    question: str,
    *,
    prefix: str = "",
    render: Render | None = None,
) -> Int[Tensor, " new"]:
    """Token ids of a question as it is put after a prompt; no special ones are added.

    Raises:
        PromptError: The question is empty or holds an image.
    """
    text = (follow_up(vlm, prompt) if render is None else render)(question) + prefix
    encoded = vlm.tokenizer(text, add_special_tokens=False)
    ids = torch.tensor(encoded["input_ids"], dtype=torch.long)
    if not question.strip() or not len(ids):
        raise PromptError(
            f"the question {question!r} is put as {text!r}: there is nothing to ask."
        )
    if int(vlm.family.image_token(vlm.hf_model.config)) in ids:
        raise PromptError(
            f"the question {question!r} holds an image placeholder. A context is asked"
            " in words; for another picture make another context."
        )
    return ids


# -- inside ----------------------------------------------------------------------------


def _check_own(vlm: HookedVLM, context: Context) -> None:
    if context.made_by() is not vlm.hf_model or context.keys[0].dtype != vlm.cfg.dtype:
        raise EngineError(
            f"the context, in {context.keys[0].dtype}, is not one of this model in"
            f" {vlm.cfg.dtype}: another model made it, or this one before it was"
            " converted. Make a new one with this model."
        )


def _cache(context: Context) -> DynamicCache:
    """A cache that grows by itself; the context's tensors are copied into it."""
    # A plain one: a cache that knows of windows would drop keys by its own count.
    cache = DynamicCache()
    for layer, (key, value) in enumerate(
        zip(context.keys, context.values, strict=True)
    ):
        cache.update(key[None], value[None], layer)
    return cache


def _masks(
    vlm: HookedVLM, context: Context, whole: Prompt
) -> list[Bool[Tensor, "new source"]]:
    """Of each layer: whether a new position may read each kept one, and each new one.

    Args:
        vlm: The model.
        context: What is kept.
        whole: The prompt with everything that may come after it.
    """
    reads, n = vlm.setting(whole).reads, context.prompt.layout.n
    new = list(range(n, whole.layout.n))
    return [
        reads.mask(layer)[n:][:, [*kept, *new]].to(key.device)
        for layer, (kept, key) in enumerate(
            zip(context.kept, context.keys, strict=True)
        )
    ]


@contextmanager
def _told(
    vlm: HookedVLM, masks: Sequence[Bool[Tensor, "new source"]], rows: range
) -> Iterator[None]:
    """Tell every layer whom the new rows may read, for one forward."""
    with ExitStack() as stack:
        stack.enter_context(listening(vlm.tapped.text_config, {}))
        for block, mask in zip(vlm.tapped.blocks, masks, strict=True):
            # Behind the kept positions stand as many columns as there are new rows.
            seen = mask.shape[1] - mask.shape[0] + rows.stop
            mine = mask[rows.start : rows.stop, :seen][None, None]
            handle = block.layer.whole.register_forward_pre_hook(
                partial(_with_mask, mask=mine), with_kwargs=True
            )
            stack.callback(handle.remove)
        yield


def _with_mask(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mask: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs | {"attention_mask": mask}


def _asked(layout: Layout, n_new: int) -> Layout:
    """The layout with a question after it, in the group of what the user says."""
    new = Positions.of(range(layout.n, layout.n + n_new))
    groups = dict(layout.groups) | {"query": layout["query"] | new}
    return Layout(layout.n + n_new, groups, layout.grids)
