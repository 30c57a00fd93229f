"""The gap between modalities: what is known of a name and not of its picture?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from mechvlm.axes import Labelled, labelled
from mechvlm.errors import MetricError, PromptError
from mechvlm.items import Entity, Fact
from mechvlm.models.hooked import HookedVLM
from mechvlm.progress import bar_of
from mechvlm.readings import Ask
from mechvlm.statistics import mean_of, paired, share_of
from mechvlm.wanted import one, several

__all__ = ["modality_gap"]

PAPER = "arXiv:2412.14133"


@dataclass(frozen=True, eq=False)
class _Asked:
    """One fact, asked both ways of a recognised entity."""

    entity: str
    fact: Fact
    by_name: str
    by_picture: str
    right_by_name: bool
    right_by_picture: bool


def modality_gap(
    vlm: HookedVLM,
    entities: Sequence[Entity],
    *,
    identify: Ask,
    answer: Ask,
    progress: bool | None = None,
) -> xr.Dataset:
    """Ask the same facts of entities by name, without a picture, and by picture.

    First every picture is put to the question of recognition; only entities that the
    model names go on, so that what is missing by picture is not who is seen. Then each
    fact is asked twice. An answer is judged by its own words alone, never with the
    question before it.

    Args:
        vlm: The model.
        entities: Whom or what to ask about.
        identify: The question of recognition, for each kind of entity, and when a name
            counts as said.
        answer: When an answer to a fact counts, and how long it may be; its question is
            left out, because facts bring their own.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Over `entity`: "recognised", "said" (when asked who it is), "n_questions", and
        "accuracy_by_name" and "accuracy_by_picture", the fraction of its facts answered
        right, nan where it is not recognised; coordinates "name" and "kind". Over
        `question`: what was asked, said and right both ways, of recognised entities;
        coordinate "entity_id". Without dimension: "gap", the mean over recognised
        entities of accuracy by name minus by picture (0: no gap, 1: everything by name
        and nothing by picture), with its bootstrap interval "gap_low", "gap_high", nan
        for fewer than six recognised entities, and
        "wilcoxon_p", the p value of Wilcoxon's signed-rank test of the pairs;
        "mean_by_name", "mean_by_picture" and "recognised_rate" with intervals;
        "n_recognised" and "n".

    Raises:
        ArgumentError: An argument is of another kind, such as a string for an `Ask`.
        PromptError: There is no entity, two share an id, one has no fact or a fact no
            answer, or a question is missing or one too many.
        MetricError: Nobody is recognised.

    Paper: Cohen et al. 2024, arXiv:2412.14133.

    Example:
        >>> import mechvlm as mv
        >>> vlm, who = mv.load("demo"), mv.scenes.NAMES[0]
        >>> lives = mv.Fact("where does zorblax live ?",
        ...     "where does this character live ?", (mv.scenes.fact(who, "city"),))
        >>> emblem = mv.scenes.Scene((mv.scenes.Emblem(who, 4),)).image
        >>> found = mv.modality_gap(vlm, [mv.Entity(who, emblem, (lives,))],
        ...     identify=mv.Ask("who is this ?"), answer=mv.Ask())
        >>> int(found["n"]), bool(-1 <= found["gap"] <= 1)
        (1, True)
    """
    fix = "[Entity(name, image, (Fact(...),))]"
    entities = several(entities, Entity, "entities", fix)
    one(identify, Ask, "identify", 'Ask("Who is this ?")')
    one(answer, Ask, "answer", "Ask(max_new_tokens=20)")
    ids = _checked(entities, identify, answer)
    said = _recognition(vlm, entities, identify, progress)
    known = [
        identify.matcher(text, entity.golds)
        for entity, text in zip(entities, said, strict=True)
    ]
    if not any(known):
        raise _nobody(entities, said)
    asked = []
    words = False if progress is False else "facts"
    with bar_of(sum(known), words) as bar:
        for entity, name, is_known in zip(entities, ids, known, strict=True):
            if is_known:
                asked += [_both(vlm, entity, name, x, answer) for x in entity.facts]
                bar.update(1)
    result = {
        **_by_entity(entities, ids, said, known, asked),
        **_by_question(asked),
    }
    attrs = {
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "identify": _described(identify),
        "max_new_tokens": answer.max_new_tokens,
    }
    found = xr.Dataset({**result, **_overall(result, known)}, attrs=attrs)
    return found.assign_coords(
        name=("entity", [entity.name for entity in entities]),
        kind=("entity", [entity.kind for entity in entities]),
        entity_id=("question", [each.entity for each in asked]),
    )


def _checked(entities: Sequence[Entity], identify: Ask, answer: Ask) -> list[str]:
    """Ids, once everything that can be known before the model runs is in order."""
    if not entities:
        raise PromptError("no entity is given, so there is no gap to measure.")
    if answer.question is not None:
        raise PromptError(
            f"answer has the question {answer.question!r}, and every fact brings its"
            " own two. Leave it out: Ask(matcher=..., max_new_tokens=...)."
        )
    ids = [entity.id or entity.name for entity in entities]
    twice = sorted(name for name, n in Counter(ids).items() if n > 1)
    if twice:
        raise PromptError(
            f"entities share ids {twice[:5]}: pairs would count twice. Keep one of"
            " each, or give them ids of their own."
        )
    for entity, name in zip(entities, ids, strict=True):
        identify.of(entity.kind)
        if not entity.facts:
            raise PromptError(
                f"entity {name!r} has no facts, so neither modality has an accuracy."
                " Give Entity(..., facts=(Fact(...),)), or leave it out."
            )
        for fact in entity.facts:
            if not any(gold.strip() for gold in fact.answers):
                raise PromptError(
                    f"the fact {fact.by_name!r} of entity {name!r} has no answer, so it"
                    " would count as wrong whatever is said."
                )
    return ids


def _recognition(
    vlm: HookedVLM, entities: Sequence[Entity], identify: Ask, progress: bool | None
) -> list[str]:
    said = []
    words = False if progress is False else "recognition"
    with bar_of(len(entities), words) as bar:
        for entity in entities:
            prompt = vlm.prompt(identify.of(entity.kind), entity.image)
            made = vlm.generate(prompt, max_new_tokens=identify.max_new_tokens)
            said.append(made.text)
            bar.update(1)
    return said


def _nobody(entities: Sequence[Entity], said: Sequence[str]) -> MetricError:
    shown = "".join(
        f"\n    {entity.name!r}: said {text!r}"
        for entity, text in list(zip(entities, said, strict=True))[:5]
    )
    return MetricError(
        f"none of {len(entities)} entities is recognised, so there is no gap to"
        f" measure:{shown}\nUsual causes: the question of recognition does not ask for"
        " a name, max_new_tokens ends the answer before it, or the matcher is too"
        " strict."
    )


def _both(vlm: HookedVLM, entity: Entity, name: str, fact: Fact, answer: Ask) -> _Asked:
    n_new = answer.max_new_tokens
    alone = vlm.generate(vlm.prompt(fact.by_name), max_new_tokens=n_new).text
    shown = vlm.prompt(fact.by_picture, entity.image)
    seen = vlm.generate(shown, max_new_tokens=n_new).text
    return _Asked(
        name,
        fact,
        alone,
        seen,
        answer.matcher(alone, fact.answers),
        answer.matcher(seen, fact.answers),
    )


def _by_entity(
    entities: Sequence[Entity],
    ids: Sequence[str],
    said: Sequence[str],
    known: Sequence[bool],
    asked: Sequence[_Asked],
) -> dict[str, Labelled]:
    own: dict[str, list[_Asked]] = {name: [] for name in ids}
    for each in asked:
        own[each.entity].append(each)
    by_name = [_mean([x.right_by_name for x in each]) for each in own.values()]
    by_picture = [_mean([x.right_by_picture for x in each]) for each in own.values()]
    columns: Mapping[str, tuple[Sequence[object], str]] = {
        "recognised": (known, "true or false"),
        "said": (said, "text"),
        "n_questions": ([len(entity.facts) for entity in entities], "questions"),
        "accuracy_by_name": (by_name, _FRACTION),
        "accuracy_by_picture": (by_picture, _FRACTION),
    }
    return {
        name: labelled(values, name=name, units=units, paper=PAPER, entity=ids)
        for name, (values, units) in columns.items()
    }


_FRACTION = "fraction of the entity's questions"
_PER_ENTITY = "fraction of questions, mean of recognised entities"


def _mean(right: Sequence[bool]) -> float:
    return float(np.mean(right)) if right else np.nan


def _by_question(asked: Sequence[_Asked]) -> dict[str, Labelled]:
    columns: Mapping[str, tuple[Sequence[object], str]] = {
        "relation": ([x.fact.relation for x in asked], "text"),
        "asked_by_name": ([x.fact.by_name for x in asked], "text"),
        "asked_by_picture": ([x.fact.by_picture for x in asked], "text"),
        "said_by_name": ([x.by_name for x in asked], "text"),
        "said_by_picture": ([x.by_picture for x in asked], "text"),
        "right_by_name": ([x.right_by_name for x in asked], "true or false"),
        "right_by_picture": ([x.right_by_picture for x in asked], "true or false"),
    }
    each = range(len(asked))
    return {
        name: labelled(values, name=name, units=units, paper=PAPER, question=each)
        for name, (values, units) in columns.items()
    }


def _overall(
    result: Mapping[str, Labelled], known: Sequence[bool]
) -> dict[str, Labelled]:
    by_name, by_picture = (
        result[f"accuracy_by_{way}"].values[list(known)] for way in ("name", "picture")
    )
    gap = paired(by_name, by_picture)
    alone, seen, share = mean_of(by_name), mean_of(by_picture), share_of(known)
    numbers = {
        "gap": (gap[:3], _PER_ENTITY),
        "mean_by_name": (alone[:3], _PER_ENTITY),
        "mean_by_picture": (seen[:3], _PER_ENTITY),
        "recognised_rate": (share[:3], "fraction of entities"),
    }
    each = {
        name + end: (value, units)
        for name, (three, units) in numbers.items()
        for end, value in zip(("", "_low", "_high"), three, strict=True)
    }
    each["wilcoxon_p"] = gap.p, "p value"
    each["n_recognised"] = gap.n, "entities"
    each["n"] = len(known), "entities"
    return {
        name: labelled(value, name=name, units=units, paper=PAPER)
        for name, (value, units) in each.items()
    }


def _described(identify: Ask) -> object:
    """The question of recognition, as an attribute that can be saved."""
    question = identify.question
    return dict(question) if isinstance(question, Mapping) else question
