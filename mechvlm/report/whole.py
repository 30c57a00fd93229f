"""A report of results: one page with the question, the figures and the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from html import escape
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from mechvlm.report.given import Asked, Given, Source, named_results, section_of
from mechvlm.report.page import Section, write
from mechvlm.report.shown import Picture
from mechvlm.viz.payload import picture_uri

__all__ = ["report"]


def report(
    results: Source | Sequence[Source] | Mapping[str, Source],
    path: str | Path,
    *,
    prompt: Asked | None = None,
    answer: str = "",
    image: Image.Image | None = None,
    title: str = "",
    lead: str = "",
) -> Path:
    """Write results as one page that opens from disk and asks nothing of the network.

    Each result stands under a heading with the figures that suit it, a sentence from
    its numbers, its settings, the paper behind its method, and its numbers as CSV. No
    model is loaded. See `figures_of` for what is drawn of what.

    Args:
        results: One result or several, or heading -> result: what analyses returned,
            circuits, figures of `mechvlm.viz`, sections of `mechvlm.report`, or paths
            of saved results (.nc) and circuits (.json).
        path: File to write; its name ends in .html.
        prompt: The prompt that the results are of. Its picture is shown, and laid under
            the results that carry its text; None leaves the question to what the
            results say.
        answer: What the model answered, in words.
        image: The picture in its original size, where there is no `prompt`, or in the
            place of its own; it is laid under every result over image positions.
        title: Heading of the page; "" makes one of the model and the results.
        lead: What the page shows, in a sentence or two.

    Returns:
        The path written.

    Raises:
        ArgumentError: There is no result, or one is nothing that can be shown.
        ResultError: A result cannot be drawn (the message names it), the picture is
            not the one its cells are of, or the path does not end in .html.
        OutputError: A file of a result is missing or torn.

    Example:
        >>> import tempfile
        >>> import xarray as xr
        >>> drop = xr.DataArray([[0.0, 40.0]], {"cut": ["image->last"]},
        ...                     ("cut", "layer"), attrs={"units": "%"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = report({"Knockout": drop}, Path(folder) / "one.html")
        ...     "image→last, layer 1 with 40" in page.read_text("utf-8")
        True
    """
    given = named_results(results)
    sections = [section_of(one, _picture(one, prompt, image)) for one in given]
    opening = _asked(given, prompt, answer, image)
    return write(
        path,
        title or _titled(given, sections),
        [*opening, *_apart(sections)],
        lead=lead,
        version=f"{version('mechvlm')}, {date.today().isoformat()}",
    )


def _picture(one: Given, prompt: Asked | None, image: Picture) -> Picture:
    """The picture a result is of: the given one, or its prompt's."""
    if image is not None or prompt is None:
        return image
    own = one.attrs.get("prompt", prompt.text)
    return prompt.image if own == prompt.text else None


def _apart(sections: Sequence[Section]) -> list[Section]:
    """Sections whose headings, and whose tables' files, have names of their own."""
    times, seen, made = Counter(s.title for s in sections), Counter[str](), []
    for section in sections:
        seen[section.title] += 1
        nth = seen[section.title]
        if times[section.title] > 1:
            tables = [replace(t, name=f"{t.name}_{nth}") for t in section.numbers]
            heading = f"{section.title} ({nth})"
            section = replace(section, title=heading, numbers=tables)
        made.append(section)
    return made


def _titled(given: Sequence[Given], sections: Sequence[Section]) -> str:
    models = list(
        dict.fromkeys(str(g.attrs["model"]) for g in given if g.attrs.get("model"))
    )
    what = sections[0].title if len(sections) == 1 else f"{len(sections)} results"
    return f"{what} on {' and '.join(models)}" if models else what


def _asked(
    given: Sequence[Given], prompt: Asked | None, answer: str, image: Picture
) -> list[Section]:
    """The first section: question, picture, answer, so far as they are known."""
    own = [prompt.text] if prompt is not None else []
    told = [str(one.attrs["prompt"]) for one in given if one.attrs.get("prompt")]
    questions = list(dict.fromkeys([*own, *told]))
    picture = (
        image if image is not None else prompt.image if prompt is not None else None
    )
    missing = picture is None and any(
        one.attrs.get("grids", "[]") != "[]" for one in given
    )
    if not (questions or answer or picture is not None):
        return []
    facts = [("Question" if len(questions) == 1 else "Questions", questions)]
    whose = "Answer" if len(questions) < 2 else "Answer to the first"
    facts += [(whose, [answer] if answer else [])]
    rows = "".join(
        f"<dt>{name}</dt>{''.join(f'<dd>{escape(text)}</dd>' for text in texts)}"
        for name, texts in facts
        if texts
    )
    shown = ""
    if picture is not None:
        kind = "picture sharp" if max(picture.size) < 200 else "picture"
        shown = (
            f'<img class="{kind}" alt="The picture that was asked about"'
            f' src="{picture_uri(picture)}">'
        )
    note = (
        "No picture was given. With `prompt=` or `image=` in the call of `mv.report` it"
        " stands here, and what is known of its positions is laid over it."
    )
    return [
        Section(
            "What was asked",
            html=f'<div class="asked">{shown}<dl>{rows}</dl></div>\n',
            caption=note if missing else "",
        )
    ]
