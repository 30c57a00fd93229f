"""What one family of architectures looks like from outside, as a value.

Everything that this package must know of an architecture stands in one `Family`; a
new architecture is a new value, not a subclass and not an `if`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from mechvlm.errors import FamilyError
from mechvlm.layout import Box

__all__ = ["Decoder", "Family", "Frame", "Layer", "Tower", "submodule"]

HFConfig = Any
"""A Hugging Face config: its keys differ by class, so it is read at this door only."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """Names of the parts of one decoder layer, and the form of its norms.

    Attributes:
        attn: Self-attention; `q`, `k`, `v` and `o` are its projections.
        mlp: Gated MLP; `gate`, `up` and `down` are its projections.
        ln1: Norm before the attention.
        ln2: Norm before the MLP.
        attn_out: Module whose output the attention adds to the stream; where a norm
            stands behind the attention, that norm.
        mlp_out: The same of the MLP.
        norm_eps: Attribute of a norm that holds its epsilon.
        norm_offset: What is added to a norm's weight before it scales (Gemma: 1).
        act: Config key that names the MLP's activation.
        accepts: Config keys that are understood besides those of the config's class.
    """

    attn: str = "self_attn"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    mlp: str = "mlp"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    ln1: str = "input_layernorm"
    ln2: str = "post_attention_layernorm"
    attn_out: str = "self_attn"
    mlp_out: str = "mlp"
    norm_eps: str = "variance_epsilon"
    norm_offset: float = 0.0
    act: str = "hidden_act"
    accepts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Layer:
    """The Hugging Face modules of one decoder layer."""

    attn: nn.Module
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    mlp: nn.Module
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    ln1: nn.Module
    ln2: nn.Module
    attn_out: nn.Module
    mlp_out: nn.Module
    whole: nn.Module

    @classmethod
    def of(cls, module: nn.Module, names: Decoder) -> Layer:
        """Find the parts of a decoder layer by the family's names."""
        parts = [f.name for f in fields(cls) if f.name != "whole"]
        found = {p: module.get_submodule(str(_read(names, p))) for p in parts}
        return cls(**found, whole=module)  # type: ignore[arg-type]  # found by name


def _read(value: object, attribute: str) -> object:
    """One attribute of a value whose names are data, as a family's are."""
    return getattr(value, attribute)


@dataclass(frozen=True, slots=True)
class Tower:
    """What must be known of a vision tower.

    Attributes:
        layers: Paths of its encoder layers, newest transformers first.
        accepts: Config keys that are understood besides those of the config's class.
    """

    layers: tuple[str, ...]
    accepts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Frame:
    """Characters that a processor puts into a text by itself.

    Attributes:
        placeholder: What stands for an image in the caller's text.
        image: Token of one image position; it stands once per position.
        before: What goes before an image.
        after: What goes after it.
        end: What goes after the whole text.
    """

    placeholder: str
    image: str
    before: str = ""
    after: str = ""
    end: str = ""


def bare(processor: Any) -> Frame:
    """A processor that repeats the image token and adds nothing."""
    return Frame(str(processor.image_token), str(processor.image_token))


def uncapped(_: HFConfig) -> None:
    """Logits that leave the model as the unembedding made them."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of vision-language models.

    Attributes:
        name: Name of the family, as `vlm.cfg.family` shows it.
        architecture: Class name of the Hugging Face model.
        backbones: Language backbones by `text_config.model_type`.
        towers: Vision towers by `vision_config.model_type`.
        language_model: Path of the language backbone; its `layers`, `norm` and
            `embed_tokens` stand below it.
        head: Path of the unembedding.
        vision_tower: Path of the vision tower.
        projector: Path of the projector.
        pixels: Processor outputs that hold the image.
        accepts: Config keys that this package understands, besides the common ones.
        image_token: Token id of the image placeholder, from the config.
        grid_shape: Rows and columns of one image's tokens, from the config.
        seen: The rectangle of an original image (width, height) that reaches the
            vision tower, from the image processor.
        softcap: Bound c of `c * tanh(logits / c)`, which the whole model puts on the
            unembedding's logits; None where it does not.
        frame: What the processor adds to a text, from the processor.
        fills: What a position of new text has in each processor output that is given
            per position, besides ids, mask and position ids.
        unused: Processor outputs that only training needs.
        needs_image: Whether the processor refuses a text without an image.
    """

    name: str
    architecture: str
    backbones: Mapping[str, Decoder]
    towers: Mapping[str, Tower]
    language_model: str = "model.language_model"
    head: str = "lm_head"
    vision_tower: str = "model.vision_tower"
    projector: str = "model.multi_modal_projector"
    pixels: frozenset[str] = frozenset({"pixel_values"})
    accepts: frozenset[str]
    image_token: Callable[[HFConfig], int]
    grid_shape: Callable[[HFConfig], tuple[int, int]]
    seen: Callable[[Any, tuple[int, int]], Box]
    softcap: Callable[[HFConfig], float | None] = uncapped
    frame: Callable[[Any], Frame] = bare
    fills: Mapping[str, int] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()
    needs_image: bool = False

    def backbone(self, config: HFConfig) -> Decoder:
        """The language backbone's decoder layers."""
        return self.backbones[config.text_config.model_type]

    def tower(self, config: HFConfig) -> Tower:
        """The vision tower."""
        return self.towers[config.vision_config.model_type]

    def check_config(self, config: HFConfig) -> None:
        """Refuse a config with a part or a key that is not understood.

        Raises:
            FamilyError: A backbone, a vision tower or a config key is unknown.
        """
        _known("language backbone", config.text_config.model_type, self.backbones)
        _known("vision tower", config.vision_config.model_type, self.towers)
        self._check_keys("config", config, self.accepts)
        text, vision = config.text_config, config.vision_config
        self._check_keys(text.model_type, text, self.backbone(config).accepts)
        self._check_keys(vision.model_type, vision, self.tower(config).accepts)

    def _check_keys(self, what: str, config: HFConfig, more: frozenset[str]) -> None:
        known = set(type(config)().to_dict()) | more | LEGACY
        unknown = sorted(set(config.to_dict()) - known)
        if unknown:
            raise FamilyError(
                f"the {what} of this {self.architecture} has keys that family"
                f" {self.name!r} does not understand: {unknown}. They may change what"
                " the model computes, so it is refused; understood are"
                f" {sorted(known)}."
            )


LEGACY = frozenset(
    {
        "_attn_implementation_autoset",
        "_name_or_path",
        "bos_token_id",
        "eos_token_id",
        "ignore_index",
        "pad_token_id",
        "pretraining_tp",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "vocab_size",
    }
)
"""Keys of older checkpoints that have no effect on a forward pass."""


def _known(what: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        raise FamilyError(
            f"{what} {name!r} is not known here; known are {', '.join(known)}."
        )


def submodule(model: nn.Module, paths: tuple[str, ...]) -> nn.Module:
    """The first of several possible places of a module that exists.

    Raises:
        FamilyError: None of them does.
    """
    for path in paths:
        try:
            return model.get_submodule(path)
        except AttributeError:
            continue
    raise FamilyError(
        f"{type(model).__name__} has no module at {', '.join(paths)}. Is this version"
        " of transformers older or newer than the supported range?"
    )
