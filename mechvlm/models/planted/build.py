"""Write a planted model: the eyes, the projector, the decoder and the voice.

Every weight not written here or in `circuits.py` is zero, apart from the gains of
normalisation. Configurations differ in nothing between circuits.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from mechvlm.errors import FamilyError
from mechvlm.models.planted.circuits import (
    CIRCUITS,
    HEAD_WIDTH,
    N_HEADS,
    PLANT,
    SEEN_AS,
    Circuit,
    sink,
)
from mechvlm.models.planted.directions import (
    ANSWER,
    BEGINNING,
    CARRIER,
    CARRIER_SIZE,
    CONTENT,
    IMAGE,
    LAST,
    N_CLASSES,
    OBJECT,
    OUT,
    QUERY,
    WIDTH,
)
from mechvlm.models.planted.picture import (
    BRIGHT,
    CELL_PX,
    GREEN,
    N_CELLS,
    PICTURE_PX,
    RED,
    corner,
    scene,
)
from mechvlm.models.planted.words import ANSWERS, CUE, QUESTION, VOCABULARY
from mechvlm.models.planted.words import processor as make_processor

__all__ = ["background_vector", "build"]

_EYE_WIDTH = 16
_NEGATIVE = _EYE_WIDTH // 2
_EYE_CARRIER, _EYE_OBJECT, _EYE_CLASS = 0, 1, slice(2, 2 + N_CLASSES)
"""The vision tower's directions. Coordinate i + _NEGATIVE always holds minus coordinate
i: the mean that LayerNorm subtracts is then exactly zero."""

_LOUDNESS = 4.0
"""Logit of a class that is said or shown at full strength; the other classes have 0."""
_SILENCE = 30.0
"""How far below 0 the logits of all words but the answers lie."""


def build(
    circuit: Circuit | str, *, sink: bool = True
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return a LLaVA in which `circuit` is the only thing that happens.

    Args:
        circuit: Which of `CIRCUITS` to plant.
        sink: Whether positions with nothing to read attend to the beginning of the
            sequence and write nothing. Without it they attend evenly to all that they
            may read, and a knockout spreads the reader's attention over the rest.

    Returns:
        The model, float32 and in evaluation mode, and its processor.

    Raises:
        FamilyError: No circuit has that name.

    >>> model, processor = build("relay")
    >>> model.config.text_config.num_hidden_layers
    3
    """
    if circuit not in CIRCUITS:
        raise FamilyError(
            f"no planted circuit is called {circuit!r};"
            f" there are {', '.join(CIRCUITS)}."
        )
    # Hugging Face draws random weights first; the caller's generator must not notice.
    with torch.random.fork_rng(devices=[]):
        model = LlavaForConditionalGeneration(_config())
        model.train(False).float()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        _write_eyes(model.model.vision_tower)
        _write_projector(model.model.multi_modal_projector, SEEN_AS[circuit])
        _write_decoder(model.model.language_model, circuit, with_sink=sink)
        _write_voice(model.lm_head)
    return model, make_processor()


