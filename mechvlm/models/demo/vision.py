"""The vision tower learns alone, from what each patch shows."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from mechvlm.models.demo.network import D_VISION, N_PATCHES, SIDE, optimizer_of
from mechvlm.models.demo.pool import Pool, normalised
from mechvlm.models.demo.schedule import Log, cosine
from mechvlm.scenes import COLORS, GRID, NAMES, SHAPES, SIZES, Emblem, Scene, Thing

_BATCH = 48
_RATE = 1.5e-3
_SHOWS = 0.15
_SHOWS_NOTHING = 0.01
_UNASKED = -100
_EMBLEM, _NOTHING = len(SHAPES), len(SHAPES) + 1
_SIZES = {
    "shape": len(SHAPES) + 2,
    "color": len(COLORS),
    "size": len(SIZES),
    "name": len(NAMES),
}
_WHOLE = len(SHAPES) + len(COLORS) + len(NAMES) + 5


@dataclass(frozen=True)
class VisionRecipe:
    """Number of optimizer steps, and the seed of batches and heads."""

    steps: int
    seed: int


def train_vision(
    network: LlavaForConditionalGeneration,
    pool: Pool,
    *,
    recipe: VisionRecipe,
    log: Log,
) -> None:
    """Teach the tower's second-last layer what each patch shows, and CLS what is there.

    The language model reads the second-last layer, as in LLaVA; the last one, which
    nothing reads, learns through its CLS token, as CLIP's does.
    """
    torch.manual_seed(recipe.seed)
    tower = network.model.vision_tower
    heads = _Heads()
    weights = [*tower.parameters(), *heads.parameters()]
    optimizer = optimizer_of(weights, _RATE)
    truth = patch_truth(pool)
    present = torch.stack([_present(scene) for scene in pool.scenes])
    rng = np.random.default_rng(recipe.seed)
    tower.train()
    for step in range(recipe.steps):
        at = torch.from_numpy(rng.integers(len(pool.scenes), size=_BATCH))
        out = tower(normalised(pool.pixels[at]), output_hidden_states=True)
        losses = heads.losses(
            out.hidden_states[-2][:, 1:], {k: v[at] for k, v in truth.items()}
        )
        losses["cls"] = functional.binary_cross_entropy_with_logits(
            heads.whole(out.pooler_output), present[at]
        )
        loss = torch.stack([*losses.values(), 2 * losses["cls"]]).sum()
        for group in optimizer.param_groups:
            group["lr"] = _RATE * cosine(step, recipe.steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        log.note(**{name: value.item() for name, value in losses.items()})
        if step % 50 == 0 or step == recipe.steps - 1:
            log.write(step)
    tower.eval()


@torch.no_grad()
def features(
    network: LlavaForConditionalGeneration, pool: Pool
) -> Float[Tensor, "scene patch d_vision"]:
    """What the projector will read of each scene: second-last layer, without CLS."""
    network.model.vision_tower.eval()
    parts = [
        network.model.vision_tower(normalised(part), output_hidden_states=True)
        .hidden_states[-2][:, 1:]
        .clone()
        for part in torch.split(pool.pixels, 128)
    ]
    return torch.cat(parts)


def patch_truth(pool: Pool) -> dict[str, Int[Tensor, "scene patch"]]:
    """Classes of each patch: shape, color, size, name, cell; -100 is not asked.

    A patch that two things share belongs to the one of which it shows more. Its cell is
    that of its thing, which may have moved over its border.
    """
    shape = (len(pool.scenes), N_PATCHES)
    truth = {name: np.full(shape, _UNASKED) for name in _SIZES}
    truth["shape"][:] = _NOTHING
    rows, columns = np.divmod(np.arange(N_PATCHES), SIDE)
    per_cell = SIDE // GRID
    truth["cell"] = np.broadcast_to(
        rows // per_cell * GRID + columns // per_cell, shape
    ).copy()
    for i, (scene, cover) in enumerate(zip(pool.scenes, pool.cover, strict=True)):
        most = cover.max(axis=0)
        truth["shape"][i, (most > _SHOWS_NOTHING) & (most <= _SHOWS)] = _UNASKED
        for thing, share in zip(scene.things, cover, strict=True):
            shows = (share > _SHOWS) & (share == most)
            for name, value in _classes(thing).items():
                truth[name][i, shows] = value
            truth["cell"][i, shows] = thing.cell
    return {name: torch.from_numpy(values) for name, values in truth.items()}


def _classes(thing: Thing | Emblem) -> dict[str, int]:
    if isinstance(thing, Emblem):
        return {"shape": _EMBLEM, "name": NAMES.index(thing.name)}
    return {
        "shape": SHAPES.index(thing.shape),
        "color": list(COLORS).index(thing.color),
        "size": SIZES.index(thing.size),
    }


def _present(scene: Scene) -> Float[Tensor, " label"]:
    """Multi-hot: shapes, colours and names that are there, and how many things."""
    label = torch.zeros(_WHOLE)
    for thing in scene.things:
        if isinstance(thing, Emblem):
            label[len(SHAPES) + len(COLORS) + NAMES.index(thing.name)] = 1
        else:
            label[SHAPES.index(thing.shape)] = 1
            label[len(SHAPES) + list(COLORS).index(thing.color)] = 1
    label[_WHOLE - 5 + len(scene.things)] = 1
    return label


class _Heads(nn.Module):
    """Linear readers of the tower; thrown away after the stage."""

    def __init__(self) -> None:
        super().__init__()
        sizes = _SIZES | {"cell": GRID**2}
        self.patch = nn.ModuleDict(
            {name: nn.Linear(D_VISION, n) for name, n in sizes.items()}
        )
        self.whole = nn.Linear(D_VISION, _WHOLE)

    def losses(
        self,
        hidden: Float[Tensor, "scene patch d_vision"],
        truth: dict[str, Int[Tensor, "scene patch"]],
    ) -> dict[str, Float[Tensor, ""]]:
        """Cross entropies in nats; empty patches count half, and only for shape."""
        normed = functional.layer_norm(hidden, (D_VISION,))
        losses = {}
        for name, head in self.patch.items():
            target = truth[name]
            asked = (target != _UNASKED) & ((target != _NOTHING) | (name != "shape"))
            losses[name] = functional.cross_entropy(head(normed[asked]), target[asked])
        empty = truth["shape"] == _NOTHING
        losses["nothing"] = 0.5 * functional.cross_entropy(
            self.patch["shape"](normed[empty]), truth["shape"][empty]
        )
        losses["cell"] = 0.3 * losses["cell"]
        return losses
