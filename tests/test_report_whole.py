"""`mv.report`: whatever it is given, one whole page; what it cannot show, it says."""

import re

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from reported import SCENE, count, made
from test_report import outline
from test_viz import HOSTILE, knockout, patching

import mechvlm as mv
from mechvlm import viz
from mechvlm.axes import save_result
from mechvlm.errors import ArgumentError, OutputError, ResultError
from mechvlm.graph import Circuit, Shape
from mechvlm.report import Section, report

CIRCUIT = Circuit.parse(["[object] -> L0.v0", "L0.H0 -> logits"], Shape(2, 2, 2))


def headings(path):
    return re.findall(r'<h2 id="part-\d+">(.*?)</h2>', path.read_text("utf-8"))


def kinds(text):
    return re.findall(r'<figure class="mv" data-kind="(\w+)"', text)


def test_the_front_door_has_the_function_beside_the_module():
    assert mv.report is report
    assert isinstance(mv.report, type(lambda: None))


def test_every_form_of_a_result_stands_in_order(tmp_path):
    saved = save_result(knockout(), tmp_path / "cut.nc")
    drawn = CIRCUIT.save(tmp_path / "circuit.json")
    path = report(
        [knockout(), saved, str(drawn), viz.bars(knockout()), Section("Words", "mine")],
        tmp_path / "all.html",
    )
    text = path.read_text("utf-8")
    outline(text)
    assert headings(path) == ["Result (1)", "Result (2)", "Circuit", "Value", "Words"]
    assert kinds(text) == ["lines", "lines", "circuit", "bars"]


def test_a_mapping_gives_the_headings(tmp_path):
    path = report({"One": knockout(), HOSTILE[0]: CIRCUIT}, tmp_path / "x.html")
    one, two = headings(path)[-2:]
    assert one == "One"
    assert "<" not in two
    assert HOSTILE[0] not in path.read_text("utf-8")


def test_headings_alike_are_numbered_and_so_are_their_files(tmp_path):
    path = report({"A": knockout(), "B": knockout()}, tmp_path / "x.html")
    assert headings(path) == ["A", "B"]
    path = report([made("freeze"), made("freeze")], tmp_path / "x.html")
    assert headings(path)[-2:] == ["Frozen image (1)", "Frozen image (2)"]
    names = re.findall(r'download="([^"]*)"', path.read_text("utf-8"))
    assert len(names) == len(set(names))


def test_the_prompt_gives_question_and_picture(tmp_path):
    heat = made("integrated_gradients")
    path = report(heat, tmp_path / "x.html", prompt=count(), answer="o<n>e")
    text = path.read_text("utf-8")
    asked = text[text.index('<div class="asked">') :].split("</section>")[0]
    assert "how many objects are there ?" in asked
    assert "&lt;image&gt;" in asked
    assert asked.count("<dt>Question</dt>") == 1
    assert "<dt>Answer</dt><dd>o&lt;n&gt;e</dd>" in asked
    assert asked.count("<img ") == 1
    assert kinds(text) == ["overlay"]
    assert "No picture was given" not in text


def test_a_result_of_another_prompt_is_not_laid_over_this_one(tmp_path):
    """The picture of one question is not that of another."""
    heat = made("activation_patching")
    assert heat.attrs["prompt"] != count().text
    path = report(heat, tmp_path / "x.html", prompt=count())
    text = path.read_text("utf-8")
    assert kinds(text) == ["map"]
    assert "<dt>Questions</dt>" in text
    path = report(heat, tmp_path / "x.html", prompt=count(), image=SCENE.image)
    assert kinds(path.read_text("utf-8")) == ["overlay", "map"]


def test_without_a_picture_the_page_says_what_to_pass(tmp_path):
    path = report(made("integrated_gradients"), tmp_path / "x.html")
    text = path.read_text("utf-8")
    assert "With <code>prompt=</code> or <code>image=</code> in the call of" in text
    bare = report(knockout(), tmp_path / "y.html").read_text("utf-8")
    assert "No picture was given" not in bare


def test_the_page_says_how_each_result_was_made(tmp_path):
    path = report(made("activation_patching"), tmp_path / "x.html")
    text = path.read_text("utf-8")
    for words in (
        "direction: denoise",
        "site: resid_pre",
        "metric: logit difference red - blue",
        "Method: Heimersheim, Nanda",
        "<dt>Model</dt><dd>demo</dd>",
        f"mechvlm {mv.__version__}, 20",
    ):
        assert words in text


def test_papers_of_a_flow_are_all_named(tmp_path):
    text = report(made("flow_graph"), tmp_path / "x.html").read_text("utf-8")
    method = text[text.index("Method: ") :]
    assert "arXiv:2304.14767" in method
    assert "arXiv:2411.18620" in method


@pytest.mark.parametrize("results", [[], {}, ()])
def test_nothing_is_no_report(results, tmp_path):
    with pytest.raises(ArgumentError, match="there is nothing to report"):
        report(results, tmp_path / "x.html")
    assert not list(tmp_path.iterdir())


def test_the_result_at_fault_is_named_and_nothing_is_written(tmp_path):
    full = xr.DataArray(np.ones((2, 2, 2)), dims=("a", "b", "c"), name="full")
    with pytest.raises(ResultError, match=r"^results\[1\]: full has the dimensions"):
        report([knockout(), full], tmp_path / "x.html")
    with pytest.raises(ResultError, match=r"^results\['Mine'\]: full has"):
        report({"Mine": full}, tmp_path / "x.html")
    with pytest.raises(ResultError, match=r"should end in \.html"):
        report(knockout(), tmp_path / "x.pdf")
    with pytest.raises(ResultError, match=r"\[0\]: the picture has 8 x 8 pixels"):
        report([patching()], tmp_path / "x.html", image=Image.new("RGB", (8, 8)))
    assert not list(tmp_path.iterdir())


def test_files_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(ResultError, match=r"ends in '\.csv': wanted .*mv\.save_result"):
        report([tmp_path / "x.csv"], tmp_path / "x.html")
    with pytest.raises(OutputError, match="cannot open"):
        report([tmp_path / "gone.nc"], tmp_path / "x.html")


def test_an_older_page_stays_when_the_new_one_fails(tmp_path):
    path = report(knockout(), tmp_path / "x.html")
    before = path.read_bytes()
    with pytest.raises(ResultError):
        report(xr.Dataset({"a": ("x", [1.0])}), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["x.html"]
