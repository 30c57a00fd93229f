"""The committed figures: all there, small, in both themes, shown, and told in words.

That they are what the pages' code makes is tested with the pages (test_docs.py).
"""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from mechvlm.viz import DARK, LIGHT

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
KEPT = json.loads((FIGURES / "data.json").read_text(encoding="utf-8"))
NAMES = sorted(KEPT["figures"])
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    page: page.read_text(encoding="utf-8")
    for folder in (".", "concepts", "analyses")
    for page in sorted((ROOT / "docs" / folder).glob("*.md"))
}
MOST_BYTES = 220_000


def table():
    """The names in the script's table, in order."""
    script = (ROOT / "docs" / "figures.py").read_text(encoding="utf-8")
    return re.findall(r'^    "([\w-]+)": \("', script, re.MULTILINE)


def test_the_table_the_data_and_the_pictures_are_of_the_same_figures():
    assert list(KEPT["figures"]) == table()
    files = {path.name for path in FIGURES.glob("*.png")}
    assert files == {f"{n}-{theme}.png" for n in NAMES for theme in ("light", "dark")}
    assert len(NAMES) > 20


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("theme", "paper"), [("light", LIGHT), ("dark", DARK)])
def test_a_picture_is_small_and_on_its_paper(name, theme, paper):
    path = FIGURES / f"{name}-{theme}.png"
    assert path.stat().st_size < MOST_BYTES
    with Image.open(path) as picture:
        assert picture.width >= 500
        corner = "#{:02x}{:02x}{:02x}".format(*picture.convert("RGB").getpixel((1, 1)))
    assert corner == paper.paper.lower()


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_has_words_and_numbers(name):
    kept = KEPT["figures"][name]
    assert len(kept["about"]) > 30
    assert len(kept["about"].split()) > 5
    assert kept["data"], "no numbers"
    for variable in kept["data"].values():
        sizes, values = [], variable["values"]
        while isinstance(values, list):
            sizes.append(len(values))
            values = values[0] if values else None
        assert len(sizes) == len(variable["dims"])
        assert 0 not in sizes


def test_every_figure_is_shown():
    shown = {
        n for text in PAGES.values() for n in re.findall(r"\{shown\} ([\w-]+)", text)
    }
    assert shown == set(NAMES)


def test_every_picture_of_the_readme_is_a_figure_with_words_and_a_dark_twin():
    pictures = re.findall(r"<picture>.*?</picture>", README, re.DOTALL)
    assert len(pictures) >= 7
    assert README.count("<img") == len(pictures)
    for picture in pictures:
        (name,) = re.findall(r'src="docs/figures/([\w-]+)-light\.png"', picture)
        assert name in NAMES
        assert f'srcset="docs/figures/{name}-dark.png"' in picture
        (words,) = re.findall(r'alt="([^"]*)"', picture)
        assert len(words.split()) > 8