def background_vector(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> Float[Tensor, " d_model"]:
    """Embedding of a background cell, averaged over the four classes.

    What to put in an image token's place to ablate it: it is an image position of this
    model like any other, but belongs to no object and prefers no class.

    Args:
        model: A planted model.
        processor: Its processor.

    Returns:
        The average row that enters layer 0, of the decoder's width.

    >>> background_vector(*build("direct")).shape
    torch.Size([32])
    """
    pictures = [scene(0, background=weak, cells=()) for weak in range(N_CLASSES)]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.get_image_features(pixel_values=pixels).pooler_output
    return torch.cat(features).mean(dim=0)


def _config() -> LlavaConfig:
    """The one shape of all planted models."""
    vision = CLIPVisionConfig(
        hidden_size=_EYE_WIDTH,
        intermediate_size=_EYE_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=PICTURE_PX,
        patch_size=CELL_PX,
        projection_dim=_EYE_WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=N_HEADS,
        head_dim=HEAD_WIDTH,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12},
        pad_token_id=VOCABULARY["<pad>"],
        bos_token_id=VOCABULARY["<s>"],
        eos_token_id=VOCABULARY["</s>"],
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY["<image>"],
        image_seq_length=N_CELLS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def _write_eyes(tower: CLIPVisionModel) -> None:
    """See each cell's redness and its green corners; the encoder layers pass them on.

    With +-C in the carrier, LayerNorm divides by C * sqrt(2 / width) to within 0.0002,
    and the first norm's gain undoes it. The layers' own norms feed zero weights.
    """
    tower.pre_layrnorm.weight.fill_(CARRIER_SIZE * (2 / _EYE_WIDTH) ** 0.5)
    tower.post_layernorm.weight.fill_(1)
    for layer in tower.encoder.layers:
        if isinstance(layer, CLIPEncoderLayer):
            layer.layer_norm1.weight.fill_(1)
            layer.layer_norm2.weight.fill_(1)
    places = tower.embeddings.position_embedding.weight
    places[:, _EYE_CARRIER] = CARRIER_SIZE
    places[:, _EYE_CARRIER + _NEGATIVE] = -CARRIER_SIZE
    # A convolution sums over its pixels; these gains make the sum a mean, 1 if BRIGHT.
    gain = 255 / BRIGHT / CELL_PX**2
    patch = tower.embeddings.patch_embedding.weight
    patch[_EYE_OBJECT, RED] = gain
    for content in range(N_CLASSES):
        rows, cols = corner(content)
        patch[_EYE_CLASS.start + content, GREEN, rows, cols] = 4 * gain
    patch[_NEGATIVE:] -= patch[:_NEGATIVE].clone()


def _write_projector(projector: LlavaMultiModalProjector, seen_as: slice) -> None:
    """Hand each cell's flag and class to the decoder, and mark it as an image position.

    gelu(x) - gelu(-x) = x exactly, and the tower holds x and -x side by side: so the
    first layer copies, the second subtracts, and the GELU between them drops out.
    """
    eye = torch.eye(_EYE_WIDTH)
    projector.linear_1.weight[:_EYE_WIDTH] = eye
    value = eye[:_NEGATIVE] - eye[_NEGATIVE:]
    projector.linear_2.weight[OBJECT, :_EYE_WIDTH] = value[_EYE_OBJECT]
    projector.linear_2.weight[seen_as, :_EYE_WIDTH] = value[_EYE_CLASS]
    projector.linear_2.bias[IMAGE] = 1
    projector.linear_2.bias[CARRIER] = CARRIER_SIZE


def _write_decoder(decoder: LlamaModel, circuit: str, *, with_sink: bool) -> None:
    """Tell the words apart, keep normalisation steady, and plant the circuit."""
    words = decoder.embed_tokens.weight
    words[:, CARRIER] = CARRIER_SIZE
    words[VOCABULARY["<s>"], BEGINNING] = 1
    words[_ids(*QUESTION.split()), QUERY] = 1
    words[VOCABULARY[CUE], LAST] = 1
    words[_ids(*ANSWERS), ANSWER] = 1
    # Which all are: a ModuleList only does not say so.
    layers = [layer for layer in decoder.layers if isinstance(layer, LlamaDecoderLayer)]
    for layer in layers:
        _steady(layer.input_layernorm.weight)
        _steady(layer.post_attention_layernorm.weight)
        if with_sink:
            sink(layer)
    _steady(decoder.norm.weight)
    PLANT[circuit](layers)


def _steady(gain: Float[Tensor, " d_model"]) -> None:
    """Make the norm hand on coordinates as they are, and the carrier as a 1."""
    gain.fill_(CARRIER_SIZE / math.sqrt(WIDTH))
    gain[CARRIER] /= CARRIER_SIZE


def _write_voice(head: torch.nn.Linear) -> None:
    """Say the class in OUT or CONTENT, and stop after an answer.

    An image position whose class is not readable says `<image>`, at a quarter of the
    loudness of a class: there the logit lens has a definite wrong answer, not a tie.
    """
    words = head.weight
    words[:, CARRIER] = -_SILENCE
    words[_ids(*ANSWERS), CARRIER] = 0
    words[_ids(*ANSWERS), OUT] = _LOUDNESS * torch.eye(N_CLASSES)
    words[_ids(*ANSWERS), CONTENT] = _LOUDNESS * torch.eye(N_CLASSES)
    words[VOCABULARY["<image>"], IMAGE] = _SILENCE + _LOUDNESS / 4
    words[VOCABULARY["</s>"], ANSWER] = 2 * _SILENCE


def _ids(*words: str) -> list[int]:
    """Token ids of words."""
    return [VOCABULARY[word] for word in words]
