"""Results on disk: all files of a command, each of them whole, or none."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import typer

from mechvlm.errors import OutputError

__all__ = ["check_out", "write_all"]

Writers = Mapping[str, Callable[[Path], object]]
"""Name of a file -> what writes it to the path that it is handed."""

_FINISHED = "mechvlm.json"
"""What `demo` and `reproduce` leave in a folder that is theirs as a whole."""


def check_out(out: Path) -> Path:
    """Refuse a folder that cannot be written into, before a model is loaded.

    Raises:
        OutputError: It is a file, another command's finished output, or not writable.
    """
    there = next(each for each in (out, *out.absolute().parents) if each.exists())
    if not there.is_dir():
        raise OutputError(
            f"--out {out}: {there} is a file; wanted a folder, there or not yet."
        )
    if (out / _FINISHED).exists():
        raise OutputError(
            f"--out {out} is the finished output of `mechvlm demo` or `reproduce`,"
            " which further files would spoil. Choose another folder."
        )
    if not os.access(_standing(out), os.W_OK):
        raise OutputError(f"--out {out}: {_standing(out)} cannot be written to.")
    return out


def write_all(out: Path, writers: Writers, *, quiet: bool = False) -> tuple[Path, ...]:
    """Write files into a folder, which is made; an interruption leaves none of them.

    They are written aside and then take their names together. An older file of the same
    name is replaced, and standard error is told; all others stay.

    Args:
        out: The folder.
        writers: Name -> what writes the file.
        quiet: Do not tell what is replaced.

    Returns:
        The files' paths.

    Raises:
        OutputError: A file cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".mechvlm-", dir=_standing(out)) as at:
            for name, write in writers.items():
                write(Path(at) / name)
            with _uninterrupted():
                return _placed(Path(at), out, list(writers), quiet)
    except OSError as cause:
        if isinstance(cause, OutputError):
            raise
        raise OutputError(
            f"cannot write into {out}: {cause}. Is there space on the disk?"
        ) from cause


def _placed(at: Path, out: Path, names: list[str], quiet: bool) -> tuple[Path, ...]:
    out.mkdir(parents=True, exist_ok=True)
    placed = []
    for name in names:
        if (out / name).exists() and not quiet:
            typer.echo(f"replaced   {out / name}", err=True)
        placed.append((at / name).replace(out / name))
    return tuple(placed)


def _standing(out: Path) -> Path:
    """The folder itself or the nearest above it that is there: of one file system."""
    return next(
        each for each in (out.absolute(), *out.absolute().parents) if each.is_dir()
    )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off until the end; only the main thread is told of it at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def later(number: int, _: FrameType | None) -> None:
        came.append(number)

    before = signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
