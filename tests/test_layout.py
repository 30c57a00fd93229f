"""Positions are a set of ints, layouts a partition, and cells see what they say.

Oracles: Python's own frozenset; pictures drawn and pushed through the real image
processors, averaged cell by cell; scipy's dilation.
"""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy.ndimage import binary_dilation

from mechvlm.errors import LayoutError, RegionError
from mechvlm.layout import GROUPS, ImageGrid, Layout, Positions
from mechvlm.models.families.llava import LLAVA

sets = st.frozensets(st.integers(0, 30))
both_processors = pytest.mark.parametrize(
    "clip", [True, False], ids=["crop", "squeeze"]
)

# --- positions ------------------------------------------------------------------------


def read_back(text):
    """The ints that `0, 5..580` stands for."""
    runs = [run.split("..") for run in text.split(", ") if run]
    return {i for run in runs for i in range(int(run[0]), int(run[-1]) + 1)}


@given(a=sets, b=sets)
@example(a=frozenset(), b=frozenset({0}))
def test_positions_are_a_sorted_frozenset(a, b):
    ours, theirs = Positions.of(a), Positions.of(b)
    assert list(ours | theirs) == sorted(a | b)
    assert list(ours & theirs) == sorted(a & b)
    assert list(ours - theirs) == sorted(a - b)
    assert len(ours) == len(a)
    assert bool(ours) == bool(a)
    assert [i in ours for i in range(32)] == [i in a for i in range(32)]
    assert (ours == theirs) == (a == b)
    assert hash(ours) == hash(Positions.of(sorted(a, reverse=True), a))


@given(a=sets)
def test_positions_print_short_and_whole(a):
    assert read_back(str(Positions.of(a))) == a
    assert repr(Positions.of(a)) == f"Positions({Positions.of(a)})"


def test_positions_come_from_anything_that_counts():
    wanted = Positions((3, 4, 7))
    assert Positions.of(range(3, 5), 7) == wanted
    assert Positions.of(np.array([7, 3, 4])) == wanted
    assert Positions.of(iter([4, 7]), [np.int64(3)], wanted) == wanted
    assert str(Positions.of(range(5, 581), 0)) == "0, 5..580"


@pytest.mark.parametrize("what", [[1.5], [1.0], np.array([True, False]), [True]])
def test_truth_values_and_fractions_are_no_positions(what):
    """int() would read a mask as positions 0 and 1, and 1.5 as 1."""
    with pytest.raises(LayoutError, match="is no position; wanted whole numbers"):
        Positions.of(what)


def test_positions_refuse_what_is_no_sorted_set():
    with pytest.raises(LayoutError, match=r"\(3, 3\) are not sorted and unique"):
        Positions((3, 3))
    with pytest.raises(LayoutError, match=r"not sorted and unique\. Build them with"):
        Positions((4, 3))
    with pytest.raises(LayoutError, match="position -2 is negative"):
        Positions.of(5, -2)


# --- layouts --------------------------------------------------------------------------


def grid(start=0, rows=2, cols=3, width=30, height=20, box=(0, 0, 30, 20)):
    return ImageGrid(start, rows, cols, width, height, box)


@given(names=st.lists(st.sampled_from([g for g in GROUPS if g != "image"]), min_size=1))
def test_any_naming_of_the_positions_is_a_layout(names):
    groups = {g: Positions.of(i for i, n in enumerate(names) if n == g) for g in names}
    layout = Layout(len(names), groups)
    assert [layout.group_of(i) for i in range(layout.n)] == names
    assert list(layout["text"]) == list(range(len(names)))
    told = [i for i, name in enumerate(names) if name not in ("generated", "pad")]
    assert list(layout["prompt_text"]) == told
    assert list(layout["last"]) == [layout.last] == [len(names) - 1]
    for group in GROUPS:
        assert list(layout[group]) == [i for i, n in enumerate(names) if n == group]
    assert layout == Layout(len(names), dict(reversed(groups.items())))
    assert hash(layout) == hash(Layout(len(names), dict(reversed(groups.items()))))


@given(
    groups=st.dictionaries(st.sampled_from(GROUPS[:2]), st.sets(st.integers(0, 4))),
    n=st.integers(0, 5),
)
def test_only_a_partition_is_a_layout(groups, n):
    listed = [i for group in groups.values() for i in group]
    named = {name: Positions.of(group) for name, group in groups.items()}
    if sorted(listed) == list(range(n)):
        assert Layout(n, named).n == n
    else:
        with pytest.raises(LayoutError, match=f"hold {len(listed)} positions and are"):
            Layout(n, named)


