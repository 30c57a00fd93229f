"""Pages in a real browser, offline: the means that every test of a live view shares.

The fixtures `browser` and `visit` are there in every test file (through conftest.py);
write `pytestmark = needs_browser` above the tests. `visit(page)` opens a page, given as
HTML or as a file, on light or dark paper and in a window of some width; at the end of
the test the page must have done nothing it should not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

__all__ = [
    "MATRIX",
    "WIDTHS",
    "Visit",
    "browser",
    "fits",
    "needs_browser",
    "until",
    "visit",
]

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium here (Debian: apt-get install chromium)"
)
WIDTHS = (1280, 400)
MATRIX = pytest.mark.parametrize(
    ("theme", "width"), [(theme, w) for theme in ("light", "dark") for w in WIDTHS]
)
GROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 23, 27)"}


def until(page, truth: str, seconds: float = 30) -> None:
    """Wait for an expression or function of the page to be true.

    Playwright's own `wait_for_function` asks once, and again only by `eval`, which our
    pages forbid.
    """
    end = time.monotonic() + seconds
    while not page.evaluate(truth):
        assert time.monotonic() < end, f"never true: {truth}"
        page.wait_for_timeout(30)


class Visit:
    """One page, opened offline, and what it did that it should not."""

    def __init__(self, context, page_file: Path):
        self.faults: list[str] = []
        self.page = context.new_page()
        self.page.on("pageerror", lambda error: self.faults.append(f"error {error}"))
        self.page.on("console", self._heard)
        self.page.on("request", self._asked)
        self.page.on("dialog", lambda dialog: self.faults.append("dialog"))
        self.page.goto(page_file.as_uri())

    def _heard(self, message):
        if message.type == "error":
            self.faults.append(f"console {message.text}")

    def _asked(self, request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.faults.append(f"request {request.url}")

    def read_out(self) -> str:
        """Text of the first figure's read-out, minus signs as hyphens."""
        said = self.page.locator(".mv-read").first.inner_text()
        return said.replace("\N{MINUS SIGN}", "-")

    def parts(self) -> list[str]:
        """The read-out's parts, between its dots."""
        return [part.strip() for part in self.read_out().split("·")]

    def pixel(self, selector: str, x: float, y: float) -> list[int]:
        """Red, green, blue, opacity of a canvas, at fractions of its sides."""
        return self.page.evaluate(
            """([selector, x, y]) => {
              const c = document.querySelector(selector);
              const at = [Math.floor(x * c.width), Math.floor(y * c.height)];
              return Array.from(c.getContext('2d').getImageData(...at, 1, 1).data);
            }""",
            [selector, x, y],
        )

    def turn(self, **media: str):
        """Another system or medium, and the frames in which the page answers it."""
        self.page.emulate_media(**media)
        self.page.evaluate(
            "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
        )

    def ground(self) -> str:
        """Colour of the paper the page lies on."""
        return self.page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A browser, started once for each test file."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(
            executable_path=BROWSER,
            # Without WebGL circuitsvis computes on the processor: sooner here.
            args=["--no-sandbox", "--disable-gpu", "--disable-software-rasterizer"],
        )
        yield made
        made.close()


@pytest.fixture
def visit(browser, tmp_path) -> Iterator[Callable[..., Visit]]:
    """Open a page; at the end it must have done nothing it should not.

    `visit(page, theme="dark", width=400)`: the reader's system and the window's width.
    """
    visits: list[Visit] = []

    def opened(page: str | Path, theme: str = "light", width: int = 1000) -> Visit:
        file = page if isinstance(page, Path) else tmp_path / f"page{len(visits)}.html"
        if isinstance(page, str):
            file.write_text(page, "utf-8")
        context = browser.new_context(
            offline=True,
            color_scheme=theme,
            viewport={"width": width, "height": 800},
        )
        visits.append(Visit(context, file))
        return visits[-1]

    yield opened
    for made in visits:
        assert made.page.evaluate("window.ran") is None, "a token ran as script"
        assert made.faults == []
        made.page.context.close()


def fits(visit: Callable[..., Visit], page: str, theme: str, width: int) -> Visit:
    """Open a page in one cell of MATRIX: it lies on its paper and does not overflow.

    Every new kind of figure wants this test:

        @MATRIX
        @pytest.mark.parametrize("kind", FIGURES)
        def test_it_fits(visit, kind, theme, width):
            fits(visit, FIGURES[kind].html, theme, width)
    """
    made = visit(page, theme, width)
    made.page.wait_for_timeout(100)  # the observers' first call, and late images
    assert made.ground() == GROUND[theme]
    assert made.page.evaluate("document.documentElement.scrollWidth") <= width
    plots = made.page.locator(".mv-plot")
    assert plots.count() > 0
    for box in (plots.nth(i).bounding_box() for i in range(plots.count())):
        assert box["height"] > 60, "nothing is drawn"
        assert box["width"] > 200
    return made
