"""Masks in files: what is read as the object, and what could be read in two ways."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image

from mechvlm.datasets import pairs
from mechvlm.errors import DatasetError

SIZE = WIDTH, HEIGHT = 40, 32
MASK = np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.5


@pytest.fixture
def mask_file(tmp_path):
    """The mask that a file of one pair names, to be written."""
    tiny.picture().save(tmp_path / "a.png")
    tiny.picture(seed=1).save(tmp_path / "b.png")
    pictures = {"clean": "a.png", "corrupted": "b.png"}
    words = {"question": "what?", "answer": "red", "foil": "blue"}
    entry = {**pictures, **words, "objects": {"x": "mask.png"}}
    whole = {"format": "mechvlm pairs", "version": 1, "pairs": [entry]}
    (tmp_path / "pairs.json").write_text(json.dumps(whole))
    return tmp_path / "mask.png"


def read(mask_file):
    (found,) = pairs.read(mask_file.parent)
    return found.objects["x"]


@pytest.mark.parametrize("inside", [1, 128, 255])
def test_a_mask_is_all_that_is_not_black(mask_file, inside):
    Image.fromarray(MASK.astype(np.uint8) * inside).save(mask_file)
    np.testing.assert_array_equal(read(mask_file), MASK)


@pytest.mark.parametrize(
    ("mode", "inside"), [("RGB", (0, 0, 1)), ("RGB", (9, 0, 0)), ("P", (255, 0, 0))]
)
def test_a_mask_may_be_of_any_colour(mask_file, mode, inside):
    """Blue of 1 would be black in shades of grey."""
    colored = MASK[..., None] * np.array(inside, dtype=np.uint8)
    Image.fromarray(colored).convert(mode).save(mask_file)
    np.testing.assert_array_equal(read(mask_file), MASK)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_a_mask_with_transparency_is_refused(mask_file, mode):
    """White all over with the object opaque would be read as the whole picture."""
    if mode == "P":
        indices = Image.fromarray(MASK.astype(np.uint8)).convert("P")
        indices.save(mask_file, transparency=0)
    else:
        white = Image.new("L", SIZE, 255)
        alpha = Image.fromarray(MASK.astype(np.uint8) * 255)
        bands = [white] * (len(mode) - 1) + [alpha]
        Image.merge(mode, bands).save(mask_file)
    with pytest.raises(
        DatasetError, match=rf"mask\.png has mode '{mode}' with transparency, .* save"
    ):
        read(mask_file)
    # What the message says to do in the first case.
    picture = Image.open(mask_file).convert("RGBA")
    alpha = picture.getchannel("A").point(lambda a: 255 * (a > 127))
    alpha.save(mask_file)
    np.testing.assert_array_equal(read(mask_file), MASK)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((HEIGHT, WIDTH), np.uint8), "with 0 of 1280 pixels set; .* nowhere"),
        (
            np.ones((HEIGHT, WIDTH), np.uint8),
            "with 1280 of 1280 pix.* picture is a box",
        ),
        (MASK.T.astype(np.uint8), "mask of 32 x 40 .* wanted one of .* 40 x 32"),
        (MASK + np.uint8(1), "has two colours, none black, so that it is not clear"),
        (np.tri(HEIGHT, WIDTH, dtype=np.uint8) + MASK, "has more than two colours"),
        (
            MASK.astype(np.uint16),
            "has mode 'I;16', and Pillow would cut .*fromarray.array > 0",
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask_file, mask, said):
    Image.fromarray(mask).save(mask_file)
    with pytest.raises(DatasetError, match=said):
        read(mask_file)