def test_a_layout_refuses_groups_and_grids_that_do_not_fit():
    with pytest.raises(LayoutError, match=r"unknown groups \['picture'\]; known are"):
        Layout(1, {"picture": Positions.of(0)})
    with pytest.raises(LayoutError, match=r"grids hold positions 0..5, the group 'im"):
        Layout(
            7, {"image": Positions.of(range(1, 7)), "bos": Positions.of(0)}, (grid(),)
        )
    with pytest.raises(LayoutError, match=r"the group 'image' holds \."):
        Layout(6, {"query": Positions.of(range(6))}, (grid(),))


def pictured(box=(0, 0, 30, 20), rows=2, cols=3, width=30, height=20):
    """BOS, one image, one query token."""
    image = grid(1, rows, cols, width, height, box)
    n = rows * cols
    groups = {"bos": 0, "image": range(1, n + 1), "query": n + 1}
    named = {name: Positions.of(at) for name, at in groups.items()}
    return Layout(n + 2, named, (image,))


def test_a_layout_grows_by_what_is_generated():
    layout = pictured()
    assert layout.extended(0) == layout
    longer = layout.extended(2).extended(1)
    assert longer == layout.extended(3)
    assert longer.last == layout.last + 3
    assert list(longer["generated"]) == [8, 9, 10]
    assert longer["text"] - layout["text"] == longer["generated"]
    assert longer["prompt_text"] == layout["prompt_text"] == Positions.of(0, 7)


def test_a_layout_names_what_it_has_not():
    layout = pictured()
    with pytest.raises(
        LayoutError, match="no group is called 'img'; known are bos, sys"
    ):
        layout["img"]
    with pytest.raises(LayoutError, match=r"position 8 is outside 0..7"):
        layout.group_of(8)
    with pytest.raises(LayoutError, match=r"position -1 is outside 0..7"):
        layout.group_of(-1)
    with pytest.raises(
        LayoutError, match=r"cell \(2, 0\) is outside the grid of 2 rows"
    ):
        layout.cell(2, 0)
    with pytest.raises(LayoutError, match=r"cell \(0, -1\) is outside"):
        layout.grids[0].cell_box(0, -1)
    with pytest.raises(
        LayoutError, match="image 1 was asked for, and the prompt has 1"
    ):
        layout.cell(0, 0, image=1)
    with pytest.raises(
        LayoutError, match=r"prompt has 0\. Was the prompt built without"
    ):
        Layout(1, {"bos": Positions.of(0)}).region((0, 0, 1, 1))


def test_cells_follow_row_by_row():
    layout = pictured()
    assert [layout.cell(r, c) for r in range(2) for c in range(3)] == list(range(1, 7))
    assert layout["image"] == layout.grids[0].positions
    assert layout.grids[0].cell_box(1, 2) == (20, 10, 30, 20)


# --- from pixels to cells -------------------------------------------------------------

sizes = st.tuples(st.integers(16, 90), st.integers(16, 90))


def on_the_processor(clip, width, height):
    """The layout of a picture of this size for one of the real processors."""
    kind = tiny.image_processor(clip=clip)
    side = tiny.SIDE // tiny.PATCH
    seen = LLAVA.seen(kind, (width, height))
    return kind, pictured(seen, side, side, width, height)


def through(kind, image, **options):
    """What each cell sees of a picture, 0 to 1, [channel row col]."""
    out = kind(image, do_normalize=False, return_tensors="np", **options)
    pixels = np.asarray(out["pixel_values"][0])
    side = tiny.SIDE // tiny.PATCH
    cells = pixels.reshape(3, side, tiny.PATCH, side, tiny.PATCH)
    return cells.mean(axis=(2, 4))


def drawn(mask):
    return Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))


def mask_of(box, width, height):
    x0, y0, x1, y1 = box
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


@st.composite
def boxes(draw, width, height):
    """A box of whole pixels inside a picture."""
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
    return x0, y0, x1, y1


@both_processors
@given(size=st.tuples(st.integers(32, 250), st.integers(32, 250)))
@settings(max_examples=40)
def test_each_cell_stands_where_its_pixels_came_from(clip, size):
    """Oracle: colours that rise with x and y, read off after the real processor.

    A resize keeps straight ramps straight but for a pixel or two at the border, and 8
    bits tell steps of width / 255; 0.75 of a pixel, or of a resized one, is the slack.
    """
    width, height = size
    kind, layout = on_the_processor(clip, width, height)
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[..., 0] = np.round((np.arange(width) + 0.5) / width * 255)
    ramp[..., 1] = np.round((np.arange(height)[:, None] + 0.5) / height * 255)
    red, green, _ = through(kind, Image.fromarray(ramp))
    boxed = [[layout.grids[0].cell_box(r, c) for c in range(4)] for r in range(4)]
    x0, y0, x1, y1 = np.moveaxis(np.array(boxed), 2, 0)
    step = max(1, (x1 - x0).max() / tiny.PATCH, (y1 - y0).max() / tiny.PATCH)
    assert np.abs((x0 + x1) / 2 - red * width).max() < 0.75 * step
    assert np.abs((y0 + y1) / 2 - green * height).max() < 0.75 * step


