"""The lens and the comparison in a real browser: what is pointed at is what is read."""

import numpy as np
import pytest
from pages import MATRIX, fits, needs_browser
from test_viz_compare import cuts, heads, patching
from test_viz_lens import HOSTILE, SIDE, picture, plain, rank_in, told

from mechvlm import viz

pytestmark = needs_browser

LENS = told(layers=4, text=5, n_words=14)
FIGURES = {
    "picture": viz.lens(LENS, picture(), outline=(9, 9, 40, 40), words=["red"]),
    "plane": viz.lens(LENS, words=[HOSTILE[0]]),
    "long": viz.lens(told(side=12, text=30)),
    "maps": viz.compare(heads(0), heads(1), names=("clean", HOSTILE[1])),
    "wide": viz.compare(patching(), patching(seed=1), names=("clean", "w" * 60)),
    "lines": viz.compare(cuts(0), cuts(1), names=("clean", "control")),
}


@MATRIX
@pytest.mark.parametrize("kind", FIGURES)
def test_it_fits(visit, kind, theme, width):
    fits(visit, FIGURES[kind].html, theme, width)


def words_shown(page):
    """The table's words, from the first layer to the last."""
    rows = page.evaluate(
        """() => Array.from(document.querySelectorAll('.mv-lens-table tbody tr'),
          row => Array.from(row.querySelectorAll('.mv-lens-word span'),
            word => word.textContent))"""
    )
    return rows[::-1]


def words_of(place, lens=LENS):
    """Oracle: the Dataset's own words there."""
    return [[plain(w) for w in row] for row in lens["word"].values[:, place]]


def to_cell(page, row, col):
    """Middle of a cell of the picture, on the screen."""
    box = page.locator("canvas.mv-big").bounding_box()
    return (
        box["x"] + (col + 0.5) * box["width"] / SIDE,
        box["y"] + (row + 0.5) * box["height"] / SIDE,
    )


@pytest.mark.parametrize(("row", "col"), [(0, 0), (1, 2), (2, 1)])
def test_hover_shows_that_cells_words(visit, row, col):
    made = visit(FIGURES["picture"].html)
    made.page.mouse.move(*to_cell(made.page, row, col))
    assert words_shown(made.page) == words_of(SIDE * row + col)
    title = made.page.locator(".mv-lens-title").inner_text()
    assert title == f"image row {row}, col {col} · position {SIDE * row + col + 1}"


def test_the_bars_and_marks_are_the_datasets(visit):
    made = visit(FIGURES["picture"].html)
    made.page.mouse.move(*to_cell(made.page, 1, 1))
    widths = made.page.evaluate(
        """() => Array.from(document.querySelectorAll('.mv-lens-word i'),
          bar => parseFloat(bar.style.width))"""
    )
    shown = np.array(widths).reshape(4, 3)[::-1]
    expected = 100 * LENS["probability"].values[:, 4]
    np.testing.assert_allclose(shown, expected, atol=0.01)
    hits = made.page.locator(".mv-lens-hit span").all_inner_texts()
    words = [word for row in reversed(words_of(4)) for word in row]
    assert hits == [word for word in words if word.lower() == "red"]


def test_a_click_pins_a_cell_and_another_lets_it_go(visit):
    made = visit(FIGURES["picture"].html)
    made.page.mouse.click(*to_cell(made.page, 0, 1))
    made.page.mouse.move(*to_cell(made.page, 2, 2))
    assert words_shown(made.page) == words_of(1)
    assert made.parts()[-1].startswith("pinned")
    made.page.mouse.click(*to_cell(made.page, 0, 1))
    made.page.mouse.move(*to_cell(made.page, 2, 2))
    assert words_shown(made.page) == words_of(8)


def test_a_tap_shows_a_cell(browser, tmp_path):
    (tmp_path / "page.html").write_text(FIGURES["picture"].html, "utf-8")
    context = browser.new_context(
        offline=True, has_touch=True, viewport={"width": 400, "height": 800}
    )
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    for row, col in ((2, 0), (0, 2)):
        page.touchscreen.tap(*to_cell(page, row, col))
        assert words_shown(page) == words_of(SIDE * row + col)
    context.close()


def test_arrow_keys_walk_the_cells(visit):
    made = visit(FIGURES["picture"].html)
    made.page.locator(".mv-lens-picture").focus()
    for key in ["ArrowLeft", "ArrowUp"] * 3 + ["ArrowRight", "ArrowDown", "ArrowDown"]:
        made.page.keyboard.press(key)
    assert words_shown(made.page) == words_of(SIDE * 2 + 1)
    assert "image row 2, col 1" in made.parts()


