"""Train the demo model from nothing: `python -m mechvlm.models.demo.train [--control]`.

One process, one thread, fixed seeds: the same machine and the same versions give the
same bits. Finished stages lie in the scratch folder and are taken up from there.
"""

import argparse
import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from mechvlm.models.demo import CONTROL_PATH, PATH
from mechvlm.models.demo.answering import Checkpoint
from mechvlm.models.demo.courses import CONTROL, MAIN, Course
from mechvlm.models.demo.evaluate import HELD_OUT_SEED, Score, scores
from mechvlm.models.demo.save import save_checkpoint
from mechvlm.models.demo.stages import NETWORK_SEED, POOL_SEED, Finished, run_stages

_N_PER_KIND = 400


@dataclass(frozen=True, slots=True)
class Product:
    """What a course leaves in the package.

    Attributes:
        course: What was learnt.
        folder: Of the checkpoint.
        record: What training logged, how long it took, and the held-out scores.
    """

    course: Course
    folder: Path
    record: Path


DEMO = Product(MAIN, PATH, PATH.parent / "training.json")
DEMO_CONTROL = Product(CONTROL, CONTROL_PATH, PATH.parent / "control.json")


def main() -> None:
    """Train, write the checkpoint and its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control", action="store_true", help="train the control")
    parser.add_argument("--folder", type=Path, help="of the checkpoint")
    parser.add_argument("--record", type=Path, help="JSON to write")
    parser.add_argument("--scratch", type=Path, default=Path("demo-training"))
    parser.add_argument("--cap", type=int, help="most steps per stage, to try it out")
    args = parser.parse_args()
    shipped = DEMO_CONTROL if args.control else DEMO
    product = Product(
        shipped.course, args.folder or shipped.folder, args.record or shipped.record
    )
    make(product, scratch=args.scratch, cap=args.cap)


def make(product: Product, *, scratch: Path, cap: int | None) -> None:
    """Train the course, save the checkpoint, score it and write the record.

    Args:
        product: What is learnt, and where it is written.
        scratch: Folder of the finished stages.
        cap: Most steps per stage; None trains in full.
    """
    network, stages = run_stages(scratch, course=product.course, cap=cap)
    save_checkpoint(network, product.folder)
    n = _N_PER_KIND if cap is None else 8
    found = scores(Checkpoint.load(product.folder), n=n, seed=HELD_OUT_SEED)
    weights = (product.folder / "model.safetensors").read_bytes()
    record = {
        "sha256": hashlib.sha256(weights).hexdigest(),
        **_circumstances(),
        "stages": _logged(stages),
        "held_out_seed": HELD_OUT_SEED,
        "held_out": _plain(found),
    }
    product.record.write_text(json.dumps(record, indent=1) + "\n")


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
