"""A folder of pictures: which files are taken, in which order, and what is refused."""

import subprocess
import sys

import pytest
from PIL import Image

import mechvlm as mv
from mechvlm.datasets import pictures


@pytest.fixture
def folder(tmp_path):
    """Five pictures of five kinds, and what is none beside them."""
    for name in ("b.png", "a.JPG", "c.jpeg", "d.webp", "e.bmp"):
        kind = "JPEG" if name.lower().endswith(("jpg", "jpeg")) else None
        Image.new("RGB", (4, 4), "red").save(tmp_path / name, kind)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "more.png").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "more.png" / "inside.png")
    return tmp_path


def test_pictures_are_taken_in_the_order_of_their_names(folder):
    found = pictures.read(folder)
    names = ["a.JPG", "b.png", "c.jpeg", "d.webp", "e.bmp"]
    assert [item.id for item in found] == names
    assert [item.image for item in found] == [folder / name for name in names]
    assert {(item.question, item.answer) for item in found} == {
        ("Describe the image.", "")
    }
    assert not any(item.objects or item.target for item in found)


def test_a_folder_is_given_as_text_and_questions_in_own_words(folder):
    found = pictures.read(str(folder), question="what is it ?")
    assert {item.question for item in found} == {"what is it ?"}


def test_the_first_ones_are_taken_up_to_a_limit(folder):
    assert [item.id for item in pictures.read(folder, limit=2)] == ["a.JPG", "b.png"]
    assert len(pictures.read(folder, limit=99)) == 5
    for limit in (0, -1):
        with pytest.raises(mv.DatasetError, match=f"limit={limit}: wanted 1 or more"):
            pictures.read(folder, limit=limit)


def test_hidden_twins_and_folders_are_no_pictures(folder):
    (folder / "._a.JPG").write_bytes(b"not a picture at all")
    names = [item.id for item in pictures.read(folder)]
    assert "._a.JPG" not in names and "more.png" not in names


def test_every_picture_that_is_taken_can_be_shown(folder, demo):
    for item in pictures.read(folder):
        assert demo.prompt(item.question, item.image).layout["image"]


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(mv.DatasetError, match="is no folder; wanted one that holds"):
        pictures.read(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(mv.DatasetError, match=r"holds no picture \(\.bmp, \.jpeg"):
        pictures.read(tmp_path)


def test_one_subset_of_mme_is_no_list_of_letters(tmp_path):
    code = (
        "import mechvlm as mv\n"
        "try: mv.datasets.mme.read('.', subsets='color')\n"
        "except mv.ArgumentError as error: print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "subsets is the one string 'color'" in said.stdout
