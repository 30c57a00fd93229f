"""COCO's instances file: which pictures are taken, and where their objects lie."""

import json

import numpy as np
import pytest
from PIL import Image

import mechvlm as mv
from mechvlm.errors import DatasetError
from mechvlm.layout import ImageGrid

WIDE, HIGH = 60, 50
CATEGORIES = [
    {"id": 1, "name": "person"},
    {"id": 18, "name": "dog"},
    {"id": 10, "name": "traffic light"},
]


def thing(picture, category, box, **more):
    """An annotation with a rectangle for its outline, boxes as COCO writes them."""
    left, top, wide, high = box
    right, bottom = left + wide, top + high
    corners = [left, top, right, top, right, bottom, left, bottom]
    return {
        "image_id": picture,
        "category_id": category,
        "bbox": list(box),
        "area": wide * high,
        "iscrowd": 0,
        "segmentation": [corners],
    } | more


@pytest.fixture
def folder(tmp_path):
    """Writes a data set of as many pictures as the annotations name."""

    def write(annotations, **changed):
        ids = sorted({each["image_id"] for each in annotations})
        pictures = [
            {"id": i, "file_name": f"{i:04}.png", "width": WIDE, "height": HIGH}
            for i in ids
        ]
        for each in pictures:
            Image.new("RGB", (WIDE, HIGH)).save(tmp_path / each["file_name"])
        held = {
            "images": pictures,
            "annotations": annotations,
            "categories": CATEGORIES,
        } | changed
        (tmp_path / "instances.json").write_text(json.dumps(held))
        return tmp_path / "instances.json", tmp_path

    return write


DOG = thing(1, 18, (10, 5, 40, 30))


def test_an_item_says_what_is_in_the_picture_and_where(folder):
    (item,) = mv.datasets.coco.read(*folder([DOG]))
    assert (item.answer, item.target, item.prefix) == ("dog", "dog", "It is a")
    assert (item.id, item.question) == ("1", "What is in the image?")
    wanted = np.zeros((HIGH, WIDE), dtype=bool)
    wanted[5:35, 10:50] = True
    np.testing.assert_array_equal(item.area, wanted)
    with Image.open(item.image) as picture:
        assert picture.size == (WIDE, HIGH)


def test_an_outline_does_not_grow_into_the_next_cells(folder):
    """Pillow fills what an outline touches; on cells' edges that is a row too many."""
    grid = ImageGrid(0, 10, 6, WIDE, HIGH, (0, 0, WIDE, HIGH))
    (item,) = mv.datasets.coco.read(*folder([DOG]))
    seen = grid.coverage(item.area) > 0
    wanted = np.zeros((10, 6), dtype=bool)
    wanted[1:7, 1:5] = True
    np.testing.assert_array_equal(seen, wanted)


def test_polygons_join_and_triangles_are_filled(folder):
    parts = [[0, 0, 40, 0, 0, 40], [50, 40, 60, 40, 60, 50, 50, 50]]
    (item,) = mv.datasets.coco.read(*folder([DOG | {"segmentation": parts}]))
    y, x = np.mgrid[:HIGH, :WIDE] + 0.5
    triangle = x + y < 40
    found = item.area
    assert found[40:, 50:].all()
    found = found.copy()
    found[40:, 50:] = False
    assert np.abs(found.sum() - 800) < 30
    assert (found != triangle).sum() <= 45  # pixels that the long side cuts in half


def test_runs_are_read_column_by_column(folder):
    """A crowd is never the target, and its mask counts down the columns."""
    counts = [2 * HIGH + 3, 4, WIDE * HIGH - 2 * HIGH - 7]
    outline = {"counts": counts, "size": [HIGH, WIDE]}
    crowd = thing(1, 1, (2, 3, 1, 4), iscrowd=1, segmentation=outline, area=1500)
    (item,) = mv.datasets.coco.read(*folder([crowd, DOG]))
    assert item.target == "dog"
    rows, cols = np.nonzero(item.objects["person"])
    assert (set(cols), list(rows)) == ({2}, [3, 4, 5, 6])


