"""`mechvlm demo`: words on the terminal, a page that needs nothing else, results."""

import json
import re
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import tiny
import xarray as xr
from pages import needs_browser

import mechvlm as mv
from mechvlm import cli
from mechvlm.demo import run
from mechvlm.demo.story import reading, where_read, where_written
from mechvlm.errors import OutputError, PromptError, UnreadableImageError


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """`mechvlm demo --json`, run once: standard output and error."""
    out = tmp_path_factory.mktemp("out") / "demo"
    with (
        redirect_stdout(StringIO()) as words,
        redirect_stderr(StringIO()) as aside,
        pytest.raises(SystemExit) as left,
    ):
        cli.main(["demo", "--json", "--out", str(out)])
    assert left.value.code == 0
    return words.getvalue(), aside.getvalue()


@pytest.fixture(scope="module")
def written(told):
    """The page it made, and what it said."""
    found = json.loads(told[0])
    return Path(found["files"][0]), found["said"]


def test_json_is_one_object_and_the_words_stand_beside_it(told, written):
    page, said = written
    out, err = told
    assert len(out.splitlines()) == 1
    assert err.splitlines() == said, "no bars, no warnings"
    found = json.loads(out)
    way = mv.open_result(page.parent / "activation_patching_sets.nc")
    drop = mv.open_result(page.parent / "knockout_windows.nc")
    for name, dim, result in (("recovery", "set", way), ("change", "cut", drop)):
        assert list(found[name]) == result[dim].values.tolist()
        for one, values in found[name].items():
            np.testing.assert_allclose(values, result.sel({dim: one}).values)
        assert found["units"][name] == result.units
    assert found["paper"] == [way.paper, drop.paper]
    assert found["question"] in drop.attrs["prompt"]
    assert (found["answer"], found["model"]) == ("purple", "demo")
    assert found["n"] == way.size + drop.size
    files = {str(file) for file in page.parent.iterdir()}
    assert files - set(found["files"]) == {str(page.parent / "mechvlm.json")}


CURVES = [
    ([0.2, 0.5, 0.9], "from the input of layer 1 on"),
    ([0.1, 0.9, 0.1, 0.9], "from the input of layer 3 on"),
    ([0.9, 0.9, 0.4], "no layer's input has the answer at the last position to stay"),
]


@pytest.mark.parametrize(("recovery", "words"), CURVES)
def test_it_stands_where_it_stays(recovery, words):
    """Half or more in one layer and less in a later one is not there for good."""
    coords = {"set": ["last"], "layer": range(len(recovery))}
    way = xr.DataArray([recovery], coords, ("set", "layer"))
    assert words in where_written(way)


@pytest.mark.parametrize("change", [17.0, -4.9])
def test_a_cut_that_costs_nothing_is_not_said_to_change_nothing(change):
    cuts = ["image → question", "image → last"]
    values = [[change, 0.0], [20.0, 0.0]]
    drop = xr.DataArray(values, {"cut": cuts}, ("cut", "layer"))
    assert where_read(drop) == (
        "Read: cutting image → question or image → last in all layers costs the answer"
        " no more than 5 % of its probability: neither is needed alone."
    )


def test_the_demo_says_what_it_asks_and_finds(written):
    _, said = written
    question, clean, twin, read, written_at = said
    assert question.startswith("question   what color is the")
    p_clean, p_twin = (float(re.search(r" ([01]\.\d+),", x)[1]) for x in (clean, twin))
    assert p_clean > 0.9 > 0.1 > p_twin
    assert re.fullmatch(r"Read: .* reads the object in layers? \d.*%.*\.", read)
    assert re.fullmatch(r"Written: from the input of layer \d .*%.*\.", written_at)


def test_the_page_is_whole_and_asks_nobody(written):
    page, said = written
    html = page.read_text(encoding="utf-8")
    assert html.count("<h2") >= 5
    assert said[-1] in html
    links = re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']+)""", html)
    assert not links


@needs_browser
def test_the_page_opens_offline_and_asks_nobody(written, visit):
    made = visit(written[0])
    made.page.wait_for_load_state("load")
    assert made.page.locator("h1").inner_text() == "Where does “purple” come from?"
    assert made.page.locator("canvas").count() >= 3
    assert made.page.get_by_text("head 3").first.is_visible()


def test_the_results_open_again_and_say_what_the_sentences_say(written):
    page, said = written
    heat = mv.open_result(page.parent / "activation_patching.nc")
    drop = mv.open_result(page.parent / "knockout_windows.nc")
    assert heat.dims == ("layer", "position")
    assert drop.dims == ("cut", "layer")
    last = heat.isel(position=-1).values
    way = mv.open_result(page.parent / "activation_patching_sets.nc")
    np.testing.assert_allclose(way.sel(set="last").values, last, atol=1e-5)
    first = int(np.flatnonzero(last >= 0.5)[0])
    assert f"from the input of layer {first} on" in said[-1]
    readers = {
        "object → question": "the question",
        "object → last": "the last position",
    }
    cut = min(readers, key=lambda name: float(drop.sel(cut=name, layer=0)))
    assert f"{readers[cut]} reads the object in layer" in said[-2]
    since = int(re.search(r"from layer (\d+) on costs", said[-2])[1])
    costs = -float(drop.sel(cut=cut, layer=since))
    assert f"costs {costs:.0f} %" in said[-2]
    assert heat.attrs["model"] == "demo"
    assert mv.cite(heat).startswith("Heimersheim")


def test_the_demo_replaces_its_own_output_only(written, tmp_path):
    page, _ = written
    (page.parent / "activation_patching.nc").unlink()
    with pytest.raises(OutputError, match="half-written"):
        run(out=page.parent, say=lambda _: None)


def test_a_checkpoint_and_picture_of_ones_own(tiny_checkpoint, tmp_path, capsys):
    picture = tmp_path / "mine.png"
    tiny.picture(3).save(picture)
    words = ["--model", str(tiny_checkpoint), "--image", str(picture)]
    words += ["--question", "what color is the cat ?", "--answer", "red"]
    words += ["--out", str(tmp_path / "mine")]
    with pytest.raises(SystemExit) as left:
        cli.main(["demo", *words])
    assert left.value.code == 0
    assert "a plain picture" in (tmp_path / "mine" / "mechvlm-demo.html").read_text()
    assert "question   what color is the cat ?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"model": "/no/such/folder"}, PromptError, "needs all of --image"),
        ({"question": "what ?"}, PromptError, "needs all of --image"),
        ({"foil": "red"}, PromptError, "needs all of --image"),
        ({"image": "torn.png", "question": "what ?", "answer": "red"},
         UnreadableImageError, "cannot read"),
    ],
)  # fmt: skip
def test_bad_words_leave_nothing_behind(words, error, match, tmp_path):
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"\x89PNG")
    if "image" in words:
        words = words | {"image": torn}
    with pytest.raises(error, match=match):
        run(out=tmp_path / "out", say=lambda _: None, **words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["torn.png"]


def test_the_command_shows_one_message_and_no_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["demo", "--question", "what ?", "--out", str(tmp_path / "x")])
    assert left.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("mechvlm: ")
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("line", "layers"),
    [
        ([-100, 0, 0, 0], (0, 0)),
        ([-99, -98, -90, -2], (2, 2)),
        ([-80, -70, -40, -4, 0], (0, 2)),
        (np.linspace(-100, -3, 32), (3, 28)),
    ],
)
def test_a_curve_says_where_its_effect_goes(line, layers):
    """From nine tenths of the whole effect to one tenth, however it is spread."""
    assert reading(np.asarray(line, dtype=float)) == layers
