"""The doors to other libraries' models: TransformerLens's own two."""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

from mechvlm.errors import InteropError
from mechvlm.models.vocabulary import Vocabulary
from mechvlm.models.weights import Weights

__all__ = ["Doors", "to_bridge", "to_hooked_transformer"]


@dataclass(frozen=True, slots=True)
class _Door:
    """A class of another library, and the versions of that library that have it.

    Attributes:
        makes: Name of the class.
        package: The library's name for pip.
        majors: Its major versions that have the class.
        install: What pip installs to get it.
    """

    makes: str
    package: str
    majors: range
    install: str

    def check(self) -> None:
        """Refuse an installed version that does not have the class."""
        installed = version(self.package)
        if int(installed.split(".")[0]) not in self.majors:
            raise InteropError.version(
                self.makes, self.package, installed, self.install
            )


_BRIDGE = _Door(
    "TransformerBridge", "transformer-lens", range(4, 5), "transformer-lens>=4,<5"
)
_HOOKED_TRANSFORMER = _Door(
    "HookedTransformer", "transformer-lens", range(3, 4), "transformer-lens==3.9.0"
)


class Doors(Weights, Vocabulary):
    """A hooked model as the models of other libraries."""

    def to_bridge(self) -> Any:
        """This model as TransformerLens 4's `TransformerBridge`; see `to_bridge`.

        Raises:
            InteropError: Another TransformerLens is installed, or it has no bridge for
                this architecture.
        """
        return to_bridge(self)

    def to_hooked_transformer(self) -> Any:
        """The language backbone as TransformerLens 3.9's `HookedTransformer`.

        See `to_hooked_transformer` for what it must be fed.

        Raises:
            InteropError: Another TransformerLens is installed, or a HookedTransformer
                cannot compute what this backbone does.
        """
        return to_hooked_transformer(self)


def to_bridge(vlm: Doors) -> Any:
    """TransformerLens's `TransformerBridge` around the same Hugging Face weights.

    A bridge puts its own modules into the model that it wraps, so it gets a copy of the
    module tree; the weights are not copied, both read the same memory. Neither the
    bridge's hooks nor its `enable_compatibility_mode` reach `vlm`; only writing into a
    weight in place does.

    Args:
        vlm: The hooked model.

    Returns:
        The bridge, with unprocessed weights and the processor in place. Call it with
        the prompt's inputs: `bridge(input_ids, pixel_values=..., attention_mask=...)`.
        Its `hook_embed` is the text's embedding before the image goes in; the merged
        sequence that `vlm` calls so is its `blocks.0.hook_resid_pre`.

    Raises:
        InteropError: TransformerLens is older than 4, or has no bridge for this
            architecture.
    """
    _BRIDGE.check()
    sources: Any = import_module("transformer_lens.model_bridge.sources")
    factory: Any = import_module(
        "transformer_lens.factories.architecture_adapter_factory"
    )
    architecture = vlm.family.architecture
    if architecture not in factory.SUPPORTED_ARCHITECTURES:
        raise InteropError(
            f"TransformerLens {version('transformer-lens')} has no bridge for"
            f" {architecture}. This model's own hooks need none."
        )
    model = _same_weights(vlm.hf_model)
    bridge = sources.build_bridge_from_module(
        model, architecture, hf_config=model.config, model_name=vlm.cfg.model_name
    )
    bridge.processor = vlm.processor
    _give_tokenizer(bridge, vlm)
    return bridge


def to_hooked_transformer(vlm: Doors) -> Any:
    """The language backbone as a real `HookedTransformer` with a copy of the weights.

    Nothing is folded or centred. It knows no images: feed it the merged sequence,
    `model(cache["hook_embed"], start_at_layer=0)` with the cache of a run of `vlm`,
    and every hook has the name and the value that it has in `vlm`. The copy is its
    own, since TransformerLens processes weights in place.

    Args:
        vlm: The hooked model.

    Returns:
        The model, on the same device and in the same dtype.

    Raises:
        InteropError: TransformerLens is not of version 3, or a HookedTransformer cannot
            compute what this backbone does (what that is, is named).
    """
    _HOOKED_TRANSFORMER.check()
    library: Any = import_module("transformer_lens")
    config = library.HookedTransformerConfig(**_legacy_config(vlm))
    with warnings.catch_warnings():
        # It was asked for by name, so that it ends with version 4 is no news.
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated")
        model = library.HookedTransformer(config)
    # Strictly, so that no parameter keeps what it was made with.
    model.load_state_dict(dict(model.named_buffers()) | _legacy_weights(vlm))
    _give_tokenizer(model, vlm)
    return model.eval()


def _same_weights(model: nn.Module) -> Any:
    """A copy of a module tree over the same weights; buffers are copied."""
    shared = {
        id(weight): nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
        for weight in model.parameters()
    }
    return deepcopy(model, shared)


