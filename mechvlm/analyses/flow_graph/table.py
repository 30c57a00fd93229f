"""What came of all prompts: values of each, means with intervals, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from mechvlm.analyses.flow_graph.sweep import Found
from mechvlm.axes import Labelled, labelled
from mechvlm.statistics import LEAST, LEVEL, Estimate, Paired, mean_of, paired

__all__ = ["PAPER", "Table", "fewest_draws"]

PAPER = "arXiv:2411.18620"

_PERCENT, _NATS = "% of clean probability", "nats"

PerItem = Float[np.ndarray, "item target source band"]


def fewest_draws(n_items: int) -> int:
    """Random draws per prompt from which on so few prompts can keep an edge.

    In all of them the cut must cost more than every draw. By chance alone, a cut that
    is like its draws does so in 1 of (draws + 1) to the power of prompts.

    Example:
        >>> fewest_draws(1), fewest_draws(2), fewest_draws(6)
        (19, 4, 1)
    """
    if n_items >= LEAST:
        return 1
    draws = 1
    while (draws + 1.0) ** -n_items > 1 - LEVEL + 1e-12:
        draws += 1
    return draws


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
        """Per prompt, and over prompts with intervals."""
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
            "item_effect": (effect, _PERCENT),
            "item_control": (_mean(draws, n_draws), _PERCENT),
            "item_log_effect": (log_effect, _NATS),
            "item_log_control": (_mean(log_draws, n_draws), _NATS),
            "item_rank_p": (rank_p, "p value"),
            "n_draws": (n_draws, "different random sets"),
        }

    def _over_items(
        self, each: Mapping[str, tuple[Shaped[np.ndarray, "..."], str]]
    ) -> dict[str, tuple[Shaped[np.ndarray, "..."], str]]:
        shape = each["status"][0].shape[1:]
        cells = [
            self._cell({name: values[:, *at] for name, (values, _) in each.items()})
            for at in np.ndindex(shape)
        ]
        units = {"kept": "-", "n": "prompts", "n_control": "prompts", "p": "p value"}
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
        both = column["n_draws"] > 0
        cell: dict[str, float | bool | int] = {}
        for lead in ("", "log_"):
            ours, theirs = column[f"item_{lead}effect"], column[f"item_{lead}control"]
            over = paired(ours[both], theirs[both])
            cell |= _bounds(f"{lead}effect", mean_of(ours[run]))
            cell |= _bounds(f"{lead}control", mean_of(theirs[both]))
            cell |= _bounds(f"{lead}excess", over)
            cell |= {} if lead else {"p": over.p}
        n_control = int(both.sum())
        cell |= {"n": int(run.sum()), "n_control": n_control}
        if n_control >= LEAST:
            return cell | {"kept": self._loses(cell, "_high")}
        unlikely = bool(n_control) and _beyond(
            column["item_rank_p"][both], column["n_draws"][both]
        )
        return cell | {"kept": unlikely and self._loses(cell, "")}

    def _loses(self, cell: Mapping[str, float | bool | int], end: str) -> bool:
        """Whether the cut costs enough, both by itself and beyond its control."""
        return all(cell[name + end] < -self.least for name in ("effect", "excess"))

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


def _beyond(rank_p: Float[np.ndarray, " item"], n: Int[np.ndarray, " item"]) -> bool:
    """Whether every prompt's cut costs more than all its draws: hardly by chance."""
    first = 1 / (1 + n)
    return bool((rank_p <= first).all() and first.prod() <= 1 - LEVEL + 1e-12)


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
