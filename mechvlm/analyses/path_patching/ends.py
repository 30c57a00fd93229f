"""The two ends of direct paths: who sends and who receives, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mechvlm.errors import InterventionError
from mechvlm.interventions import PathPatch, reaches
from mechvlm.layout import Layout, Positions
from mechvlm.models.config import Config
from mechvlm.sites import Site
from mechvlm.wanted import layers_in

__all__ = [
    "Layers",
    "Place",
    "Receiver",
    "Receivers",
    "Sender",
    "Senders",
    "path_between",
    "receivers_of",
    "senders_of",
]

Place: TypeAlias = str | Positions
"""A group of the layout, or positions."""

Senders: TypeAlias = Literal["heads", "mlps"] | Mapping[str, Place] | Sequence[Site]
Receivers: TypeAlias = (
    Literal["logits"] | Site | Sequence[Site] | Mapping[str, Site | tuple[Site, ...]]
)
Layers: TypeAlias = Sequence[int] | range | None


@dataclass(frozen=True)
class Sender:
    """What sends: a site, at some positions."""

    site: Site
    at: Positions | None


@dataclass(frozen=True)
class Receiver:
    """What receives: sites that are patched jointly, at some positions.

    Attributes:
        name: Its label in the result.
        sites: Where it receives.
        to: Positions that receive; None means all.
        serves: Query heads that hear it; empty where it is no part of a head.
    """

    name: str
    sites: tuple[Site, ...]
    to: Positions | None
    serves: str


def path_between(
    sender: Sender,
    receiver: Receiver,
    run: str,
    *,
    mlps: Literal["recomputed", "frozen"],
) -> PathPatch | None:
    """The path patch from one end to the other; None where there is no path."""
    at, to = sender.at, receiver.to
    heard = tuple(x for x in receiver.sites if reaches(sender.site, x, at, to))
    if not heard:
        return None
    return PathPatch((sender.site,), heard, run, at=at, to=to, mlps=mlps)


# --- senders --------------------------------------------------------------------------

Named = tuple[list[Sender], dict[str, list[int] | list[str]]]


def senders_of(
    cfg: Config, layout: Layout, senders: Senders, *, at: Place | None, layers: Layers
) -> Named:
    """Who sends, in the order of the result, and the dimensions that count them.

    Raises:
        InterventionError: There is none, or one is named twice over.
        LayerError: A layer does not exist.
    """
    if isinstance(senders, str):
        if senders not in ("heads", "mlps"):
            raise InterventionError(
                f"senders={senders!r}: wanted 'heads', 'mlps', names of token groups"
                ' such as {"object": positions}, or a list of sites.'
            )
        where = place(layout, "at", at)
        otherwise = f"do not exist: this model has layers 0..{cfg.n_layers - 1}."
        chosen = layers_in(layers, range(cfg.n_layers), "layers", otherwise)
        return _of_layers(cfg, senders, chosen, at=where)
    if layers is not None:
        raise InterventionError(
            "layers= picks among all heads or all MLPs; the senders given here are"
            " named one by one."
        )
    if isinstance(senders, Mapping):
        return _of_groups(layout, senders, at)
    sites = list(senders)
    if not sites or not all(isinstance(each, Site) for each in sites):
        raise InterventionError(
            f"senders={senders!r}: wanted a list of sites, such as"
            ' [Site("z", 1, head=0)].'
        )
    names = [label(each) for each in sites]
    _refuse_twice("senders", names)
    where = place(layout, "at", at)
    return [Sender(each, where) for each in sites], {"sender": names}


def _of_layers(
    cfg: Config, senders: str, layers: list[int], *, at: Positions | None
) -> Named:
    if senders == "mlps":
        sites = [Site("mlp_out", layer) for layer in layers]
        return [Sender(site, at) for site in sites], {"layer": layers}
    heads = list(range(cfg.n_heads))
    sites = [Site("z", layer, head) for layer in layers for head in heads]
    return [Sender(site, at) for site in sites], {"layer": layers, "head": heads}


def _of_groups(layout: Layout, groups: Mapping[str, Place], at: Place | None) -> Named:
    """The embeddings of token groups."""
    if at is not None:
        raise InterventionError(
            "the senders are token groups, which say where they send; at= has nothing"
            " left to say."
        )
    if not groups:
        raise InterventionError(
            'senders={} names no token group; wanted such as {"object": positions}.'
        )
    named = {name: place(layout, name, each) for name, each in groups.items()}
    found = [Sender(Site("embed"), positions) for positions in named.values()]
    return found, {"group": list(named)}


# --- receivers ------------------------------------------------------------------------


def receivers_of(
    cfg: Config, layout: Layout, receivers: Receivers, *, to: Place | None
) -> list[Receiver]:
    """Who receives, by name.

    Raises:
        InterventionError: There is none, one is named twice, or the logits are to be
            read at a position that has none.
    """
    where = place(layout, "to", to)
    if isinstance(receivers, str):
        return [_logits(cfg, layout, receivers, to=where)]
    named = _named(receivers)
    return [
        Receiver(name, sites, where, _serves(cfg, sites))
        for name, sites in named.items()
    ]


def _logits(
    cfg: Config, layout: Layout, receivers: str, *, to: Positions | None
) -> Receiver:
    if receivers != "logits":
        raise InterventionError(
            f"receivers={receivers!r}: wanted 'logits', a site such as"
            ' Site("q", 2, head=3), several, or names of them.'
        )
    if to is not None and layout.last not in to:
        raise InterventionError(
            f"to={to} is without the last position {layout.last}, and the logits are"
            " read there alone. Leave `to` out."
        )
    stream = Site("resid_post", cfg.n_layers - 1)
    return Receiver("logits", (stream,), layout["last"], "")


def _named(receivers: object) -> dict[str, tuple[Site, ...]]:
    if isinstance(receivers, Site):
        return {label(receivers): (receivers,)}
    if isinstance(receivers, Mapping):
        named = {
            str(name): (each,) if isinstance(each, Site) else tuple(each)
            for name, each in receivers.items()
        }
    else:
        sites = list(receivers) if isinstance(receivers, Sequence) else []
        named = {label(each): (each,) for each in sites if isinstance(each, Site)}
        _refuse_twice("receivers", [label(x) for x in sites if isinstance(x, Site)])
    if not named or not all(named.values()):
        raise InterventionError(
            f"receivers={receivers!r}: there is none. Wanted 'logits', a site such as"
            ' Site("q", 2, head=3), several, or names of them.'
        )
    return named


def _serves(cfg: Config, sites: tuple[Site, ...]) -> str:
    """Query heads that hear receivers; with grouped queries several share a key."""
    each = [heads for site in sites if (heads := _query_heads(cfg, site))]
    if len(each) <= 1:
        return " ".join(map(str, each[0])) if each else ""
    return "; ".join(
        f"{label(site)}: {' '.join(map(str, _query_heads(cfg, site)))}"
        for site in sites
        if _query_heads(cfg, site)
    )


def _query_heads(cfg: Config, site: Site) -> list[int]:
    if site.component not in ("q", "k", "v", "z", "result"):
        return []
    if site.head is None:
        return list(range(cfg.n_heads))
    shared_by = cfg.n_heads // cfg.n_key_value_heads if site.component in "kv" else 1
    return list(range(site.head * shared_by, (site.head + 1) * shared_by))


# --- both -----------------------------------------------------------------------------


def place(layout: Layout, what: str, given: Place | None) -> Positions | None:
    """Positions of a group or positions themselves; None means all.

    Raises:
        InterventionError: There are none.
        LayoutError: No group has this name.
    """
    if given is None:
        return None
    positions = layout[given] if isinstance(given, str) else given
    if not positions:
        raise InterventionError(
            f"{what}={given!r} is empty in this prompt, so nothing goes along the path."
        )
    return positions


def label(site: Site) -> str:
    """A site in a few characters.

    Example:
        >>> [label(Site("z", 0, 1)), label(Site("v", 2, 0)), label(Site("mlp_out", 3))]
        ['L0.H1', 'L2.v0', 'MLP 3']
    """
    if site.layer is None:
        return site.component
    if site.component == "mlp_out":
        return f"MLP {site.layer}"
    if site.component == "z" and site.head is not None:
        return f"L{site.layer}.H{site.head}"
    return f"L{site.layer}.{site.component}{'' if site.head is None else site.head}"


def _refuse_twice(what: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InterventionError(f"{what} names {', '.join(twice)} twice.")
