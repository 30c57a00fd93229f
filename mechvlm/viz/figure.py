"""A figure: one live page, its still pictures, and the numbers that both show."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from mechvlm.errors import ResultError
from mechvlm.viz.files import write_atomically
from mechvlm.viz.labels import describe, subtitle, title
from mechvlm.viz.palette import DARK, LIGHT, Theme
from mechvlm.viz.payload import data_uri, light_png, script_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["CSP", "Figure", "asset", "scripts_of", "style"]

CSP = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline';"
    " script-src 'unsafe-inline'"
)
CIRCUITSVIS = frozenset({"attention", "tokens", "top_tokens"})
"""Kinds of view that circuitsvis draws."""

SEEN_THROUGH = (
    "<style>:root:not([data-live]) .mv-page { background: none; }"
    " :root:not([data-live]) .mv { visibility: hidden; }</style>"
)
"""For a page in a frame over the still: until its scripts run, it shows the still."""

MIME = {".html": "text/html", ".png": "image/png", ".svg": "image/svg+xml"}


def asset(name: str) -> str:
    """Text of one of the files that a page is made of."""
    return resources.files("mechvlm.viz").joinpath("assets", name).read_text("utf-8")


def style() -> str:
    """Style of a page with figures: the themes' colours, then what wears them.

    A page follows its reader's system unless `data-theme` of its root element says
    "light" or "dark"; paper is always light.
    """
    light, dark = variables(LIGHT), variables(DARK)
    worn = ":is(.mv, .mv-page)"
    return (
        ":root { color-scheme: light dark; }\n"
        ':root[data-theme="light"] { color-scheme: light; }\n'
        ':root[data-theme="dark"] { color-scheme: dark; }\n'
        f"{worn} {{ {light} }}\n"
        "@media screen and (prefers-color-scheme: dark)"
        f' {{ :root:not([data-theme="light"]) {worn} {{ {dark} }} }}\n'
        f'@media screen {{ :root[data-theme="dark"] {worn} {{ {dark} }} }}\n'
        f"{asset('figure.css')}{asset('circuitsvis.css')}"
    )


def variables(theme: Theme) -> str:
    """A theme's colours as CSS custom properties."""
    named = {
        "ink": theme.ink, "faint": theme.faint, "rule": theme.rule,
        "paper": theme.paper, "card": theme.card, "accent": theme.accent,
        "missing": theme.missing,
    }  # fmt: skip
    named |= {f"series-{i}": colour for i, colour in enumerate(theme.series)}
    return " ".join(f"--{name}: {colour};" for name, colour in named.items())


def circuitsvis_script() -> str:
    """Circuitsvis's bundle, found without importing it: its import loads torch."""
    bundle = metadata.distribution("circuitsvis").locate_file(
        "circuitsvis/dist/cdn/iife.js"
    )
    text = Path(str(bundle)).read_text("utf-8").replace("</script", "<\\/script")
    return text.replace("//# sourceMappingURL=iife.js.map", "")


def scripts_of(figures: Iterable[Figure]) -> str:
    """Script elements that these figures need, each script once."""
    kinds = sorted({kind for figure in figures for kind in figure.kinds})
    texts = [asset("core.js"), *(asset(f"{kind}.js") for kind in kinds)]
    if not CIRCUITSVIS.isdisjoint(kinds):
        texts.insert(0, circuitsvis_script())
    start = ["MechVLM.start();"] if kinds else []
    return "\n".join(f"<script>{text}</script>" for text in (*texts, *start))


