"""The untrained network: a LLaVA with 81 image tokens and about two million weights."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from mechvlm.models.demo.vocabulary import BOS, EOS, IMAGE, PAD, WORDS
from mechvlm.scenes import IMAGE_PX

PATCH_PX = 8
SIDE = IMAGE_PX // PATCH_PX
N_PATCHES = SIDE**2
D_VISION = 96
_VISION_LAYERS = 4
_D_MODEL = 128
_LAYERS = 8
_HEADS = 4
_WRITES_TO_STREAM = ("o_proj", "down_proj", "out_proj", "fc2")


def build_network(seed: int) -> LlavaForConditionalGeneration:
    """A LLaVA with random weights.

    Args:
        seed: Of torch's generator.

    Returns:
        The Hugging Face model, float32, on the CPU.
    """
    torch.manual_seed(seed)
    network = LlavaForConditionalGeneration(_config())
    with torch.no_grad():
        for name, weight in network.named_parameters():
            _initialise(name, weight)
    network.generation_config = GenerationConfig(
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        do_sample=False,
        max_new_tokens=48,
    )
    return network


def _config() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=D_VISION,
        intermediate_size=2 * D_VISION,
        projection_dim=D_VISION,
        num_hidden_layers=_VISION_LAYERS,
        num_attention_heads=_HEADS,
        image_size=IMAGE_PX,
        patch_size=PATCH_PX,
        hidden_act="quick_gelu",
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=_D_MODEL,
        intermediate_size=352,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
    )
    return LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=IMAGE,
        image_seq_length=N_PATCHES,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def _initialise(name: str, weight: Tensor) -> None:
    """Fan-in scale: Hugging Face's fixed 0.02 is far too small for 128 dimensions."""
    if "position_embedding" in name:
        weight.normal_(0, 0.02)
        weight[1:] += _grid_waves(weight.shape[1])
    elif "class_embedding" in name:
        weight.normal_(0, 0.3)
    elif "patch_embedding" in name:
        weight.normal_(0, (3 * PATCH_PX**2) ** -0.5)
    elif weight.dim() == 2:
        scale = 0.5 if any(part in name for part in _WRITES_TO_STREAM) else 1.0
        weight.normal_(0, scale * weight.shape[1] ** -0.5)


def _grid_waves(width: int) -> Float[Tensor, "patch width"]:
    """2-D sine-cosine positions: attention to a neighbour becomes quick to learn."""
    quarter = width // 4
    rate = 16.0 ** -(torch.arange(quarter) / quarter)
    steps = torch.arange(SIDE).float()
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    waves = [
        wave(axis.reshape(-1, 1) * rate)
        for axis in (rows, columns)
        for wave in (torch.sin, torch.cos)
    ]
    return 0.5 * torch.cat(waves, dim=1)


def optimizer_of(weights: list[nn.Parameter], rate: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": 0.05},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
