"""What came of all prompts: values of each, means with intervals, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from mechvlm.analyses.flow_graph.sweep import ENOUGH, Found
from mechvlm.axes import Labelled, labelled
from mechvlm.statistics import LEAST, LEVEL, Estimate, Paired, mean_of, paired

__all__ = ["PAPER", "RULE", "Table"]

PAPER = "arXiv:2411.18620"

_PERCENT, _NATS = "% of clean probability", "nats"

RULE = (
    "kept: that the group is one like any other set of its size is refused. From 6"
    " prompts with a control on: the intervals of their effect and of beyond, the"
    " effect minus the 5 % lower quantile of the prompt's own draws, lie below -least"
    " and below 0 wholly. Of fewer than 6 prompts: the mean effect lies below -least,"
    " and in each with a control the cut costs more than all its draws. A set drawn"
    " like the draws, even the same one in every prompt, is kept in at most 5 %."
)
"""When a cut is an edge, in words."""


@dataclass(frozen=True, eq=False)
class Table:
    """The values of all prompts.

    Attributes:
        found: What came of each prompt.
        coords: Dimension -> labels: item, target, source, band.
        least: Loss in percent from which on an edge is kept.
    """

    found: Sequence[Found]
    coords: Mapping[str, Sequence[str]]
    least: float

    def arrays(self) -> dict[str, Labelled]:
        """Values of each prompt, and over prompts with intervals."""
        each = self._per_item()
        result: dict[str, Labelled] = {}
        for name, (values, units) in self._over_items(each).items():
            result[name] = self._array(name, units, values)
        for name, (values, units) in each.items():
            result[name] = self._array(name, units, values)
        alone = {
            "clean": ([one.clean for one in self.found], "probability"),
            "right": ([one.right for one in self.found], "whether it is the answer"),
        }
        for name, (value, units) in alone.items():
            result[name] = self._array(name, units, np.array(value))
        return result

    def _per_item(self) -> dict[str, tuple[Shaped[np.ndarray, "..."], str]]:
        log_effect = np.stack([one.log_effect for one in self.found])
        log_draws = np.stack([one.log_draws for one in self.found])
        n_draws = np.stack([one.n_draws for one in self.found])
        effect, draws = _percent(log_effect), _percent(log_draws)
        below = (draws <= effect[..., None]).sum(axis=-1)
        rank_p = np.where(n_draws > 0, (1 + below) / (1 + n_draws), np.nan)
        return {
            "status": (np.stack([one.status for one in self.found]), "-"),
            "pool": (np.stack([one.pool for one in self.found]), "-"),
            "item_effect": (effect, _PERCENT),
            "item_control": (_mean(draws, n_draws), _PERCENT),
            "item_beyond": (effect - _lower(draws), _PERCENT),
            "item_log_effect": (log_effect, _NATS),
            "item_log_control": (_mean(log_draws, n_draws), _NATS),
            "item_rank_p": (rank_p, "p value"),
            "n_draws": (n_draws, "draws"),
        }

    def _over_items(
        self, each: Mapping[str, tuple[Shaped[np.ndarray, "..."], str]]
    ) -> dict[str, tuple[Shaped[np.ndarray, "..."], str]]:
        shape = each["status"][0].shape[1:]
        cells = [
            self._cell({name: values[:, *at] for name, (values, _) in each.items()})
            for at in np.ndindex(shape)
        ]
        units = {"kept": "-", "uncontrolled": "-", "p": "p value"}
        units |= {"n": "prompts", "n_control": "prompts"}
        return {
            name: (
                np.array([cell[name] for cell in cells]).reshape(shape),
                units.get(name, _NATS if name.startswith("log_") else _PERCENT),
            )
            for name in cells[0]
        }

    def _cell(
        self, column: Mapping[str, Shaped[np.ndarray, " item"]]
    ) -> dict[str, float | bool | int]:
        """One cut, over the prompts that have it."""
        run = np.isfinite(column["item_log_effect"])
        both = run & (column["n_draws"] >= ENOUGH)
        cell: dict[str, float | bool | int] = {}
        for lead in ("", "log_"):
            ours, theirs = column[f"item_{lead}effect"], column[f"item_{lead}control"]
            over = paired(ours[both], theirs[both])
            cell |= _bounds(f"{lead}effect", mean_of(ours[run]))
            cell |= _bounds(f"{lead}control", mean_of(theirs[both]))
            cell |= _bounds(f"{lead}excess", over)
            cell |= {} if lead else {"p": over.p}
        beyond = mean_of(column["item_beyond"][both])
        cell |= _bounds("beyond", beyond)
        n, n_control = int(run.sum()), int(both.sum())
        cell |= {"n": n, "n_control": n_control}
        few = n < LEAST
        controlled, every = (
            self._loses(mean_of(column["item_effect"][which]), few)
            for which in (both, run)
        )
        first = column["item_rank_p"] <= 1 / (1 + column["n_draws"])
        unlike = bool(first[both].all()) if few else beyond.high < 0
        alone = n_control < (1 if few else LEAST)
        return cell | {"kept": controlled and unlike, "uncontrolled": alone and every}

    def _loses(self, effect: Estimate, few: bool) -> bool:
        """Whether a cut costs enough, and surely where prompts are not too few."""
        return (effect.mean if few else effect.high) < -self.least

    def _array(
        self, name: str, units: str, values: Shaped[np.ndarray, "..."]
    ) -> Labelled:
        dims = {1: ("item",), 3: ("target", "source", "band")}.get(
            values.ndim, tuple(self.coords)
        )
        coords = {dim: self.coords[dim] for dim in dims}
        return labelled(
            values, name=name, units=units, paper=PAPER, attrs=None, **coords
        )


def _lower(
    draws: Float[np.ndarray, "*cell draw"],
) -> Float[np.ndarray, "*cell"]:
    """The value below which 5 % of such draws are expected; nan where there is none.

    Of 20 draws just above the least. Other definitions of a quantile lie higher, and
    twice as many new draws fall below them.
    """
    found = np.full(draws.shape[:-1], np.nan)
    for place in np.ndindex(found.shape):
        own = draws[place][np.isfinite(draws[place])]
        if len(own):
            found[place] = np.quantile(own, 1 - LEVEL, method="weibull")
    return found


def _bounds(name: str, estimate: Estimate | Paired) -> dict[str, float]:
    return {
        name: estimate.mean,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
    }


def _percent(log_change: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """A change of log-probability as one of probability, in percent."""
    return np.asarray(100 * np.expm1(log_change))


def _mean(
    draws: Float[np.ndarray, "*cell draw"], n: Int[np.ndarray, "*cell"]
) -> Float[np.ndarray, "*cell"]:
    """Mean over the draws there are; nan where there is none."""
    total = np.nansum(draws, axis=-1)
    blank = np.full(total.shape, np.nan)
    return np.asarray(np.divide(total, n, out=blank, where=n > 0))
