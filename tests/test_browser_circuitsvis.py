"""circuitsvis's views in a real browser, offline: drawn, legible, harmless, once."""

import re

import numpy as np
import pytest
import xarray as xr
from pages import MATRIX, fits, needs_browser, until
from test_viz_attention import attention
from test_viz_tokens import lens, scores

from mechvlm import viz
from mechvlm.report import Section, page

pytestmark = needs_browser

HOSTILE = (
    "<img src=x onerror='window.ran=1'>",
    "</script><script>window.ran=2</script>",
    "<image>",
    "<bos>",
    "\"quoted\" 'too'",
    "&amp;&lt;b&gt;",
    "two  words",
    "line\nbreak",
    " ",
    "\N{RIGHT-TO-LEFT OVERRIDE}back",
    "x" * 60,
)
AS_SHOWN = (
    *HOSTILE[:7], "line↵break", "␣", "\N{REPLACEMENT CHARACTER}back", HOSTILE[10]
)  # fmt: skip
JOINER = "\N{WORD JOINER}"


def plain(text: str) -> str:
    """Text as a reader sees it."""
    return text.replace("\N{NO-BREAK SPACE}", " ").replace(JOINER, "")


def hostile_attention(**how) -> viz.Figure:
    full = attention((2, 2), words=len(HOSTILE) - 1)
    words = [HOSTILE[0], *["<image>"] * 4, *HOSTILE[1:]]
    coords = {f"{dim}_token": (dim, words) for dim in ("source", "target")}
    return viz.attention(full.assign_coords(coords), **how)


def hostile_tokens() -> viz.Figure:
    values = np.linspace(-1, 2, len(HOSTILE))
    coords = {"token": ("position", list(HOSTILE))}
    one = xr.DataArray(values, dims="position", coords=coords, name="score")
    return viz.tokens(xr.concat([one, -2 * one], dim="layer"))


def hostile_lens(across: str = "layer") -> viz.Figure:
    data = lens(layers=4, positions=3, k=len(HOSTILE))
    words = np.broadcast_to(np.array(HOSTILE), data["word"].shape)
    data["word"] = (data["word"].dims, words)
    return viz.top_tokens(
        data.assign_coords(token=("position", list(HOSTILE[:3]))), across=across
    )


FIGURES = {
    "patterns": hostile_attention(),
    "heads": hostile_attention(view="heads", grid=(2, 1)),
    "tokens": hostile_tokens(),
    "table": hostile_lens(),
    "table of positions": hostile_lens("position"),
}
DRAWN = {
    "patterns": ".mv-patterns .tokens button",
    "heads": ".mv-heads canvas",
    "tokens": ".mv-words .mv-painted",
    "table": ".mv-table .mv-painted",
    "table of positions": ".mv-table .mv-painted",
}


@MATRIX
def test_all_fit_on_one_page(visit, theme, width):
    sections = [Section(kind, figure=figure) for kind, figure in FIGURES.items()]
    made = fits(visit, page("All", sections), theme, width)
    for kind in FIGURES:
        made.page.wait_for_selector(DRAWN[kind])
    assert made.page.evaluate("document.documentElement.scrollWidth") <= width


def test_words_are_shown_as_they_are(visit):
    made = visit(FIGURES["tokens"].html)
    made.page.wait_for_selector(DRAWN["tokens"])
    texts = made.page.locator(DRAWN["tokens"]).all_inner_texts()
    assert tuple(map(plain, texts)) == AS_SHOWN
    assert made.page.locator(".mv-words img, .mv-words script").count() == 0


def test_the_hint_over_a_word_is_no_markup_either(visit):
    made = visit(FIGURES["tokens"].html)
    for i in (0, 1, 5):
        made.page.locator(DRAWN["tokens"]).nth(i).hover()
        hint = made.page.locator(".mv-words strong")
        hint.wait_for()
        assert plain(hint.inner_text()) == AS_SHOWN[i]
        assert made.page.locator(".mv-words img").count() == 0
        assert AS_SHOWN[i] in made.read_out()


