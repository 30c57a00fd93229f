"""Pairs in files: what is written comes back, and every fault of a file is named."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageOps

import mechvlm as mv
from mechvlm.datasets import pairs
from mechvlm.errors import DatasetError, OutputError
from mechvlm.items import PicturePair

SIZE = WIDTH, HEIGHT = 40, 32
MASK = np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.5


def pair(**changes):
    given = {
        "clean": tiny.picture(),
        "corrupted": tiny.picture(seed=1),
        "question": 'What "color" is it?\n',
        "answer": "Rouge é",
        "foil": "Bleu",
    }
    return PicturePair(**{**given, **changes})


FULL = {
    "objects": {"ball": (0, 1.25, 9, 32), "dog/cat": MASK, "a b": MASK},
    "objects_corrupted": {"ball": ~MASK, "a b": (1, 2, 3, 4)},
    "target": "dog/cat",
    "change": "color",
    "prefix": " It is ",
    "id": "1: ü",
}


def pixels(picture):
    return np.asarray(Image.open(picture) if isinstance(picture, Path) else picture)


def check_alike(one, other):
    """Oracle: every field, pictures by their pixels."""
    for name in (field.name for field in fields(PicturePair)):
        ours, theirs = getattr(one, name), getattr(other, name)
        if name in ("clean", "corrupted"):
            np.testing.assert_array_equal(pixels(ours), pixels(theirs))
        elif name.startswith("objects"):
            assert list(ours) == list(theirs)
            for key, area in ours.items():
                assert type(area) is type(theirs[key])
                np.testing.assert_array_equal(area, theirs[key])
                if isinstance(area, np.ndarray):
                    assert theirs[key].dtype == np.bool_
        else:
            assert ours == theirs


# --- there and back -------------------------------------------------------------------


def test_what_is_written_comes_back(tmp_path):
    given = [pair(), pair(**FULL), pair(id="2", objects={"ball": (0, 0, 40, 32)})]
    folder = pairs.write(given, tmp_path / "mine")
    assert folder == tmp_path / "mine"
    for path in (folder, str(folder), folder / "pairs.json"):
        found = pairs.read(path)
        assert len(found) == 3
        for one, other in zip(given, found, strict=True):
            check_alike(one, other)


def test_what_was_read_can_be_written_again(tmp_path):
    first = pairs.write([pair(**FULL)], tmp_path / "a")
    second = pairs.write(pairs.read(first), tmp_path / "b")
    (found,) = pairs.read(second)
    check_alike(pair(**FULL), found)
    pairs.write([replace(found, id="new")], second)
    assert pairs.read(second)[0].id == "new"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_pictures_keep_their_mode(tmp_path, mode):
    both = [tiny.picture(seed).convert(mode) for seed in (0, 1)]
    given = pair(clean=both[0], corrupted=both[1])
    (found,) = pairs.read(pairs.write([given], tmp_path / "mine"))
    with Image.open(found.clean) as picture:
        assert picture.mode == mode
        np.testing.assert_array_equal(
            np.asarray(picture.convert("RGB")), np.asarray(both[0].convert("RGB"))
        )


def test_files_are_copied_as_they_are(tmp_path):
    """A JPEG written anew would be another picture."""
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        tiny.picture(seed).save(tmp_path / name)
    given = pair(clean=tmp_path / "a.jpg", corrupted=str(tmp_path / "b.jpg"))
    (found,) = pairs.read(pairs.write([given], tmp_path / "mine"))
    assert found.clean.read_bytes() == (tmp_path / "a.jpg").read_bytes()
    assert found.corrupted.read_bytes() == (tmp_path / "b.jpg").read_bytes()
    assert found.clean.is_relative_to(tmp_path / "mine")


def test_a_picture_of_several_pairs_is_kept_once(tmp_path):
    clean = tiny.picture()
    given = [pair(clean=clean, corrupted=tiny.picture(seed=n)) for n in (1, 2, 3)]
    found = pairs.read(pairs.write(given, tmp_path / "mine"))
    assert len(list((tmp_path / "mine/pictures").iterdir())) == 4
    assert len({each.clean for each in found}) == 1
    for one, other in zip(given, found, strict=True):
        check_alike(one, other)
    paths = [found[0].clean, str(found[0].clean)]
    again = [pair(clean=path, corrupted=found[1].corrupted) for path in paths]
    pairs.write(again, tmp_path / "other")
    assert len(list((tmp_path / "other/pictures").iterdir())) == 2


def test_a_picture_that_lies_on_its_side_is_measured_upright(tmp_path):
    """A file of 32 x 40 that is to be turned has the size of one of 40 x 32."""
    sideways = tiny.picture().transpose(Image.Transpose.ROTATE_90)
    note = Image.Exif()
    note[0x0112] = 6
    sideways.save(tmp_path / "a.jpg", exif=note)
    with Image.open(tmp_path / "a.jpg") as file:
        assert file.size == (32, 40)
        assert ImageOps.exif_transpose(file).size == SIZE
    given = pair(clean=tmp_path / "a.jpg", objects={"x": (0, 0, 40, 32)})
    (found,) = pairs.read(pairs.write([given], tmp_path / "mine"))
    assert found.objects["x"] == (0, 0, 40, 32)


def test_the_demos_own_pairs_give_the_same_prompts(demo, tmp_path):
    made = mv.scenes.counterfactual(mv.scenes.sample(seed=3), "position").pair
    (found,) = pairs.read(pairs.write([made], tmp_path / "mine"))
    ours, theirs = mv.bind(demo, made), mv.bind(demo, found)
    assert ours.groups == theirs.groups
    for one, other in ((ours.clean, theirs.clean), (ours.corrupted, theirs.corrupted)):
        assert all(
            torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs
        )


# --- by hand --------------------------------------------------------------------------


ENTRY = {
    "clean": "a.png",
    "corrupted": "sub/b.png",
    "question": "what?",
    "answer": "red",
    "foil": "blue",
}


@pytest.fixture
def write_file(tmp_path):
    """A function that writes a file of one pair beside two pictures and a mask."""
    (tmp_path / "sub").mkdir()
    tiny.picture().save(tmp_path / "a.png")
    tiny.picture(seed=1).save(tmp_path / "sub" / "b.png")
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    file = tmp_path / "own.json"

    def write_file(**changes):
        entry = {
            key: given
            for key, given in {**ENTRY, **changes}.items()
            if given is not KeyError
        }
        write_whole(pairs=[entry])
        return file

    def write_whole(**changes):
        whole = {"format": "mechvlm pairs", "version": 1, **changes}
        file.write_text(json.dumps(whole), encoding="utf-8")
        return file

    write_file.whole, write_file.file = write_whole, file
    return write_file


def test_a_file_needs_little(write_file, tmp_path):
    (found,) = pairs.read(write_file())
    assert found.clean == tmp_path / "a.png"
    assert found.corrupted == tmp_path / "sub" / "b.png"
    assert (found.question, found.answer, found.foil) == ("what?", "red", "blue")
    assert (found.objects, found.objects_corrupted, found.target) == ({}, {}, None)
    assert (found.change, found.prefix, found.id) == ("", "", "")


def test_the_modules_example_is_one(tmp_path):
    """The file that the documentation shows is read as it stands there."""
    shown = re.search(r"^    \{.*^    \}$", pairs.__doc__, re.M | re.S)
    (tmp_path / "pairs.json").write_text(shown[0])
    for seed, name in enumerate(("red.png", "blue.png")):
        tiny.picture(seed, 100, 120).save(tmp_path / name)
    mask = Image.new("L", (100, 120))
    mask.paste(255, (3, 4, 5, 6))
    mask.save(tmp_path / "dog-mask.png")
    (found,) = pairs.read(tmp_path)
    assert (found.id, found.target) == ("ball 1", "ball")
    assert found.objects["ball"] == (12, 30, 84, 101)
    assert np.argwhere(found.objects["dog"]).tolist() == [
        [4, 3],
        [4, 4],
        [5, 3],
        [5, 4],
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"answer": KeyError},
            r"pairs\[0\] lacks \['answer'\]\. Needed are clean, corr",
        ),
        (
            {"Prefix": "a"},
            r"has unknown keys \['Prefix'\]\. .* change, prefix, id, targ",
        ),
        (
            {"answer": 5, "id": "x"},
            r"pairs\[0\] \('x'\): 'answer' is 5; wanted a string",
        ),
        ({"id": 17}, r"own\.json, pairs\[0\]: 'id' is 17; wanted a string"),
        ({"target": ["x"]}, r"'target' is \[\"x\"\]; wanted a string"),
        ({"target": "x"}, r"pairs\[0\]: target 'x' is none of the PicturePair's obj"),
        (
            {"foil": "Red"},
            r"pairs\[0\]: answer and foil of pair 'what\?' are both 'red'",
        ),
        ({"question": ""}, r"pairs\[0\]: \['question'\] of pair '' are empty"),
        (
            {"clean": "c.png"},
            r"'clean': .*c\.png is not there\. Paths in a file of pairs",
        ),
        (
            {"corrupted": "own.json"},
            r"'corrupted': .*own\.json cannot be read as a pict",
        ),
        (
            {"objects": [1]},
            r"'objects' is \[1\]; wanted \{\"ball\": \[left, top, right",
        ),
        (
            {"objects": {"x": [0, 0, 9]}},
            r"'objects'\['x'\] is \[0, 0, 9\]; wanted a box",
        ),
        ({"objects": {"x": [0, 0, 9, True]}}, r"is \[0, 0, 9, true\]; wanted a box"),
        ({"objects": {"x": [0, 0, 9, "9"]}}, r"wanted a box .* or the path of a mask"),
        ({"objects": {"x": None}}, r"'objects'\['x'\] is null; wanted a box"),
        (
            {"objects": {"x": [0, 0, 41, 9]}},
            r"is the box \[0, 0, 41, 9\], which is not i",
        ),
        ({"objects": {"x": [9, 0, 9, 9]}}, "not inside .* 40 x 32 pixels.*COCO's are"),
        (
            {"objects": {"x": [float("nan"), 0, 9, 9]}},
            "which is not inside the picture",
        ),
        ({"objects": {"x": "no.png"}}, r"'objects'\['x'\]: .*no\.png is not there"),
        (
            {"objects": {"x": "a.png"}},
            r"a\.png has more than two colours, .* JPEG does not",
        ),
        (
            {"objects": {"x": [0, 0, 9, 9]}, "objects_corrupted": {"y": [0, 0, 9, 9]}},
            r"names \['y'\]; its objects are x",
        ),
    ],
)
def test_a_fault_of_a_pair_is_named(write_file, changes, said):
    with pytest.raises(DatasetError, match=said):
        pairs.read(write_file(**changes))


def test_pictures_of_two_sizes_are_refused(write_file, tmp_path):
    tiny.picture(seed=1, width=41).save(tmp_path / "sub" / "b.png")
    with pytest.raises(
        DatasetError, match=r"40 x 32 .* 41 x 32, so that a token .* another place"
    ):
        pairs.read(write_file())


def test_equal_pictures_are_refused(write_file, tmp_path):
    """By what is decoded: another file, or one with transparency, may be the same."""
    said = r"pairs\[0\] \('x'\): .* the same, pixel for pixel, .* given twice, or do"
    with pytest.raises(DatasetError, match=said):
        pairs.read(write_file(corrupted="a.png", id="x"))
    for change in ("bmp", "clear.png"):
        picture = tiny.picture()
        if change == "clear.png":
            picture.putalpha(Image.fromarray(MASK.astype(np.uint8) * 255))
        picture.save(tmp_path / f"again.{change}")
        with pytest.raises(DatasetError, match=said):
            pairs.read(write_file(corrupted=f"again.{change}", id="x"))
    pixels = np.array(tiny.picture())
    pixels[-1, -1, -1] ^= 1
    Image.fromarray(pixels).save(tmp_path / "again.png")
    assert len(pairs.read(write_file(corrupted="again.png"))) == 1


def test_torn_and_deep_pictures_are_refused(write_file, tmp_path):
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DatasetError, match=r"'clean': .*a\.png cannot be read as a pict"
    ):
        pairs.read(write_file())
    deep = Image.fromarray(np.full((HEIGHT, WIDTH), 3000, dtype=np.uint16))
    deep.save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"has mode 'I;16', .* Scale it to 8 bits"):
        pairs.read(write_file())


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        (
            {"format": "COCO"},
            r"is no file of pairs; wanted \{\"format\": \"mechvlm pairs",
        ),
        ({"version": 2}, "is of version 2; this mechvlm reads version 1"),
        ({"version": None}, "is of version None"),
        ({"pairs": [], "note": ""}, r"has unknown keys \['note'\]"),
        ({}, r"has no pairs; wanted .* \"pairs\" not empty"),
        ({"pairs": []}, "has no pairs"),
        ({"pairs": {"a": ENTRY}}, "has no pairs"),
        ({"pairs": [ENTRY, 3]}, r"pairs\[1\] is 3; wanted an object \{\"clean\""),
        ({"pairs": 2 * [{**ENTRY, "id": "x"}]}, r"ids \['x'\] are there twice"),
    ],
)
def test_a_fault_of_the_file_is_named(write_file, whole, said):
    with pytest.raises(DatasetError, match=said):
        pairs.read(write_file.whole(**whole))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"pairs: []", "own.json cannot be read as JSON: .* Wanted a file of pairs"),
        (b"\xff\xfe\x00", "own.json cannot be read as JSON: .*decode"),
        (
            b'{"pairs": 1, "pairs": 2}',
            r"keys \['pairs'\] are there twice in one object",
        ),
        (b"[]", "is no file of pairs"),
        (b"[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_what_is_no_json_is_refused(write_file, content, said):
    write_file.file.write_bytes(content)
    with pytest.raises(DatasetError, match=said):
        pairs.read(write_file.file)


def test_a_folder_without_the_file_is_refused(tmp_path):
    with pytest.raises(
        DatasetError, match=r"pairs\.json cannot be read as JSON: .*No su"
    ):
        pairs.read(tmp_path)


# --- what is not written --------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "no pair is given, so there is nothing to write"),
        ([pair(id="x"), pair(id="x")], r"ids \['x'\] are there twice"),
        (
            [pair(corrupted=tiny.picture(1, 41))],
            r"pairs\[0\] \(''\): .* 41 x 32, so that",
        ),
        ([pair(clean="nowhere.png")], r"'clean': nowhere\.png is not there\.$"),
        (
            [pair(corrupted=tiny.picture(), id="x")],
            r"pairs\[0\] \('x'\): .* are the same",
        ),
        ([pair(clean=Image.new("RGB", (0, 9)))], r"of size \(0, 9\) has no pixels"),
        ([pair(clean=tiny.picture().convert("CMYK"))], "mode 'CMYK', of which PNG or"),
        ([pair(objects={"x": (0, 0, 99, 9)})], "which is not inside the picture"),
        ([pair(objects={"x": MASK & ~MASK})], "with 0 of 1280 pixels set"),
        ([pair(objects={"x": MASK | ~MASK})], "with 1280 of 1280 pixels set"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, given, said):
    with pytest.raises(DatasetError, match=said):
        pairs.write(given, tmp_path / "mine")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "pairs.json").write_text("by hand")
    with pytest.raises(OutputError, match="is not a finished output"):
        pairs.write([pair()], tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["pairs.json"]


def test_a_write_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = pairs.write([pair(id="old")], tmp_path / "mine")

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        pairs.write([pair(id="new")], folder)
    monkeypatch.undo()
    assert [each.id for each in pairs.read(folder)] == ["old"]
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]