def test_the_layer_slider_changes_tint_and_words(visit):
    made = visit(FIGURES["picture"].html)
    made.page.wait_for_timeout(100)
    red = [[rank_in(LENS, i, j, {"red"}) for j in range(9)] for i in range(4)]
    place = next(j for j in range(9) if len({r[j] for r in red}) > 1)
    low, high = (
        (int(np.argmin(c)), int(np.argmax(c)))
        if (c := [r[place] for r in red])
        else (0, 0)
    )
    spot = ((place % SIDE + 0.1) / SIDE, (place // SIDE + 0.1) / SIDE)
    seen = {}
    for layer in (low, high):
        made.page.locator("input[type=range]").fill(str(layer))
        made.page.mouse.move(*to_cell(made.page, place // SIDE, place % SIDE))
        seen[layer] = made.pixel("canvas.mv-big", *spot)
        label = str(LENS["layer"].values[layer])
        assert made.page.locator(".mv-lens-here th").inner_text() == label
        word = words_of(place)[layer][0]
        assert word in made.parts()
        assert f"layer {label}" in made.parts()
    assert seen[low] != seen[high]


def test_seeking_a_word_lights_the_cells_that_say_it(visit):
    made = visit(FIGURES["picture"].html)
    made.page.locator("input[type=range]").fill("2")
    word = plain(LENS["word"].values[2, 4, 1])
    made.page.locator(".mv-lens-seek input").fill(word)
    n = sum(rank_in(LENS, 2, j, {word.lower()}) > 0 for j in range(9))
    found = made.page.locator(".mv-lens-found").inner_text()
    assert found == f"among the best 3 in {n} of 9 cells at layer 4"
    made.page.mouse.move(*to_cell(made.page, 1, 1))
    assert made.parts()[0] == "rank 2"
    made.page.locator(".mv-lens-seek input").fill("")
    assert made.page.locator(".mv-lens-hit").count() == 0
    other = made.page.locator(".mv-lens-word").nth(0)
    text = other.locator("span").inner_text()
    other.click()
    assert made.page.locator(".mv-lens-seek input").input_value() == text
    assert made.page.locator(".mv-lens-hit span").first.inner_text() == text


def test_tokens_beside_the_picture_are_chips(visit):
    made = visit(FIGURES["picture"].html)
    chips = made.page.locator(".mv-lens-chip")
    assert chips.count() == 5
    chips.nth(3).hover()
    assert words_shown(made.page) == words_of(9 + 3)
    made.page.locator(".mv-lens-tokens").focus()
    made.page.keyboard.press("ArrowRight")
    assert words_shown(made.page) == words_of(9 + 4)


def test_without_a_picture_layers_and_positions_are_pointed_at(visit):
    made = visit(FIGURES["plane"].html, width=1280)
    box = made.page.locator(".mv-lens-plane canvas").bounding_box()
    n, left = LENS.sizes["position"], 40
    x = box["x"] + left + (box["width"] - left) * 10.5 / n
    made.page.mouse.move(x, box["y"] + 10)
    assert words_shown(made.page) == words_of(10)
    assert "layer 5" in made.parts()
    made.page.locator(".mv-lens-plane [tabindex]").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft"):
        made.page.keyboard.press(key)
    assert words_shown(made.page) == words_of(9)
    assert "layer 3" in made.parts()


# --- comparison -----------------------------------------------------------------------


def said(value):
    """A number as the read-out writes it."""
    return f"{value:.3g}"


@pytest.mark.parametrize("panel", [0, 1, 2])
def test_pointing_at_one_map_reads_both_and_their_difference(visit, panel):
    left, right = heads(0).round(2), heads(1).round(2)
    made = visit(viz.compare(left, right, names=("clean", "control")).html)
    box = made.page.locator("canvas.mv-cells").nth(panel).bounding_box()
    made.page.mouse.move(
        box["x"] + box["width"] * 3.5 / 5, box["y"] + box["height"] * 2.5 / 4
    )
    a, b = float(left[1, 3]), float(right[1, 3])
    assert made.parts() == [
        f"clean {said(a)}", f"control {said(b)}", f"difference {said(a - b)}",
        "layer 1", "head 3",
    ]  # fmt: skip
    marks = made.page.locator(".mv-compare .mv-cell")
    assert [marks.nth(i).is_visible() for i in range(3)] == [True] * 3
    made.page.mouse.move(2, 2)
    assert made.parts()[0] == "largest difference"


def test_equal_values_have_equal_colours_on_both_sides(visit):
    left, right = heads(0), 4 * heads(1)
    left[0, 0] = right[3, 4] = 1.0
    made = visit(viz.compare(left, right).html)
    pixel = """([i, x, y]) => {
      const c = document.querySelectorAll('canvas.mv-cells')[i];
      const at = [Math.floor(x * c.width), Math.floor(y * c.height)];
      return Array.from(c.getContext('2d').getImageData(...at, 1, 1).data);
    }"""
    mine = made.page.evaluate(pixel, [0, 0.1, 0.875])
    assert mine == made.page.evaluate(pixel, [1, 0.9, 0.125])
    assert mine != made.page.evaluate(pixel, [0, 0.9, 0.125])
    assert made.page.locator(".mv-bar").count() == 2, "one is shared"


def test_pointing_at_lines_reads_both(visit):
    left, right = cuts(0).round(1), cuts(1).round(1)
    made = visit(viz.compare(left, right, names=("clean", "control")).html)
    boxes = made.page.locator("path.mv-line")
    for line in (boxes.first, boxes.last):  # of the upper plot, and of the lower
        line.scroll_into_view_if_needed()
        box = line.bounding_box()
        made.page.mouse.move(box["x"] + box["width"] / 3, box["y"] + 3)
        a, b = float(left[1, 1]), float(right[1, 1])
        parts = made.parts()
        assert parts[0] == "layer 1"
        assert parts[4:] == [
            f"query→last: clean {said(a)}", f"control {said(b)}",
            f"difference {said(a - b)}",
        ]  # fmt: skip
