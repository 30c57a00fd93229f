"""The hook points of one layer and its weights, under TransformerLens's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mechvlm.models.attention import AttentionPoints, wide
from mechvlm.models.family import Layer

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "Norm",
    "VisionEncoder",
    "VisionProjector",
    "heard",
]


def _bias(linear: nn.Linear) -> Float[Tensor, " out"]:
    """Bias of a layer; zero where it has none."""
    bias = cast("Tensor | None", linear.bias)
    return linear.weight.new_zeros(linear.out_features) if bias is None else bias


def heard(point: HookPoint, value: Tensor) -> tuple[Tensor, bool]:
    """The value after its hook point, and whether a hook changed it, even in place.

    Inference tensors do not count their changes and are taken as changed.
    """
    before = None if value.is_inference() else value._version
    new = point(value)
    if new is not value or before is None:
        return new, True
    return new, value._version != before


class Norm(nn.Module):
    """Hook points of an RMS norm; calling it applies the norm."""

    def __init__(self, norm: nn.Module, eps: float, offset: float) -> None:
        """Wrap a norm of the model; its weight plus `offset` scales."""
        super().__init__()
        self.hook_scale = HookPoint()  # [batch position 1]
        self.hook_normalized = HookPoint()  # [batch position d_model]
        self.eps, self.offset = eps, offset
        self._norm = (norm,)

    @property
    def norm(self) -> nn.Module:
        """The model's own norm."""
        return self._norm[0]

    @property
    def w(self) -> Float[Tensor, " d_model"]:
        """Scale of each direction."""
        weight: Tensor = self.norm.get_parameter("weight")
        return weight + self.offset if self.offset else weight

    def forward(self, residual: Tensor) -> Tensor:
        """Apply the model's own norm."""
        normed: Tensor = self.norm(residual)
        return normed

    def tapped(self, residual: Tensor, output: Tensor) -> Tensor:
        """The norm's output after its hook points; untouched, the output itself."""
        stream = residual.float()
        scale = (stream.pow(2).mean(dim=-1, keepdim=True) + self.eps).sqrt()
        new_scale, changed = heard(self.hook_scale, scale)
        normalized = (stream / new_scale).to(residual.dtype)
        new, changed_too = heard(self.hook_normalized, normalized)
        if not changed and not changed_too:
            return output
        # In fp32, as Gemma scales: one more than a 16-bit weight is not 16-bit. For the
        # others it is the same, since fp32 holds a product of two 16-bit numbers.
        scaled = wide(new) * (wide(self.norm.get_parameter("weight")) + self.offset)
        return scaled.to(residual.dtype)


class Attention(nn.Module):
    """Hook points and weights of one layer's attention."""

    def __init__(self, layer: Layer, d_head: int) -> None:
        """Wrap the attention of a decoder layer."""
        super().__init__()
        self.hook_q = HookPoint()  # [batch position head d_head]
        self.hook_k = HookPoint()  # [batch position kv_head d_head]
        self.hook_v = HookPoint()  # [batch position kv_head d_head]
        self.hook_rot_q = HookPoint()  # [batch position head d_head]
        self.hook_rot_k = HookPoint()  # [batch position kv_head d_head]
        self.hook_attn_scores = HookPoint()  # [batch head target source]
        self.hook_pattern = HookPoint()  # [batch head target source]
        self.hook_z = HookPoint()  # [batch position head d_head]
        self.hook_result = HookPoint()  # [batch position head d_model]
        self._layer, self._d_head = layer, d_head

    @property
    def inner(self) -> AttentionPoints:
        """The hook points that fire between the projections."""
        points = self.hook_rot_q, self.hook_rot_k
        return AttentionPoints(*points, self.hook_attn_scores, self.hook_pattern)

    def _into_heads(self, linear: nn.Linear) -> Float[Tensor, "head d_model d_head"]:
        split: Tensor = linear.weight.unflatten(0, (-1, self._d_head))
        return split.transpose(1, 2)

    def _bias(self, linear: nn.Linear) -> Float[Tensor, "head d_head"]:
        split: Tensor = _bias(linear).unflatten(0, (-1, self._d_head))
        return split

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """Query weights."""
        return self._into_heads(self._layer.q)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        """Key weights, one per key-value head."""
        return self._into_heads(self._layer.k)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        """Value weights, one per key-value head."""
        return self._into_heads(self._layer.v)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Output weights."""
        split: Tensor = self._layer.o.weight.T.unflatten(0, (-1, self._d_head))
        return split

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        """Query bias; zero where the model has none."""
        return self._bias(self._layer.q)

    @property
    def b_K(self) -> Float[Tensor, "kv_head d_head"]:
        """Key bias; zero where the model has none."""
        return self._bias(self._layer.k)

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"]:
        """Value bias; zero where the model has none."""
        return self._bias(self._layer.v)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        """Output bias; zero where the model has none."""
        return _bias(self._layer.o)


class MLP(nn.Module):
    """Hook points and weights of one layer's gated MLP."""

    def __init__(self, layer: Layer) -> None:
        """Wrap the MLP of a decoder layer."""
        super().__init__()
        self.hook_pre = HookPoint()  # [batch position d_mlp], before the activation
        self.hook_pre_linear = HookPoint()  # [batch position d_mlp]
        self.hook_post = HookPoint()  # [batch position d_mlp]
        self._layer = layer

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"]:
        """Weights into the activation."""
        return self._layer.gate.weight.T

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        """Weights into the linear side."""
        return self._layer.up.weight.T

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """Output weights."""
        return self._layer.down.weight.T

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """Bias of the linear side; zero where the model has none."""
        return _bias(self._layer.up)

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Output bias; zero where the model has none."""
        return _bias(self._layer.down)


class Block(nn.Module):
    """Hook points and weights of one decoder layer."""

    def __init__(
        self, layer: Layer, d_head: int, norm: Callable[[nn.Module], Norm]
    ) -> None:
        """Wrap a decoder layer; `norm` wraps its norms."""
        super().__init__()
        self.hook_resid_pre = HookPoint()  # [batch position d_model], as all below
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()
        self.ln1, self.ln2 = norm(layer.ln1), norm(layer.ln2)
        self.attn = Attention(layer, d_head)
        self.mlp = MLP(layer)
        self.layer = layer


class _EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hook_resid_pre = HookPoint()  # [image patch d_vision]
        self.hook_resid_post = HookPoint()  # [image patch d_vision]


class VisionEncoder(nn.Module):
    """Hook points of the vision tower's layers."""

    def __init__(self, n_layers: int) -> None:
        """One pair of hook points per layer."""
        super().__init__()
        self.encoder_layers = nn.ModuleList(_EncoderLayer() for _ in range(n_layers))

    @property
    def layers(self) -> list[_EncoderLayer]:
        """The layers' hook points, typed."""
        return cast("list[_EncoderLayer]", list(self.encoder_layers))


class VisionProjector(nn.Module):
    """Hook points before and after the projector."""

    def __init__(self) -> None:
        """Its two hook points."""
        super().__init__()
        self.hook_in = HookPoint()  # [image patch d_vision]
        self.hook_out = HookPoint()  # [image patch d_model]
