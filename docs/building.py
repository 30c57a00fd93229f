"""What the documentation's pages need of Sphinx: figures, papers, and the commands.

Three directives. `shown` puts a figure of docs/figures on a page, in the colours of the
reader's theme, with the text for those who do not see it; `papers` lists the papers
whose methods are here; `commands` writes down every command of the shell with its
arguments, as the command line itself declares them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, ClassVar

from docutils import nodes
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from mechvlm.papers import PAPERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx
    from typer.core import TyperCommand as Command

FIGURES = Path(__file__).parent / "figures"
FETCHES = {
    ".html": re.compile(
        r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\ssrc(?:set)?\s*=\s*"
        r"[\"'](?:https?:)?//[^\"']*"
        r"|<link\b(?=[^>]*rel=[\"'](?:stylesheet|preload|icon|preconnect))[^>]*"
        r"href\s*=\s*[\"'](?:https?:)?//[^\"']*"
    ),
    ".css": re.compile(r"@import[^;]*//[^;]*|url\([\"']?(?:https?:)?//[^)]*"),
}
"""What a page or a style may not hold: an address that is fetched as it is shown."""
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")


def read_about() -> dict[str, str]:
    """Text of each figure for those who do not see it, by the figure's name."""
    kept = json.loads((FIGURES / "data.json").read_text(encoding="utf-8"))
    return {name: figure["about"] for name, figure in kept["figures"].items()}


class Shown(SphinxDirective):
    """A figure by its name; the directive's text is its caption."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {}

    def run(self) -> list[nodes.Node]:
        """The light and the dark picture, of which the theme shows one."""
        (name,) = self.arguments
        self.env.note_dependency(str(FIGURES / "data.json"))
        about = read_about()
        if name not in about:
            raise self.error(f"no figure is called {name!r}: {', '.join(about)}")
        figure = nodes.figure()
        for theme in ("light", "dark"):
            uri = f"/figures/{name}-{theme}.png"
            classes = [f"only-{theme}"]
            figure += nodes.image(uri=uri, alt=about[name], classes=classes)
        if self.content:
            parsed = self.parse_content_to_nodes()
            caption = nodes.caption()
            caption += parsed[0].children
            figure += caption
        return [figure]


class Papers(SphinxDirective):
    """Every paper whose method is here."""

    def run(self) -> list[nodes.Node]:
        """A list of citations, each with its link."""
        every = nodes.bullet_list()
        for key, citation in PAPERS.items():
            said = nodes.paragraph("", f"{citation} ")
            at = key.removeprefix("arXiv:")
            said += nodes.reference("", key, refuri=f"https://arxiv.org/abs/{at}")
            every += nodes.list_item("", said)
        return [every]


class Commands(SphinxDirective):
    """Every command of the shell, as it describes itself."""

    def run(self) -> list[nodes.Node]:
        """A section for each command: its words, options and examples."""
        from typer.main import get_command

        from mechvlm.cli import app

        commands = get_command(app).commands.values()
        said = "\n".join(line for command in commands for line in said_of(command))
        return self.parse_text_to_nodes(said, allow_section_headings=True)


def said_of(command: Command) -> Iterator[str]:
    """Markdown of a command: what it does, its options, and an example."""
    yield from (f"## mechvlm {command.name}", "", paragraphs(command.help or ""), "")
    with command.make_context(command.name, [], resilient_parsing=True) as context:
        records = [param.get_help_record(context) for param in command.params]
    for names, about in filter(None, records):
        yield from (f"`{names}`", f": {paragraphs(about)}", "")
    if command.epilog:
        shown = dedent(command.epilog.replace("\b\nExample:", "").strip("\n"))
        yield from ("```sh", shown, "```", "")


def paragraphs(text: str) -> str:
    """Help with line breaks only between paragraphs, and options as code."""
    flowing = re.sub(r"(?<!\n)\n(?!\n)", " ", text.replace("\b", "")).strip()
    return re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", flowing)


def refuse_requests(app: Sphinx, failed: Exception | None) -> None:
    """Stop where a page would fetch something from elsewhere.

    Raises:
        ExtensionError: A script, style, font or picture has an address.
    """
    if failed is not None or app.builder.format != "html":
        return
    for path in sorted(app.outdir.rglob("*")):
        fetches = FETCHES.get(path.suffix)
        found = fetches and fetches.search(path.read_text(encoding="utf-8"))
        if found:
            raise ExtensionError(f"{path.name} would fetch {found[0]}")


def tidy(app: Sphinx, what: str, name: str, obj: object, options: object,
         lines: list[str]) -> None:  # fmt: skip
    """Docstrings' "Paper:" as one bold line, and arXiv ids as links."""
    text = "\n".join(lines)
    text = re.sub(
        r"^Paper: ((?:.+\n?)+)",
        lambda found: "**Paper:** " + " ".join(found[1].split()) + "\n",
        text,
        flags=re.MULTILINE,
    )
    text = ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", text)
    lines[:] = text.split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of the directives."""
    app.add_directive("shown", Shown)
    app.add_directive("papers", Papers)
    app.add_directive("commands", Commands)
    app.connect("build-finished", refuse_requests)
    app.connect("autodoc-process-docstring", tidy, priority=100)
    return {"parallel_read_safe": True}
