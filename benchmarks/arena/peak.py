"""Peak memory of one thing, in a process that does nothing else.

python -m arena.peak WHO GEOMETRY
"""

from __future__ import annotations

import ctypes
import json
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from arena.geometry import Geometry, Scene, build
from arena.ours import Ours
from arena.sweeps import residual_patching

MIB = 2**20


def ours(scene: Scene) -> Callable[[], object]:
    """The whole S1 sweep: donor recorded, base run, every act, all logits kept."""
    acts = residual_patching(scene.geometry).acts

    def run() -> object:
        sweep = Ours(scene, acts)
        return sweep, sweep.run(sweep.base())

    return run


def bridge(scene: Scene) -> Callable[[], object]:
    """One `run_with_cache` of everything, by TransformerLens's bridge."""
    model = scene.vlm.to_bridge()
    pixels = scene.base.inputs["pixel_values"]
    return lambda: model.run_with_cache(scene.base.ids, pixel_values=pixels)


def forward(scene: Scene) -> Callable[[], object]:
    """One plain forward, last position unembedded: what no run goes below."""
    model, inputs = scene.vlm.hf_model, scene.base.inputs
    return lambda: model(**inputs, use_cache=False, logits_to_keep=1)


WHO = {"mechvlm": ours, "bridge": bridge, "hf": forward}


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError(field)


def peak_on_cpu(run: Callable[[], object]) -> int:
    """Bytes that a run adds at its worst moment."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # what building freed would be used unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    except OSError:  # no Linux: the building's own peak hides a smaller one
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kept = run()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        del kept
        return (after - before) * (1 if sys.platform == "darwin" else 1024)
    before = resident("VmRSS")
    kept = run()
    found = resident("VmHWM") - before
    del kept
    return found


def peak_on_cuda(run: Callable[[], object]) -> int:
    """Bytes that a run adds at its worst moment."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    found = torch.cuda.max_memory_allocated() - before
    del kept
    return found


@torch.no_grad()
def main() -> None:
    """Build the model, then watch one run."""
    who, described = sys.argv[1:]
    shape = Geometry(**json.loads(described))
    cuda = shape.device.startswith("cuda")
    if not cuda:
        torch.set_num_threads(1)
    run = WHO[who](build(shape))
    peak = peak_on_cuda(run) if cuda else peak_on_cpu(run)
    print(json.dumps({"mib": round(peak / MIB, 1)}))


if __name__ == "__main__":
    main()
