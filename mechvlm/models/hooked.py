"""The hooked vision-language model: TransformerLens's surface on Hugging Face's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.hook_points import HookPoint

from mechvlm.errors import HookError, LayerError, PromptError
from mechvlm.interventions import Intervention
from mechvlm.models import families
from mechvlm.models.attention import listening
from mechvlm.models.config import Config
from mechvlm.models.family import Layer, submodule
from mechvlm.models.generation import Generation, generate
from mechvlm.models.lowering import RunLike
from mechvlm.models.passes import masks_of, skipped, stopped
from mechvlm.models.points import Block, Norm, VisionEncoder, VisionProjector
from mechvlm.models.prompting import ImageLike, Prompter
from mechvlm.models.taps import Tapped, taps
from mechvlm.models.vocabulary import Vocabulary
from mechvlm.models.weights import Weights
from mechvlm.prompts import Prompt

__all__ = ["HookedVLM"]

HookFunction = Callable[..., Tensor | None]
Hook = tuple[str | Callable[[str], bool], HookFunction]


class HookedVLM(Weights, Vocabulary, HookedRootModule):
    """A Hugging Face vision-language model whose language backbone is hooked.

    The model itself is not changed: hook points listen to its modules during a forward
    in which a function waits on them, and cost nothing otherwise. Names and shapes are
    TransformerLens's, so `run_with_cache`, `run_with_hooks`, `hooks` and
    `ActivationCache` work as they do there, with the image always in place.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> scene = mv.scenes.sample(seed=0)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> logits, cache = vlm.run_with_cache(prompt, names_filter="blocks.0.attn.hook_z")
        >>> cache["blocks.0.attn.hook_z"].shape[1] == prompt.layout.n
        True
    """

    def __init__(self, hf_model: nn.Module, processor: Any) -> None:
        """Wrap an already loaded Hugging Face model and its processor.

        Args:
            hf_model: A vision-language model of a known family, in eval mode or not.
            processor: Its processor: tokenizer, image processor and chat template.

        Raises:
            FamilyError: The architecture, or a key of its config, is not known.
        """
        super().__init__()
        self.hf_model: Any = hf_model
        self.processor = processor
        self.family = families.find(self.hf_model.config)
        self.cfg = Config.of(self.hf_model, self.family)
        names = self.family.backbones[self.hf_model.config.text_config.model_type]

        def norm(module: nn.Module) -> Norm:
            return Norm(module, self.cfg.eps, names.norm_offset)

        layers = [Layer.of(layer, names) for layer in self._language_model.layers]
        self.hook_embed = HookPoint()  # [batch position d_model]
        self.blocks = nn.ModuleList(Block(x, self.cfg.d_head, norm) for x in layers)
        self.ln_final = norm(self._language_model.norm)
        encoder = self._encoder_layers
        self.vision_encoder = VisionEncoder(len(encoder))
        self.vision_projector = VisionProjector()
        self.tapped = Tapped(
            self.hook_embed,
            tuple(self._blocks),
            self.ln_final,
            self.vision_encoder,
            self.vision_projector,
            encoder,
            self.hf_model.get_submodule(self.family.projector),
            self.hf_model.config.text_config,
        )
        self.setup()

    def setup(self) -> None:
        """Name the hook points; per-head results are there only once switched on."""
        super().setup()  # type: ignore[no-untyped-call]
        if not self.cfg.use_attn_result:
            for name in [n for n in self.hook_dict if n.endswith("attn.hook_result")]:
                del self.hook_dict[name], self.mod_dict[name]

    # -- prompts --------------------------------------------------------------------

    def prompt(
        self,
        text: str,
        image: ImageLike | None = None,
        *,
        prefix: str = "",
        system: str | None = None,
    ) -> Prompt:
        """A question about an image, in the model's own chat template.

        Args:
            text: What the user asks, without any image placeholder.
            image: The picture or its path; None asks without one.
            prefix: Start of the assistant's answer.
            system: System message; None leaves it to the template.

        Raises:
            PlaceholderError: The text holds an image placeholder.
            UnreadableImageError: The file is no picture.
            PromptError: There is no chat template, or it hides the text.
        """
        prompter = Prompter(self.processor, self.hf_model.config, self.family)
        made = prompter.chat(text, image, prefix=prefix, system=system)
        return self._moved(made)

    def prompt_raw(self, text: str, image: ImageLike | None = None) -> Prompt:
        """A prompt of literal text; BOS is added as the tokenizer does.

        Args:
            text: The whole text; holds the image placeholder exactly once per image.
            image: The picture or its path.

        Raises:
            MissingImageError: There is a placeholder and no image.
            PlaceholderError: There is an image and not exactly one placeholder.
        """
        prompter = Prompter(self.processor, self.hf_model.config, self.family)
        return self._moved(prompter.raw(text, image))

    # -- forward passes -------------------------------------------------------------

    def forward(
        self,
        given: Prompt | Float[Tensor, "1 position d_model"],
        *,
        prompt: Prompt | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        return_type: Literal["logits"] = "logits",
    ) -> Float[Tensor, "1 position vocab_or_d_model"]:
        """Logits of a prompt, or of a residual stream that enters a layer.

        Args:
            given: A prompt; or, with `start_at_layer`, the stream that enters there.
            prompt: With a stream: the prompt that gives mask and position ids.
            start_at_layer: First layer that is executed; earlier ones are not run.
            stop_at_layer: First layer that is not run any more.
            return_type: "logits", the only kind there is.

        Returns:
            Logits `[1 position vocab]`; with `stop_at_layer` the residual stream
            `[1 position d_model]` that enters that layer.

        Raises:
            PromptError: What was given is neither of the two.
            LayerError: A layer is out of range.
        """
        if return_type != "logits":
            raise PromptError(f"return_type={return_type!r}: only 'logits' is known.")
        inputs, start = self._inputs(given, prompt, start_at_layer)
        stop = self._checked_layer(stop_at_layer)
        language_model = self._language_model
        with skipped(language_model, start), taps(self.tapped):
            if stop is not None:
                return stopped(language_model, stop, lambda: self.hf_model(**inputs))
            logits: Tensor = self.hf_model(**inputs).logits
            return logits

    def reads(self, prompt: Prompt) -> Bool[Tensor, "layer position position"]:
        """Whether a position (second axis) may attend to another (third), per layer."""
        shape = 1, prompt.layout.n, self.cfg.d_model
        blank = torch.zeros(shape, dtype=self.cfg.dtype, device=self.cfg.device)
        inputs, _ = self._inputs(blank, prompt, 0)
        with listening(self.hf_model.config.text_config, {}):
            run = lambda: self.hf_model(**inputs)  # noqa: E731
            return masks_of(self._language_model, run, prompt.layout.n)

    @torch.no_grad()
    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 20,
        interventions: Intervention | Sequence[Intervention] = (),
        runs: Mapping[str, RunLike] | None = None,
        vectors: Mapping[str, Tensor] | None = None,
    ) -> Generation:
        """Continue a prompt greedily, with a KV cache, under interventions.

        A position is computed once, when it is reached, and every intervention that
        names it applies then: prompt positions in the prefill, later ones while
        generating. What an intervention changes stays in the cache.

        Args:
            prompt: The prompt to continue.
            max_new_tokens: Most tokens to add; the end-of-sequence token ends earlier.
            interventions: All applied at once, in order. Positions from
                `prompt.layout.n` on are the generated tokens fed back in.
            runs: Recorded runs by the names that the interventions use.
            vectors: Vectors by the names that the interventions use.

        Raises:
            InterventionError: An intervention means nothing here.
        """
        done = interventions if isinstance(interventions, tuple) else _tuple(interventions)
        return generate(self, prompt, max_new_tokens, done, runs or {}, vectors or {})

    # -- hooks ----------------------------------------------------------------------

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Iterable[Hook] = (),
        bwd_hooks: Iterable[Hook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[HookedVLM]:
        """Temporary hooks, as in TransformerLens; one that never fires raises.

        Args:
            fwd_hooks: Pairs of a hook name, or a filter of names, and a function
                `(activation, hook) -> new activation or None`.
            bwd_hooks: The same for gradients.
            reset_hooks_end: Take the hooks away at the end.
            clear_contexts: Clear the hook points' contexts as well.

        Raises:
            HookError: A name does not exist, gradients are off for a backward hook, or
                a forward hook was never reached.
        """
        bwd_hooks = list(bwd_hooks)
        if bwd_hooks and not torch.is_grad_enabled():
            raise HookError(
                "backward hooks were given while gradients are off, so they could never"
                " fire. Use torch.enable_grad() or leave torch.no_grad()."
            )
        fired: set[int] = set()
        counted = [
            (self._checked_name(name), _counting(function, fired, i))
            for i, (name, function) in enumerate(fwd_hooks)
        ]
        checked = [(self._checked_name(name), function) for name, function in bwd_hooks]
        with super().hooks(counted, checked, reset_hooks_end, clear_contexts):  # type: ignore[arg-type]
            yield self
        silent = [name for i, (name, _) in enumerate(counted) if i not in fired]
        if silent:
            raise HookError(
                f"hooks on {silent} never fired: no forward ran, it started after or"
                " stopped before that layer, or a vision hook met a prompt without an"
                " image. They changed nothing."
            )

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

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
        return_cache_object: bool = True,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """A forward that keeps activations, as in TransformerLens.

        Args:
            *model_args: A prompt, or a residual stream; see `forward`.
            names_filter: Hook names to keep: one, several, or a test; None keeps all
                that this forward reaches.
            return_cache_object: False gives a plain dict.
            **kwargs: As for TransformerLens (`device`, `remove_batch_dim`,
                `pos_slice`, `incl_bwd`) and for `forward`.

        Raises:
            HookError: A name does not exist or was not reached.
        """
        if names_filter is None:
            names_filter = self._reached(model_args[0], kwargs)
        elif isinstance(names_filter, str) or callable(names_filter):
            self._checked_name(names_filter)
        else:
            names_filter = [str(self._checked_name(name)) for name in names_filter]
        out, cache = super().run_with_cache(
            *model_args, names_filter=names_filter, **kwargs
        )
        if not return_cache_object:
            return out, cache
        batched = not kwargs.get("remove_batch_dim", False)
        return out, ActivationCache(cache, self, has_batch_dim=batched)

    def add_hook(self, name: Any, hook: HookFunction, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Add a hook that stays until `reset_hooks`, as in TransformerLens.

        Raises:
            HookError: No hook point has this name.
        """
        super().add_hook(self._checked_name(name), hook, *args, **kwargs)  # type: ignore[arg-type]

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Turn the per-head hook points `blocks.l.attn.hook_result` on or off."""
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

    # -- inside ---------------------------------------------------------------------

    @property
    def _language_model(self) -> Any:
        return self.hf_model.get_submodule(self.family.language_model)

    @property
    def _encoder_layers(self) -> tuple[nn.Module, ...]:
        tower = self.hf_model.get_submodule(self.family.vision_tower)
        kind = self.family.towers[self.hf_model.config.vision_config.model_type]
        return tuple(submodule(tower, kind.layers).children())

    def _moved(self, prompt: Prompt) -> Prompt:
        """The prompt on the model's device, pixels in its dtype."""
        inputs = {
            name: x.to(self.cfg.device, self.cfg.dtype)
            if x.is_floating_point()
            else x.to(self.cfg.device)
            for name, x in prompt.inputs.items()
        }
        return replace(prompt, inputs=inputs)

    def _inputs(
        self, given: object, prompt: Prompt | None, start_at_layer: int | None
    ) -> tuple[dict[str, Any], int]:
        """What the Hugging Face model is called with, and the first layer to run."""
        start = self._checked_layer(start_at_layer)
        if isinstance(given, Prompt) and prompt is None and start is None:
            return {**given.inputs, "use_cache": False}, 0
        if isinstance(given, Tensor) and prompt is not None and start is not None:
            left_out = {"input_ids", *self.family.pixels}
            kept = {k: v for k, v in prompt.inputs.items() if k not in left_out}
            return {**kept, "inputs_embeds": given, "use_cache": False}, start
        raise PromptError(
            f"a forward of {type(given).__name__} with prompt="
            f"{type(prompt).__name__} and start_at_layer={start_at_layer}: wanted"
            " vlm(prompt), or vlm(residual, prompt=prompt, start_at_layer=k). Token ids"
            " alone would lose the image: build them with vlm.prompt or vlm.prompt_raw."
        )

    def _checked_layer(self, layer: int | None) -> int | None:
        if layer is not None and not 0 <= layer <= self.cfg.n_layers:
            raise LayerError(
                f"layer {layer} is out of range: this model has {self.cfg.n_layers}"
                f" layers, 0..{self.cfg.n_layers - 1}; {self.cfg.n_layers} stands for"
                " the end of the last one."
            )
        return layer

    def _checked_name(
        self, name: str | Callable[[str], bool]
    ) -> str | Callable[[str], bool]:
        if callable(name):
            if not any(name(each) for each in self.hook_dict):
                raise HookError("a filter of hook names matches no hook point.")
            return name
        if name not in self.hook_dict:
            near = get_close_matches(name, self.hook_dict, n=3)
            on = " Turn it on with vlm.set_use_attn_result(True)." * name.endswith("hook_result")
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

    @property
    def _blocks(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]  # it holds nothing else


def _counting(function: HookFunction, fired: set[int], index: int) -> HookFunction:
    def counted(activation: Tensor, hook: HookPoint) -> Tensor | None:
        fired.add(index)
        return function(activation, hook=hook)

    return counted


def _tuple(interventions: object) -> tuple[Intervention, ...]:
    if isinstance(interventions, Sequence):
        return tuple(interventions)
    return (interventions,)  # type: ignore[return-value]  # a single one
