"""Who else runs an act, in this process or in one of its own, and how long it takes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from arena.geometry import Geometry
from arena.sweeps import SWEEPS, Act, Sweep

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "transformer-lens-3": ".venv-tl3",
    "nnsight": ".venv-bench",
    "pyvene": ".venv-bench",
}
"""Libraries that get a process, and the environment that `make bench` made for them."""

LEAST_S = 0.3
"""What is faster is repeated until it took this long."""


class LeftOut(Exception):  # noqa: N818 - nothing went wrong
    """A contestant that cannot run here, or cannot express the sweep."""


class Contestant(Protocol):
    """Runs one act."""

    name: str

    def run(self, act: Act) -> Tensor:
        """Last-position logits `[vocab]`."""
        ...


@cache
def sweep_of(geometry: Geometry, name: str) -> Sweep:
    """A sweep by its name."""
    return SWEEPS[name](geometry)


def drawn(n_acts: int, start: int) -> Iterator[int]:
    """Acts spread over a sweep; other starts draw others."""
    return (int(n_acts * ((0.5 + 0.618034 * i) % 1)) for i in count(start))


def synchronised(device: str) -> float:
    """The time, once all work that was started is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


class Here:
    """A contestant in this process."""

    def __init__(self, contestant: Contestant, geometry: Geometry) -> None:
        """Its name is the contestant's."""
        self.name = contestant.name
        self.contestant, self.geometry = contestant, geometry

    @torch.no_grad()
    def answer(self, sweep: str, index: int) -> Tensor:
        """Last-position logits of one act, in fp32 on the CPU."""
        act = sweep_of(self.geometry, sweep).acts[index]
        try:
            return self.contestant.run(act).float().cpu()
        except NotImplementedError as reason:
            raise LeftOut(str(reason)) from None

    @torch.no_grad()
    def seconds(self, sweep: str, start: int, sample: int) -> float:
        """Mean seconds of an act, over at least so many and at least `LEAST_S`."""
        acts = sweep_of(self.geometry, sweep).acts
        before = synchronised(self.geometry.device)
        for done, index in enumerate(drawn(len(acts), start), start=1):
            self.contestant.run(acts[index])
            took = synchronised(self.geometry.device) - before
            if done >= sample and (took >= LEAST_S or done >= len(acts)):
                return took / done
        raise AssertionError("there is always another act")

    def close(self) -> None:
        """Nothing to end."""


class There:
    """A contestant in a process of its own, asked over a pipe: one line, one answer."""

    def __init__(self, name: str, geometry: Geometry) -> None:
        """Start the process; it builds the same model from the same seed."""
        self.name = name
        python = ROOT / ELSEWHERE[name] / "bin" / "python"
        self.process = subprocess.Popen(
            [
                str(python) if python.exists() else sys.executable,
                *("-W", "ignore", "-m", "arena.worker", name),
                json.dumps(asdict(geometry)),
            ],
            cwd=ROOT / "benchmarks",
            env=os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ready(self) -> str:
        """Wait for it; the version of its library."""
        return str(self._told()["version"])

    def answer(self, sweep: str, index: int) -> Tensor:
        """Last-position logits of one act, in fp32."""
        told = self._asked({"do": "answer", "sweep": sweep, "index": index})
        return torch.frombuffer(
            bytearray(base64.b64decode(told["logits"])), dtype=torch.float32
        )

    def seconds(self, sweep: str, start: int, sample: int) -> float:
        """Mean seconds of an act, measured over there."""
        asked = {"do": "seconds", "sweep": sweep, "start": start, "sample": sample}
        return float(self._asked(asked)["seconds"])

    def close(self) -> None:
        """End the process that was started here."""
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _asked(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise LeftOut("its process ended") from None
        return self._told()

    def _told(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise LeftOut("its process ended")
        told = json.loads(line)
        if "left_out" in told:
            raise LeftOut(told["left_out"])
        return told


Rival = Here | There


def spread(n_acts: int, at_most: int) -> list[int]:
    """Different acts, spread over a sweep."""
    return list(dict.fromkeys(islice(drawn(n_acts, 0), 4 * at_most)))[:at_most]
