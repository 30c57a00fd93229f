"""Reports: one page, escaped, self-contained, with its sources named."""

import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from test_viz import HOSTILE, every_figure, patching

from mechvlm import viz
from mechvlm.errors import ResultError
from mechvlm.papers import cite
from mechvlm.report import Section, page, write

VOID = {"meta", "img", "br", "input", "link", "hr"}


class Outline(HTMLParser):
    """Elements in order, and a check that they close as they opened."""

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def outline(text: str) -> list[tuple[str, dict]]:
    parser = Outline()
    parser.feed(text)
    assert not parser.open
    return parser.tags


def sections() -> list[Section]:
    figures = every_figure()
    return [
        *[
            Section(f"The {kind}", "Seen live.", figure=f)
            for kind, f in figures.items()
        ],
        Section("Again", figure=viz.attention(figures["attention"].data)),
        Section("Picture", image=Image.new("RGB", (8, 8), "red"), alt="a red square"),
        Section("Table", table=[["word", "p"], ["red", "0.9"], ["<b>", "0.1"]]),
        Section("Own markup", html="<blockquote>mine</blockquote>", caption="own"),
    ]


PAGE = page("What & where", sections(), lead="In `short`.", version="1.2.3")


def test_the_page_is_whole_and_in_order():
    tags = outline(PAGE)
    names = [tag for tag, _ in tags]
    assert names.count("h1") == names.count("main") == names.count("footer") == 1
    heads = re.findall(r'<h2 id="part-\d">(.*?)</h2>', PAGE)
    assert heads == [section.title for section in sections()]
    assert [t["href"] for tag, t in tags if tag == "a"] == [
        f"#part-{i}" for i in range(1, len(sections()) + 1)
    ]
    assert tags[0] == ("html", {"lang": "en"})


def test_every_picture_says_what_it_shows():
    pictures = [attrs for tag, attrs in outline(PAGE) if tag == "img"]
    drawn = [s for s in sections() if s.figure is not None or s.image is not None]
    assert len(pictures) == len(drawn), "a still for each figure, and the picture"
    assert all(attrs["alt"] for attrs in pictures)
    assert all(attrs["src"].startswith("data:image/") for attrs in pictures)
    with pytest.raises(ResultError, match="section 'Bare' has no `alt`"):
        page("x", [Section("Bare", image=Image.new("RGB", (8, 8)))])


def test_circuitsvis_comes_once_and_only_when_needed():
    assert PAGE.count("var CircuitsVis=") == 1
    assert PAGE.count('data-kind="attention"') == 2
    plain = page("x", [Section("Map", figure=viz.heatmap(patching()))])
    assert "var CircuitsVis=" not in plain
    assert len(plain.encode()) < 200_000


def test_the_page_asks_nothing_of_the_network():
    for tag, attrs in outline(PAGE):
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert attrs.get("src", "data:").startswith("data:")
        assert attrs.get("href", "#").startswith("#")
    styles = "".join(re.findall(r"<style>(.*?)</style>", PAGE, re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    assert "default-src 'none'" in PAGE


@pytest.mark.parametrize("bad", HOSTILE[:4])
def test_words_stay_words(bad):
    section = Section(
        bad, bad, image=Image.new("RGB", (8, 8)), alt=bad, caption=bad, table=[[bad]]
    )
    made = page(bad, [section], lead=bad, version=bad)
    calm = page(
        "x",
        [Section("x", "x", image=section.image, alt="x", caption="x", table=[["x"]])],
        lead="x",
        version="x",
    )
    assert [tag for tag, _ in outline(made)] == [tag for tag, _ in outline(calm)]
    assert bad not in made


def test_backticks_mark_code_and_empty_lines_part_paragraphs():
    made = page("x", [Section("s", "one `a<b`\n\ntwo")])
    assert "<p>one <code>a&lt;b</code></p>\n<p>two</p>" in made


def test_the_footer_says_where_the_numbers_come_from():
    footer = PAGE[PAGE.index("<footer>") :].split("</footer>")[0]
    assert "<dt>Model</dt><dd>demo</dd>" in footer
    assert "mechvlm 1.2.3" in footer
    assert footer.count(cite("arXiv:2404.15255")) == 1
    extra = page("x", [], papers=["arXiv:2304.14767"])
    assert cite("arXiv:2304.14767") in extra
    with pytest.raises(ResultError, match="no paper is known as 'arXiv:1'"):
        page("x", [], papers=["arXiv:1"])


def test_columns_of_numbers_stand_right():
    assert '<td class="num">0.9</td>' in PAGE
    assert "<td>&lt;b&gt;</td>" in PAGE


def test_a_report_is_written_whole_or_not_at_all(tmp_path):
    path = write(tmp_path / "out.html", "What & where", sections()[:1])
    assert path.read_text("utf-8").endswith("</html>\n")
    with pytest.raises(ResultError, match="should end in"):
        write(tmp_path / "out.pdf", "x", [])
    with pytest.raises(ResultError, match="alt"):
        write(path, "x", [Section("s", image=Image.new("RGB", (8, 8)))])
    assert "What &amp; where" in path.read_text("utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["out.html"]