def blur(layout):
    """How far, in cells, a resize smears an edge: two pixels of either picture."""
    left, top, right, bottom = layout.grids[0].cell_box(0, 0)
    return 2 * max(1 / tiny.PATCH, 1 / min(right - left, bottom - top))


@both_processors
@given(data=st.data(), size=sizes, round_area=st.booleans())
@settings(max_examples=60)
def test_coverage_is_what_the_processor_leaves(clip, data, size, round_area):
    """Oracle: the area drawn white on black, through the model's own processor."""
    width, height = size
    box = data.draw(boxes(width, height))
    kind, layout = on_the_processor(clip, width, height)
    mask = mask_of(box, width, height)
    if round_area:
        picture = Image.new("1", size)
        ImageDraw.Draw(picture).ellipse((box[0], box[1], box[2] - 1, box[3] - 1), 1)
        mask = np.array(picture)
        assume(mask.any())
    left = through(kind, drawn(mask), resample=Image.Resampling.BILINEAR)[0]
    found = layout.grids[0].coverage(mask)
    assert np.abs(found - left).max() < blur(layout)


@both_processors
@given(data=st.data(), size=sizes)
@settings(max_examples=60)
def test_a_region_is_the_cells_that_the_area_touches(clip, data, size):
    """Oracle: as above; cells that clearly see it are in, all the others are out."""
    width, height = size
    box = data.draw(boxes(width, height))
    kind, layout = on_the_processor(clip, width, height)
    left = through(kind, drawn(mask_of(box, width, height)))[0].ravel()
    try:
        region = layout.region(box)
    except RegionError:
        region = Positions()
    clear = np.flatnonzero(left > blur(layout)) + 1
    touched = np.flatnonzero(left > 0) + 1
    assert set(clear) <= set(region)
    covered = layout.grids[0].coverage(box).ravel()
    assert {p for p in region if covered[p - 1] > 0.02} <= set(touched)


@both_processors
@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 64), (64, 128), (32, 32)])
@given(data=st.data())
@settings(max_examples=25)
def test_an_aligned_box_is_exactly_its_cells(clip, width, height, data):
    """Oracle: nearest-neighbour resizing, which smears nothing between cells."""
    kind, layout = on_the_processor(clip, width, height)
    r0, r1 = sorted(data.draw(st.sets(st.integers(0, 4), min_size=2, max_size=2)))
    c0, c1 = sorted(data.draw(st.sets(st.integers(0, 4), min_size=2, max_size=2)))
    x0, y0, _, _ = layout.grids[0].cell_box(r0, c0)
    _, _, x1, y1 = layout.grids[0].cell_box(r1 - 1, c1 - 1)
    box = int(x0), int(y0), int(x1), int(y1)
    assert box == (x0, y0, x1, y1)
    white = drawn(mask_of(box, width, height))
    left = through(kind, white, resample=Image.Resampling.NEAREST)[0]
    assert set(np.unique(left)) <= {0, 1}
    wanted = Positions.of(np.flatnonzero(left) + 1)
    for rule in ("any", "center", 1, 0.5):
        assert layout.region(box, rule=rule) == wanted


@both_processors
@given(size=sizes, row=st.integers(0, 3), col=st.integers(0, 3))
def test_a_cell_is_the_region_of_its_own_box(clip, size, row, col):
    _, layout = on_the_processor(clip, *size)
    box = layout.grids[0].cell_box(row, col)
    for rule in ("any", "center", 1):
        assert list(layout.region(box, rule=rule)) == [layout.cell(row, col)]


@both_processors
@given(data=st.data(), size=sizes, rule=st.sampled_from(["any", "center", 0.3, 1]))
def test_a_box_is_its_mask(clip, data, size, rule):
    box = data.draw(boxes(*size))
    _, layout = on_the_processor(clip, *size)
    found = []
    for area in (box, mask_of(box, *size)):
        try:
            found.append(layout.region(area, rule=rule))
        except RegionError:
            found.append(None)
    assert found[0] == found[1]
    coverage = layout.grids[0].coverage(box)
    np.testing.assert_allclose(coverage, layout.grids[0].coverage(mask_of(box, *size)))


@given(cells=st.sets(st.tuples(st.integers(0, 6), st.integers(0, 8)), min_size=1),
       buffer=st.integers(0, 4))  # fmt: skip
