"""Claim: an unhooked mechvlm forward costs at most 1.05 of Hugging Face's.

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


@torch.inference_mode()
def main() -> None:
    """Check that both give the same logits, time them in turns, print one line."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--model", help="a checkpoint; without it a random model")
    words.add_argument("--device", default="cpu")
    words.add_argument("--repeats", type=int, default=200)
    told = words.parse_args()
    if told.device == "cpu":
        torch.set_num_threads(1)
    loaded = mv.load(told.model, device=told.device) if told.model else None
    vlm = loaded or random_model()
    picture = mv.scenes.sample(seed=0).image
    prompt = vlm.prompt(QUESTION, picture)

    def plain() -> Tensor:
        return vlm.hf_model(**prompt.inputs, use_cache=False).logits

    def hooked() -> Tensor:
        return vlm(prompt)

    torch.testing.assert_close(hooked(), plain(), rtol=0, atol=0)
    pairs = []
    for repeat in range(told.repeats + 5):
        # In turns and in both orders, so that a busy moment meets both alike.
        first, second = (plain, hooked) if repeat % 2 else (hooked, plain)
        took = {first: seconds(first), second: seconds(second)}
        pairs.append((took[plain], took[hooked]))
    pairs = pairs[5:]  # the first ones warm up
    ratios = sorted(ours / theirs for theirs, ours in pairs)
    print(
        json.dumps(
            {
                "bench": "unhooked",
                "claim": CLAIM,
                "ratio": round(statistics.median(ratios), 4),
                "range": [round(ratios[len(ratios) * at // 20], 4) for at in (1, 19)],
                "plain_ms": round(statistics.median(p for p, _ in pairs) * 1e3, 3),
                "hooked_ms": round(statistics.median(h for _, h in pairs) * 1e3, 3),
                "positions": prompt.layout.n,
                "layers": vlm.cfg.n_layers,
                "repeats": told.repeats,
            }
        )
    )


if __name__ == "__main__":
    main()
