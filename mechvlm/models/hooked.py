"""The hooked model: TransformerLens's surface on Hugging Face's modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformers import ProcessorMixin

from mechvlm.errors import FamilyError, LayerError, PromptError
from mechvlm.interventions import Intervention, listed
from mechvlm.models import families
from mechvlm.models.attention import listening
from mechvlm.models.checking import warn_of_hooks
from mechvlm.models.config import Config, device_of
from mechvlm.models.family import Layer, submodule
from mechvlm.models.generation import Generation, KeptLogits, check_kept, generate
from mechvlm.models.hooks import Hooks
from mechvlm.models.interop import Doors
from mechvlm.models.lowering import RunLike, Sources
from mechvlm.models.passes import setting_of, skipped, stopped
from mechvlm.models.points import Block, Norm, VisionEncoder, VisionProjector
from mechvlm.models.prompting import ImageLike, Prompter
from mechvlm.models.rowwise.base import Based
from mechvlm.models.rowwise.decoding import generate_many
from mechvlm.models.setting import Setting
from mechvlm.models.taps import Tapped, taps
from mechvlm.prompts import Prompt

__all__ = ["HookedVLM"]


class HookedVLM(Doors, Hooks):
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
        >>> here = "blocks.0.attn.hook_z"
        >>> logits, cache = vlm.run_with_cache(prompt, names_filter=here)
        >>> cache[here].shape[1] == prompt.layout.n
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
        config: Any = self.hf_model.config
        submodule(hf_model, (self.family.language_model,))  # refuses a bare backbone
        if not isinstance(processor, ProcessorMixin):
            raise FamilyError(
                f"the processor is a {type(processor).__name__}; wanted the model's"
                " whole processor, as AutoProcessor.from_pretrained loads it."
            )
        names = self.family.backbones[config.text_config.model_type]

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
            tuple(module for module in self.modules() if isinstance(module, HookPoint)),
            self.hook_embed,
            tuple(self._blocks),
            self.ln_final,
            self.vision_encoder,
            self.vision_projector,
            encoder,
            self.hf_model.get_submodule(self.family.projector),
            config.text_config,
        )
        self.setup()

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
        given: Prompt | Tensor,
        *,
        prompt: Prompt | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        return_type: Literal["logits"] = "logits",
    ) -> Float[Tensor, "1 position vocab_or_d_model"]:
        """Logits of a prompt, or of a residual stream that enters a layer.

        Args:
            given: A prompt; or, with `start_at_layer`, the stream that enters there,
                `[1 position d_model]`.
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
        if stop is not None and stop < start:
            raise LayerError(
                f"stop_at_layer={stop} lies before start_at_layer={start}."
            )
        language_model = self._language_model
        with skipped(language_model, start), taps(self.tapped):
            if stop is not None:
                return stopped(language_model, stop, lambda: self.hf_model(**inputs))
            logits: Tensor = self.hf_model(**inputs).logits
            return logits

    def reads(self, prompt: Prompt) -> Bool[Tensor, "layer position position"]:
        """Whether a position (second axis) may attend to another (third), per layer."""
        reads = self.setting(prompt).reads
        return torch.stack([reads.mask(layer) for layer in range(reads.n_layers)])

    def setting(self, prompt: Prompt) -> Setting:
        """What every layer is told of a prompt's positions; no layer is run."""
        shape = 1, prompt.layout.n, self.cfg.d_model
        blank = torch.zeros(shape, dtype=self.cfg.dtype, device=self.cfg.device)
        inputs, _ = self._inputs(blank, prompt, 0)
        with listening(self.hf_model.config.text_config, {}):
            run = lambda: self.hf_model(**inputs)  # noqa: E731
            return setting_of(self._language_model, run, prompt.layout.n)

    @property
    def has_hooks(self) -> bool:
        """Whether a function waits on a hook point, or on a module behind them."""
        if any(point.fwd_hooks or point.bwd_hooks for point in self.tapped.points):
            return True
        head = self.hf_model.get_submodule(self.family.head)
        modules = (*self._language_model.modules(), head)
        return any(
            not _captures(function)
            for each in modules
            for hooks in (each._forward_hooks, each._forward_pre_hooks)
            for function in hooks.values()
        )

    @torch.no_grad()
    def generate(
        self,
        prompt: Prompt | Based,
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
            prompt: The prompt to continue, or its `base_run`.
            max_new_tokens: Most tokens to add; the end-of-sequence token ends earlier.
            interventions: All applied at once, in order. Positions from
                `prompt.layout.n` on are the generated tokens fed back in.
            runs: Recorded runs by the names that the interventions use.
            vectors: Vectors by the names that the interventions use.

        Raises:
            InterventionError: An intervention means nothing here.
        """
        done = _tuple(interventions)
        if isinstance(prompt, Prompt):
            sources = Sources(runs or {}, vectors or {})
            return generate(self, prompt, max_new_tokens, done, sources)
        return self.generate_many(
            prompt,
            [done],
            max_new_tokens=max_new_tokens,
            runs=runs,
            vectors=vectors,
            progress=False,
        )[0]

    def generate_many(
        self,
        prompt: Prompt | Based,
        interventions: Sequence[Intervention],
        *,
        max_new_tokens: int = 20,
        runs: Mapping[str, RunLike] | None = None,
        vectors: Mapping[str, Tensor] | None = None,
        logits: KeptLogits = "all",
        batch_tokens: int | None = None,
        progress: str | bool | None = None,
    ) -> list[Generation]:
        """Continue a prompt greedily once per intervention, all of them together.

        The answers are those of `generate` with each intervention by itself. The prompt
        is run once; each intervention computes only what it changes of it, and then all
        of them generate in step.

        Args:
            prompt: The prompt to continue, or its `base_run`, which is then not run
                again.
            interventions: A list with one answer each. A tuple is one of them: several
                things done at once, in order.
            max_new_tokens: Most tokens to add; the end-of-sequence token ends earlier.
            runs: Recorded runs by the names that the interventions use.
            vectors: Vectors by the names that the interventions use.
            logits: "all" keeps the logits of every step, [new vocab] for each answer;
                "first" only those that the first new token was chosen from, [1 vocab].
                Long answers in many arms fill the memory otherwise.
            batch_tokens: Most rows to compute at once; None takes what fits well into
                free memory.
            progress: None shows a progress bar in a terminal for work of over a second;
                words stand in front of it; False shows none.

        Returns:
            One generation per intervention.

        Raises:
            InterventionError: An intervention or `logits` means nothing here.
            EngineError: The base run is another model's, or an older one's.

        Example:
            >>> import mechvlm as mv
            >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0)
            >>> prompt = vlm.prompt("describe the image .", scene.image)
            >>> at = prompt.layout
            >>> new = mv.Positions.of(range(at.n, at.n + 4))
            >>> blind = [mv.Knockout(range(l, 8), new, at["image"]) for l in (0, 4)]
            >>> len(vlm.generate_many(prompt, [mv.NOTHING, *blind], max_new_tokens=5))
            3
        """
        check_kept(logits)
        asked = prompt if isinstance(prompt, Prompt) else prompt.prompt
        base = None if isinstance(prompt, Prompt) else prompt.base
        sources = Sources(runs or {}, vectors or {})
        arms = listed(interventions)
        if self.has_hooks:
            warn_of_hooks(stacklevel=3)
            return [
                generate(self, asked, max_new_tokens, x, sources, logits=logits)
                for x in arms
            ]
        return generate_many(
            self,
            asked,
            base,
            arms,
            max_new_tokens,
            sources,
            logits=logits,
            batch_tokens=batch_tokens,
            progress=progress,
        )

    # -- inside ---------------------------------------------------------------------

    def _apply(self, fn: Any, recurse: bool = True) -> HookedVLM:
        """Move or convert, as `to` does, and say so in `cfg`."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        model = self.hf_model
        self.cfg = replace(self.cfg, dtype=model.dtype, device=device_of(model))
        return self

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
            wanted = (1, prompt.layout.n, self.cfg.d_model)
            if tuple(given.shape) != wanted:
                raise PromptError(
                    f"a stream of shape {tuple(given.shape)} was given; this prompt and"
                    f" model want {wanted}, [1 position d_model]."
                )
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

    @property
    def _blocks(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]  # it holds nothing else


def _captures(function: object) -> bool:
    """Whether a hook is one that transformers leaves behind and that sleeps since.

    A forward that was once asked for attentions or hidden states installs them for
    good; they only act while such a forward runs.
    """
    return (
        isinstance(function, FunctionType)
        and function.__module__ == "transformers.utils.output_capturing"
    )


def _tuple(interventions: object) -> tuple[Intervention, ...]:
    if isinstance(interventions, Sequence):
        return tuple(interventions)
    return (interventions,)  # type: ignore[return-value]  # a single one