def test_patterns_show_hostile_tokens_as_text(visit):
    made = visit(FIGURES["patterns"].html)
    made.page.wait_for_selector(DRAWN["patterns"])
    texts = made.page.locator(DRAWN["patterns"]).all_inner_texts()
    shown = [plain(text) for text in texts]
    assert shown[0] == AS_SHOWN[0]
    assert shown[1] == "image x4 (keys: sum, queries: mean)"
    assert shown[2:] == list(AS_SHOWN[1:])


@pytest.mark.parametrize("kind", ["table", "table of positions"])
def test_a_table_has_all_its_columns_under_their_names(visit, kind):
    made = visit(FIGURES[kind].html)
    made.page.wait_for_selector(DRAWN[kind])
    heads = made.page.locator(".mv-table thead tr:last-child th:not(:empty)")
    lines = made.page.locator(".mv-table tbody tr")
    if kind == "table":
        assert heads.all_inner_texts() == ["0", "4", "8", "12"]
    else:
        assert heads.all_inner_texts()[2] == "32 <image>"
    assert lines.count() == len(HOSTILE), "the best only, none of the worst"
    for k, shown in enumerate(AS_SHOWN):
        texts = lines.nth(k).locator(".mv-painted").all_inner_texts()
        assert {plain(text) for text in texts} == {shown}
        assert len(texts) == heads.count()
    assert made.page.locator(".mv-table select").filter(visible=True).count() == 0


def test_a_table_of_one_column_and_one_row_is_whole(visit):
    figure = viz.top_tokens(lens(layers=1, positions=1, k=1))
    made = visit(figure.html)
    made.page.wait_for_selector(DRAWN["table"])
    assert made.page.locator(".mv-table .mv-painted").all_inner_texts() == ["w0"]
    heads = made.page.locator(".mv-table thead tr:last-child th:not(:empty)")
    assert heads.all_inner_texts() == ["0"]


def test_keys_walk_the_words_and_the_table(visit):
    words = visit(FIGURES["tokens"].html)
    words.page.wait_for_selector(DRAWN["tokens"])
    words.page.locator(".mv-plot").focus()
    for _ in range(3):
        words.page.keyboard.press("ArrowRight")
    said = words.parts()
    assert said[0] == "0.8", "row 1, the strongest, is shown first"
    assert said[1:] == ["layer 1", "<image>", "position 2"]
    table = visit(viz.top_tokens(lens()).html)
    table.page.wait_for_selector(DRAWN["table"])
    table.page.locator(".mv-plot").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        table.page.keyboard.press(key)
    assert table.parts()[:4] == ["w7", "0.111", "place 2", "layer 4"]
    assert table.page.locator("td.mv-on").inner_text() == "w7"


