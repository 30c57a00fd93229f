"""Files that are either whole or absent."""

from __future__ import annotations

from pathlib import Path

from mechvlm.axes import replacing
from mechvlm.errors import OutputError

__all__ = ["write_atomically"]


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file so that no reader ever sees part of it.

    Args:
        path: File to write; its folder must exist.
        content: The whole content.

    Returns:
        The path written.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        with replacing(path) as partial:
            partial.write_bytes(content)
    except OSError as cause:
        raise OutputError(
            f"cannot write {path}: {cause}. Does the folder exist, and is there space?"
        ) from cause
    return path
