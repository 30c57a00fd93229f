"""What every benchmark is told on its command line, and the line that it prints."""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch

from arena.geometry import SIZES, Geometry

RIVALS = ("prefix", "bridge", "transformer-lens-3", "nnsight", "pyvene")


@dataclass(frozen=True)
class Told:
    """The command line.

    Attributes:
        size: Name of the geometry.
        repeats: Repetitions, in turns.
        sample: Acts of each repetition that a loop is timed on.
        against: Who runs beside the plain loop.
    """

    size: str
    geometry: Geometry
    repeats: int
    sample: int
    against: tuple[str, ...]


def told(doc: str | None, *, repeats: int = 5, sample: int = 2) -> Told:
    """Read the command line; on the CPU, one thread from now on."""
    words = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--size", choices=list(SIZES), default="s")
    words.add_argument("--repeats", type=int, default=repeats)
    words.add_argument("--sample", type=int, default=sample)
    words.add_argument("--device", default="cpu")
    words.add_argument("--dtype", default="float32")
    words.add_argument("--against", nargs="*", choices=RIVALS, default=RIVALS)
    given = words.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if given.device == "cpu":
        os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started
        torch.set_num_threads(1)
    shape = replace(SIZES[given.size], device=given.device, dtype=given.dtype)
    return Told(given.size, shape, given.repeats, given.sample, tuple(given.against))


def setting(given: Told) -> dict[str, Any]:
    """The model and the machine, in general words."""
    shape = given.geometry
    cuda = shape.device.startswith("cuda")
    return {
        "size": given.size,
        "layers": shape.n_layers,
        "d_model": shape.d_model,
        "heads": shape.n_heads,
        "d_mlp": shape.d_mlp,
        "vocabulary": shape.d_vocab,
        "positions": shape.n,
        "image_positions": len(shape.image),
        "dtype": shape.dtype,
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "transformer_lens": version("transformer-lens"),
        "repeats": given.repeats,
        "sample": given.sample,
    }


def tell(bench: str, doc: str | None, given: Told, **found: Any) -> None:
    """Print the line: what is claimed, where it was measured, and what came out."""
    claim = (doc or "").strip().splitlines()[0].removeprefix("Claim: ")
    line = {"bench": bench, "claim": claim, "setting": setting(given), **found}
    print(json.dumps(line), flush=True)
