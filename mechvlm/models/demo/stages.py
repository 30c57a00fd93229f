"""The stages of training; each leaves a file that says what made it."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mechvlm.models.demo.language import Features, Recipe, match_scale, train_language
from mechvlm.models.demo.network import build_network
from mechvlm.models.demo.pool import Pool, make_pool
from mechvlm.models.demo.schedule import Log
from mechvlm.models.demo.vision import VisionRecipe, features, train_vision

NETWORK_SEED = 0
POOL_SEED = 1
N_SCENES = 12_000
VISION = VisionRecipe(steps=1000, seed=11)
LANGUAGE = {
    "mosaic": Recipe(
        steps=1200,
        rate=1e-3,
        seed=12,
        pictures=0,
        mosaics=9,
        texts=1,
        language=True,
        projector=False,
    ),
    "projector": Recipe(
        steps=150,
        rate=3e-3,
        seed=13,
        pictures=10,
        mosaics=0,
        texts=0,
        language=False,
        projector=True,
    ),
    "joint": Recipe(
        steps=5000,
        rate=7e-4,
        seed=14,
        pictures=7,
        mosaics=2,
        texts=1,
        language=True,
        projector=True,
    ),
}
STAGES = ("vision", *LANGUAGE)


@dataclass(frozen=True)
class Finished:
    """A stage that ran.

    Attributes:
        stage: Its name.
        recipe: What it ran with, and what all stages before it ran with.
        cpu_s: CPU seconds of its one process, without set-up.
        lines: Its log.
        weights: The whole network after it.
    """

    stage: str
    recipe: str
    cpu_s: float
    lines: list[dict[str, float]]
    weights: dict[str, Tensor]


def run_stages(
    scratch: Path, *, cap: int | None = None
) -> tuple[LlavaForConditionalGeneration, list[Finished]]:
    """Train, or take up where `scratch` leaves off.

    One thread, because two change the last bits of a sum. A stage's file is used only
    if the recipes of that stage and of all before it are the present ones.

    Args:
        scratch: Folder of the stage files.
        cap: Most steps per stage, to try the script out; None runs all.

    Returns:
        The trained network and what happened in each stage.
    """
    torch.set_num_threads(1)
    scratch.mkdir(parents=True, exist_ok=True)
    network = build_network(NETWORK_SEED)
    began = time.process_time()
    pool = make_pool(N_SCENES if cap is None else 400, POOL_SEED)
    sys.stdout.write(f"pool: {time.process_time() - began:.1f} CPU s\n")
    recipe = f"network {NETWORK_SEED}, pool {len(pool.scenes)} of {POOL_SEED}"
    done: list[Finished] = []
    seen: Features | None = None
    for stage in STAGES:
        recipe += (
            f"; {stage} {VISION if stage == 'vision' else LANGUAGE[stage]}, cap {cap}"
        )
        finished = _from_file(scratch / f"{stage}.pt", recipe)
        if finished is None:
            if stage != "vision" and seen is None:
                seen = features(network, pool)
            finished = _run(
                stage, recipe, _body(stage, network, pool, seen, cap), network
            )
            torch.save(vars(finished), scratch / f"{stage}.pt")
        network.load_state_dict(finished.weights)
        done.append(finished)
    network.eval()
    return network, done


def _body(
    stage: str,
    network: LlavaForConditionalGeneration,
    pool: Pool,
    seen: Features | None,
    cap: int | None,
) -> Callable[[Log], None]:
    if stage == "vision" or seen is None:
        vision = replace(VISION, steps=min(VISION.steps, cap or VISION.steps))
        return lambda log: train_vision(network, pool, recipe=vision, log=log)
    planned = LANGUAGE[stage]
    recipe = replace(planned, steps=min(planned.steps, cap or planned.steps))
    if stage == "projector":
        match_scale(network, seen)
    return lambda log: train_language(network, pool, seen, recipe=recipe, log=log)


def _run(
    stage: str,
    recipe: str,
    body: Callable[[Log], None],
    network: LlavaForConditionalGeneration,
) -> Finished:
    log = Log(stage)
    began = time.process_time()
    body(log)
    weights = {name: weight.clone() for name, weight in network.state_dict().items()}
    return Finished(stage, recipe, time.process_time() - began, log.lines, weights)


def _from_file(path: Path, recipe: str) -> Finished | None:
    if not path.exists():
        return None
    found = Finished(**torch.load(path))
    return found if found.recipe == recipe else None
