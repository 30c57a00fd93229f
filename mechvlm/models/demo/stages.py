"""The stages of training; each leaves a file that says what made it."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mechvlm.models.demo.courses import MAIN, VISION, Course
from mechvlm.models.demo.language import Features, Recipe, match_scale, train_language
from mechvlm.models.demo.network import build_network
from mechvlm.models.demo.pool import Pool, make_pool
from mechvlm.models.demo.schedule import Log
from mechvlm.models.demo.vision import VisionRecipe, features, train_vision

NETWORK_SEED = 0
POOL_SEED = 1
N_SCENES = 12_000


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
    scratch: Path, *, course: Course = MAIN, cap: int | None = None
) -> tuple[LlavaForConditionalGeneration, list[Finished]]:
    """Train, or take up where `scratch` leaves off.

    One thread, because two change the last bits of a sum. A stage's file is used only
    if the recipes of that stage and of all before it are the present ones.

    Args:
        scratch: Folder of the stage files; courses share the vision tower's.
        course: What is learnt.
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
    for stage in course.stages:
        plan = course.language.get(stage, VISION)
        recipe += f"; {stage} {plan}, cap {cap}"
        path = scratch / (
            "vision.pt" if stage == "vision" else f"{course.name}-{stage}.pt"
        )
        finished = _from_file(path, recipe)
        if finished is None:
            if isinstance(plan, Recipe) and seen is None:
                seen = features(network, pool)
            body = _body(plan, network, pool, seen=seen, cap=cap)
            finished = _run(stage, recipe, body, network)
            torch.save(vars(finished), path)
        network.load_state_dict(finished.weights)
        done.append(finished)
    network.eval()
    return network, done


def _body(
    plan: Recipe | VisionRecipe,
    network: LlavaForConditionalGeneration,
    pool: Pool,
    *,
    seen: Features | None,
    cap: int | None,
) -> Callable[[Log], None]:
    steps = min(plan.steps, cap or plan.steps)
    if isinstance(plan, VisionRecipe) or seen is None:
        vision = VisionRecipe(steps, plan.seed)
        return lambda log: train_vision(network, pool, recipe=vision, log=log)
    recipe = replace(plan, steps=steps)
    if recipe.projector and not recipe.language:
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
