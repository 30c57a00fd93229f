"""The other end of `rivals.There`: one contestant, asked over stdin.

python -m arena.worker NAME GEOMETRY
"""

from __future__ import annotations

import base64
import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from arena import geometry, plain, rivals

PACKAGES = {
    "transformer-lens-3": "transformer-lens",
    "nnsight": "nnsight",
    "pyvene": "pyvene",
}


def contestant(name: str, given: plain.Plain) -> rivals.Contestant:
    """The contestant of this name; its library is imported here and nowhere else."""
    try:
        if name == "nnsight":
            from arena.sight import Sight

            return Sight(given)
        if name == "pyvene":
            from arena.pv import Pyvene

            return Pyvene(given)
        from arena.lens import Legacy

        return Legacy(given)
    except ImportError as missing:
        raise rivals.LeftOut(f"not installed: {missing.name}") from missing


def answered(here: rivals.Here, asked: dict[str, Any]) -> dict[str, Any]:
    """The answer to one question."""
    try:
        if asked["do"] == "answer":
            logits = here.answer(asked["sweep"], asked["index"])
            return {"logits": base64.b64encode(logits.numpy().tobytes()).decode()}
        took = here.seconds(asked["sweep"], asked["start"], asked["sample"])
        return {"seconds": took}
    except rivals.LeftOut as reason:
        return {"left_out": str(reason)}
    except Exception as reason:  # told over there, where the rest goes on
        return {"left_out": f"{type(reason).__name__}: {reason}"}


@torch.no_grad()
def main() -> None:
    """Build, say that it is ready, and answer until the pipe is closed."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def tell(what: dict[str, Any]) -> None:
        pipe.write(json.dumps(what) + "\n")
        pipe.flush()

    name, described = sys.argv[1:]
    shape = geometry.Geometry(**json.loads(described))
    if shape.device == "cpu":
        torch.set_num_threads(1)
    try:
        installed = version(PACKAGES[name])
        here = rivals.Here(contestant(name, plain.Plain(geometry.build(shape))), shape)
    except PackageNotFoundError:
        return tell({"left_out": f"{PACKAGES[name]} is not installed"})
    except rivals.LeftOut as reason:
        return tell({"left_out": str(reason)})
    except Exception as reason:  # told over there, where the rest goes on
        return tell({"left_out": f"{type(reason).__name__}: {reason}"})
    tell({"version": installed})
    for line in sys.stdin:
        tell(answered(here, json.loads(line)))
    return None


if __name__ == "__main__":
    main()
