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
IMAGE_WORDS = {"<boi>": 21, "<eoi>": 22}
FEEDS = ("\n", "\n\n")
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


WINDOW = 12
"""Positions that a windowed layer sees: fewer than a prompt has."""


@dataclass(frozen=True)
class Kind:
    """One combination of backbone, vision tower and what holds them together."""

    backbone: str
    kv_heads: int
    tower: str
    family: str = "llava"


KINDS = (
    Kind("llama", 4, "clip"),
    Kind("llama", 2, "siglip"),
    Kind("mistral", 2, "clip"),
    Kind("qwen2", 2, "siglip"),
    Kind("qwen2", 4, "clip"),
)
GEMMA_KINDS = (
    Kind("gemma2", 2, "clip"),
    Kind("gemma3_text", 2, "siglip", "gemma3"),
    Kind("gemma", 1, "siglip", "paligemma"),
    Kind("gemma2", 2, "siglip", "paligemma"),
)
EVERY_KIND = (*KINDS, *GEMMA_KINDS)

# Heads of another width than d_model / n_heads, as published Gemmas have them.
GEMMA = TEXT | {"vocab_size": 1280, "head_dim": 24, "tie_word_embeddings": True}
GEMMA |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LAYERS = ("sliding_attention", "full_attention", "sliding_attention")


def text_config(kind: Kind) -> tf.PreTrainedConfig:
    """Config of the language backbone; a window is narrower than a prompt."""
    text = TEXT | {"num_key_value_heads": kind.kv_heads}
    gemma = GEMMA | {"num_key_value_heads": kind.kv_heads}
    window = {"sliding_window": WINDOW, "query_pre_attn_scalar": 8}
    if kind.backbone == "mistral":
        return tf.MistralConfig(**text, sliding_window=WINDOW)
    if kind.backbone == "qwen2":
        return tf.Qwen2Config(**text)
    if kind.backbone == "gemma":
        return tf.GemmaConfig(**gemma)
    if kind.backbone == "gemma2":
        caps = {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 2.0}
        return tf.Gemma2Config(**gemma, **window, **caps)
    if kind.backbone == "gemma3_text":
        layers = ["sliding_attention", *LAYERS]
        return tf.Gemma3TextConfig(**gemma, **window, layer_types=layers)
    return tf.LlamaConfig(**text)


def model_config(kind: Kind) -> tf.PreTrainedConfig:
    """Config of the whole model."""
    text, image_token = text_config(kind), SPECIAL.index("<image>")
    if kind.family == "gemma3":
        # The projector averages 2 x 2 patches, so the image has as many positions.
        vision = tf.SiglipVisionConfig(**VISION | {"patch_size": PATCH // 2})
        return tf.Gemma3Config(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=(SIDE // PATCH) ** 2,
            image_token_index=image_token,
            boi_token_index=IMAGE_WORDS["<boi>"],
            eoi_token_index=IMAGE_WORDS["<eoi>"],
        )
    if kind.family == "paligemma":
        return tf.PaliGemmaConfig(
            text_config=text,
            vision_config=tf.SiglipVisionConfig(**VISION),
            image_token_index=image_token,
            projection_dim=TEXT["hidden_size"],
        )
    clip = kind.tower == "clip"
    return tf.LlavaConfig(
        text_config=text,
        vision_config=(tf.CLIPVisionConfig if clip else tf.SiglipVisionConfig)(
            **VISION
        ),
        image_token_index=image_token,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if clip else "full",
        image_seq_length=(SIDE // PATCH) ** 2,
    )


MODELS = {
    "llava": tf.LlavaForConditionalGeneration,
    "gemma3": tf.Gemma3ForConditionalGeneration,
    "paligemma": tf.PaliGemmaForConditionalGeneration,
}


def build(kind: Kind = KINDS[0], *, seed: int = 0, attention: str | None = None):
    """A random model and its processor; attention is sharp, so that it matters.

    Without a choice of `attention` the model has what transformers would load it with:
    SDPA, and eager where scores are capped.
    """
    config = model_config(kind)
    torch.manual_seed(seed)
    config._attn_implementation = attention or usual_attention(kind)
    model = MODELS[kind.family](config).eval()
    gemma = kind.backbone.startswith("gemma")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
                weight.normal_(0, 0.3)
            elif name.endswith("mm_input_projection_weight"):
                weight.normal_(0, 0.2)
            elif weight.ndim > 1 and "vision" not in name:
                weight.mul_(4)
            elif weight.ndim == 1 and "norm" in name:
                # Gemma's norms scale by one more than their weight.
                middle = 0 if gemma and "vision" not in name else 1
                weight.uniform_(middle - 0.5, middle + 0.5)
    return model, processor_of(kind)


def usual_attention(kind: Kind) -> str:
    """What transformers loads a model with."""
    return "eager" if kind.backbone == "gemma2" else "sdpa"


def processor_of(kind: Kind):
    """The real processor of a kind."""
    clip = kind.tower == "clip"
    if kind.family == "llava":
        return processor(clip=clip)
    if kind.family == "gemma3":
        from transformers.models.gemma3.image_processing_pil_gemma3 import (
            Gemma3ImageProcessorPil,
        )

        return tf.Gemma3Processor(
            image_processor=Gemma3ImageProcessorPil(
                size={"height": SIDE, "width": SIDE}
            ),
            tokenizer=tokenizer(
                line_feeds=True,
                image_token="<image>",
                boi_token="<boi>",
                eoi_token="<eoi>",
            ),
            image_seq_length=(SIDE // PATCH) ** 2,
            chat_template=TEMPLATE.replace("<image>", "<boi>"),
        )
    pixels = image_processor(clip=False)
    pixels.image_seq_length = (SIDE // PATCH) ** 2
    words = tokenizer(line_feeds=True, bos=False)
    return tf.PaliGemmaProcessor(image_processor=pixels, tokenizer=words)


def tokenizer(*, line_feeds: bool = False, bos: bool = True, **named: str):
    """A word-level tokenizer; `named` are special tokens under names of their own."""
    every = [*SPECIAL, *WORDS, *IMAGE_WORDS, *FEEDS]
    vocabulary = {word: i for i, word in enumerate(every)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        words.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    special = ["<image>", *(IMAGE_WORDS if named else ())]
    words.add_special_tokens([AddedToken(each, special=True) for each in special])
    if line_feeds:
        words.add_tokens([AddedToken(each, normalized=False) for each in FEEDS])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=named,
    )


def processor(*, clip: bool = True) -> tf.LlavaProcessor:
    """LLaVA's real processor over a word-level tokenizer."""
    return tf.LlavaProcessor(
        image_processor=image_processor(clip=clip),
        tokenizer=tokenizer(),
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


def ask(vlm, question: str, image: Image.Image | None = None):
    """A prompt with an image: in the chat template, or raw where there is none."""
    image = picture() if image is None else image
    if vlm.processor.chat_template is None:
        return vlm.prompt_raw(f"<image> {question}", image)
    return vlm.prompt(question, image)


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
