"""From interventions to few passes, with a cost that can be printed beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mechvlm.cone import Cones, Reads, Step
from mechvlm.interventions import (
    Intervention,
    Knockout,
    Patch,
    PathPatch,
    listed,
    parts,
)
from mechvlm.layout import Positions
from mechvlm.models.batches import Item
from mechvlm.models.checking import check_all
from mechvlm.models.costs import Costs
from mechvlm.models.edits import place_of
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.packing import Pass, check_rows, most_rows, packed
from mechvlm.models.rows import WORTH_TWO_CALLS
from mechvlm.prompts import Prompt
from mechvlm.record import Run

__all__ = ["Pass", "Plan", "Stage", "plan"]


@dataclass(frozen=True)
class Stage:
    """The run that a path patch needs beforehand: its heads are frozen.

    Attributes:
        name: Name under which its receivers are patched afterwards.
        item: What is run; it hears the receivers.
        to: Which of the rows of its steps are patched afterwards.
    """

    name: str
    item: Item
    to: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a sweep will cost. Print it.

    Attributes:
        items: The interventions, path patches lowered to patches.
        stages: What path patches need beforehand.
        stage_passes: The stages in passes.
        passes: The interventions in passes; those that change nothing are in none.
        rows: Rows through one layer, summed over layers and passes.
        work: Multiplications of all passes.
        least: Multiplications of just those cells that can change and matter.
        whole: Multiplications of one whole pass per intervention.
        peak_bytes: Most memory at once beside the model's own, estimated; the base run
            is part of it.
    """

    items: tuple[Item, ...]
    stages: tuple[Stage, ...]
    stage_passes: tuple[Pass, ...]
    passes: tuple[Pass, ...]
    rows: int
    work: int
    least: int
    whole: int
    peak_bytes: int

    @property
    def share(self) -> float:
        """Work done, as a share of that of whole passes."""
        return self.work / self.whole

    def __str__(self) -> str:
        """The cost in words and numbers, one a line."""
        n_passes = len(self.passes) + len(self.stage_passes)
        idle = sum(not item.steps for item in self.items)
        lines = [
            f"interventions  {len(self.items):>10,}",
            f"passes         {n_passes:>10,}",
            f"rows           {self.rows:>10,}   summed over layers",
            f"work           {self.share:>10.2%}   of whole passes",
            f"peak memory    {_in_words(self.peak_bytes):>10}   beside the model",
        ]
        if idle:
            reason = "   reach nothing that the answer depends on"
            lines.insert(1, f"without effect {idle:>10,}{reason}")
        return "\n".join(lines)


def plan(
    vlm: HookedVLM,
    prompt: Prompt | Run,
    interventions: Sequence[Intervention] | Intervention,
    *,
    batch_tokens: int | None = None,
) -> Plan:
    """What a sweep will cost, before anything runs.

    Args:
        vlm: The model.
        prompt: The prompt, or its base run.
        interventions: As `intervene` takes them.
        batch_tokens: Most rows to compute at once; None takes what fits well into free
            memory.

    Returns:
        A plan; print it.

    Raises:
        InterventionError: An intervention means nothing on this prompt, or there is
            none, or `batch_tokens` is below 1.
        LayerError: A layer or head does not exist.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> image = mv.scenes.sample(seed=0).image
        >>> prompt = vlm.prompt("how many objects are there ?", image)
        >>> at = prompt.layout
        >>> cuts = [mv.Knockout(range(l, 8), at["last"], at["image"]) for l in range(8)]
        >>> cost = mv.plan(vlm, prompt, cuts)
        >>> len(cost.passes), cost.share < 0.01
        (1, True)
    """
    base = prompt.base if isinstance(prompt, Run) else None
    asked = prompt.prompt if isinstance(prompt, Run) else prompt
    check_rows(batch_tokens)
    reads = vlm.setting(asked).reads if base is None else base.reads
    todo = listed(interventions)
    check_all(vlm, asked, todo, None, reads)
    return planned(vlm, reads, todo, batch_tokens)


def planned(
    vlm: HookedVLM,
    reads: Reads,
    todo: Sequence[Intervention],
    batch_tokens: int | None,
) -> Plan:
    """The plan of checked interventions; see `plan`."""
    costs = Costs(vlm.cfg, reads, WORTH_TWO_CALLS)
    cones = Cones(reads, reads.n - 1)
    plain, stages = _without_paths(todo, reads.n)
    items = tuple(Item(each, cones.of(each)) for each in plain)
    cuts = [
        part for each in plain for part in parts(each) if isinstance(part, Knockout)
    ]
    row_bytes = costs.row_bytes(
        cuts=bool(cuts), cuts_by_head=any(cut.heads is not None for cut in cuts)
    )
    most = most_rows(vlm.cfg, row_bytes, batch_tokens)
    passes = tuple(packed(items, most))
    before = tuple(stage.item for stage in stages)
    stage_passes = tuple(packed(before, most))
    rows = max((each.rows for each in (*passes, *stage_passes)), default=0)
    done = {steps: costs.done(steps) for steps in {x.steps for x in (*items, *before)}}
    least = {steps: costs.least(steps) for steps in done}
    return Plan(
        items,
        tuple(stages),
        stage_passes,
        passes,
        sum(len(s.rows) for item in (*items, *before) for s in item.steps),
        sum(done[item.steps] for item in (*items, *before)),
        sum(least[item.steps] for item in (*items, *before)),
        len(items) * costs.whole(),
        costs.base_bytes() + rows * row_bytes,
    )


def _without_paths(
    todo: Sequence[Intervention], n: int
) -> tuple[list[Intervention], list[Stage]]:
    """Path patches as patches of their receivers, from runs to be made beforehand."""
    stages: list[Stage] = []
    plain: list[Intervention] = []
    for each in todo:
        found = parts(each)
        if not any(isinstance(part, PathPatch) for part in found):
            plain.append(each)
            continue
        lowered: list[Intervention] = []
        for part in found:
            if not isinstance(part, PathPatch):
                lowered.append(part)
                continue
            stages.append(_stage(f"path {len(stages)}", part, n))
            to = Positions.of(range(n)) if part.to is None else part.to
            made = Positions.of(range(len(to)))
            name = stages[-1].name
            lowered += [Patch(site, to, name, made) for site in part.receivers]
        plain.append(tuple(lowered))
    return plain, stages


def _stage(name: str, path: PathPatch, n: int) -> Stage:
    """The run of Wang et al. 2023: every head keeps its output, but the senders.

    No position reads another then, so only the receivers' positions are computed.
    """
    every = Positions.of(range(n))
    to = every if path.to is None else path.to
    rows = range(min(to), max(to) + 1)
    at = every if path.at is None else path.at
    sent = tuple(Patch(site, at, path.run) for site in path.senders)
    layers = [place_of(site)[0] for site in (*path.senders, *path.receivers)]
    steps = tuple(
        Step(layer, rows, rows, False, len(rows))
        for layer in range(min(layers), max(layers) + 1)
    )
    item = Item(sent, steps, hears=tuple(dict.fromkeys(path.receivers)))
    return Stage(name, item, tuple(position - rows.start for position in to))


def _in_words(n_bytes: int | float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
