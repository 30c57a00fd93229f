"""The language model and the projector learn from packed rows."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from mechvlm.models.demo.curriculum import (
    LOGGED,
    LONG,
    Asking,
    Mosaic,
    mosaic,
    picture_row,
    text_row,
)
from mechvlm.models.demo.network import N_PATCHES, optimizer_of
from mechvlm.models.demo.packing import IMAGE_AT, UNASKED, Batch, pack
from mechvlm.models.demo.pool import Pool
from mechvlm.models.demo.schedule import Log, cosine
from mechvlm.models.demo.vocabulary import BLANK, IMAGE

_NEXT_WORD = 0.3

Features = Float[Tensor, "scene patch d_vision"]


@dataclass(frozen=True)
class Recipe:
    """What one stage of the language model trains on.

    Attributes:
        steps: Number of optimizer steps.
        rate: Peak learning rate.
        seed: Of the stage's rows.
        pictures: Rows per step with a real picture.
        mosaics: Rows per step with a picture made of word embeddings.
        texts: Rows per step of facts by name.
        language: Whether the language model learns.
        projector: Whether the projector learns.
        asking: How pictures and mosaics are asked about.
    """

    steps: int
    rate: float
    seed: int
    pictures: int
    mosaics: int
    texts: int
    language: bool
    projector: bool
    asking: Asking


@dataclass(frozen=True)
class Step:
    """One step's rows: pictures first, then mosaics, then text."""

    batch: Batch
    pictures: list[int]
    mosaics: list[Mosaic]


def train_language(
    network: LlavaForConditionalGeneration,
    pool: Pool,
    seen: Features,
    *,
    recipe: Recipe,
    log: Log,
) -> None:
    """Run one stage on cached image features; the vision tower never learns here."""
    weights = _learning(network, recipe)
    optimizer = optimizer_of(weights, recipe.rate)
    rng = np.random.default_rng(recipe.seed)
    network.train()
    for number in range(recipe.steps):
        step = _draw(pool, recipe, rng)
        # Products in bfloat16 take a third of the time; weights and sums stay float32.
        with torch.autocast("cpu", torch.bfloat16):
            loss = _loss(network, step, seen, log)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * cosine(number, recipe.steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if number % 50 == 0 or number == recipe.steps - 1:
            log.write(number)
    network.requires_grad_(True)
    network.eval()


@torch.no_grad()
def match_scale(network: LlavaForConditionalGeneration, seen: Features) -> None:
    """Scale the fresh projector so that its outputs are as long as word embeddings."""
    projector = network.model.multi_modal_projector
    words = network.model.language_model.embed_tokens.weight.norm(dim=-1).mean()
    scale = words / projector(seen[:200]).norm(dim=-1).mean()
    projector.linear_2.weight.mul_(scale)
    projector.linear_2.bias.mul_(scale)


def hidden_states(
    network: LlavaForConditionalGeneration,
    batch: Batch,
    images: Float[Tensor, "image patch d_model"],
) -> Float[Tensor, "row position d_model"]:
    """The last layer's normed states; `images` stand in the image tokens' places."""
    language = network.model.language_model
    embedded = language.embed_tokens(batch.ids)
    at_images = (batch.ids == IMAGE)[..., None]
    embedded = embedded.masked_scatter(at_images, images.to(embedded.dtype))
    out = language(
        inputs_embeds=embedded,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    )
    hidden: Tensor = out.last_hidden_state
    return hidden


def _learning(
    network: LlavaForConditionalGeneration, recipe: Recipe
) -> list[nn.Parameter]:
    network.requires_grad_(False)
    modules: list[nn.Module] = []
    if recipe.language:
        modules += [network.model.language_model, network.lm_head]
    if recipe.projector:
        modules += [network.model.multi_modal_projector]
    weights = [weight for module in modules for weight in module.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    return weights


def _draw(pool: Pool, recipe: Recipe, rng: np.random.Generator) -> Step:
    at = rng.integers(len(pool.scenes), size=recipe.pictures + recipe.mosaics).tolist()
    rows = [
        picture_row(
            pool.scenes[i],
            rng,
            asking=recipe.asking,
            all_facts=number >= recipe.pictures,
        )
        for number, i in enumerate(at)
    ]
    rows += [text_row(rng) for _ in range(recipe.texts)]
    mosaics = [
        mosaic(pool.scenes[i], pool.cover[i], rng) for i in at[recipe.pictures :]
    ]
    return Step(pack(rows, LOGGED), at[: recipe.pictures], mosaics)


def _loss(
    network: LlavaForConditionalGeneration, step: Step, seen: Features, log: Log
) -> Float[Tensor, ""]:
    images = [torch.empty(0, N_PATCHES, network.lm_head.in_features)]
    if step.pictures:
        images.append(network.model.multi_modal_projector(seen[step.pictures]))
    if step.mosaics:
        words = _stacked([m.words for m in step.mosaics])
        weights = _stacked([m.weights for m in step.mosaics])
        embedded = network.model.language_model.embed_tokens(words)
        images.append((embedded * weights[..., None]).sum(dim=2))
    hidden = hidden_states(network, step.batch, torch.cat(images))
    loss = _answer_loss(network, step.batch, hidden, log)
    if step.mosaics:
        first = len(step.pictures)
        of_mosaics = hidden[first : first + len(step.mosaics), IMAGE_AT]
        spoken = _stacked([m.spoken for m in step.mosaics])
        loss = loss + _NEXT_WORD * _next_word_loss(network, of_mosaics, spoken)
    return loss


def _stacked(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _answer_loss(
    network: LlavaForConditionalGeneration,
    batch: Batch,
    hidden: Float[Tensor, "row position d_model"],
    log: Log,
) -> Float[Tensor, ""]:
    """Cross entropy of the asked tokens; the log gets the share right of each kind."""
    target = batch.labels[:, 1:]
    asked = target != UNASKED
    logits = network.lm_head(hidden[:, :-1][asked])
    weights = batch.weights[:, 1:][asked]
    losses = functional.cross_entropy(logits, target[asked], reduction="none")
    loss = (weights * losses).sum() / weights.sum()
    right = (logits.argmax(dim=-1) == target[asked]).float()
    first = (batch.labels[:, :-1] == UNASKED)[asked]
    kinds = batch.kinds[:, 1:][asked]
    log.note(loss=loss.item())
    for number, kind in enumerate(LOGGED):
        here = (kinds == number) & (first | (kind in LONG))
        if here.any():
            log.note(**{kind: right[here].mean().item()})
    return loss


def _next_word_loss(
    network: LlavaForConditionalGeneration,
    hidden: Float[Tensor, "mosaic patch d_model"],
    spoken: Int[Tensor, "mosaic patch"],
) -> Float[Tensor, ""]:
    """Each patch predicts the next one's spoken word; blanks weigh half."""
    logits = network.lm_head(hidden[:, :-1])
    target = spoken[:, 1:]
    blank = target == BLANK
    told = functional.cross_entropy(logits[~blank], target[~blank])
    return 0.5 * told + 0.5 * functional.cross_entropy(logits[blank], target[blank])
