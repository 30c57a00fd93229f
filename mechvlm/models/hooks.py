"""Hooks as in TransformerLens, except that one which does nothing raises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities.slice import Slice

from mechvlm.errors import HookError
from mechvlm.models.config import Config
from mechvlm.prompts import Prompt

__all__ = ["Hook", "Hooks"]

HookFunction = Callable[..., Tensor | None]
Hook = tuple[str | Callable[[str], bool], HookFunction]


class Hooks(HookedRootModule):
    """TransformerLens's hooked module, strict about hooks that would do nothing."""

    cfg: Config

    def setup(self) -> None:
        """Name the hook points; per-head results are there only once switched on."""
        super().setup()  # type: ignore[no-untyped-call]
        if not self.cfg.use_attn_result:
            for name in [n for n in self.hook_dict if n.endswith("attn.hook_result")]:
                del self.hook_dict[name], self.mod_dict[name]

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Iterable[Hook] = (),
        bwd_hooks: Iterable[Hook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Self]:
        """Temporary hooks, as in TransformerLens; one that never fires raises.

        Args:
            fwd_hooks: Pairs of a hook name, or a filter of names, and a function
                `(activation, hook) -> new activation or None`.
            bwd_hooks: The same for gradients.
            reset_hooks_end: Take the hooks away at the end.
            clear_contexts: Clear the hook points' contexts as well.

        Raises:
            HookError: A name does not exist, gradients are off for a backward hook, or
                a hook was never reached.
        """
        bwd_hooks = list(bwd_hooks)
        if bwd_hooks and not torch.is_grad_enabled():
            raise HookError(
                "backward hooks were given while gradients are off, so they could never"
                " fire. Use torch.enable_grad() or leave torch.no_grad()."
            )
        fired: set[tuple[str, int]] = set()
        forward = self._counted(fwd_hooks, fired, "forward")
        backward = self._counted(bwd_hooks, fired, "backward")
        with super().hooks(forward, backward, reset_hooks_end, clear_contexts):
            yield self
        # Backward hooks that are kept may still be reached; forward hooks were not.
        due = [("forward", forward)] + [("backward", backward)] * reset_hooks_end
        silent = [
            f"{name} ({way})"
            for way, hooks in due
            for i, (name, _) in enumerate(hooks)
            if (way, i) not in fired
        ]
        if silent:
            self.reset_hooks(clear_contexts, level=self.context_level + 1)
            raise HookError(
                f"hooks on {', '.join(silent)} never fired: no forward ran (or no"
                " backward pass), it started after or stopped before that layer, or a"
                " vision hook met a prompt without an image. They changed nothing."
            )

    def _counted(
        self, hooks: Iterable[Hook], fired: set[tuple[str, int]], way: str
    ) -> list[Hook]:
        """The same hooks, which note in `fired` that they were reached."""
        return [
            (self._checked_name(name), _counting(function, fired, (way, i)))
            for i, (name, function) in enumerate(hooks)
        ]

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Iterable[Hook] = (),
        bwd_hooks: Iterable[Hook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Tensor:
        """A forward under temporary hooks, as in TransformerLens.

        Raises:
            HookError: As in `hooks`; also where `bwd_hooks` would be taken away before
                any backward pass (with `reset_hooks_end` left on).
        """
        bwd_hooks = list(bwd_hooks)
        if bwd_hooks and reset_hooks_end:
            raise HookError(
                "backward hooks would be removed before a backward pass could reach"
                " them. Use `with vlm.hooks(bwd_hooks=...):` around forward and"
                " backward, or reset_hooks_end=False and `vlm.reset_hooks()` after."
            )
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            logits: Tensor = self(*model_args, **model_kwargs)
            return logits

    def run_with_cache(  # type: ignore[override]  # names_filter may come second
        self,
        given: Prompt | Tensor,
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
        *,
        return_cache_object: bool = True,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """A forward that keeps activations, as in TransformerLens.

        Args:
            given: A prompt, or a residual stream; see `forward`.
            names_filter: Hook names to keep: one, several, or a test; None keeps all
                that this forward reaches.
            return_cache_object: False gives a plain dict.
            **kwargs: As for TransformerLens (`device`, `remove_batch_dim`,
                `pos_slice`) and for `forward`.

        Raises:
            HookError: A name does not exist or was not reached.
        """
        if kwargs.get("incl_bwd"):
            raise HookError(
                "incl_bwd needs an output that is one number, and this forward gives"
                " logits. Use vlm.hooks(bwd_hooks=...) around forward and backward."
            )
        if names_filter is None:
            names_filter = self._reached(given, kwargs)
        elif isinstance(names_filter, str) or callable(names_filter):
            self._checked_name(names_filter)
        else:
            names_filter = [str(self._checked_name(name)) for name in names_filter]
        out, cache = super().run_with_cache(given, names_filter=names_filter, **kwargs)
        if not return_cache_object:
            return out, cache
        batched = not kwargs.get("remove_batch_dim", False)
        return out, ActivationCache(cache, self, has_batch_dim=batched)

    def get_caching_hooks(
        self, *args: Any, pos_slice: Any = None, **kwargs: Any
    ) -> tuple[dict[str, Tensor], list[Hook], list[Hook]]:
        """Hooks that keep activations, as in TransformerLens.

        There `pos_slice` also cuts the heads of rotated queries and keys and the
        patches of the vision tower; here it cuts positions and nothing else.
        """
        cut = Slice.unwrap(pos_slice)
        cache, forward, backward = super().get_caching_hooks(*args, **kwargs)
        return cache, _cutting(forward, cut), _cutting(backward, cut)

    def add_hook(
        self, name: Any, hook: HookFunction, *args: Any, **kwargs: Any
    ) -> None:
        """Add a hook that stays until `reset_hooks`, as in TransformerLens.

        Raises:
            HookError: No hook point has this name.
        """
        super().add_hook(self._checked_name(name), hook, *args, **kwargs)

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Turn the per-head hook points `blocks.l.attn.hook_result` on or off.

        Off takes the hooks on them away, permanent ones too.
        """
        for name, point in self.hook_dict.items():
            if name.endswith("attn.hook_result") and not use_attn_result:
                point.remove_hooks("both", including_permanent=True)
        self.cfg = replace(self.cfg, use_attn_result=use_attn_result)
        self.setup()

    @contextmanager
    def attn_results(self, hooks: Iterable[Hook]) -> Iterator[None]:
        """Per-head results switched on for as long as one of these hooks needs them."""
        before = self.cfg.use_attn_result
        needed = any(str(name).endswith("attn.hook_result") for name, _ in hooks)
        if before or not needed:
            yield
            return
        self.set_use_attn_result(True)
        try:
            yield
        finally:
            self.set_use_attn_result(before)

    def _checked_name(
        self, name: str | Callable[[str], bool]
    ) -> str | Callable[[str], bool]:
        if callable(name):
            if not any(name(each) for each in self.hook_dict):
                raise HookError("a filter of hook names matches no hook point.")
            return name
        if name not in self.hook_dict:
            near = get_close_matches(name, self.hook_dict, n=3)
            on = " Turn it on with vlm.set_use_attn_result(True)." * name.endswith(
                "hook_result"
            )
            raise HookError(
                f"no hook point is called {name!r}. Near it: {', '.join(near)}.{on}"
            )
        return name

    def _reached(self, given: object, kwargs: Mapping[str, Any]) -> list[str]:
        """Names of the hook points that a forward comes past."""
        start = kwargs.get("start_at_layer")
        stop = kwargs.get("stop_at_layer")
        last = self.cfg.n_layers if stop is None else stop
        seen = isinstance(given, Prompt) and given.layout.grids
        names = []
        for name in self.hook_dict:
            head, _, rest = name.partition(".")
            if head == "blocks":
                if (start or 0) <= int(rest.partition(".")[0]) < last:
                    names.append(name)
            elif head == "ln_final":
                names += [name] * (stop is None)
            elif head == "hook_embed":
                names += [name] * (not start and last > 0)
            elif seen:
                names.append(name)
        return names


def _cutting(hooks: list[Any], cut: Slice) -> list[Hook]:
    """The same hooks, given only the positions that are kept."""
    return [(n, partial(_cut, save, cut, _position_axis(n))) for n, save in hooks]


def _position_axis(name: str) -> int | None:
    """Axis of the positions in the activation of this name; None: it has none."""
    if name.startswith("vision_"):
        return None
    by_head = ("q", "k", "v", "rot_q", "rot_k", "z", "result")
    return -3 if name.rpartition("hook_")[2] in by_head else -2


def _cut(
    save: HookFunction,
    cut: Slice,
    axis: int | None,
    activation: Tensor,
    hook: HookPoint,
) -> Tensor | None:
    """Hand on the positions that are kept."""
    kept = activation if axis is None else cut.apply(activation, dim=axis)
    return save(kept, hook=hook)


def _counting(
    function: HookFunction, fired: set[tuple[str, int]], mark: tuple[str, int]
) -> HookFunction:
    def counted(activation: Tensor, hook: HookPoint) -> Tensor | None:
        fired.add(mark)
        return function(activation, hook=hook)

    return counted
