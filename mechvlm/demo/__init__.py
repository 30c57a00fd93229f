"""The main job, as `mechvlm demo` runs it."""

from mechvlm.demo.job import run

__all__ = ["run"]
