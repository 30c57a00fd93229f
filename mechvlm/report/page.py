"""Results and words on one self-contained page that asks nothing of the network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from mechvlm.errors import ResultError
from mechvlm.papers import PAPERS, cite
from mechvlm.report.tables import Table, downloads
from mechvlm.viz.figure import CSP, Figure, asset, scripts_of, style
from mechvlm.viz.files import write_atomically
from mechvlm.viz.payload import picture_uri

__all__ = ["Section", "page", "write"]


NUMBER = "[-+\N{MINUS SIGN}]?[0-9.,]+ ?%?"
NUMERIC = ' class="num"'


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        title: Heading, plain text.
        text: Plain text; an empty line starts a new paragraph, `backticks` mark code.
        figure: A figure of `mechvlm.viz`, live in the page.
        image: A picture.
        alt: What the picture shows, for those who do not see it.
        table: Rows of plain text, the first one naming the columns.
        html: Markup from the caller's own hand; nothing is escaped in it.
        caption: Plain text under the figure, the picture or the table.
        within: Parts of this part, under smaller headings; one without a title has
            none.
        numbers: Tables that the page offers as CSV.
    """

    title: str
    text: str = ""
    figure: Figure | None = None
    image: Image.Image | None = None
    alt: str = ""
    table: Sequence[Sequence[str]] = ()
    html: str = ""
    caption: str = ""
    within: Sequence[Section] = ()
    numbers: Sequence[Table] = ()

    @property
    def figures(self) -> list[Figure]:
        """Its figure and those of its parts, in order."""
        own = [] if self.figure is None else [self.figure]
        return [*own, *(f for part in self.within for f in part.figures)]

    @property
    def offers(self) -> bool:
        """Whether it or one of its parts has tables."""
        return bool(self.numbers) or any(part.offers for part in self.within)


def page(
    title: str,
    sections: Sequence[Section],
    *,
    lead: str = "",
    version: str = "",
    papers: Iterable[str] = (),
) -> str:
    """Build a report: one HTML document with everything inside.

    Args:
        title: Heading of the page, plain text.
        sections: Its parts, in order.
        lead: What the page shows, in a sentence or two; plain text as in a section.
        version: Version of the package that made the results, for the footer.
        papers: Keys of papers to cite besides those that the figures' results carry.

    Returns:
        The document. The scripts that its figures need stand in it once.

    Raises:
        ResultError: A paper of `papers` is not known, or a picture has no `alt`.

    Example:
        >>> print(page("Nothing", [])[:15])
        <!doctype html>
    """
    figures = [figure for section in sections for figure in section.figures]
    parts = [part(section, i) for i, section in enumerate(sections, 1)]
    look = style() + asset("report.css")
    scripts = scripts_of(figures)
    if any(section.offers for section in sections):
        scripts += f"\n<script>{asset('report.js')}</script>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CSP}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{look}</style></head>\n"
        '<body class="mv-page mv-report"><main>\n'
        f"<header><h1>{escape(title)}</h1>{prose(lead, 'lead')}</header>\n"
        f"{contents(sections)}{''.join(parts)}</main>\n"
        f"{provenance(figures, version, papers)}\n{scripts}</body></html>\n"
    )


