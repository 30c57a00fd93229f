"""Places in the network where an activation can be read or written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, cast, get_args

from mechvlm.errors import LayerError, SiteError

__all__ = ["COMPONENTS", "PER_HEAD", "Component", "Site"]

Component = Literal[
    "embed",
    "resid_pre",
    "q",
    "k",
    "v",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_out",
    "mlp_post",
    "resid_post",
    "result",
]

COMPONENTS: tuple[str, ...] = get_args(Component)

PER_HEAD = frozenset({"q", "k", "v", "z", "result"})
"""Components whose activation has an axis of heads."""

_HOOKS = MappingProxyType(
    {
        "resid_pre": "hook_resid_pre",
        "q": "attn.hook_q",
        "k": "attn.hook_k",
        "v": "attn.hook_v",
        "z": "attn.hook_z",
        "result": "attn.hook_result",
        "attn_out": "hook_attn_out",
        "resid_mid": "hook_resid_mid",
        "mlp_out": "hook_mlp_out",
        "mlp_post": "mlp.hook_post",
        "resid_post": "hook_resid_post",
    }
)
_COMPONENT_OF = {hook: component for component, hook in _HOOKS.items()}
_BLOCK_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the language backbone.

    Attributes:
        component: What is read or written there (see `COMPONENTS`).
        layer: 0-based layer; None only for "embed".
        head: Head of a per-head component; None means all heads. For k and v of a model
            with grouped queries this counts key-value heads.

    Example:
        >>> site = Site.parse("blocks.13.attn.hook_z", head=2)
        >>> site
        Site('z', layer=13, head=2)
        >>> site.hook_name
        'blocks.13.attn.hook_z'
    """

    component: Component
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        """Refuse what names no place in any model."""
        if self.component not in COMPONENTS:
            raise SiteError(
                f"no component is called {self.component!r}; known are"
                f" {', '.join(COMPONENTS)}."
            )
        if (self.layer is None) != (self.component == "embed"):
            raise SiteError(
                f"component {self.component!r} with layer={self.layer}: 'embed' has no"
                " layer, and every other component needs one."
            )
        if self.layer is not None and self.layer < 0:
            raise LayerError(f"layer {self.layer} is negative; layers count from 0.")
        if self.head is not None and self.component not in PER_HEAD:
            raise SiteError(
                f"component {self.component!r} has no heads, but head={self.head} was"
                f" given; per-head components are {', '.join(sorted(PER_HEAD))}."
            )
        if self.head is not None and self.head < 0:
            raise LayerError(f"head {self.head} is negative; heads count from 0.")

    @classmethod
    def parse(cls, hook_name: str, head: int | None = None) -> Site:
        """The site of a TransformerLens hook name.

        Raises:
            SiteError: The hook name is none of a site's.
        """
        if hook_name == "hook_embed":
            return cls("embed", head=head)
        match = _BLOCK_HOOK.fullmatch(hook_name)
        if match is None or match[2] not in _COMPONENT_OF:
            known = ", ".join(f"blocks.<layer>.{hook}" for hook in _COMPONENT_OF)
            raise SiteError(
                f"hook name {hook_name!r} is no site; known are hook_embed, {known}."
            )
        component = cast(Component, _COMPONENT_OF[match[2]])
        return cls(component, int(match[1]), head)

    @property
    def hook_name(self) -> str:
        """TransformerLens's name of the hook point here."""
        if self.layer is None:
            return "hook_embed"
        return f"blocks.{self.layer}.{_HOOKS[self.component]}"

    def __repr__(self) -> str:
        """Short, and read back by Python."""
        layer = "" if self.layer is None else f", layer={self.layer}"
        head = "" if self.head is None else f", head={self.head}"
        return f"Site({self.component!r}{layer}{head})"
