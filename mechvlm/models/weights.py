"""The weights in TransformerLens's layout, stacked over layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import FactoredMatrix

from mechvlm.models.config import Config
from mechvlm.models.family import Family

__all__ = ["Weights"]


class Weights:
    """Weights of the language backbone, under TransformerLens's names.

    The embedding and the unembedding are views of the model's own tensors. Those that
    are stacked over layers are copies, made at each call; `vlm.blocks[l].attn.W_Q` and
    its like are views.
    """

    hf_model: Any
    cfg: Config
    family: Family
    blocks: nn.ModuleList
    ln_final: nn.Module
    to_single_token: Callable[[str], int]

    def _stacked(self, read: Callable[[Any], Tensor]) -> Tensor:
        return torch.stack([read(block) for block in self.blocks])

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Embedding of each token."""
        weight: Tensor = self.hf_model.get_input_embeddings().weight
        return weight

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding; the final norm's scale is not folded in."""
        weight: Tensor = self.hf_model.get_submodule(self.family.head).weight
        return weight.T

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """Bias of the unembedding; zero where the model has none."""
        bias: Tensor | None = self.hf_model.get_submodule(self.family.head).bias
        return self.W_U.new_zeros(self.W_U.shape[1]) if bias is None else bias

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query weights."""
        return self._stacked(lambda block: block.attn.W_Q)

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Key weights; a head that shares its keys with others has a copy."""
        return self._stacked(lambda block: self._each_head(block.attn.W_K))

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Value weights; a head that shares its values with others has a copy."""
        return self._stacked(lambda block: self._each_head(block.attn.W_V))

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Output weights."""
        return self._stacked(lambda block: block.attn.W_O)

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """MLP weights into the linear side."""
        return self._stacked(lambda block: block.mlp.W_in)

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """MLP weights into the activation."""
        return self._stacked(lambda block: block.mlp.W_gate)

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """MLP output weights."""
        return self._stacked(lambda block: block.mlp.W_out)

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """Query bias; zero where the model has none."""
        return self._stacked(lambda block: block.attn.b_Q)

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """Key bias of each head; zero where the model has none."""
        return self._stacked(lambda block: self._each_head(block.attn.b_K))

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """Value bias of each head; zero where the model has none."""
        return self._stacked(lambda block: self._each_head(block.attn.b_V))

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """Attention output bias; zero where the model has none."""
        return self._stacked(lambda block: block.attn.b_O)

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """MLP bias of the linear side; zero where the model has none."""
        return self._stacked(lambda block: block.mlp.b_in)

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """MLP output bias; zero where the model has none."""
        return self._stacked(lambda block: block.mlp.b_out)

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_K^T of each head, as a product of two factors."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of each head, as a product of two factors."""
        return FactoredMatrix(self.W_V, self.W_O)

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum of the output biases that have entered the stream before `layer`."""
        total = self.W_U.new_zeros(self.cfg.d_model)
        blocks: list[Any] = list(self.blocks)
        for block in blocks[:layer]:
            total = total + block.attn.b_O
            if include_mlp_biases:
                total = total + block.mlp.b_out
        return total + blocks[layer].attn.b_O if mlp_input else total

    def tokens_to_residual_directions(
        self, tokens: str | int | Tensor
    ) -> Float[Tensor, "*batch d_model"]:
        """Directions of the stream, over the final norm's scale, to these logits.

        The final norm's weight is in them, so that `ActivationCache.logit_attrs`, which
        divides by the scale alone, adds up to the logit.
        """
        ln_final: Any = self.ln_final
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        if isinstance(tokens, int) or tokens.numel() == 1:
            found = self.W_U[:, int(tokens)]
        else:
            found = self.W_U.T[tokens.to(self.W_U.device)]
        directions: Tensor = found * ln_final.w
        return directions

    def _each_head(self, per_group: Tensor) -> Tensor:
        shared = self.cfg.n_heads // len(per_group)
        return per_group.repeat_interleave(shared, dim=0)
