"""The bar that shows how far a sweep is."""

from __future__ import annotations

from tqdm import tqdm

__all__ = ["bar_of"]


def bar_of(total: int, progress: str | bool | None) -> tqdm[None]:
    """A bar with rate and time left, for work of over a second, in a terminal.

    Args:
        total: Number of runs.
        progress: Words that stand in front of it; False shows none.
    """
    return tqdm(
        total=total,
        desc=progress if isinstance(progress, str) else None,
        unit="run",
        delay=1,
        disable=True if progress is False else None,
    )