def test_a_choice_of_rows_changes_colours_and_words(visit):
    made = visit(FIGURES["tokens"].html)
    made.page.wait_for_selector(DRAWN["tokens"])
    ground = "e => getComputedStyle(e).backgroundColor"
    first = made.page.locator(DRAWN["tokens"]).first
    before = first.evaluate(ground)
    made.page.locator(".mv-choose select").select_option(label="layer 0")
    made.page.wait_for_selector(DRAWN["tokens"])
    assert made.page.locator(DRAWN["tokens"]).first.evaluate(ground) != before
    table = visit(viz.top_tokens(lens()).html)
    table.page.locator(".mv-choose select").select_option(index=0)
    table.page.wait_for_selector(DRAWN["table"])
    first = table.page.locator(".mv-table tbody tr").first.locator(".mv-painted")
    assert first.all_inner_texts() == ["w0", "w4", "w8"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_word_stands_out_from_its_ground(visit, theme):
    one = scores().isel(position=range(17))
    for figure, kind in (
        (viz.tokens(one, grid=(4, 4)), "tokens"),
        (viz.top_tokens(lens(5, 1, 5)), "table"),
        (viz.attention(attention((4, 4)), grid=(2, 2)), "patterns"),
    ):
        made = visit(figure.html, theme)
        made.page.wait_for_selector(DRAWN[kind])
        pairs = made.page.locator(DRAWN[kind]).evaluate_all(
            """cells => cells.map(c => [getComputedStyle(c).backgroundColor,
              getComputedStyle(c.querySelector("span") || c).color])"""
        )
        assert len(pairs) > 4
        for pair in pairs:
            ground, ink = sorted(map(luminance, pair))
            assert (ink + 0.05) / (ground + 0.05) > 3.4, pair


def luminance(colour: str) -> float:
    """WCAG's relative luminance of "rgb(r, g, b)"."""
    c = np.array([int(n) / 255 for n in re.findall(r"\d+", colour)[:3]])
    c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return float(c @ [0.2126, 0.7152, 0.0722])


def test_patterns_are_turned_over_on_dark_paper(visit):
    for theme, wanted in (("light", "none"), ("dark", "invert")):
        made = visit(FIGURES["patterns"].html, theme)
        made.page.wait_for_selector(DRAWN["patterns"])
        style = "e => getComputedStyle(e).filter"
        assert wanted in made.page.locator(".mv-inked").evaluate(style)


LISTENING = """<script>window.broken = [];
document.addEventListener(
  "securitypolicyviolation", e => window.broken.push(e.blockedURI)
);
</script>"""


def many() -> list[viz.Figure]:
    """Ten widgets as of a model of 8 layers with 4 heads."""
    full = attention((9, 9), layers=8, heads=4, words=9)
    rows = xr.concat([scores() * i for i in range(1, 9)], dim="layer")
    words = [viz.tokens(scores()), viz.tokens(rows, grid=(2, 2))]
    tables = [viz.top_tokens(lens(9, 5, 5)), viz.top_tokens(lens(), across="position")]
    patterns = [viz.attention(full, layer=i) for i in (5, 7)]
    blocks = [viz.attention(full, grid=(3, 3), layer=i) for i in (6, 12)]
    heads = [viz.attention(full, grid=g, view="heads") for g in ((1, 1), (3, 3))]
    return [*patterns, *blocks, *heads, *words, *tables]


def test_a_page_of_ten_widgets_is_small_and_asks_nothing(visit):
    figures = many()
    sections = [Section(f"Part {i}", figure=f) for i, f in enumerate(figures)]
    html = page("Ten", sections)
    assert len(figures) == 10
    assert html.count("var CircuitsVis=") == 1
    assert len(html.encode()) < 6_000_000
    assert not re.search(
        r"google\.com|unpkg|jsdelivr", html.split("var CircuitsVis=")[0]
    )
    made = visit(html.replace("<title>", LISTENING + "<title>", 1))
    until(
        made.page,
        """() => document.querySelectorAll(".mv-patterns .tokens").length === 4
        && document.querySelectorAll(".mv-heads canvas").length === 10
        && document.querySelectorAll(".mv-words .colored-tokens").length === 2
        && document.querySelectorAll(".mv-table table").length === 2""",
    )
    made.page.wait_for_timeout(300)
    # A feature test of tensorflow.js, denied like all else: it then computes without.
    assert set(made.page.evaluate("window.broken")) <= {"wasm-eval"}
    resources = "performance.getEntriesByType('resource').map(r => r.name)"
    asked = made.page.evaluate(resources)
    assert [name for name in asked if not name.startswith("data:")] == []
    ids = made.page.evaluate(
        """Array.from(document.querySelectorAll("[id^=mv-circuits-]"), e => e.id)"""
    )
    assert len(set(ids)) == 10


def test_a_page_that_asked_would_be_caught(browser, tmp_path):
    html = viz.tokens(scores()).html.replace("<title>", LISTENING + "<title>", 1)
    asking = html.replace(
        "</body>",
        "<script>fetch('https://example.org/x').catch(() => 0)</script></body>",
    )
    (tmp_path / "page.html").write_text(asking, "utf-8")
    opened = browser.new_context(offline=True).new_page()
    opened.goto((tmp_path / "page.html").as_uri())
    until(opened, "() => window.broken.includes('https://example.org/x')")
    opened.context.close()
