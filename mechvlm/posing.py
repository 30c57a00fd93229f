"""Prompts posed to a model under interventions: what it says, and whether it is right.

Several experiments let a model answer the same prompts once per intervention and ask
how often the answer is still right. What they share stands here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mechvlm.axes import Labelled, labelled
from mechvlm.errors import InterventionError, PromptError
from mechvlm.interventions import NOTHING, Intervention
from mechvlm.layout import Positions
from mechvlm.matching import Matcher
from mechvlm.models.generation import Generation
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.pieces import spelled
from mechvlm.progress import bar_of
from mechvlm.prompts import Prompt, check_pair
from mechvlm.record import Run, prompt_of, record, shared
from mechvlm.sites import Site
from mechvlm.statistics import Estimate, mean_of, share_of
from mechvlm.wanted import one, several, words_of

__all__ = [
    "Arms",
    "Outcome",
    "Posed",
    "answered",
    "clean_run",
    "first_word",
    "ids_of",
    "outcome",
    "placed",
    "shares",
    "stream",
    "tables",
]


@dataclass(frozen=True, eq=False)
class Posed:
    """A prompt and everything that counts as a right answer to it.

    Attributes:
        prompt: The prompt, or its `base_run`.
        answers: What counts; the matcher decides how loosely.
        id: What tables call it; its place in the list if empty.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> Posed(vlm.prompt("how many objects are there ?", scene.image), ("one",)).id
        ''
    """

    prompt: Prompt | Run
    answers: tuple[str, ...]
    id: str = ""

    def __post_init__(self) -> None:
        """Refuse what nothing can answer, and one string for several answers."""
        one(self.prompt, (Prompt, Run), "Posed.prompt", "vlm.prompt(text, image)")
        object.__setattr__(self, "answers", words_of(self.answers, "Posed.answers"))
        if not self.answers or not all(answer.strip() for answer in self.answers):
            raise PromptError(
                f"the answers of {self.id or prompt_of(self.prompt).text!r} are"
                f" {self.answers!r}: without a right answer it counts as wrong whatever"
                ' is said. Give Posed(prompt, ("red",)).'
            )


@dataclass(frozen=True, eq=False)
class Arms:
    """What is done to one prompt, one answer each, and the sources that it names."""

    todo: Sequence[Intervention]
    runs: Mapping[str, Run] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of every item in every arm; arm 0 is the clean run.

    Attributes:
        said: The answers.
        right: Whether they count.
        p: Probability that the first token is a right answer in one of its spellings,
            nan where none is one token.
    """

    said: Shaped[np.ndarray, "item arm"]
    right: Bool[np.ndarray, "item arm"]
    p: Float[np.ndarray, "item arm"]


Spread: TypeAlias = Callable[[Shaped[np.ndarray, "... arm"]], Shaped[np.ndarray, "..."]]
"""From a last axis of arms to the dimensions of a result."""


def ids_of(ids: Sequence[str], what: str) -> list[str]:
    """Names for tables: places in the list where none is given.

    Raises:
        PromptError: There is none, or two are alike.
    """
    if not ids:
        raise PromptError(f"no {what} is given, so there is nothing to run.")
    named = [given or str(place) for place, given in enumerate(ids)]
    twice = sorted(name for name, n in Counter(named).items() if n > 1)
    if twice:
        raise PromptError(
            f"{len(named)} {what}s share ids {twice[:5]}: tables could not tell them"
            " apart, and what is there twice counts twice. Give each an id of its own."
        )
    return named


def placed(at: str | Positions, prompt: Prompt, name: str) -> Positions:
    """Positions of a group, or the positions themselves.

    Raises:
        ArgumentError: What was given is neither.
        InterventionError: The prompt has none there, or ends before.
        LayoutError: No group has this name.
    """
    one(at, (str, Positions), "where to act", '"image", or Positions.of(3, 4)')
    found = prompt.layout[at] if isinstance(at, str) else at
    if not found:
        raise InterventionError(
            f"{at!r} is empty in the prompt of {name!r}, so the intervention would do"
            " nothing there. Was the prompt built without its image?"
        )
    if not 0 <= min(found) <= max(found) < prompt.layout.n:
        raise InterventionError(
            f"{at!r} reaches beyond the prompt of {name!r}, which has positions"
            f" 0..{prompt.layout.n - 1}. Take positions of its layout."
        )
    return found


