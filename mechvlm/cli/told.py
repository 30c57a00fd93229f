"""What a command tells: words for people on one side, one JSON object for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import typer

from mechvlm.cli.given import Output

__all__ = ["PIPE", "Told", "percent", "plain", "say", "tell"]

PIPE = 141
"""Exit code where nobody reads any more, as of a program that a signal ends."""


@dataclass(frozen=True)
class Told:
    """What came of a command.

    Attributes:
        command: Its name.
        lines: What people read.
        facts: What programs read: plain values, and numbers of numpy.
        files: What was written.
        code: Exit code: 0 done, 1 a claim or a check failed.
    """

    command: str
    lines: Sequence[str]
    facts: Mapping[str, object]
    files: Sequence[Path] = field(default=())
    code: int = 0


def tell(told: Told, output: Output) -> None:
    """Print what came of a command, and leave with its code if it is not 0."""
    if output.as_json:
        files = [str(file) for file in told.files]
        whole = {"command": told.command, **told.facts, "files": files}
        say(json.dumps(plain(whole), ensure_ascii=False, allow_nan=False))
    else:
        for line in (*told.lines, *(f"written    {file}" for file in told.files)):
            say(line)
    if told.code:
        raise typer.Exit(told.code)


def say(line: str) -> None:
    """One line on standard output; a reader that has left ends the command quietly."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still held back would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PIPE) from None


def percent(share: float) -> str:
    """A share of 1 in whole percent, with no sign before 0.

    Example:
        >>> percent(-0.001), percent(0.561), percent(float("nan"))
        ('0 %', '56 %', 'no value')
    """
    return f"{round(100 * share)} %" if isfinite(share) else "no value"


def plain(value: object) -> object:
    """A value as JSON can hold it: no NaN, nothing of numpy or pathlib.

    Example:
        >>> plain({"p": float("nan"), "layers": (1, 2)})
        {'p': None, 'layers': [1, 2]}
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if isfinite(value) else None
        case Mapping():
            return {str(key): plain(each) for key, each in value.items()}
        case Path():
            return str(value)
        case list() | tuple():
            return [plain(each) for each in value]
    raise TypeError(f"{type(value).__name__} is not told as JSON: {value!r}")
