"""Train the demo checkpoint from nothing: `python -m mechvlm.models.demo.train`.

One process, one thread, fixed seeds: the same machine and the same versions give the
same bits. Finished stages lie in the scratch folder and are taken up from there.
"""

import argparse
import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import transformers

from mechvlm.models.demo import PATH
from mechvlm.models.demo.evaluate import HELD_OUT_SEED, Checkpoint, Score, scores
from mechvlm.models.demo.save import save_checkpoint
from mechvlm.models.demo.stages import NETWORK_SEED, POOL_SEED, Finished, run_stages

RECORD = PATH.parent / "training.json"
"""What training logged, how long it took, and the held-out scores."""
_N_PER_KIND = 400


def main() -> None:
    """Train, write the checkpoint and its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=PATH, help="of the checkpoint")
    parser.add_argument("--record", type=Path, default=RECORD, help="JSON to write")
    parser.add_argument("--scratch", type=Path, default=Path("demo-training"))
    parser.add_argument("--cap", type=int, help="most steps per stage, to try it out")
    args = parser.parse_args()
    network, stages = run_stages(args.scratch, cap=args.cap)
    save_checkpoint(network, args.folder)
    n = _N_PER_KIND if args.cap is None else 8
    found = scores(Checkpoint.load(args.folder), n=n, seed=HELD_OUT_SEED)
    weights = (args.folder / "model.safetensors").read_bytes()
    record = {
        "sha256": hashlib.sha256(weights).hexdigest(),
        **_circumstances(),
        "stages": _logged(stages),
        "held_out_seed": HELD_OUT_SEED,
        "held_out": _plain(found),
    }
    args.record.write_text(json.dumps(record, indent=1) + "\n")


def _circumstances() -> dict[str, object]:
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    seeds = {"network": NETWORK_SEED, "pool": POOL_SEED}
    return {"threads": torch.get_num_threads(), "seeds": seeds, "versions": versions}


def _logged(stages: Sequence[Finished]) -> list[dict[str, object]]:
    return [
        {
            "stage": done.stage,
            "recipe": done.recipe.rpartition("; ")[2],
            "cpu_s": round(done.cpu_s, 1),
            "log": done.lines,
        }
        for done in stages
    ]


def _plain(found: dict[str, Score]) -> dict[str, dict[str, float]]:
    return {name: asdict(score) for name, score in found.items()}


if __name__ == "__main__":
    main()