def outcome(
    vlm: HookedVLM,
    posed: Sequence[Posed],
    at: str | Positions,
    arms_of: Callable[[Prompt | Run, Positions], Arms],
    *,
    matcher: Matcher,
    max_new_tokens: int,
    progress: str | bool | None,
) -> Outcome:
    """Let the model answer every prompt, clean and in every arm.

    Args:
        vlm: The model.
        posed: The prompts.
        at: Where the arms act, as a group or as positions that mean the same in all.
        arms_of: What is done to a prompt at these positions; as many arms for each.
        matcher: Whether an answer is right.
        max_new_tokens: Longest answer.
        progress: Words of the progress bar; False shows none.

    Raises:
        ArgumentError: What is posed is no list of `Posed`.
        PairError: `at` are positions, and the prompts' layouts differ.
    """
    posed = several(posed, Posed, "posed", '[Posed(prompt, ("red",))]')
    names = ids_of([each.id for each in posed], "prompt")
    prompts = [prompt_of(each.prompt) for each in posed]
    where = [
        placed(at, prompt, name) for prompt, name in zip(prompts, names, strict=True)
    ]
    if isinstance(at, Positions):
        for other in prompts[1:]:
            check_pair(prompts[0], other)
    rows = []
    with bar_of(len(posed), progress) as bar:
        for each, positions in zip(posed, where, strict=True):
            own = shared(vlm, each.prompt)
            made = answered(vlm, own, arms_of(own, positions), max_new_tokens)
            right = [matcher(one.text, each.answers) for one in made]
            p = first_word(vlm, each.answers, made)
            rows.append(([one.text for one in made], right, p))
            bar.update(1)
    said, right_, p_ = zip(*rows, strict=True)
    return Outcome(np.array(said), np.array(right_, dtype=bool), np.stack(p_))


def answered(
    vlm: HookedVLM, own: Prompt | Run, arms: Arms, max_new_tokens: int
) -> list[Generation]:
    """The clean answer, then one for each arm, with its first step's logits alone."""
    return vlm.generate_many(
        own,
        [NOTHING, *arms.todo],
        max_new_tokens=max_new_tokens,
        runs=arms.runs,
        vectors=arms.vectors,
        logits="first",
        progress=False,
    )


def first_word(
    vlm: HookedVLM, answers: Sequence[str], made: Sequence[Generation]
) -> Float[np.ndarray, " arm"]:
    """Probability that the first token is an answer, in any spelling of one token.

    Nan where none has one: the first piece of a longer one may begin others too.
    """
    tokens = {token for answer in answers for token in spelled(vlm, answer)}
    if not tokens:
        return np.full(len(made), np.nan)
    first = torch.stack([one.logits[0] for one in made]).float()
    found = first.softmax(dim=-1)[:, sorted(tokens)].sum(dim=-1)
    return np.asarray(found.double().cpu().numpy())


def clean_run(vlm: HookedVLM, own: Prompt | Run) -> Run:
    """The stream that enters every layer of a prompt, and what leaves the last."""
    if isinstance(own, Run) and own.base is not None and not vlm.has_hooks:
        return own
    end = Site("resid_post", vlm.cfg.n_layers - 1)
    return record(vlm, prompt_of(own), ["resid_pre", end])


def stream(
    vlm: HookedVLM, run: Run, layer: int, at: Positions
) -> Float[Tensor, "position d_model"]:
    """h[layer] at some positions: what enters a layer; the last is what leaves all."""
    end = layer == vlm.cfg.n_layers
    site = Site("resid_post", layer - 1) if end else Site("resid_pre", layer)
    return run[site][list(at)]


def shares(
    hits: Bool[np.ndarray, "item arm"],
) -> tuple[Float[np.ndarray, " arm"], ...]:
    """Share of items that are true in each arm, with its interval: mean, low, high."""
    return _columns([share_of(each) for each in hits.T])


def tables(
    found: Outcome,
    posed: Sequence[Posed],
    spread: Spread,
    paper: str,
    **dims: Sequence[int],
) -> dict[str, Labelled]:
    """An outcome as labelled arrays: rates by arm, and what every item said.

    Args:
        found: The outcome.
        posed: The prompts.
        spread: From the arms behind the clean one to `dims`.
        paper: Key of the paper behind the method.
        **dims: Dimensions of the arms.
    """
    item: dict[str, Sequence[int] | Sequence[str]]
    item = {"item": ids_of([each.id for each in posed], "prompt")}
    clean, right = found.right[:, 0], found.right[:, 1:]
    rates = {
        "rate": ("fraction of all items", shares(right)),
        "kept": ("fraction of items right in the clean run", shares(right[clean])),
        "gained": ("fraction of items wrong in the clean run", shares(right[~clean])),
        "change": (
            "fraction of all items, minus that of the clean run",
            _columns([mean_of(arm.astype(float) - clean) for arm in right.T]),
        ),
    }
    result = {
        name + end: _array(spread(values), name + end, units, paper, dims)
        for name, (units, three) in rates.items()
        for end, values in zip(("", "_low", "_high"), three, strict=True)
    }
    asked = np.array([prompt_of(each.prompt).text for each in posed])
    result["asked"] = _array(asked, "asked", "text", paper, item)
    each = {
        "right": (found.right, "1 right, 0 wrong"),
        "said": (found.said, "text"),
        "p_answer": (found.p, "probability"),
    }
    for name, (values, units) in each.items():
        both = {**item, **dims}
        result[name] = _array(spread(values[:, 1:]), name, units, paper, both)
        alone = f"{name}_clean"
        result[alone] = _array(values[:, 0], alone, units, paper, item)
    return result


def _array(
    values: Shaped[np.ndarray, "..."],
    name: str,
    units: str,
    paper: str,
    dims: Mapping[str, Sequence[int] | Sequence[str]],
) -> Labelled:
    return labelled(values, name=name, units=units, paper=paper, attrs=None, **dims)


def _columns(found: Sequence[Estimate]) -> tuple[Float[np.ndarray, " arm"], ...]:
    every = np.array([each[:3] for each in found], dtype=float).reshape(-1, 3)
    return tuple(every.T)
