"""A section of the README between two markers, written from what was measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def keep(
    doc: str | None,
    name: str,
    *,
    measure: Callable[[], None],
    write: Callable[[], str],
) -> None:
    """Write a section of the README, or compare it with what is there.

    Args:
        doc: Words of the command's help.
        name: Name of the section, which its markers say.
        measure: What --run does first.
        write: The section's text.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", action="store_true", help="measure again first")
    parser.add_argument("--check", action="store_true", help="only compare")
    told = parser.parse_args()
    if told.run:
        measure()
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(start)
    _, after = rest.split(end)
    wanted = f"{before}{start}\n{write()}\n{end}{after}"
    if told.check and wanted != text:
        sys.exit(f"the README's section of {name} is not what was measured")
    if not told.check:
        README.write_text(wanted, encoding="utf-8")
