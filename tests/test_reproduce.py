"""`mechvlm reproduce`: what it writes and refuses, and small runs of each claim."""

import csv
import json
from dataclasses import dataclass

import pytest
import xarray as xr

import mechvlm as mv
from mechvlm import viz
from mechvlm.axes import open_result
from mechvlm.cli import main
from mechvlm.errors import MetricError
from mechvlm.reproduce import STUDIES, job, run
from mechvlm.reproduce.finding import Claim, Finding
from mechvlm.reproduce.material import asked_twice, entities, items, scenes_of
from mechvlm.reproduce.study import Study

NUMBERS = xr.DataArray([0.1, 0.9], dims="layer", name="m", attrs={"units": "nats"})


@dataclass(frozen=True)
class Session:
    vlm: mv.HookedVLM
    material: int


def measured(session):
    table = [("layer", "value"), (0, 0.25), (1, float("nan"))]
    figure = viz.lines(NUMBERS)
    return Finding("it is so.", True, table, {"numbers": NUMBERS}, figure)


def impossible(session):
    raise MetricError("nothing is right, so there is nothing to lose.")


MADE_UP = Study(
    "made-up",
    "arXiv:2410.07149",
    "A study of nothing",
    7,
    lambda n: n,
    lambda folder, n: n,
    Session,
    {
        Claim("one", "One <b>claim</b>", "asked", "the paper"): measured,
        Claim("two", "Another", "asked too", "the paper"): impossible,
    },
)


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr(job, "STUDIES", {"made-up": MADE_UP})
    monkeypatch.setattr(job, "CONTROL", "demo")


def test_it_writes_tables_results_figures_and_a_page(made_up, tmp_path):
    said = []
    page = run("made-up", out=tmp_path / "out", say=said.append)
    folder = tmp_path / "out"
    assert page == folder / "report.html"
    lines = (folder / "demo" / "one.csv").read_text().splitlines()
    rows = list(csv.reader(lines))
    assert rows == [["layer", "value"], ["0", "0.25"], ["1", "nan"]]
    assert open_result(folder / "demo" / "numbers.nc").identical(NUMBERS)
    assert (folder / "demo" / "one.png").read_bytes()[:4] == b"\x89PNG"
    text = page.read_text()
    assert "One &lt;b&gt;claim&lt;/b&gt;" in text
    assert "nothing is right" in text
    told = json.loads((folder / "findings.json").read_text())
    verdicts = [claim["models"]["demo"]["verdict"] for claim in told["claims"]]
    assert verdicts == ["shown", "cannot be told"]
    assert told["pictures"] == 7
    assert len(said) == 2


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_json_is_one_object_beside_what_it_says(made_up, tmp_path, capsys, quiet):
    words = ["reproduce", "made-up", "--scenes", "3", "--json", *quiet]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--out", str(tmp_path / "out")])
    shown = capsys.readouterr()
    (line,) = shown.out.splitlines()
    told = json.loads(line)
    assert ended.value.code == 0
    assert (told["command"], told["model"]) == ("reproduce", "demo")
    assert (told["n"], told["units"], told["pictures"]) == (3, "pictures", 3)
    assert told["paper"] == "arXiv:2410.07149"
    claims = {claim["key"]: claim["models"]["demo"] for claim in told["claims"]}
    assert claims["one"] == {"verdict": "shown", "here": "it is so."}
    assert told["files"][0] == str(tmp_path / "out" / "report.html")
    there = {str(file) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert set(told["files"]) == there
    assert len(told["files"]) == len(there)
    assert ("One <b>claim</b>: shown" in shown.err) == (not quiet)
    assert "Loading weights" not in shown.err


def test_nothing_is_left_of_a_run_that_broke(made_up, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_summary", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("made-up", out=tmp_path / "out", say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reproduce", "darwin"], "no study is called 'darwin'"),
        (["reproduce", "neo", "--model", "x/y"], "give a folder with --data"),
        (["reproduce", "neo", "--scenes", "1"], "two at the least"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_loads(
    words, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_scene_becomes_an_item_with_all_its_things():
    for item, scene in zip(items(6, 1), scenes_of(6, 1), strict=True):
        assert len(item.objects) == len(scene.things)
        color, shape = item.target.split()
        assert shape in item.question
        assert item.answer == color
        at = list(item.objects).index(item.target)
        assert (item.objects[item.target] == scene.mask(at)).all()


def test_two_questions_share_one_picture():
    asked = asked_twice(5, 3, kinds=("exists",))
    for first, second in zip(asked[::2], asked[1::2], strict=True):
        assert first.image is second.image
        assert {first.answer, second.answer} == {"yes", "no"}


def test_entities_have_every_fact():
    every = list(entities(0))
    assert len({entity.name for entity in every}) == len(mv.scenes.NAMES)
    for entity in every:
        for fact in entity.facts:
            assert entity.name in fact.by_name
            assert fact.answers == (mv.scenes.fact(entity.name, fact.relation),)


def test_a_folder_of_ones_own_is_read_in_the_papers_layout(tmp_path):
    scene = mv.scenes.sample(seed=3, n=2)
    asked = tmp_path / "mme" / "existence"
    asked.mkdir(parents=True)
    for folder in (tmp_path, asked):
        scene.image.save(folder / "a.png")
    (asked / "a.txt").write_text("is there a ring ?\tYes\nis there a cross ?\tNo\n")
    shown = STUDIES["kaduri"].of_folder(tmp_path, 5)
    assert [item.id for item in shown.items] == ["a.png"]
    assert [item.answer for item in shown.questions] == ["Yes", "No"]
    (tmp_path / "entities.csv").write_text(
        "type,s_uri,subject,aliases,path,resized_path\ncomet,u1,Halley,[],a.png,a.png\n"
    )
    (tmp_path / "questions.csv").write_text(
        "s_uri,question,question_for_image,possible_answers\n"
        'u1,When was Halley seen?,When was this seen?,"[""1986""]"\n'
    )
    known = STUDIES["cohen"].of_folder(tmp_path, 5)
    assert known.identify.of("comet") == "What is the comet in this image?"
    assert known.entities[0].facts[0].answers == ("1986",)


CLAIMS = [
    (name, claim, measure)
    for name, study in STUDIES.items()
    for claim, measure in study.claims.items()
]


@pytest.fixture(scope="module")
def sessions(demo):
    few = {"cohen": 3, "neo": 3, "kaduri": 2}
    return {
        name: study.session(demo, study.of_scenes(few[name]))
        for name, study in STUDIES.items()
    }


@pytest.mark.parametrize(
    ("name", "claim", "measure"), CLAIMS, ids=[f"{n}-{c.key}" for n, c, _ in CLAIMS]
)
@pytest.mark.filterwarnings("ignore:set 'register' has no token")
def test_every_claim_can_be_measured_and_written(
    name, claim, measure, sessions, tmp_path
):
    finding = measure(sessions[name])
    job.written(claim, finding, tmp_path)
    head, *rows = finding.table
    assert rows
    assert {len(row) for row in rows} == {len(head)}
    for result in finding.results:
        found = open_result(tmp_path / f"{result}.nc")
        assert found.attrs["paper"].startswith("arXiv:")
        assert found.attrs["model"] == "demo"
    assert finding.here.endswith(".")
