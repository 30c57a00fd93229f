"""A folder of pictures, without anything known of them."""

from __future__ import annotations

from pathlib import Path

from mechvlm.errors import DatasetError
from mechvlm.items import Item

__all__ = ["SUFFIXES", "read"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""Files that count as pictures."""


def read(
    folder: str | Path,
    *,
    question: str = "Describe the image.",
    limit: int | None = None,
) -> tuple[Item, ...]:
    """The pictures of a folder, in the order of their names.

    Args:
        folder: Where they lie; folders in it are not looked into, and hidden files are
            not looked at.
        question: What every item asks.
        limit: Most pictures to take, 1 or more; None takes all.

    Returns:
        Items without answers or objects, their `id` the file's name.

    Raises:
        DatasetError: The folder is missing or holds no picture, or none would be taken.

    Example:
        >>> import mechvlm as mv
        >>> mv.datasets.pictures.read("nowhere")
        Traceback (most recent call last):
        ...
        mechvlm.errors.DatasetError: nowhere is no folder...
    """
    root = Path(folder)
    if not root.is_dir():
        raise DatasetError(f"{root} is no folder; wanted one that holds pictures.")
    if limit is not None and limit < 1:
        raise DatasetError(f"limit={limit}: wanted 1 or more; None takes all pictures.")
    files = sorted(each for each in root.iterdir() if _is_picture(each))
    if not files:
        raise DatasetError(
            f"{root} holds no picture ({', '.join(sorted(SUFFIXES))}). Pictures in"
            " folders inside it are not looked for."
        )
    return tuple(Item(file, question, id=file.name) for file in files[:limit])


def _is_picture(file: Path) -> bool:
    """Whether a file counts; a hidden twin of a picture, as some systems write, not."""
    shown = not file.name.startswith(".")
    return shown and file.suffix.lower() in SUFFIXES and file.is_file()