@dataclass(frozen=True)
class Figure:
    """A drawn result: shows itself in notebooks, saves as .html, .png or .svg.

    Attributes:
        data: The labelled numbers that are drawn.
        kind: Kind of view, which names its script: "attention", "bars", "circuit",
            "compare", "flow", "lens", "lines", "map", "overlay", "tokens" or
            "top_tokens".
        spec: What the page's script draws, as plain values.
        draw: Draws the still picture; called at most once for each format.
        height_px: Height that the live view wants at 900 pixels of width.
        about: Text for those who do not see the figure; "" describes the data.
        within: Further kinds whose scripts the view needs.
    """

    data: xr.DataArray | xr.Dataset
    kind: str
    spec: dict[str, object] = field(repr=False)
    draw: Callable[[], Drawing] = field(repr=False)
    height_px: int = 520
    about: str = ""
    within: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of view whose scripts a page with this figure needs."""
        return (self.kind, *self.within)

    @property
    def alt(self) -> str:
        """One sentence or more for those who do not see the figure."""
        if isinstance(self.data, xr.Dataset):
            return self.about or title(self.data)
        return self.about or describe(self.data)

    def fragment(self, *, still: bool = False) -> str:
        """The figure as an element for a page that has its style and scripts.

        Args:
            still: Also carry the PNG, for readers without scripts.
        """
        alt, lines = escape(self.alt), escape(subtitle(self.data))
        image = ""
        if still:
            picture = self._still_uri
            image = f'<noscript><img alt="{alt}" src="{picture}"></noscript>\n'
        return (
            f'<figure class="mv" data-kind="{escape(self.kind)}">\n'
            f"<figcaption><strong>{escape(title(self.data))}</strong>"
            f"{f'<span>{lines}</span>' if lines else ''}</figcaption>\n"
            f'<div class="mv-plot" role="img" tabindex="0" aria-label="{alt}"></div>\n'
            f'{image}<output class="mv-read" aria-live="polite"></output>\n'
            f'<script type="application/json">{script_json(self.spec)}</script>\n'
            "</figure>"
        )

    @cached_property
    def html(self) -> str:
        """The live view as one page that asks nothing of the network."""
        return self._page()

    def _page(self, pinned: Theme | None = None, head: str = "") -> str:
        """The live view, on its reader's paper or on that of one theme."""
        worn = f' data-theme="{pinned.name}"' if pinned else ""
        return (
            f'<!doctype html>\n<html lang="en"{worn}><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{CSP}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title(self.data))}</title>\n"
            f"<style>{style()}</style>{head}</head>\n"
            f'<body class="mv-page">{self.fragment()}\n'
            f"{scripts_of([self])}</body></html>\n"
        )

    @cached_property
    def png(self) -> bytes:
        """The still picture, as PNG on light paper."""
        return self._drawn("png", LIGHT)

    @cached_property
    def svg(self) -> bytes:
        """The still picture, as SVG on light paper, with its text as outlines."""
        return self._drawn("svg", LIGHT)

    @cached_property
    def _still_uri(self) -> str:
        """The still picture as an address, in as few bytes as look the same."""
        return data_uri(light_png(self.png), MIME[".png"])

    def _drawn(self, kind: str, theme: Theme) -> bytes:
        from mechvlm.viz.stills import rendered

        return rendered(self.draw, kind, theme)

    def save(self, path: str | Path, *, theme: Theme | None = None) -> Path:
        """Write the figure to a file, whole or not at all.

        Args:
            path: Where to; the suffix .html, .png or .svg says what.
            theme: `viz.LIGHT` or `viz.DARK`. Without it a still picture is light, and
                a live page follows its reader's system.

        Returns:
            The path written.

        Raises:
            ResultError: The suffix is none of these.
            OutputError: The file cannot be written.

        Example:
            >>> import tempfile
            >>> from mechvlm.viz import lines
            >>> figure = lines(xr.DataArray([0.0, 2.0], dims="layer"))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     figure.save(Path(folder) / "curve.html").name
            'curve.html'
        """
        path = Path(path)
        if path.suffix.lower() not in MIME:
            raise ResultError(
                f"cannot save a figure as {path.name!r}: its suffix is"
                f" {path.suffix!r}. Use .html (live), .png or .svg (still)."
            )
        match path.suffix.lower():
            case ".html":
                content = (self._page(theme) if theme else self.html).encode()
            case suffix:
                content = self._drawn(suffix[1:], theme or LIGHT)
        return write_atomically(path, content)

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> dict[str, str]:
        """One HTML: the still, and over it the live view where scripts may run.

        Where they may not, the frame is seen through; that asks for one colour scheme
        of the frame and its page.
        """
        page = escape(self._page(head=SEEN_THROUGH))
        return {
            "text/html": (
                f'<div style="position:relative;min-height:{self.height_px}px">'
                f'<img alt="{escape(self.alt)}" src="{self._still_uri}"'
                ' style="max-width:100%;border-radius:8px">'
                '<iframe sandbox="allow-scripts" title="live view" style="position:'
                "absolute;inset:0;width:100%;height:100%;border:0;border-radius:8px;"
                f'color-scheme:light dark" srcdoc="{page}"></iframe></div>'
            )
        }
