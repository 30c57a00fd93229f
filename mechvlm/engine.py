"""The same answers as the reference, with only the work that they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mechvlm.errors import MetricError, PromptError
from mechvlm.interventions import Intervention, listed
from mechvlm.metrics import Metric
from mechvlm.models.checking import check_all, warn_of_hooks
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.lowering import RunLike, Sources
from mechvlm.models.rowwise.base import Base, base_pass, read_out
from mechvlm.models.rowwise.packing import check_rows
from mechvlm.models.rowwise.rows import RowPass
from mechvlm.models.rowwise.sending import sent
from mechvlm.plan import Plan, planned
from mechvlm.progress import bar_of
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of
from mechvlm.reference import intervene as by_whole_passes

__all__ = ["intervene"]


@torch.no_grad()
def intervene(
    vlm: HookedVLM,
    prompt: Prompt | Run,
    interventions: Sequence[Intervention] | Intervention,
    *,
    runs: Mapping[str, RunLike] | None = None,
    vectors: Mapping[str, Tensor] | None = None,
    metric: Metric | None = None,
    batch_tokens: int | None = None,
    progress: str | bool | None = None,
) -> Float[Tensor, "run vocab"] | Float[Tensor, " run"]:
    """Run a prompt once per intervention and read the last position.

    Only the cells that an intervention can change are computed again, many
    interventions at a time; `plan` tells the cost beforehand. Everything is checked
    before anything runs. `reference.intervene` gives the same answers by whole passes.

    Args:
        vlm: The model.
        prompt: The prompt that is run, or its `base_run`, which is then not run again.
        interventions: A list with one run each. A tuple is one of them: several
            things done at once, in order.
        runs: Recorded runs by the names that patches use.
        vectors: Vectors by the names that ablations and additions use.
        metric: What to read of each run; None gives the logits.
        batch_tokens: Most rows to compute at once; None takes what fits well into free
            memory.
        progress: None shows a progress bar in a terminal for work of over a second;
            words stand in front of it; False shows none.

    Returns:
        Last-position logits, or the metric's number, one row per intervention.

    Raises:
        InterventionError: An intervention means nothing on this prompt.
        LayerError: A layer or head does not exist.
        RunError: A run is not given, or lacks what is asked of it.
        EngineError: The base run is another model's, or an older one's.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> image = mv.scenes.sample(seed=0).image
        >>> prompt = vlm.prompt("how many objects are there ?", image)
        >>> at = prompt.layout
        >>> blind = mv.Knockout(range(8), at["query"] | at["last"], at["image"])
        >>> logits = mv.intervene(vlm, prompt, [mv.NOTHING, blind])
        >>> bool((logits[0] != logits[1]).any())
        True
    """
    check_rows(batch_tokens)
    _check_given(prompt, metric)
    todo = listed(interventions)
    sources = Sources(runs or {}, vectors or {})
    given = prompt.base if isinstance(prompt, Run) else None
    asked = prompt_of(prompt)
    if given is not None:
        given.check(vlm)
    reads = None if given is None else given.reads
    check_all(vlm, asked, todo, sources, reads)
    if vlm.has_hooks:
        warn_of_hooks(stacklevel=4)
        return by_whole_passes(
            vlm,
            asked,
            todo,
            runs=runs,
            vectors=vectors,
            metric=metric,
            progress=progress,
        )
    base = base_pass(vlm, asked) if given is None else given
    ready = planned(vlm, base.reads, todo, batch_tokens)
    with bar_of(len(todo), progress) as bar:
        return _run(vlm, base, ready, sources, metric, bar)


def _check_given(prompt: object, metric: object) -> None:
    if not isinstance(prompt, Prompt | Run):
        raise PromptError(
            f"wanted a prompt or its base run, got {type(prompt).__name__}. Text alone"
            " would lose the image: build the prompt with vlm.prompt."
        )
    if metric is not None and not isinstance(metric, Metric):
        raise MetricError(
            f"the metric is a {type(metric).__name__}; wanted a Metric, such as"
            " logit_difference(vlm, answer, foil). Of a function of logits [run vocab]:"
            " Metric(name, units, function)."
        )


def _run(
    vlm: HookedVLM,
    base: Base,
    ready: Plan,
    sources: Sources,
    metric: Metric | None,
    bar: tqdm[None],
) -> Tensor:
    sources = _staged(vlm, base, ready, sources)
    tokens = None if metric is None else metric.tokens

    def answer(last: Tensor) -> Tensor:
        logits = read_out(vlm, last, tokens)
        return logits if metric is None else metric.of_columns(logits)

    answers: Tensor | None = None
    for each in ready.passes:
        items = [ready.items[i] for i in each.members]
        reached, last = RowPass(vlm, base, items, sources).run()
        at = [each.members[i] for i in reached]
        found = answer(last)
        bar.update(len(items))
        if at == list(range(len(ready.items))):
            return found  # logits are large to copy
        if answers is None:
            answers = found.new_empty(len(ready.items), *found.shape[1:])
        answers[at] = found
    idle = [i for i, item in enumerate(ready.items) if not item.steps]
    clean = answer(base.stream[-1][-1:])
    if answers is None:
        answers = clean.new_empty(len(ready.items), *clean.shape[1:])
    answers[idle] = clean
    bar.update(len(idle))
    return answers


def _staged(vlm: HookedVLM, base: Base, ready: Plan, sources: Sources) -> Sources:
    """The sources, with what path patches need: what receivers got from senders."""
    runs = {**sources.runs, **sent(vlm, base, ready.sendings, sources=sources)}
    for each in ready.stage_passes:
        stages = [ready.stages[i] for i in each.members]
        entering = [stage.sending for stage in stages if stage.sending is not None]
        made = sent(vlm, base, entering, sources=sources)
        given = Sources({**sources.runs, **made}, sources.vectors)
        rows = RowPass(vlm, base, [stage.item for stage in stages], given)
        rows.run()
        for i, stage in enumerate(stages):
            heard = rows.script.heard
            runs[stage.name] = {
                site: heard[i, site].at(to) for site, to in stage.to.items()
            }
    return Sources(runs, sources.vectors)