def test_a_buffer_adds_the_eight_neighbours(cells, buffer):
    layout = pictured((0, 0, 9, 7), 7, 9, 9, 7)
    mask = np.zeros((7, 9), dtype=bool)
    mask[tuple(np.array(list(cells)).T)] = True
    wanted = mask
    if buffer:
        wanted = binary_dilation(mask, np.ones((3, 3)), iterations=buffer)
    assert layout.region(mask, buffer=buffer) == Positions.of(
        np.flatnonzero(wanted) + 1
    )


def test_the_rules_by_hand():
    """Cells of 10 x 10 pixels; the box covers 80 %, 100 % and 30 % of the upper row."""
    layout = pictured()
    box = (2, 0, 23, 10)
    np.testing.assert_allclose(
        layout.grids[0].coverage(box), [[0.8, 1, 0.3], [0, 0, 0]], atol=1e-12
    )
    assert list(layout.region(box)) == [1, 2, 3]
    assert list(layout.region(box, rule="center")) == [1, 2]
    assert list(layout.region(box, rule=0.8)) == [1, 2]
    assert list(layout.region(box, rule=1)) == [2]


def test_padding_around_a_picture_sees_nothing():
    """A processor that pads to a square: the upper and lower cells lie outside."""
    layout = pictured((0, -5, 30, 25), 6, 3)
    everything = (0, 0, 30, 20)
    assert list(layout.region(everything)) == list(range(4, 16))
    assert list(layout.region(everything, rule="center")) == list(range(4, 16))
    full = np.ones((20, 30), dtype=bool)
    assert layout.region(full, rule="center") == layout.region(everything)


def test_a_small_picture_is_padded_by_the_real_processor():
    kind = tiny.image_processor(clip=True)
    kind.do_resize = False
    layout = pictured(LLAVA.seen(kind, (21, 13)), 4, 4, 21, 13)
    white = Image.new("RGB", (21, 13), "white")
    np.testing.assert_allclose(
        layout.grids[0].coverage((0, 0, 21, 13)), through(kind, white)[0], atol=1e-6
    )


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    "box",
    [(-1, 0, 5, 5), (0, 0, 31, 5), (0, 0, 5, 21), (5, 0, 5, 5), (9, 0, 5, 5),
     (0, 9, 5, 5), (0, 0, float("nan"), 5), (40, 40, 50, 50)],
)  # fmt: skip
def test_a_box_outside_the_picture_is_refused(box):
    for rule in ("any", "center", 0.5):
        with pytest.raises(RegionError, match="is not inside the picture of 30 x 20"):
            pictured().region(box, rule=rule)


def test_a_mask_that_does_not_fit_is_refused():
    layout = pictured()
    sideways = np.ones((30, 20), dtype=bool)
    for rule in ("any", "center", 0.5):
        with pytest.raises(RegionError, match=r"\(30, 20\) does not fit .* \(20, 30\)"):
            layout.region(sideways, rule=rule)
        with pytest.raises(RegionError, match="the mask is empty: no pixel is set"):
            layout.region(np.zeros((20, 30), dtype=bool), rule=rule)


def test_what_was_cropped_away_has_no_cell():
    _, layout = on_the_processor(True, 80, 40)
    with pytest.raises(
        RegionError, match=r"rectangle \(20.0, 0.0, 60.0, 40.0\) of the 80"
    ):
        layout.region((0, 0, 20, 40))
    assert len(layout.region((0, 0, 21, 40))) == 4


def test_a_rule_that_asks_too_much_is_refused():
    with pytest.raises(
        RegionError, match=r"no cell .* satisfies rule=0.9 .* rule=\"any\""
    ):
        pictured().region((0, 0, 5, 5), rule=0.9)


@pytest.mark.parametrize("rule", [0, -0.5, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(rule):
    with pytest.raises(LayoutError, match='is not understood: wanted "any", "center"'):
        pictured().region((0, 0, 5, 5), rule=rule)


def test_too_many_patches_name_the_cls_token():
    assert "16 image positions" in str(LayoutError.patch_count(16, 3, 5))
    assert "CLS" not in str(LayoutError.patch_count(16, 3, 6))
    assert 'select_strategy="default"' in str(LayoutError.patch_count(17, 4, 4))


def test_a_resize_that_is_not_understood_is_refused():
    kind = tiny.image_processor(clip=True)
    kind.size = {"longest_edge": 32}
    with pytest.raises(ValueError, match=r"resizes by .*longest_edge.* understood are"):
        LLAVA.seen(kind, (40, 30))


def test_a_grid_is_a_value():
    assert grid() == grid()
    assert hash(grid()) == hash(grid())
    assert replace(grid(), start=1) != grid()
