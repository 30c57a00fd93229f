"""The ring: a model, those who run it, and why others do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from arena.command import Told
from arena.geometry import Scene, build
from arena.lens import Bridge
from arena.plain import Plain, Prefix
from arena.rivals import ELSEWHERE, Here, LeftOut, Rival, There
from mechvlm.errors import InteropError


@dataclass
class Ring:
    """Who runs a scene beside mechvlm.

    Attributes:
        versions: Versions of the libraries that have a process of their own.
        left_out: Contestants that cannot run here, and why.
    """

    scene: Scene
    told: Told
    rivals: dict[str, Rival]
    versions: dict[str, str]
    left_out: dict[str, str]

    @classmethod
    @contextmanager
    def open(cls, told: Told) -> Iterator[Ring]:
        """Build the model, start the processes, and end them again."""
        with ExitStack() as stack:
            started = {}
            for name in ELSEWHERE:
                if name in told.against:
                    started[name] = There(name, told.geometry)
                    stack.callback(started[name].close)
            scene = build(told.geometry)
            ring = cls(scene, told, {}, {}, {})
            plain = Plain(scene)
            makers: dict[str, Callable[[], Any]] = {
                "hf": lambda: plain,
                "prefix": lambda: Prefix(scene),
                "bridge": lambda: Bridge(plain),
            }
            for name, make in makers.items():
                if name == "hf" or name in told.against:
                    ring._join(name, lambda make=make: Here(make(), told.geometry))
            for name, rival in started.items():
                ring._join(name, lambda rival=rival: rival)
            yield ring

    def _join(self, name: str, make: Callable[[], Rival]) -> None:
        try:
            rival = make()
            if isinstance(rival, There):
                self.versions[name] = rival.ready()
            self.rivals[name] = rival
        except (LeftOut, InteropError) as reason:
            self.left_out[name] = str(reason)
