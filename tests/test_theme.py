"""Light and dark paper: colours that eyes can tell apart, and what wears them.

The arithmetic is that of the standards: WCAG 2.1 contrast, OKLab (Ottosson 2020), and
colour blindness after Machado, Oliveira and Fernandes 2009, at full severity.
"""

import base64
import io
import itertools
import re

import numpy as np
import pytest
import xarray as xr
from pages import GROUND, needs_browser
from PIL import Image
from test_viz import attention, every_figure, knockout, patching

from mechvlm import viz
from mechvlm.viz.labels import subtitle
from mechvlm.viz.palette import DARK, LIGHT, scale_of

THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
EYES = {
    "usual": np.eye(3),
    "no red cones": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "no green cones": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
PAPER = {theme.name: theme.paper for theme in (LIGHT, DARK)}


def linear(colour: str) -> np.ndarray:
    """Linear light of "#rrggbb"."""
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def oklab(light: np.ndarray) -> np.ndarray:
    """Lightness and two opponent hues, in which distance is what eyes see."""
    mix = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    hues = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return hues @ np.cbrt(mix @ np.clip(light, 0, 1))


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, 1 to 21."""
    low, high = sorted(
        float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other)
    )
    return (high + 0.05) / (low + 0.05)


# --- colours --------------------------------------------------------------------------


def test_the_arithmetic_knows_its_fixed_points():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
    np.testing.assert_allclose(oklab(linear("#ffffff")), [1, 0, 0], atol=1e-4)
    for eye in EYES.values():
        np.testing.assert_allclose(eye @ np.ones(3), 1, atol=1e-5)


@THEMES
def test_words_stand_out_from_their_ground(theme):
    for ground in (theme.paper, theme.card):
        for ink in (theme.ink, theme.faint, theme.accent, *theme.series):
            assert contrast(ink, ground) >= 4.5, f"{ink} on {ground}"


@THEMES
@pytest.mark.parametrize("eye", EYES)
def test_lines_can_be_told_apart(theme, eye):
    seen = {c: oklab(EYES[eye] @ linear(c)) for c in theme.series}
    for one, other in itertools.combinations(theme.series, 2):
        apart = np.linalg.norm(seen[one] - seen[other])
        assert apart > 0.065, f"{one} and {other}: {apart:.3f}"


@THEMES
@pytest.mark.parametrize("arm", ["above", "below"])
def test_equal_steps_of_value_are_equal_steps_of_lightness(theme, arm):
    stops = {"above": theme.above, "below": theme.below}[arm]
    steps = np.diff([oklab(linear(colour))[0] for colour in stops])
    assert (steps < 0).all() if theme is LIGHT else (steps > 0).all()
    np.testing.assert_allclose(steps, steps.mean(), atol=0.004)


@THEMES
@pytest.mark.parametrize("eye", EYES)
def test_more_is_more_and_signs_differ_to_every_eye(theme, eye):
    arms = [
        np.array([oklab(EYES[eye] @ linear(colour)) for colour in arm])
        for arm in (theme.above, theme.below)
    ]
    away = 1 if theme is DARK else -1
    for arm in arms:
        assert (away * np.diff(arm[:, 0]) > 0.02).all()
    hues = np.linalg.norm(arms[0][2:, 1:] - arms[1][2:, 1:], axis=1)
    assert (hues > 0.05).all(), "of one strength, above and below zero look alike"


@THEMES
def test_no_value_is_not_zero(theme):
    missing = oklab(linear(theme.missing))
    for ground in (theme.above[0], theme.paper):
        assert abs(missing[0] - oklab(linear(ground))[0]) > 0.08


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([0.1, 0.9], 0, 0.9), ([-80, -1], -80, 0), ([-0.2, 1], -1, 1), ([0, 0], 0, 1)],
)
def test_zero_is_the_colour_of_the_ground(values, low, high):
    scale = scale_of(xr.DataArray([*values, np.nan]))
    assert (scale.low, scale.high) == (low, high)
    for theme in (LIGHT, DARK):
        at = round((0 - low) / (high - low) * (len(scale.stops(theme)) - 1))
        assert scale.stops(theme)[at] == theme.above[0] == theme.below[0]


# --- stills ---------------------------------------------------------------------------


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


@pytest.mark.parametrize("kind", every_figure())
def test_a_dark_still_is_dark_all_over(kind, tmp_path):
    figure = every_figure()[kind]
    dark = pixels(figure.save(tmp_path / "dark.png", theme=viz.DARK).read_bytes())
    light = pixels(figure.save(tmp_path / "light.png").read_bytes())
    assert dark.shape == light.shape
    assert dark[0, 0].tolist() == rgb(DARK.paper)
    assert light[0, 0].tolist() == rgb(LIGHT.paper)
    white = (dark == 255).all(axis=-1).mean()
    assert white < 0.02, "part of it stayed on white paper"
    assert (np.abs(dark.astype(int) - rgb(DARK.ink)).sum(-1) < 40).any(), "no words"


@pytest.mark.parametrize(("theme", "grey"), [(LIGHT, 188), (DARK, 71)])
def test_the_veil_over_a_picture_is_of_the_paper(tmp_path, theme, grey):
    flat = Image.new("RGB", (64, 64), (120, 120, 120))
    figure = viz.overlay(patching() * 0, flat, outline=(8, 8, 40, 40))
    shown = pixels(figure.save(tmp_path / "still.png", theme=theme).read_bytes())
    veiled = np.abs(shown.astype(int) - grey).max(axis=-1) < 4
    assert veiled.mean() > 0.2
    for ink in (theme.ink, theme.paper):
        line = np.abs(shown.astype(int) - rgb(ink)).sum(axis=-1) < 40
        assert line[shown.shape[0] // 2 :].sum() > 100, "the outline cannot be seen"


def test_the_still_of_a_notebook_stays_light_after_a_dark_one(tmp_path):
    figure = viz.heatmap(patching())
    figure.save(tmp_path / "dark.png", theme=viz.DARK)
    assert pixels(figure.png)[0, 0].tolist() == rgb(LIGHT.paper)


# --- words ----------------------------------------------------------------------------


def test_the_subtitle_tells_two_maps_of_one_sweep_apart():
    sweep = xr.DataArray(
        np.ones((2, 2, 2)),
        dims=("receiver", "layer", "head"),
        coords={
            "receiver": ["logits", "4.mlp"],
            "serves": ("receiver", ["", "a head"]),
        },
        attrs={"model": "demo", "prompt": "USER: <image>\nwhat?", "metric": "logit"},
    )
    first, second = (viz.heatmap(sweep.sel(receiver=r)) for r in ("logits", "4.mlp"))
    assert subtitle(first.data) == (
        "demo · receiver logits · “USER: <image> what?” · metric: logit"
    )
    assert "receiver 4.mlp · serves a head ·" in second.fragment()
    flat = Image.new("RGB", (64, 64))
    one = patching().assign_coords(receiver="logits")
    assert "demo · receiver logits · " in viz.overlay(one, flat).fragment()
    third = viz.overlay(one.isel(layer=2), flat)
    assert third.data["layer"].values.tolist() == [2]


def test_numbers_that_were_selected_are_rounded_and_nothing_says_nothing():
    plane = xr.DataArray(
        1.0, coords={"share": 1 / 3, "none": np.nan, "layer": 7, "empty": ""}
    )
    assert subtitle(plane) == "share 0.333 · layer 7"


def test_a_long_prompt_keeps_its_beginning_and_its_end():
    told = subtitle(
        xr.DataArray([1.0], attrs={"prompt": "first " + "x " * 999 + "last"})
    )
    assert len(told) < 260
    assert told.startswith("“first x")
    assert told.endswith("x last”")


# --- live pages -----------------------------------------------------------------------


def test_a_page_may_be_pinned_to_one_theme(tmp_path):
    figure = viz.heatmap(patching())
    free = figure.save(tmp_path / "free.html").read_text("utf-8")
    dark = figure.save(tmp_path / "dark.html", theme=viz.DARK).read_text("utf-8")
    assert free == figure.html
    assert "data-theme" not in re.search(r"<html[^>]*>", free)[0]
    assert '<html lang="en" data-theme="dark">' in dark


@needs_browser
@pytest.mark.parametrize("reader", ["light", "dark"])
@THEMES
def test_a_pinned_page_does_not_follow_its_reader(visit, tmp_path, reader, theme):
    bare = xr.DataArray([[0.0, 1.0], [np.nan, 0.0]], dims=("layer", "head"))
    made = visit(viz.heatmap(bare).save(tmp_path / "map.html", theme=theme), reader)
    assert made.ground() == GROUND[theme.name]
    assert made.pixel(".mv-cells", 0.25, 0.75) == [*rgb(theme.above[0]), 255]
    assert made.pixel(".mv-cells", 0.25, 0.25) == [*rgb(theme.missing), 255]
    made.turn(media="print")
    assert made.ground() == GROUND["light"]
    assert made.pixel(".mv-cells", 0.25, 0.75) == [*rgb(LIGHT.above[0]), 255]


@needs_browser
def test_a_page_changes_its_colours_while_it_is_open(visit):
    bare = xr.DataArray([[0.0, 1.0], [np.nan, -1.0]], dims=("layer", "head"))
    made = visit(viz.heatmap(bare).html)
    for theme in (LIGHT, DARK, LIGHT):
        made.turn(color_scheme=theme.name)
        assert made.ground() == GROUND[theme.name]
        for x, y, colour in (
            (0.25, 0.75, theme.above[0]),
            (0.75, 0.75, theme.above[-1]),
            (0.25, 0.25, theme.missing),
            (0.75, 0.25, theme.below[-1]),
        ):
            assert made.pixel(".mv-cells", x, y) == [*rgb(colour), 255]


@needs_browser
@pytest.mark.parametrize("kind", ["lines", "bars"])
def test_strokes_follow_the_theme(visit, kind):
    made = visit(every_figure()[kind].html)
    mark = {"lines": ("path.mv-line", "stroke"), "bars": ("rect.mv-bars", "fill")}[kind]
    worn = f"getComputedStyle(document.querySelector('{mark[0]}')).{mark[1]}"
    for theme in (LIGHT, DARK):
        made.turn(color_scheme=theme.name)
        r, g, b = rgb(theme.series[0])
        assert made.page.evaluate(worn) == f"rgb({r}, {g}, {b})"


@needs_browser
def test_a_dark_page_is_printed_light_and_is_dark_again(visit):
    made = visit(viz.heatmap(patching() * 0).html, "dark")
    for event, theme in (("beforeprint", LIGHT), ("afterprint", DARK)):
        made.page.evaluate(f"dispatchEvent(new Event('{event}'))")
        assert made.pixel(".mv-cells", 0.01, 0.5) == [*rgb(theme.above[0]), 255]
        assert made.ground() == GROUND[theme.name]
    made.turn(media="print", color_scheme="dark")
    assert made.ground() == GROUND["light"]
    assert made.pixel(".mv-cells", 0.01, 0.5) == [*rgb(LIGHT.above[0]), 255]


@needs_browser
@pytest.mark.parametrize("scripts", [True, False])
@THEMES
def test_a_notebook_shows_the_live_view_or_else_the_still(browser, scripts, theme):
    html = viz.bars(knockout())._repr_mimebundle_()["text/html"]
    if not scripts:  # as a host does that forbids them
        html = html.replace('sandbox="allow-scripts"', "sandbox")
    context = browser.new_context(
        offline=True,
        color_scheme=theme.name,
        viewport={"width": 1000, "height": 500},
    )
    page = context.new_page()
    page.set_content(f"<!doctype html><body style='margin:0'>{html}")
    page.wait_for_timeout(300)
    seen = pixels(page.screenshot())
    still = base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', html)[1])
    assert seen[120, 12].tolist() == rgb(theme.paper if scripts else LIGHT.paper)
    if not scripts:
        small = Image.open(io.BytesIO(still)).convert("RGB")
        shown = Image.fromarray(seen[:400, :800])
        wanted = small.crop((0, 0, 800, 400))
        apart = np.abs(np.asarray(shown, int) - np.asarray(wanted, int)).mean()
        assert apart < 5, "the still is hidden"
    context.close()


@needs_browser
def test_attention_has_a_ground_in_the_dark(visit):
    made = visit(viz.attention(attention()).html, "dark")
    assert made.ground() == GROUND["dark"]
