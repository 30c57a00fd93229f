"""MME: folders as they are published, and scores from counts made by hand."""

import math

import pytest

import mechvlm as mv
from mechvlm import Item
from mechvlm.datasets import mme as data

LINES = "Is it red?\tYes\nIs it blue?\tNo\n"


def put(folder, name, text=LINES, *, picture=".jpg", apart=False):
    """One picture of MME with its text, in either layout."""
    images = folder / "images" if apart else folder
    texts = folder / "questions_answers_YN" if apart else folder
    for each in (images, texts):
        each.mkdir(parents=True, exist_ok=True)
    mv.scenes.sample(seed=0, n=1).image.save(images / f"{name}{picture}")
    (texts / f"{name}.txt").write_text(text, encoding="utf-8")


# --- reading --------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_both_layouts_are_read(tmp_path, apart):
    put(tmp_path / "color", "b", "Is it a\ttab?\tno\nIs it?\tYES", apart=apart)
    put(tmp_path / "color", "a", picture=".png", apart=apart)
    put(tmp_path / "count", "0001")
    (tmp_path / "eval_tool.py").write_text("a file of the download beside the subsets")
    found = data.read(tmp_path, subsets=["color"])
    assert list(found) == ["color"]
    assert [(x.question, x.answer) for x in found["color"]] == [
        ("Is it red?", "Yes"),
        ("Is it blue?", "No"),
        ("Is it a\ttab?", "No"),
        ("Is it?", "Yes"),
    ]
    folder = tmp_path / "color" / "images" if apart else tmp_path / "color"
    assert [x.image for x in found["color"]] == [folder / "a.png"] * 2 + [
        folder / "b.jpg"
    ] * 2
    assert [x.id for x in found["color"]][1:3] == ["color/a.png/1", "color/b.jpg/0"]
    assert sorted(data.read(tmp_path)) == ["color", "count"]


def test_a_mark_at_the_files_start_and_windows_line_ends_are_no_text(tmp_path):
    put(tmp_path / "color", "a", "\ufeff" + LINES.replace("\n", "\r\n") + "\r\n")
    first, second = data.read(tmp_path)["color"]
    assert (first.question, second.answer) == ("Is it red?", "No")


def test_the_papers_subsets_are_the_ten_of_perception():
    assert len(set(data.PERCEPTION)) == 10


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Is it red?\tYes\n", "has 1 lines; wanted 2"),
        (LINES + "Is it green?\tNo\n", "has 3 lines; wanted 2"),
        ("Is it red?\tYes\nIs it blue?\tMaybe\n", "line 2 is .*Maybe.*Yes or No"),
        ("Is it red? Yes\nIs it blue?\tNo\n", "line 1 is .*a question, a tab"),
        ("\tYes\nIs it blue?\tNo\n", "line 1 is 'Yes'"),
    ],
)
def test_texts_that_are_not_two_questions(tmp_path, text, why):
    put(tmp_path / "color", "a", text)
    with pytest.raises(mv.DatasetError, match=why):
        data.read(tmp_path)


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("gone", ["jpg", "txt"])
def test_a_picture_or_a_text_alone(tmp_path, apart, gone):
    put(tmp_path / "color", "a", apart=apart)
    put(tmp_path / "color", "b", apart=apart)
    next((tmp_path / "color").rglob(f"b.{gone}")).unlink()
    with pytest.raises(mv.DatasetError, match=r"without a partner.*\['b'\]"):
        data.read(tmp_path)


