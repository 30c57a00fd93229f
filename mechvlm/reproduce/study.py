"""A paper's whole set of claims, as a value that a job can run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from mechvlm.models.hooked import HookedVLM
from mechvlm.reproduce.finding import Claim, Finding

__all__ = ["Study"]

Material = TypeVar("Material")
Session = TypeVar("Session")


@dataclass(frozen=True)
class Study(Generic[Material, Session]):
    """What is measured for one paper, and on what.

    Attributes:
        name: As the command line calls it.
        paper: Key of the paper.
        title: What the paper asks, as a heading.
        scenes: Synthetic pictures, where no other number is asked for.
        of_scenes: Makes the material for the demo model from that many scenes.
        of_folder: Reads at most that many pictures from a folder of one's own.
        session: A model with its material, and what claims share of it.
        claims: Each claim with what measures it, in the paper's order.
    """

    name: str
    paper: str
    title: str
    scenes: int
    of_scenes: Callable[[int], Material]
    of_folder: Callable[[Path, int], Material]
    session: Callable[[HookedVLM, Material], Session]
    claims: Mapping[Claim, Callable[[Session], Finding]]