def _give_tokenizer(model: Any, vlm: Doors) -> None:
    """Attach a copy of the tokenizer as it is.

    TransformerLens would load it again by its name to make it prepend BOS, which asks
    the network; it gets to know instead whether this one does.
    """
    tokenizer = deepcopy(vlm.tokenizer)
    tokenizer.padding_side = "right"
    ids = tokenizer("a")["input_ids"]
    model.cfg.tokenizer_prepends_bos = ids[:1] == [tokenizer.bos_token_id]
    model.tokenizer = tokenizer


# -- the language backbone as TransformerLens 3.9 describes it ----------------------

# Backbones whose whole computation the description below covers.
_DESCRIBED = frozenset({"llama", "mistral", "qwen2"})
# Their names mean the same function on both sides.
_ACTIVATIONS = frozenset({"gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"})


def _legacy_config(vlm: Doors) -> dict[str, Any]:
    """What HookedTransformerConfig is made with."""
    text = vlm.hf_model.config.text_config
    beyond = _beyond(vlm)
    if beyond:
        raise InteropError(
            "a HookedTransformer cannot compute what this language backbone does: "
            f"{'; '.join(beyond)}. This model's own hooks do."
        )
    same = (
        *("model_name", "n_layers", "d_model", "n_heads", "n_key_value_heads"),
        *("d_head", "d_mlp", "n_ctx", "eps", "act_fn", "dtype"),
        *("normalization_type", "final_rms", "gated_mlp", "use_attn_result"),
    )
    return {
        **{name: vars(vlm.cfg)[name] for name in same},
        "d_vocab": vlm.W_E.shape[0],
        "d_vocab_out": vlm.W_U.shape[1],
        "device": str(vlm.cfg.device),
        "init_weights": False,
        "positional_embedding_type": "rotary",
        **_rotary(text.rope_parameters),
        **_windows(text),
    }


def _beyond(vlm: Doors) -> list[str]:
    """What the backbone has that a HookedTransformer cannot describe."""
    text = vlm.hf_model.config.text_config
    blocks: list[Any] = list(vlm.blocks)
    found = []
    if text.model_type not in _DESCRIBED:
        return [f"backbone {text.model_type!r} (known: {sorted(_DESCRIBED)})"]
    if vlm.cfg.act_fn not in _ACTIVATIONS:
        found.append(f"activation {vlm.cfg.act_fn!r} (known: {sorted(_ACTIVATIONS)})")
    rope = text.rope_parameters
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        found.append(f"rotary embedding of type {rope['rope_type']!r}")
    if rope.get("partial_rotary_factor", 1) != 1:
        found.append("a rotary embedding of part of each head")
    if rope["rope_type"] == "linear" and _windows(text):
        found.append("a scaled rotary embedding in a sliding window")
    if any(
        linear.bias is not None
        for block in blocks
        for linear in (block.layer.gate, block.layer.up)
    ):
        found.append("biases inside the gated MLP")
    return found


def _rotary(rope: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding; its angles are scaled as the checkpoint says."""
    base = {"rotary_base": rope["rope_theta"]}
    if rope["rope_type"] == "linear":
        return {**base, "rotary_scaling_factor": rope["factor"]}
    if rope["rope_type"] == "llama3":
        return {
            **base,
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": rope["factor"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
        }
    return base


def _windows(text: Any) -> dict[str, Any]:
    """Layers that see only a window of positions; nothing where none does."""
    config = text.to_dict()
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if window is None:
        return {}
    # Without layer types (Mistral) the window holds in every layer.
    kinds = kinds or ["sliding_attention"] * text.num_hidden_layers
    types = ["local" if kind == "sliding_attention" else "global" for kind in kinds]
    if "local" not in types:
        return {}
    return {"use_local_attn": True, "window_size": window, "attn_types": types}


def _legacy_weights(vlm: Doors) -> dict[str, Tensor]:
    """The weights under a HookedTransformer's names; grouped heads have a `_`."""
    ln_final: Any = vlm.ln_final
    weights: dict[str, Tensor] = {
        "embed.W_E": vlm.W_E,
        "ln_final.w": ln_final.w,
        "unembed.W_U": vlm.W_U,
        "unembed.b_U": vlm.b_U,
    }
    blocks: list[Any] = list(vlm.blocks)
    for layer, block in enumerate(blocks):
        attn, mlp = block.attn, block.mlp
        of_layer = {
            **{"ln1.w": block.ln1.w, "ln2.w": block.ln2.w},
            **{"attn.W_Q": attn.W_Q, "attn._W_K": attn.W_K, "attn._W_V": attn.W_V},
            **{"attn.b_Q": attn.b_Q, "attn._b_K": attn.b_K, "attn._b_V": attn.b_V},
            **{"attn.W_O": attn.W_O, "attn.b_O": attn.b_O},
            **{"mlp.W_in": mlp.W_in, "mlp.W_gate": mlp.W_gate, "mlp.W_out": mlp.W_out},
            **{"mlp.b_in": mlp.b_in, "mlp.b_out": mlp.b_out},
        }
        weights |= {f"blocks.{layer}.{name}": w for name, w in of_layer.items()}
    return {name: weight.detach() for name, weight in weights.items()}