def write(
    path: str | Path,
    title: str,
    sections: Sequence[Section],
    *,
    lead: str = "",
    version: str = "",
    papers: Iterable[str] = (),
) -> Path:
    """Write a report to a file, whole or not at all; see `page`.

    Returns:
        The path written.

    Raises:
        ResultError: The path does not end in .html, or as for `page`.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ResultError(
            f"a report is one HTML page: {path.name!r} should end in .html"
        )
    text = page(title, sections, lead=lead, version=version, papers=papers)
    return write_atomically(path, text.encode())


def prose(text: str, kind: str = "") -> str:
    """Plain text as paragraphs, `backticks` as code, all else escaped."""
    mark = f' class="{kind}"' if kind else ""
    blocks = [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]
    coded = [
        re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(block)) for block in blocks
    ]
    return "".join(f"<p{mark}>{block}</p>\n" for block in coded)


def part(section: Section, number: int) -> str:
    """One section as HTML."""
    heading = f'<h2 id="part-{number}">{escape(section.title)}</h2>\n'
    start = f'<section aria-labelledby="part-{number}">'
    return f"{start}{heading}{inside(section)}</section>\n"


def inside(section: Section) -> str:
    """What stands below a section's heading."""
    shown = [prose(section.text), section.html]
    if section.figure is not None:
        shown.append(section.figure.fragment(still=True))
    if section.image is not None:
        shown.append(pictured(section))
    if section.table:
        shown.append(tabled(section.table))
    for smaller in section.within:
        heading = f"<h3>{escape(smaller.title)}</h3>\n" if smaller.title else ""
        shown.append(f'<div class="within">{heading}{inside(smaller)}</div>\n')
    if section.caption:
        shown.append(prose(section.caption, "caption"))
    shown.append(downloads(section.numbers))
    return "".join(shown)


def pictured(section: Section) -> str:
    """A section's picture; small ones are enlarged without blur."""
    if section.image is None or not section.alt:
        raise ResultError(
            f"the picture of section {section.title!r} has no `alt`: say in a few words"
            " what it shows, for readers who do not see it"
        )
    kind = "picture sharp" if max(section.image.size) < 200 else "picture"
    uri = picture_uri(section.image)
    return f'<img class="{kind}" alt="{escape(section.alt)}" src="{uri}">\n'


def tabled(table: Sequence[Sequence[str]]) -> str:
    """Rows of text as a table; columns of numbers stand right."""
    head, *body = [[str(cell) for cell in row] for row in table]
    numeric = [
        bool(body) and all(re.fullmatch(NUMBER, row[i] or "") for row in body)
        for i in range(len(head))
    ]

    def line(row: Sequence[str], tag: str) -> str:
        cells = (
            f"<{tag}{NUMERIC if number else ''}>{escape(cell)}</{tag}>"
            for cell, number in zip(row, numeric, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    rows = "".join(line(row, "td") for row in body)
    return (
        '<div class="table"><table><thead>'
        f"{line(head, 'th')}</thead><tbody>{rows}</tbody></table></div>\n"
    )


def contents(sections: Sequence[Section]) -> str:
    """Links to the sections, where there are enough to need them."""
    if len(sections) < 4:
        return ""
    links = "".join(
        f'<li><a href="#part-{i}">{escape(section.title)}</a></li>'
        for i, section in enumerate(sections, 1)
    )
    return f'<nav aria-label="Contents"><ol>{links}</ol></nav>\n'


def provenance(figures: Sequence[Figure], version: str, papers: Iterable[str]) -> str:
    """Footer: what made these numbers, and whom to cite for the methods."""
    attrs = [figure.data.attrs for figure in figures]
    facts = [
        (name, list(dict.fromkeys(str(a[key]) for a in attrs if a.get(key))))
        for name, key in (
            ("Model", "model"),
            ("Metric", "metric"),
        )
    ]
    told = [str(a["prompt"]) for a in attrs if a.get("prompt")]
    prompts = {" ".join(text.replace("↵", " ").split()): text for text in told}
    facts.insert(1, ("Prompt", list(prompts)))
    if version:
        facts.append(("Made with", [f"mechvlm {version}"]))
    lines = "".join(
        f"<dt>{name}</dt><dd>{'<br>'.join(map(escape, values))}</dd>"
        for name, values in facts
        if values
    )
    carried = [str(a["paper"]) for a in attrs if a.get("paper")]
    cited = [cite(key) if key in PAPERS else key for key in carried] + [
        cite(k) for k in papers
    ]
    methods = "".join(f"<li>{escape(text)}</li>" for text in dict.fromkeys(cited))
    return (
        "<footer><h2>Provenance</h2>"
        + (f"<dl>{lines}</dl>" if lines else "")
        + (f"<h3>Methods</h3><ul>{methods}</ul>" if methods else "")
        + "</footer>"
    )
