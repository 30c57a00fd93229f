"""Families: the geometry of every processor they understand, and what they refuse."""

import numpy as np
import pytest
import tiny
import torch
import transformers as tf
from PIL import Image

from mechvlm.errors import FamilyError, PromptError
from mechvlm.models import families
from mechvlm.models.families.gemma3 import GEMMA_3
from mechvlm.models.families.paligemma import PALIGEMMA
from mechvlm.models.hooked import HookedVLM


def padding_processor():
    """LLaVA's own image processor: pads to a square, then resizes."""
    from transformers.models.llava.image_processing_pil_llava import (
        LlavaImageProcessorPil,
    )

    side = tiny.SIDE
    return LlavaImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        do_pad=True,
        image_mean=[0.0] * 3,
    )


@pytest.mark.parametrize("size", [(80, 40), (40, 80), (61, 37), (32, 32)])
def test_padded_pictures_keep_their_geometry(size):
    """Oracle: a drawn strip pushed through the processor itself."""
    model, processor = tiny.build()
    processor.image_processor = padding_processor()
    vlm = HookedVLM(model, processor)
    width, height = size
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height // 2, : width // 3] = True
    drawn = Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))
    layout = vlm.prompt("what color ?", drawn).layout
    pixels = processor.image_processor(
        drawn, do_normalize=False, resample=Image.Resampling.BOX
    )["pixel_values"][0]
    side, patch = tiny.SIDE // tiny.PATCH, tiny.PATCH
    seen = np.asarray(pixels)[0].reshape(side, patch, side, patch).mean(axis=(1, 3))
    covered = layout.grids[0].coverage(mask)
    np.testing.assert_allclose(covered, seen, atol=0.08)
    assert covered.max() > 0.3
    assert len(layout.region(mask)) == (covered > 0).sum()


def test_a_processor_that_does_more_is_refused():
    model, processor = tiny.build()
    processor.image_processor.do_reflect = True
    vlm = HookedVLM(model, processor)
    with pytest.raises(FamilyError, match=r"do_reflect.*moves pixels"):
        vlm.prompt("what color ?", tiny.picture())


def test_a_bare_backbone_or_tokenizer_is_refused():
    model, processor = tiny.build()
    with pytest.raises(FamilyError, match=r"no module at model\.language_model"):
        HookedVLM(model.model, processor)
    with pytest.raises(FamilyError, match="wanted the model's whole processor"):
        HookedVLM(model, processor.tokenizer)


def test_cfg_follows_the_model_that_is_moved():
    vlm = HookedVLM(*tiny.build())
    assert vlm.cfg.dtype == torch.float32
    vlm.to(torch.float64)
    assert vlm.cfg.dtype == torch.float64
    assert vlm(vlm.prompt("what color ?", tiny.picture())).dtype == torch.float64


