"""The `mechvlm` command and the codes that it ends with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from mechvlm.cli.options import example
from mechvlm.errors import MechVLMError, MechVLMWarning

__all__ = ["app", "main"]

STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    name="mechvlm",
    help=(
        "Find where in a vision-language model an answer comes from.\n\nLeft to"
        " themselves, commands draw a scene and ask the demo model about it; --image,"
        " --question and --answer ask your own."
    ),
    epilog=(
        "Exit codes: 0 done; 1 a claim or a check failed (bench, info MODEL);"
        " 2 refused, with one message on standard error; 130 stopped by Ctrl-C.\n\n"
        + example(
            "mechvlm patch --model llava-hf/llava-1.5-7b-hf --image cat.png \\\n"
            "      --counterfactual dog.png --answer cat \\\n"
            '      --question "What animal is this?"'
        )
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        words: What was typed after `mechvlm`; None reads the shell's own.

    Raises:
        SystemExit: Always: 0 done; 1 a claim or a check failed; 2 refused, with one
            message and no traceback; 130 stopped by Ctrl-C.
    """
    try:
        with _short_warnings():
            app(words, prog_name="mechvlm")
    except MechVLMError as refused:
        typer.echo(f"mechvlm: {refused}", err=True)
        raise SystemExit(2) from refused
    except OSError as failed:  # such as a disk that is full
        typer.echo(f"mechvlm: {failed}", err=True)
        raise SystemExit(2) from failed
    except KeyboardInterrupt:
        _stopped()
    except SystemExit as left:
        if left.code == STOPPED:
            _stopped()
        raise


def _stopped() -> None:
    """Leave after Ctrl-C: what was half done has been taken away again."""
    typer.echo("mechvlm: stopped", err=True)
    raise SystemExit(STOPPED) from None


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show our own warnings as one line, without the place in the code."""
    before = warnings.formatwarning

    def short(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if issubclass(category, MechVLMWarning):
            return f"mechvlm: {message}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = short
    try:
        yield
    finally:
        warnings.formatwarning = before
