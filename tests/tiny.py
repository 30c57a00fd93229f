"""Tiny random checkpoints of the real architectures, made in the tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers as tf
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

WORDS = [
    "USER",
    "ASSISTANT",
    "SYSTEM",
    ":",
    ".",
    "?",
    "what",
    "color",
    "is",
    "the",
    "a",
    "cat",
    "dog",
    "red",
    "blue",
    "see",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
SIDE, PATCH = 32, 8

TEXT = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}


@dataclass(frozen=True)
class Kind:
    """One combination of backbone and vision tower."""

    backbone: str
    kv_heads: int
    tower: str


KINDS = (
    Kind("llama", 4, "clip"),
    Kind("llama", 2, "siglip"),
    Kind("mistral", 2, "clip"),
    Kind("qwen2", 2, "siglip"),
    Kind("qwen2", 4, "clip"),
)


def text_config(kind: Kind) -> tf.PreTrainedConfig:
    """Config of the language backbone; Mistral's window is narrower than a prompt."""
    text = TEXT | {"num_key_value_heads": kind.kv_heads}
    if kind.backbone == "mistral":
        return tf.MistralConfig(**text, sliding_window=12)
    if kind.backbone == "qwen2":
        return tf.Qwen2Config(**text)
    return tf.LlamaConfig(**text)


def build(kind: Kind = KINDS[0], *, seed: int = 0, attention: str = "sdpa"):
    """A random LLaVA and its processor; attention is sharp, so that it matters."""
    clip = kind.tower == "clip"
    vision = (tf.CLIPVisionConfig if clip else tf.SiglipVisionConfig)(**VISION)
    config = tf.LlavaConfig(
        text_config=text_config(kind),
        vision_config=vision,
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if clip else "full",
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    torch.manual_seed(seed)
    config._attn_implementation = attention
    model = tf.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
                weight.normal_(0, 0.3)
            elif weight.ndim > 1 and "vision" not in name:
                weight.mul_(4)
            elif weight.ndim == 1 and "norm" in name:
                weight.uniform_(0.5, 1.5)
    return model, processor(clip=clip)


def processor(*, clip: bool = True) -> tf.LlavaProcessor:
    """The real processor over a word-level tokenizer."""
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken("<image>", special=True)])
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )
    return tf.LlavaProcessor(
        image_processor=image_processor(clip=clip),
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default" if clip else "full",
        num_additional_image_tokens=1 if clip else 0,
        chat_template=TEMPLATE,
    )


def image_processor(*, clip: bool = True):
    """CLIP resizes the short side and crops; SigLIP squeezes to a square."""
    if clip:
        from transformers.models.clip.image_processing_pil_clip import (
            CLIPImageProcessorPil,
        )

        return CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        )
    from transformers.models.siglip.image_processing_pil_siglip import (
        SiglipImageProcessorPil,
    )

    return SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})


def picture(seed: int = 0, width: int = 40, height: int = 32) -> Image.Image:
    """A picture of noise."""
    torch.manual_seed(seed)
    noise = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ 'SYSTEM : ' }}"
    "{% elif m['role'] == 'user' %}{{ 'USER : ' }}{% else %}{{ 'ASSISTANT : ' }}"
    "{% endif %}{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "{{ '<image> ' }}{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT :' }}{% endif %}"
)