def test_a_stream_of_another_shape_is_refused():
    vlm = HookedVLM(*tiny.build())
    prompt = vlm.prompt("what color ?", tiny.picture())
    stream = vlm(prompt, stop_at_layer=2)
    with pytest.raises(PromptError, match="a stream of shape"):
        vlm(stream.repeat(2, 1, 1), prompt=prompt, start_at_layer=2)
    with pytest.raises(PromptError, match="a stream of shape"):
        vlm(stream[:, 1:], prompt=prompt, start_at_layer=2)
    with pytest.raises(IndexError, match="stop_at_layer=1 lies before"):
        vlm(stream, prompt=prompt, start_at_layer=2, stop_at_layer=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", tiny.EVERY_KIND, ids=str)
def test_an_eager_model_stays_eager_to_the_bit(kind, dtype):
    """The base run and a run that is read must be of one kind, in every layer."""
    vlm = HookedVLM(*tiny.build(kind, attention="eager")).to(dtype)
    prompt = tiny.ask(vlm, "what color is the cat ?")
    here = "blocks.1.attn.hook_attn_scores"
    with torch.no_grad():
        plain = vlm.hf_model(**prompt.inputs, use_cache=False).logits
        read = vlm.run_with_hooks(prompt, fwd_hooks=[(here, lambda x, hook: x)])
    assert torch.equal(read, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_a_cut_of_nothing_changes_little(dtype):
    """Explicit attention beside SDPA: no more than the rounding of the output."""
    vlm = HookedVLM(*tiny.build()).to(dtype)
    prompt = vlm.prompt("what color is the cat ?", tiny.picture())
    here = "blocks.1.attn.hook_attn_scores"
    with torch.no_grad():
        plain = vlm(prompt)
        read = vlm.run_with_hooks(prompt, fwd_hooks=[(here, lambda x, hook: x)])
    unit = torch.finfo(dtype).eps * plain.abs().max()
    assert (read - plain).abs().max() <= 2 * unit


VICUNA = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "a/vicuna",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.36.0.dev0",
    "vision_config": {
        "image_size": 336,
        "model_type": "clip_vision_model",
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


def test_the_keys_of_published_checkpoints_are_understood():
    """Those of LLaVA-1.5 as its checkpoints carry them, old and idle ones included."""
    config = tf.LlavaConfig(**VICUNA)
    family = families.find(config)
    assert family.name == "llava"
    assert family.grid_shape(config) == (24, 24)
    assert family.image_token(config) == 32000
    with pytest.raises(FamilyError, match="use_tiles"):
        families.find(tf.LlavaConfig(**VICUNA, use_tiles=True))


SIGLIP = {
    "hidden_size": 1152,
    "image_size": 896,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "num_image_tokens": 256,
    "patch_size": 14,
    "projection_dim": 2048,
    "projector_hidden_act": "gelu_fast",
    "torch_dtype": "float32",
    "vision_use_head": False,
}
PUBLISHED_GEMMA3 = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "text_config": {
        "cache_implementation": "hybrid",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
    },
    "torch_dtype": "bfloat16",
    "vision_config": SIGLIP,
}
PUBLISHED_PALIGEMMA = {
    "_vocab_size": 257152,
    "architectures": ["PaliGemmaForConditionalGeneration"],
    "bos_token_id": 2,
    "eos_token_id": 1,
    "hidden_size": 2048,
    "ignore_index": -100,
    "image_token_index": 257152,
    "pad_token_id": 0,
    "projection_dim": 2048,
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "model_type": "gemma",
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_image_tokens": 256,
        "num_key_value_heads": 1,
        "torch_dtype": "float32",
        "vocab_size": 257216,
    },
    "torch_dtype": "float32",
    "transformers_version": "4.41.0.dev0",
    "vision_config": SIGLIP | {"image_size": 224},
}
GEMMA2_TEXT = {
    "architectures": ["Gemma2ForCausalLM"],
    "cache_implementation": "hybrid",
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "model_type": "gemma2",
    "num_image_tokens": 256,
    "vocab_size": 257216,
}


@pytest.mark.parametrize(
    ("made", "keys", "family", "side"),
    [
        (tf.Gemma3Config, PUBLISHED_GEMMA3, GEMMA_3, 16),
        (tf.PaliGemmaConfig, PUBLISHED_PALIGEMMA, PALIGEMMA, 16),
        (
            tf.PaliGemmaConfig,
            PUBLISHED_PALIGEMMA | {"text_config": GEMMA2_TEXT},
            PALIGEMMA,
            16,
        ),
    ],
)
def test_published_configs_are_understood_and_others_are_not(made, keys, family, side):
    config = made(**keys)
    assert families.find(config) is family
    assert family.grid_shape(config) == (side, side)
    assert family.image_token(config) == keys["image_token_index"]
    for part in ("text_config", "vision_config"):
        odd = keys | {part: keys[part] | {"use_magic": True}}
        with pytest.raises(FamilyError, match=r"has keys .*use_magic"):
            families.find(made(**odd))
    with pytest.raises(FamilyError, match=r"has keys .*use_magic"):
        families.find(made(**keys, use_magic=True))
