"""Claim: an unhooked mechvlm forward costs at most 1.05 of Hugging Face's.

TransformerLens's bridge runs beside it, where one is installed.

python benchmarks/unhooked.py                       # a random model, on the CPU
python benchmarks/unhooked.py --model llava-hf/llava-1.5-7b-hf --device cuda
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import mechvlm as mv

CLAIM = 1.05
WARM_UP = 5
QUESTION = "what color is the cat ?"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def random_model() -> mv.HookedVLM:
    """A random LLaVA of 8 layers and 256 directions that sees 144 patches."""
    import tiny

    tiny.SIDE = 96
    tiny.VISION |= {"image_size": tiny.SIDE}
    tiny.TEXT |= {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8}
    return mv.HookedVLM(*tiny.build())


def seconds(run: Callable[[], Tensor]) -> float:
    """Wall time of one forward."""
    before = time.perf_counter()
    on_gpu = run().is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - before


def contestants(
    vlm: mv.HookedVLM, prompt: mv.Prompt
) -> dict[str, Callable[[], Tensor]]:
    """Who runs the same forward: Hugging Face, mechvlm and TransformerLens's bridge."""
    pixels = prompt.inputs["pixel_values"]
    runs: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: vlm.hf_model(**prompt.inputs, use_cache=False).logits,
        "mechvlm": lambda: vlm(prompt),
    }
    try:
        bridge = vlm.to_bridge()
    except mv.InteropError:
        return runs  # TransformerLens 3 has no bridge
    return runs | {"bridge": lambda: bridge(prompt.ids, pixel_values=pixels)}


@torch.inference_mode()
def main() -> None:
    """Check that all give the same logits, time them in turns, print one line."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--model", help="a checkpoint; without it a random model")
    words.add_argument("--device", default="cpu")
    words.add_argument("--repeats", type=int, default=200)
    told = words.parse_args()
    if told.device == "cpu":
        torch.set_num_threads(1)
    loaded = mv.load(told.model, device=told.device) if told.model else None
    vlm = loaded or random_model()
    prompt = vlm.prompt(QUESTION, mv.scenes.sample(seed=0).image)
    runs = contestants(vlm, prompt)
    torch.testing.assert_close(runs["mechvlm"](), runs["plain"](), rtol=0, atol=0)
    for run in runs.values():
        torch.testing.assert_close(run(), runs["plain"](), rtol=1e-3, atol=1e-3)
    took: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(told.repeats + WARM_UP):
        # In turns and in both orders, so that a busy moment meets all alike.
        for name in sorted(runs, reverse=repeat % 2 == 1):
            took[name].append(seconds(runs[name]))
    line: dict[str, object] = {"bench": "unhooked", "claim": CLAIM}
    for name in runs:
        pairs = zip(took[name][WARM_UP:], took["plain"][WARM_UP:], strict=True)
        ratios = sorted(ours / theirs for ours, theirs in pairs)
        low, high = (round(ratios[len(ratios) * at // 20], 3) for at in (1, 19))
        middle = round(statistics.median(ratios), 3)
        line[name] = {"ratio": middle, "range": [low, high]}
    line |= {"positions": prompt.layout.n, "layers": vlm.cfg.n_layers}
    print(json.dumps(line | {"repeats": told.repeats}))


if __name__ == "__main__":
    main()
