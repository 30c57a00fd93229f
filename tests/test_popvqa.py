"""PopVQA is read from a small folder that the test writes."""

import csv
import json

import pytest
import tiny

import mechvlm as mv
from mechvlm.datasets import popvqa
from mechvlm.errors import ArgumentError, DatasetError, MechVLMWarning

COLUMNS = ("type", "s_uri", "subject", "aliases", "path", "resized_path")
ASKED = ("s_uri", "question", "question_for_image", "possible_answers", "relation")
TOWER, PERSON = "http://wikidata/Q243", "http://wikidata/Q762"
ENTITIES = [
    ("landmark", TOWER, "Eiffel Tower", "['La Tour Eiffel', \"It's\"]", "big/a.jpg"),
    ("celebrity", PERSON, "Beyoncé", '["Queen, B", "Beyoncé"]', "big/b.jpg"),
    ("brand", "Q37156", "IBM", "", "big/c.jpg"),
]
QUESTIONS = [
    (TOWER, "Where is the Eiffel Tower?", "Where is this place?", "['Paris']", "city"),
    (PERSON, "Where was Beyoncé born?", "Where was she born?", '["Houston"]', "born"),
    (PERSON, "How old is Beyoncé?", "How old is she?", "[44, 'forty-four']", "age"),
    ("Q37156", "Who made IBM?", "Who made this?", "Charles Flint", "maker"),
]


@pytest.fixture
def folder(tmp_path):
    """Two tables and a picture for each entity, in two sizes."""
    for name in "abc":
        for size in ("big", "small"):
            (tmp_path / size).mkdir(exist_ok=True)
            tiny.picture(width=9).save(tmp_path / size / f"{name}.jpg")
    write(tmp_path, [(*row, row[-1].replace("big", "small")) for row in ENTITIES])
    write(tmp_path, QUESTIONS, "questions.csv", ASKED)
    return tmp_path


def write(folder, rows, name="entities.csv", columns=COLUMNS, mark=""):
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        file.write(mark)
        csv.writer(file).writerows([columns, *rows])


def more(**changes):
    """The first question with some columns changed."""
    return [
        {**dict(zip(ASKED, QUESTIONS[0], strict=True)), **changes}[x] for x in ASKED
    ]


def test_a_folder_is_read(folder):
    tower, person, brand = popvqa.read(folder)
    assert (tower.name, tower.kind, tower.id) == ("Eiffel Tower", "landmark", TOWER)
    assert tower.golds == ("Eiffel Tower", "La Tour Eiffel", "It's")
    assert tower.image == folder / "small/a.jpg"
    assert tower.facts == (
        mv.Fact(
            "Where is the Eiffel Tower?", "Where is this place?", ("Paris",), "city"
        ),
    )
    assert person.golds == ("Beyoncé", "Queen, B")
    assert [fact.answers for fact in person.facts] == [
        ("Houston",),
        ("44", "forty-four"),
    ]
    assert (brand.aliases, brand.facts[0].answers) == ((), ("Charles Flint",))


@pytest.mark.parametrize(
    ("written", "answers"),
    [
        ("['a', 'b']", ("a", "b")),
        ('["a", "b"]', ("a", "b")),
        ("['a\\'s', \"b, c\"]", ("a's", "b, c")),
        ('["a\\u00e9"]', ("aé",)),
        ("('a', 'b')", ("a", "b")),
        ("{'b', 'a'}", ("a", "b")),
        ("a, b", ("a, b",)),
        ("[1999]", ("1999",)),
        ("['a', 'a', ' ']", ("a",)),
    ],
)
def test_lists_are_read_as_json_and_as_python_writes_them(folder, written, answers):
    write(folder, [more(possible_answers=written)], "questions.csv", ASKED)
    with pytest.warns(MechVLMWarning, match="2 entities have no question"):
        (entity,) = popvqa.read(folder)
    assert entity.facts[0].answers == answers


@pytest.mark.parametrize(
    "written", ["['a' 'b']", "['a', 'b'", '{"a": 1}', "[['a']]", "[print('a')]", "[a]"]
)
def test_a_list_that_is_none_is_refused(folder, written):
    """Neighbouring strings without a comma would be joined to one wrong answer."""
    write(folder, [more(possible_answers=written)], "questions.csv", ASKED)
    with pytest.raises(
        DatasetError, match=r"questions.csv, row 1: .* no list of words"
    ):
        popvqa.read(folder)