def test_folders_that_are_not_mme(tmp_path):
    with pytest.raises(mv.DatasetError, match="is no folder"):
        data.read(tmp_path / "nowhere")
    with pytest.raises(mv.DatasetError, match="has no subset at all"):
        data.read(tmp_path)
    put(tmp_path / "color", "a")
    with pytest.raises(mv.DatasetError, match=r"no subset \['OCR'\].*\['color'\]"):
        data.read(tmp_path, subsets=["OCR"])
    put(tmp_path / "color", "a", picture=".png")
    with pytest.raises(mv.DatasetError, match="have one name"):
        data.read(tmp_path)
    (tmp_path / "count").mkdir()
    with pytest.raises(mv.DatasetError, match="'count' has 0 pictures and 0 texts"):
        data.read(tmp_path, subsets=["count"])
    (tmp_path / "scene" / "images").mkdir(parents=True)
    with pytest.raises(mv.DatasetError, match=r"questions_answers_YN is not there"):
        data.read(tmp_path, subsets=["scene"])
    (tmp_path / "color" / "a.png").unlink()
    (tmp_path / "color" / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(mv.DatasetError, match="cannot be read as text"):
        data.read(tmp_path, subsets=["color"])


# --- scoring --------------------------------------------------------------------------

SAID = {  # picture -> what is said to its questions, whose answers are Yes and No
    "color": {"a": ("Yes.", "no"), "b": ("yes", "Yes, it is"), "c": ("Red", "No.")},
    "count": {"a": ("No", "Yes")},
}
N_RIGHT = {"color": (4, 1, 1), "count": (0, 0, 0)}  # answers, pictures, unparsed


@pytest.fixture
def scored(demo):
    asked = {
        subset: [
            Item(f"{subset}/{name}.png", f"{place}", right)
            for place, right in enumerate(("Yes", "No"))
            for name in pictures
        ]
        for subset, pictures in SAID.items()
    }

    def answer(item):
        subset, name = item.image.removesuffix(".png").split("/")
        return SAID[subset][name][int(item.question)]

    return mv.mme(demo, asked, answerer=answer)


def test_scores_are_counted_by_hand(scored):
    for subset, (right, both, unparsed) in N_RIGHT.items():
        row, n = scored.sel(subset=subset), len(SAID[subset])
        assert int(row["n_questions"]) == 2 * n and int(row["n_images"]) == n
        assert float(row["acc"]) == pytest.approx(right / (2 * n))
        assert float(row["acc_plus"]) == pytest.approx(both / n)
        assert int(row["unparsed"]) == unparsed
        assert float(row["acc_plus_low"]) == pytest.approx(wilson(both, n)[0])
        assert float(row["acc_high"]) == pytest.approx(wilson(right, 2 * n)[1])
    assert scored.attrs["mean_acc"] == pytest.approx((4 / 6 + 0) / 2)
    assert scored.attrs["mean_acc_plus"] == pytest.approx((1 / 3 + 0) / 2)


def wilson(hits, n, z=1.959963984540054):
    """The score interval, from its formula."""
    p = hits / n
    middle, width = (
        p + z**2 / (2 * n),
        z * math.sqrt(p * (1 - p) / n + (z / n / 2) ** 2),
    )
    return (middle - width) / (1 + z**2 / n), (middle + width) / (1 + z**2 / n)


def test_every_item_keeps_its_own(scored, tmp_path):
    """Items are not in the order of their pictures, and stay in their own."""
    assert scored["correct"].values.tolist() == [1, 1, 0, 1, 0, 1, 0, 0]
    assert scored["said"].values[:3].tolist() == ["Yes.", "yes", "Red"]
    assert scored["item_subset"].values.tolist() == ["color"] * 6 + ["count"] * 2
    assert scored["item_image"].values.tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
    assert mv.open_result(mv.save_result(scored, tmp_path / "mme.nc")).identical(scored)
    assert scored.attrs["answerer"] == "given" and "CVPR" in mv.cite(scored)


def test_the_model_itself_answers_with_the_picture(demo, tmp_path):
    """From a folder, naively and from a context that keeps part of the image."""
    drawn = mv.scenes.sample(seed=3, n=1)
    shape = drawn.things[0].shape
    other = "ring" if shape != "ring" else "square"
    folder = tmp_path / "existence"
    put(folder, "a", f"is there a {shape} ?\tYes\nis there a {other} ?\tNo\n")
    drawn.image.save(folder / "a.png")
    (folder / "a.jpg").unlink()
    asked = data.read(tmp_path)
    found = mv.mme(demo, asked)
    assert found.attrs["answerer"] == "naive"
    for at, item in enumerate(asked["existence"]):
        prompt = demo.prompt(item.question, item.image)
        said = demo.generate(prompt, max_new_tokens=10).text
        assert str(found["said"].values[at]) == said
        assert bool(found["correct"][at]) == (said.lower() == item.answer.lower())
    answer = mv.context_answerer(
        demo, keep=0.5, select="last", describe="describe the image ."
    )
    kept = mv.mme(demo, asked, answerer=answer)
    assert kept["said"].values.tolist() == [answer(x) for x in asked["existence"]]


def test_questions_that_tables_could_not_tell_apart_are_refused(demo):
    two = [Item("a.png", "?", "Yes", id="same"), Item("a.png", "!", "No", id="same")]
    with pytest.raises(mv.PromptError, match=r"2 items share ids \['same'\]"):
        mv.mme(demo, {"color": two}, answerer=lambda item: "yes")
    one, other = ([Item("a.png", "?", x, id=x) for x in ("Yes", "No")] for _ in "ab")
    with pytest.raises(mv.PromptError, match=r"4 items share ids \['No', 'Yes'\]"):
        mv.mme(demo, {"color": one, "count": other}, answerer=lambda item: "yes")


def test_what_cannot_be_scored(demo):
    yes, no = Item("a.png", "?", "Yes"), Item("a.png", "!", "No")

    def scored(items):
        return mv.mme(demo, items, answerer=lambda item: "yes")

    for items, why in [
        ({}, "no subset is given"),
        ({"color": []}, "'color' has 0 questions"),
        ({"color": [yes]}, r"pictures with \[1\] questions"),
        ({"color": [yes, no, no]}, r"pictures with \[3\] questions"),
        ({"color": [yes, Item("a.png", "!", "red")]}, r"\['red'\] that are neither"),
    ]:
        with pytest.raises(mv.MetricError, match=why):
            scored(items)
