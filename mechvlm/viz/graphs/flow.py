"""A flow graph: token groups side by side, layers upwards, what costs the answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError
from mechvlm.viz.figure import Figure
from mechvlm.viz.graphs import arcs
from mechvlm.viz.graphs.flow_still import FlowStill
from mechvlm.viz.graphs.ribbons import (
    UNITS,
    Ribbon,
    Which,
    drawn_edges,
    labelled,
    ribbons,
)
from mechvlm.viz.labels import number, shown
from mechvlm.viz.payload import tinted
from mechvlm.wanted import one

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["flow"]

DIMS = {"target", "source", "band"}
ESTIMATES = ("effect", "control", "beyond")
NUMBERS = tuple(f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high"))
WANTED = (*NUMBERS, "n", "n_control", "kept", "uncontrolled")
NAMED = 4


def flow(flows: xr.Dataset, *, which: Which = "all") -> Figure:
    """Draw along which groups of tokens, in which layers, an answer flows.

    Groups stand side by side, and bands of layers upon each other from below, as the
    stream runs. In a band a ribbon goes from the group that is read to the group that
    reads, as thick as what the answer loses when it does not read. Full ribbons are
    edges: they cost more than random cuts of their size. Striped ones cost the answer
    and have no random cuts of their size, so that they may be chance. Faint ones change
    it by `attrs["least"]` or more and are not told from random cuts.

    Args:
        flows: What `flow_graph` returns.
        which: "all" draws striped ribbons too; "kept" leaves them out and states how
            many they are.

    Returns:
        A figure; its `data` is `flows`.

    Raises:
        ArgumentError: It is no Dataset.
        ResultError: It is another result, no cut of it was measured, or `which` means
            nothing.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> asked = mv.Grouped(prompt, {"query": "query", "last": "last"}, "one")
        >>> flows = mv.flow_graph(vlm, [asked], bands={"all": range(8)})
        >>> mv.viz.flow(flows).kind
        'flow'
    """
    one(flows, xr.Dataset, "flows", "viz.flow(mechvlm.flow_graph(vlm, asked))")
    check(flows, which)
    sheet = _Sheet(flows, which)
    return Figure(
        sheet.data, "flow", sheet.spec, sheet.still, 560, sheet.about, ("arcs",)
    )


def check(flows: xr.Dataset, which: str) -> None:
    """Refuse what is no flow graph."""
    missing = [
        name for name in WANTED if name not in flows or set(flows[name].dims) != DIMS
    ]
    missing += [name for name in ("first", "last") if name not in flows.coords]
    if missing:
        raise ResultError(
            f"this result has no {missing} over (target, source, band); viz.flow draws"
            " what flow_graph returns. It holds"
            f" {sorted(map(str, flows.data_vars))[:8]}."
        )
    if which not in ("kept", "all"):
        raise ResultError(f"which={which!r}: wanted 'kept' or 'all'.")


@dataclass(frozen=True, eq=False)
class _Sheet:
    """A flow graph and what of it is drawn."""

    flows: xr.Dataset
    which: Which

    @cached_property
    def cuts(self) -> list[Ribbon]:
        """The cuts that are drawn, wherever they come to stand."""
        return drawn_edges(self.flows, self.which, self.least)

    @cached_property
    def ribbons(self) -> tuple[Ribbon, ...]:
        """The cuts that are drawn, placed."""
        return ribbons(self.cuts, self.full)

    @cached_property
    def labelled(self) -> tuple[Ribbon, ...]:
        """The edges beside which their effect is written."""
        return labelled(self.ribbons)

    @property
    def least(self) -> float:
        """Loss in percent under which nothing is an edge."""
        return float(self.flows.attrs.get("least", 1.0))

    @cached_property
    def full(self) -> float:
        """Size of the strongest drawn effect; 1 where none is drawn."""
        return max((abs(each.effect) for each in self.cuts), default=0.0) or 1.0

    @cached_property
    def data(self) -> xr.Dataset:
        """The result, with what title and subtitle say."""
        n = int(self.flows["kept"].sum())
        tried = int(np.isfinite(self.flows["effect"]).sum())
        edges = (
            f"{n} edge{'' if n == 1 else 's'} of {tried} cut{'' if tried == 1 else 's'}"
        )
        n_items = int(self.flows.sizes.get("item", 1))
        over = f", mean of {n_items} prompts" if n_items > 1 else ""
        said = {
            "metric": f"the answer's probability{over}",
            "long_name": f"Flow between token groups: {edges}",
        }
        if self.flows.sizes.get("item") == 1 and "text" in self.flows:
            said["prompt"] = shown(str(self.flows["text"].values[0]))
        return self.flows.assign_attrs(said)

    @cached_property
    def groups(self) -> list[dict[str, str]]:
        """Names of the groups, and how many tokens they have."""
        names = [shown(str(name)) for name in self.flows["source"].values]
        if "size" not in self.flows:
            return [{"name": name, "size": ""} for name in names]
        sizes = self.flows["size"]
        over = [dim for dim in sizes.dims if dim != "source"]
        low, high = (sizes.min(over).values, sizes.max(over).values)
        return [
            {"name": name, "size": tokens(int(low[i]), int(high[i]))}
            for i, name in enumerate(names)
        ]

    @cached_property
    def bands(self) -> list[str]:
        """Names of the bands with their layers."""
        flows = self.flows
        ends = zip(flows["first"].values, flows["last"].values, strict=True)
        return [
            layers(shown(str(name)), int(first), int(last))
            for name, (first, last) in zip(flows["band"].values, ends, strict=True)
        ]

    def said(self, ribbon: Ribbon) -> dict[str, float | None]:
        """The numbers of a cut; None where there is none."""
        at = {"band": ribbon.band, "source": ribbon.source, "target": ribbon.target}
        cell = self.flows[list(WANTED)].isel(at)
        return {
            name: float(f"{value:.5g}") if np.isfinite(value) else None
            for name in (*NUMBERS, "n", "n_control")
            for value in [float(cell[name])]
        }

    def name(self, ribbon: Ribbon) -> str:
        """A cut in words."""
        source, target = (
            self.groups[i]["name"] for i in (ribbon.source, ribbon.target)
        )
        return f"{source} → {target}, {self.bands[ribbon.band]}"

    @property
    def notes(self) -> list[str]:
        """What the picture does not show, and what its marks mean."""
        counts = {
            standing: sum(each.standing == standing for each in self.ribbons)
            for standing in ("kept", "uncontrolled", "other")
        }
        n_alone = int(self.flows["uncontrolled"].sum())
        tried = int(np.isfinite(self.flows["effect"]).sum())
        n_small = tried - sum(counts.values())
        found = [
            f"full: {counts['kept']} that cost more than random cuts of their size"
        ]
        if self.which == "all" and n_alone:
            found.append(
                f"striped: {n_alone} without random cuts of their size, maybe chance"
            )
        elif n_alone:
            found.append(f"not drawn: {n_alone} without random cuts of their size")
            n_small -= n_alone
        if counts["other"]:
            found.append(f"faint: {counts['other']} not told from random cuts")
        if n_small:
            found.append(f"not drawn: {n_small} of less than {number(self.least)} %")
        return found

    @property
    def about(self) -> str:
        """The flow graph in words, for those who do not see it."""
        names = ", ".join(group["name"] for group in self.groups)
        text = (
            f"{self.data.attrs['long_name']}. An edge costs the answer more than random"
            f" cuts of its size. Groups: {names}; layers: {', '.join(self.bands)}."
        )
        edges = [each for each in self.ribbons if each.standing == "kept"]
        edges.sort(key=lambda each: -abs(each.effect))
        strongest = "; ".join(
            f"{self.name(each)}: {number(each.effect)} %" for each in edges[:NAMED]
        )
        return (
            f"{text} Strongest: {strongest}." if edges else f"{text} No cut is an edge."
        )

    @property
    def marks(self) -> tuple[float, ...]:
        """Effects of the legend: losses, and one gain where any is drawn."""
        if not self.ribbons:
            return ()
        high = max(each.effect for each in self.ribbons)
        over = (arcs.marks(high)[0],) if high > 0 else ()
        return tuple(-size for size in arcs.marks(self.full)) + over

    @property
    def spec(self) -> dict[str, object]:
        """What the page's script draws."""
        return {
            "groups": self.groups,
            "bands": self.bands,
            "ribbons": [
                {
                    "name": self.name(each), "source": each.source,
                    "target": each.target, "band": each.band,
                    "standing": each.standing, "width": round(each.width, 6),
                    "start": round(each.start, 5), "stop": round(each.stop, 5),
                    "labelled": each in self.labelled,
                    **self.said(each),
                }
                for each in self.ribbons
            ],
            "full": self.full,
            "widest": max((each.width for each in self.ribbons), default=0.0),
            "marks": self.marks,
            "hair": arcs.HAIR_PX,
            "scale": tinted(arcs.strength(self.full)),
            "units": UNITS,
            "notes": self.notes,
        }  # fmt: skip

    def still(self) -> Drawing:
        """The still picture."""
        return FlowStill(
            self.data, self.groups, self.bands, self.ribbons, self.full,
            self.labelled, self.marks, self.notes,
        )()  # fmt: skip


def tokens(low: int, high: int) -> str:
    """Sizes of a group over all prompts.

    Example:
        >>> tokens(1, 1), tokens(5, 9)
        ('1', '5-9')
    """
    return f"{low}" if low == high else f"{low}-{high}"


def layers(name: str, first: int, last: int) -> str:
    """A band with its layers, which its name may already say.

    Example:
        >>> layers("early", 0, 3), layers("0-3", 0, 3), layers("4", 4, 4)
        ('early (layers 0-3)', 'layers 0-3', 'layer 4')
    """
    span = f"{first}-{last}" if last > first else f"{first}"
    words = f"layers {span}" if last > first else f"layer {span}"
    return words if name == span else f"{name} ({words})"