def test_the_filter_of_the_paper(folder):
    """At most three annotations, and one alone of its kind of 1000 to 2000 pixels."""
    small, edge = (0, 0, 10, 10), (0, 0, 40, 25)  # areas 100 and 1000
    fits, other = (0, 0, 40, 30), (5, 5, 50, 30)  # areas 1200 and 1500
    kept = [
        thing(1, 18, fits),
        *(thing(2, 18, fits), thing(2, 1, small), thing(2, 1, small)),
        *(thing(3, 10, small), thing(3, 18, other), thing(3, 1, fits)),
    ]
    dropped = [
        thing(4, 18, small),
        thing(5, 18, edge),  # the bounds themselves are outside
        *(thing(6, 18, fits), thing(6, 18, small)),  # two of a kind
        *(thing(7, category, fits) for category in (18, 1, 1, 10)),  # four of them
    ]
    items = mv.datasets.coco.read(*folder(kept + dropped))
    assert [item.id for item in items] == ["1", "2", "3"]
    assert [item.target for item in items] == ["dog", "dog", "dog"]
    assert [*items[1].objects] == ["dog", "person", "person 2"]
    first = mv.datasets.coco.read(*folder(kept + dropped), limit=2)
    assert [item.id for item in first] == ["1", "2"]
    wide = mv.datasets.coco.read(*folder(dropped), area=(50, 3000), max_annotations=4)
    assert [item.id for item in wide] == ["4", "5", "7"]
    with pytest.raises(DatasetError, match=r"no picture of .*instances\.json passes"):
        mv.datasets.coco.read(*folder(dropped))


def test_a_sliver_has_its_box_where_its_outline_covers_no_pixel(folder):
    """Outlines of less than half a pixel cover none; the object is there still."""
    sliver = thing(1, 1, (3.95, 2, 0.1, 4))
    (item,) = mv.datasets.coco.read(*folder([DOG, sliver]))
    assert item.objects["person"] == pytest.approx((3.95, 2, 4.05, 6))


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        (DOG | {"category_id": 99}, "category 99 is not among the categories"),
        (DOG | {"segmentation": None}, "has no 'segmentation'.*not that of captions"),
        (DOG | {"bbox": [1, 2, 3]}, "'bbox' of 3 numbers; wanted four"),
        (DOG | {"bbox": "no"}, "'no' was found where numbers belong"),
        (DOG | {"area": None}, "None.* was found where numbers belong"),
        (DOG | {"segmentation": [[1, 2, 3, 4]]}, "has 4 numbers; wanted x and y"),
        (DOG | {"segmentation": {"counts": "a1b"}}, r"compressed \(str\)"),
        (DOG | {"segmentation": {"counts": [3]}}, "run lengths of 3 pixels"),
        (DOG | {"segmentation": [], "bbox": [70, 0, 5, 5]}, "lies outside its picture"),
    ],
)
def test_an_annotation_that_cannot_be_is_refused(folder, annotation, told):
    with pytest.raises(DatasetError, match=f"(?s){told}"):
        mv.datasets.coco.read(*folder([annotation]))


def test_files_that_are_not_the_data_set_are_refused(folder, tmp_path):
    file, images = folder([DOG])
    with pytest.raises(DatasetError, match=r"is not there. Wanted COCO's instances"):
        mv.datasets.coco.read(tmp_path / "none.json", images)
    Image.new("RGB", (9, 9)).save(images / "0001.png")
    with pytest.raises(DatasetError, match=r"9 x 9 pixels and .* says 60 x 50"):
        mv.datasets.coco.read(file, images)
    (images / "0001.png").unlink()
    with pytest.raises(DatasetError, match=r"0001\.png is not there, and instances"):
        mv.datasets.coco.read(file, images)
    for changed, told in [
        ({"images": 3}, r"'images' is 3; wanted a list"),
        ({"images": [3]}, "'images' holds other things than objects"),
        ({"images": []}, "of picture 1, which the file does not list"),
        ({"categories": [{"id": "1"}]}, "'id' is '1'; wanted a int"),
        ({"categories": [{"id": 18}]}, "'name' is missing; wanted a str"),
    ]:
        with pytest.raises(DatasetError, match=told):
            mv.datasets.coco.read(*folder([DOG], **changed))
    file.write_text("[1, 2]")
    with pytest.raises(DatasetError, match="holds a list; wanted an object"):
        mv.datasets.coco.read(file, images)
    file.write_text('{"images": [')
    with pytest.raises(DatasetError, match=r"is no JSON: .*Is it torn"):
        mv.datasets.coco.read(file, images)
