"""The flat rows of one pass: whose they are, and which positions they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvlm.cone import Step
from mechvlm.interventions import Intervention
from mechvlm.models.rowwise.row_attention import Cuts, Group
from mechvlm.sites import Site

__all__ = ["Batch", "Item", "Placed", "State"]


@dataclass(frozen=True)
class Item:
    """One intervention of a pass.

    Attributes:
        intervention: What is done, without path patches.
        steps: What it makes necessary to compute again, layer by layer.
        hears: Sites whose activation is kept on the way, at all rows of their step.
    """

    intervention: Intervention
    steps: tuple[Step, ...]
    hears: tuple[Site, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the rows of one item stand among the flat rows.

    Attributes:
        rows: Its positions.
        start: Flat row of the first of them.
    """

    rows: range
    start: int


@dataclass(frozen=True)
class Batch:
    """The flat rows of several groups in one layer.

    Attributes:
        groups: The groups, in the order of their rows.
        positions: Position that each flat row stands for.
        places: Where the rows of each item stand.
    """

    groups: tuple[Group, ...]
    positions: Int[Tensor, " row"]
    places: Mapping[int, Placed]

    @classmethod
    def of(cls, steps: Mapping[int, Step], cuts: Callable[[int], Cuts]) -> Batch:
        """Items whose steps are of the same rows form a group.

        Args:
            steps: Item -> its step in this layer.
            cuts: Item -> what it cuts in this layer.
        """
        alike: dict[tuple[range, range], list[int]] = {}
        for item, step in steps.items():
            alike.setdefault((step.rows, step.out), []).append(item)
        groups: list[Group] = []
        first_row = first_out = 0
        for (rows, out), items in alike.items():
            groups.append(
                Group(
                    items=tuple(items),
                    rows=rows,
                    out=out,
                    first_row=first_row,
                    first_out=first_out,
                    cuts=tuple(map(cuts, items)),
                )
            )
            first_row += groups[-1].n_rows
            first_out += groups[-1].n_out
        return cls(tuple(groups), *_spread(groups, lambda group: group.rows))

    @property
    def n_rows(self) -> int:
        """Number of flat rows."""
        return len(self.positions)

    def wide(self) -> Batch:
        """The same, with the output of every row needed."""
        groups = (replace(g, out=g.rows, first_out=g.first_row) for g in self.groups)
        return replace(self, groups=tuple(groups))

    def narrow(self) -> tuple[Batch, Int[Tensor, " out"]]:
        """The rows whose output is needed, and where among these rows they stand."""
        kept = [torch.empty(0, dtype=torch.long)]
        for group in self.groups:
            offset = group.out.start - group.rows.start
            each = torch.arange(offset, offset + len(group.out))
            starts = torch.arange(len(group.items)) * len(group.rows) + group.first_row
            kept.append((starts[:, None] + each).flatten())
        spread = _spread(self.groups, lambda group: group.out)
        return Batch(self.groups, *spread), torch.cat(kept)


def _spread(
    groups: Sequence[Group], of: Callable[[Group], range]
) -> tuple[Tensor, dict[int, Placed]]:
    """Positions of the flat rows, and the place of each item among them."""
    positions, places, start = [torch.empty(0, dtype=torch.long)], {}, 0
    for group in groups:
        rows = of(group)
        each = torch.arange(rows.start, rows.stop)
        positions.append(each.repeat(len(group.items)))
        for item in group.items:
            places[item] = Placed(rows, start)
            start += len(rows)
    return torch.cat(positions), places


@dataclass(frozen=True, eq=False)
class State:
    """Rows of the stream between two layers.

    Attributes:
        rows: The rows of all items.
        places: Where those of each item stand.
    """

    rows: Float[Tensor, "row d_model"]
    places: Mapping[int, Placed]

    @classmethod
    def joined(cls, states: Sequence[State]) -> State:
        """Several, one below the other."""
        if len(states) == 1:
            return states[0]
        places, first = {}, 0
        for state in states:
            for item, place in state.places.items():
                places[item] = replace(place, start=place.start + first)
            first += len(state.rows)
        return cls(torch.cat([state.rows for state in states]), places)

    def carried(
        self, batch: Batch, stream: Float[Tensor, "position d_model"]
    ) -> Float[Tensor, "row d_model"]:
        """The rows of a batch: from here where an item has them, else of the stream."""
        runs = list(_runs(self.places, batch.places))
        if sum(n for *_, n in runs) == batch.n_rows:
            rows = stream.new_empty(batch.n_rows, stream.shape[1])
        else:
            rows = stream[batch.positions.to(stream.device)]
        for here, there, n in runs:
            rows[here : here + n] = self.rows[there : there + n]
        return rows


def _runs(
    old: Mapping[int, Placed], new: Mapping[int, Placed]
) -> Iterator[tuple[int, int, int]]:
    """Rows that both have, as (start in the new, start in the old, how many)."""
    run: tuple[int, int, int] | None = None
    for item, place in new.items():
        if item not in old:
            continue
        before = old[item]
        first = max(place.rows.start, before.rows.start)
        n = min(place.rows.stop, before.rows.stop) - first
        if n <= 0:
            continue
        here = place.start + first - place.rows.start
        there = before.start + first - before.rows.start
        if run is not None and (here, there) == (run[0] + run[2], run[1] + run[2]):
            run = run[0], run[1], run[2] + n
            continue
        if run is not None:
            yield run
        run = here, there, n
    if run is not None:
        yield run
