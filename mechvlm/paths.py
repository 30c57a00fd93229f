"""Path patches as patches of what runs made beforehand gave their receivers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

from mechvlm.cone import Cells, Cones, Step, cells_of, place_of, positions_of, span
from mechvlm.interventions import Intervention, Patch, PathPatch, parts
from mechvlm.layout import Positions
from mechvlm.models.lowering import unused
from mechvlm.models.rowwise.batches import Item
from mechvlm.models.rowwise.sending import Sending
from mechvlm.sites import Site

__all__ = ["Lowered", "Stage", "lowered"]

_IN_HEADS = frozenset({"q", "k", "v"})
_OF_HEADS = frozenset({"z", "result", "attn_out"})


@dataclass(frozen=True)
class Stage:
    """The run that a path patch needs beforehand: its heads are frozen.

    Attributes:
        name: Name under which its receivers are patched afterwards.
        item: What is run; it hears the receivers.
        to: Positions of each receiver that are patched afterwards.
        sending: What enters the run, where everything on the way is frozen too.
    """

    name: str
    item: Item
    to: Mapping[Site, Positions]
    sending: Sending | None = None


@dataclass(frozen=True)
class Lowered:
    """Interventions without path patches, and what they need instead.

    Attributes:
        plain: The interventions, path patches lowered to patches.
        stages: Runs that give receivers their values.
        sendings: Streams that are receivers themselves, and need no run.
    """

    plain: tuple[Intervention, ...]
    stages: tuple[Stage, ...]
    sendings: tuple[Sending, ...]


def lowered(todo: Sequence[Intervention], cones: Cones) -> Lowered:
    """Path patches as patches of their receivers, from runs to be made beforehand.

    Args:
        todo: The interventions. What equal path patches need is made once.
        cones: The cones on their prompt.
    """
    found = [parts(each) for each in todo]
    given = {p.run for each in found for p in each if isinstance(p, Patch | PathPatch)}
    lowering = _Lowering(cones, given)
    plain = [
        lowering.without_paths(several)
        if any(isinstance(part, PathPatch) for part in several)
        else each
        for each, several in zip(todo, found, strict=True)
    ]
    return Lowered(tuple(plain), tuple(lowering.stages), tuple(lowering.sendings))


class _Lowering:
    """The lowering of one list, with what its path patches share.

    Attributes:
        stages: The runs that they need.
        sendings: The streams that they need.
    """

    def __init__(self, cones: Cones, given: set[str]) -> None:
        self.stages: list[Stage] = []
        self.sendings: list[Sending] = []
        self._cones, self._given = cones, given
        self._known: dict[tuple[PathPatch, bool], tuple[Patch, ...]] = {}
        self._positions: dict[Cells, Positions] = {}
        self._cells: dict[Positions | None, Cells] = {None: cones.reads.everything}

    def without_paths(self, several: Sequence[Intervention]) -> Intervention:
        """One run's interventions, each path patch as patches."""
        lowered: list[Intervention] = []
        for part in several:
            if isinstance(part, PathPatch):
                lowered += self._patches(part, alone=len(several) == 1)
            else:
                lowered.append(part)
        return tuple(lowered)

    def _patches(self, path: PathPatch, *, alone: bool) -> tuple[Patch, ...]:
        """A path patch as patches.

        Where nothing but one receiver is patched, rows that no sender changes are left
        as they are; beside others they are put back to this run's own.
        """
        alone = alone and len(path.receivers) == 1
        key = path, alone
        if key not in self._known:
            self._known[key] = tuple(self._made(path, alone=alone))
        return self._known[key]

    def _made(self, path: PathPatch, *, alone: bool) -> Iterator[Patch]:
        for receivers in _together(path):
            senders = path.feeding(receivers[0])
            to = {
                site: cells
                for site in receivers
                if (cells := self._wanted(path, site, alone=alone))
            }
            if not to:
                continue
            if path.mlps == "recomputed":
                yield from self._staged(path, senders, to)
            elif receivers[0].component.startswith("resid"):
                yield self._sent(path, senders, receivers[0], to[receivers[0]])
            else:
                yield from self._heard(path, senders, receivers[0], to[receivers[0]])

    # -- positions -----------------------------------------------------------------

    def _wanted(self, path: PathPatch, receiver: Site, *, alone: bool) -> Cells:
        """Where a receiver is patched and matters."""
        wanted = self._cells_of(path.to) & self._cones.felt(receiver)
        if alone:
            changed = self._cells_of(path.at)
            if path.gathers(receiver):
                changed |= self._cones.reads.readers(receiver.layer or 0, changed)
            wanted &= changed
        return wanted

    def _cells_of(self, positions: Positions | None) -> Cells:
        if positions not in self._cells:
            self._cells[positions] = cells_of(positions or ())
        return self._cells[positions]

    def _at(self, cells: Cells) -> Positions:
        if cells not in self._positions:
            self._positions[cells] = Positions(tuple(positions_of(cells)))
        return self._positions[cells]

    # -- what is patched -----------------------------------------------------------

    def _name(self) -> str:
        number = len(self.stages) + len(self.sendings)
        return unused(f"path {number}", self._given)

    def _of_run(self, site: Site, to: Positions, name: str) -> Patch:
        return Patch(site, to, name, self._at((1 << len(to)) - 1))

    def _stage(
        self,
        senders: Sequence[Patch],
        steps: tuple[Step, ...],
        to: Mapping[Site, Cells],
        sending: Sending | None = None,
    ) -> Iterator[Patch]:
        """A run that is made beforehand, and the patches of what it gives."""
        name, at = self._name(), {site: self._at(cells) for site, cells in to.items()}
        item = Item(tuple(senders), steps, hears=tuple(to))
        self.stages.append(Stage(name, item, at, sending))
        for site, positions in at.items():
            yield self._of_run(site, positions, name)

    # -- MLPs recomputed -----------------------------------------------------------

    def _staged(
        self, path: PathPatch, senders: tuple[Site, ...], to: Mapping[Site, Cells]
    ) -> Iterator[Patch]:
        """The run of Wang et al. 2022: every head keeps its output, but the senders.

        No position reads another then, so only those are computed at which a receiver
        is patched and matters, or whose change a receiver gathers.
        """
        wanted, at = reduce(or_, to.values()), self._cells_of(path.at)
        stop = max(place_of(site)[0] for site in to)
        gathers = any(path.gathers(site) for site in to)
        if gathers:
            at &= self._cones.reads.sources(stop, wanted) | wanted
        rows = span(at if gathers else wanted)
        sent = self._at(at & (at if gathers else _cells_in(rows)))
        start = min(place_of(site)[0] for site in (*senders, *to))
        steps = [
            Step(layer, rows, rows, False, len(rows)) for layer in range(start, stop)
        ]
        if gathers:
            steps = steps if rows else []
            steps.append(_gathering(stop, at, wanted))
        elif all(site.component in _IN_HEADS for site in to if site.layer == stop):
            steps.append(Step(stop, rows, range(0), True, 0, len(rows)))
        else:
            steps.append(Step(stop, rows, rows, False, len(rows)))
        patches = [Patch(site, sent, path.run) for site in senders if sent]
        yield from self._stage(patches, tuple(steps), to)

    # -- MLPs frozen ---------------------------------------------------------------

    def _sent(
        self, path: PathPatch, senders: tuple[Site, ...], receiver: Site, wanted: Cells
    ) -> Patch:
        """A receiver in the stream gets the difference itself."""
        at = self._at(wanted & self._cells_of(path.at))
        to, name = self._at(wanted), self._name()
        self.sendings.append(Sending(name, receiver, to, senders, path.run, at))
        return self._of_run(receiver, to, name)

    def _heard(
        self, path: PathPatch, senders: tuple[Site, ...], receiver: Site, wanted: Cells
    ) -> Iterator[Patch]:
        """A receiver in a layer gets what this layer makes of the difference.

        It enters with the layer's stream: heads that are frozen let it pass.
        """
        layer, at = receiver.layer or 0, self._cells_of(path.at)
        local: tuple[Site, ...] = ()
        rows = span(wanted)
        step = Step(layer, rows, rows, False, len(rows))
        if receiver.component in _IN_HEADS:
            step = Step(layer, rows, range(0), True, 0, len(rows))
        elif receiver.component in _OF_HEADS:
            local = tuple(site for site in senders if _inside(site, layer))
            if path.gathers(receiver):
                at &= self._cones.reads.sources(layer, wanted) | wanted
                step = _gathering(layer, at, wanted)
        far = tuple(site for site in senders if site not in local)
        entering = at if path.gathers(receiver) else at & wanted
        sending = self._entering(path, far, Site("resid_pre", layer), entering)
        patches = [] if sending is None else [self._into(sending)]
        here = self._at(at & wanted)
        patches += [Patch(site, here, path.run) for site in local if here]
        yield from self._stage(patches, (step,), {receiver: wanted}, sending)

    def _entering(
        self, path: PathPatch, senders: tuple[Site, ...], site: Site, cells: Cells
    ) -> Sending | None:
        if not senders or not cells:
            return None
        at, name = self._at(cells), f"{self._name()} enters"
        return Sending(unused(name, self._given), site, at, senders, path.run, at)

    def _into(self, sending: Sending) -> Patch:
        return self._of_run(sending.site, sending.to, sending.name)


def _together(path: PathPatch) -> Iterator[list[Site]]:
    """Receivers that one run can serve: the same senders reach them past frozen heads.

    With MLPs frozen each gets its own, for the MLP of one is frozen for another.
    """
    alike: dict[object, list[Site]] = {}
    for i, receiver in enumerate(dict.fromkeys(path.receivers)):
        alone = path.mlps == "frozen" or receiver.component in _OF_HEADS
        alike.setdefault(i if alone else path.feeding(receiver), []).append(receiver)
    yield from alike.values()


def _inside(sender: Site, layer: int) -> bool:
    """Whether a sender stands behind the attention scores of a layer."""
    return sender.layer == layer and sender.component in _OF_HEADS


def _gathering(layer: int, at: Cells, wanted: Cells) -> Step:
    """A layer's attention at some positions, of which others are read."""
    return Step(
        layer,
        rows=span(at | wanted),
        out=span(wanted),
        attends=True,
        n_out=wanted.bit_count(),
        n_keys=(at & ~wanted).bit_count(),
    )


def _cells_in(rows: range) -> Cells:
    return (1 << rows.stop) - (1 << rows.start)
