"""A random LLaVA of LLaVA-1.5's shape, and two pictures of the same question."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import mechvlm as mv

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PATCH = 14
SMALL_TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}


@dataclass(frozen=True)
class Geometry:
    """The numbers of a model and of a prompt.

    Attributes:
        side: Rows, and columns, of image tokens.
        before: Positions in front of the image, BOS among them.
        after: Positions behind it.
        tower: Sizes of the vision tower.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_mlp: int
    d_vocab: int
    side: int = 24
    before: int = 4
    after: int = 40
    tower: str = "small"
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def n(self) -> int:
        """Positions of a prompt."""
        return self.before + self.side**2 + self.after

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.d_model // self.n_heads

    @property
    def image(self) -> range:
        """Positions of the image."""
        return range(self.before, self.before + self.side**2)

    @property
    def text(self) -> range:
        """Positions behind the image."""
        return range(self.before + self.side**2, self.n)

    def box(self, row: int, col: int, rows: int = 6, cols: int = 6) -> tuple[int, ...]:
        """Positions of a box of image tokens, row by row."""
        corner = self.before + self.side * row + col
        return tuple(
            corner + self.side * i + j for i in range(rows) for j in range(cols)
        )


SIZES = {
    "tiny": Geometry(4, 128, 4, 344, 1000),
    "s": Geometry(12, 512, 8, 1376, 32000),
    "m": Geometry(24, 1024, 16, 2752, 32000),
    "7b": Geometry(32, 4096, 32, 11008, 32064, tower="clip-large"),
    "13b": Geometry(40, 5120, 40, 13824, 32064, tower="clip-large"),
}


@dataclass(frozen=True)
class Scene:
    """A model and two prompts that differ in the picture alone.

    Sweeps run `base`; what is patched in comes from `donor`.

    Attributes:
        base_embeds: What enters layer 0 of the base prompt, `[1 position d_model]`.
        donor_embeds: Likewise, of the donor.
    """

    geometry: Geometry
    vlm: mv.HookedVLM
    base: mv.Prompt
    donor: mv.Prompt
    base_embeds: Tensor
    donor_embeds: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean embedding of the base picture's tokens, `[d_model]`."""
        return self.base_embeds[0, list(self.geometry.image)].mean(dim=0)


@torch.no_grad()
def build(geometry: Geometry) -> Scene:
    """The model with its weights, the same in every process, and its two prompts."""
    model = random_llava(geometry)
    vlm = mv.HookedVLM(model, processor(geometry))
    base, donor = (
        vlm.prompt_raw(words(geometry), picture(geometry, i)) for i in (1, 2)
    )
    if base.layout.n != geometry.n or list(base.layout["image"]) != [*geometry.image]:
        raise RuntimeError(
            f"{base.layout.n} positions with image {base.layout['image']}: wanted"
            f" {geometry.n} with {geometry.image}"
        )
    embeds = [merged(model, prompt.inputs) for prompt in (base, donor)]
    return Scene(geometry, vlm, base, donor, *embeds)


def random_llava(geometry: Geometry) -> Any:
    """Random weights; attention is sharpened, so that interventions matter."""
    text = tf.LlamaConfig(
        hidden_size=geometry.d_model,
        intermediate_size=geometry.d_mlp,
        num_hidden_layers=geometry.n_layers,
        num_attention_heads=geometry.n_heads,
        num_key_value_heads=geometry.n_heads,
        vocab_size=geometry.d_vocab,
        max_position_embeddings=4096,
    )
    tower = CLIP_LARGE if geometry.tower == "clip-large" else SMALL_TOWER
    config = tf.LlavaConfig(
        text_config=text,
        vision_config=tf.CLIPVisionConfig(
            **tower, image_size=PATCH * geometry.side, patch_size=PATCH
        ),
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=geometry.side**2,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, geometry.dtype))
    try:
        with torch.device(geometry.device):
            model = tf.LlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    for layer in model.model.language_model.layers:
        attn = layer.self_attn
        for linear, factor in zip(
            (attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj),
            (4, 4, 2, 2),
            strict=True,
        ):
            linear.weight.data.mul_(factor)
    return model.requires_grad_(False)


def processor(geometry: Geometry) -> tf.LlavaProcessor:
    """The real processor over a tokenizer whose words are w5, w6, and so on."""
    vocabulary = {word: i for i, word in enumerate(SPECIAL)}
    vocabulary |= {f"w{i}": i for i in range(len(SPECIAL), geometry.d_vocab)}
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
    pixels = PATCH * geometry.side
    return tf.LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": pixels},
            crop_size={"height": pixels, "width": pixels},
        ),
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def words(geometry: Geometry) -> str:
    """Words in front of the image and behind it; BOS is added by the tokenizer."""
    draw = random.Random(1)
    some = [f"w{draw.randrange(5, geometry.d_vocab)}" for _ in range(geometry.n)]
    front = some[: geometry.before - 1]
    return " ".join([*front, "<image>", *some[-geometry.after :]])


def picture(geometry: Geometry, seed: int) -> Image.Image:
    """Coloured squares, each as wide as a patch."""
    generator = torch.Generator().manual_seed(seed)
    shape = geometry.side, geometry.side, 3
    squares = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    pixels = squares.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
    return Image.fromarray(pixels.numpy())


def merged(model: Any, inputs: Any) -> Tensor:
    """Text embeddings with the projected image in place: what enters layer 0."""
    seen: list[Tensor] = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].clone()),
        with_kwargs=True,
    )
    try:
        model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return seen[0]