def test_questions_of_one_wording_are_one_fact(folder):
    rows = [more(), more(possible_answers="['France', 'Paris']"), more(question="And?")]
    write(folder, rows, "questions.csv", ASKED)
    with pytest.warns(MechVLMWarning, match="no question and are left out"):
        (entity,) = popvqa.read(folder)
    assert [fact.answers for fact in entity.facts] == [("Paris", "France"), ("Paris",)]


def test_an_entity_of_several_rows_counts_once(folder):
    rows = [(*row, row[-1]) for row in (*ENTITIES, (*ENTITIES[0][:4], "big/b.jpg"))]
    write(folder, rows)
    with pytest.warns(MechVLMWarning, match="4 rows of 3 entities"):
        found = popvqa.read(folder)
    assert [entity.id for entity in found] == [TOWER, PERSON, "Q37156"]
    assert found[0].image == folder / "big/a.jpg"


def test_what_is_taken_can_be_chosen(folder):
    (person,) = popvqa.read(folder, kinds=["celebrity"], picture="path")
    assert (person.name, person.image) == ("Beyoncé", folder / "big/b.jpg")
    assert [each.name for each in popvqa.read(folder, limit=2)] == [
        "Eiffel Tower",
        "Beyoncé",
    ]
    (folder / "entities.csv").rename(folder / "who.csv")
    (folder / "questions.csv").rename(folder / "what.csv")
    (folder / "elsewhere").mkdir()
    (folder / "small").rename(folder / "elsewhere" / "small")
    images = folder / "elsewhere"
    found = popvqa.read(folder, entities="who.csv", questions="what.csv", images=images)
    assert found[2].image == images / "small/c.jpg"
    with pytest.raises(ArgumentError, match="kinds is the one string 'celebrity'"):
        popvqa.read(folder, kinds="celebrity")
    with pytest.raises(
        DatasetError, match=r"kinds \['bird'\]: .* brand, celebrity, lan"
    ):
        popvqa.read(folder, entities="who.csv", questions="what.csv", kinds=["bird"])


def test_pandas_leaves_a_mark_an_index_and_nan(folder):
    rows = [(i, *row, row[-1]) for i, row in enumerate(ENTITIES)]
    rows[2] = (*rows[2][:4], "nan", *rows[2][5:])
    write(folder, rows, columns=("", *COLUMNS), mark="\ufeff")
    assert [each.aliases for each in popvqa.read(folder)][2] == ()


def test_what_is_missing_is_told(folder):
    write(folder, [QUESTIONS[0][:3]], "questions.csv", ASKED[:3])
    with pytest.raises(DatasetError, match=r"no column \['possible_answers'\]; it has"):
        popvqa.read(folder)
    write(folder, QUESTIONS, "questions.csv", ASKED)
    (folder / "small/b.jpg").unlink()
    with pytest.raises(
        DatasetError, match=r"picture of 'Beyoncé' is not there: .*b\.jpg"
    ):
        popvqa.read(folder)
    write(folder, [row[:5] for row in ENTITIES], columns=COLUMNS[:5])
    with pytest.raises(DatasetError, match=r"no column \['resized_path'\]"):
        popvqa.read(folder)
    write(folder, [])
    with pytest.raises(DatasetError, match="a header and no row"):
        popvqa.read(folder)
    (folder / "entities.csv").unlink()
    with pytest.raises(DatasetError, match=r"entities\.csv is not there"):
        popvqa.read(folder)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (more(s_uri="Q1"), "row 1 asks about 'Q1', which is no entity"),
        (more(possible_answers="[]"), "a question or its possible_answers is empty"),
        (more(question_for_image=" "), "a question or its possible_answers is empty"),
        (more()[:3], "not as many fields as columns"),
        ([*more(), "one", "two"], "line 2: not as many fields as columns"),
    ],
)
def test_questions_that_hang_in_the_air_are_refused(folder, row, fault):
    write(folder, [row], "questions.csv", ASKED)
    with pytest.raises(DatasetError, match=fault):
        popvqa.read(folder)


def test_an_entity_without_a_name_is_refused(folder):
    rows = [(*row, row[-1]) for row in ENTITIES]
    write(folder, [rows[0], ("brand", "Q1", "", "", "a", "a")])
    with pytest.raises(DatasetError, match="row 2 has an empty subject"):
        popvqa.read(folder)


def test_aliases_survive_a_round_trip_through_json(folder):
    names = ["a, b", 'c"d', "e'f", "ünïcode", "[g]"]
    rows = [(*ENTITIES[0][:3], json.dumps(names), "big/a.jpg", "small/a.jpg")]
    write(folder, rows)
    write(folder, [QUESTIONS[0]], "questions.csv", ASKED)
    (entity,) = popvqa.read(folder)
    assert list(entity.aliases) == names
