"""Results come back from disk as they were, and a crash leaves no torn file."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from mechvlm.axes import labelled, open_result, output_folder, save_result
from mechvlm.errors import OutputError, ResultError

ROOT = Path(__file__).parents[1]
EVERY_KIND = {
    "none": None,
    "yes": True,
    "number": 3,
    "share": 0.1,
    "text": "red, ä, 赤\n\t\"'",
    "empty": "",
    "looks like json": 'json:{"a": 1}',
    "just json:": "json:",
    "list": [1, [2, None, False], "three"],
    "dict": {"a": {"b": [1.5, {}]}, "c": None},
    "nan": float("nan"),
    "units": "seconds",
    "dtype": "torch.float32",
}


def table(**attrs):
    """A result with labels of every kind."""
    result = labelled(
        np.arange(6.0).reshape(2, 3),
        name="recovery",
        units="fraction",
        paper="arXiv:2404.15255",
        attrs=attrs,
        layer=[3, 12],
        position=range(7, 10),
    )
    return result.assign_coords(
        token=("position", ["<s>", "", "é </script>"]),
        chosen=("layer", [True, False]),
        raw=(("layer", "position"), np.ones((2, 3), np.float32)),
        group=(("layer", "position"), [["a", "b", "c"], ["dd", "", "a"]]),
        seed=17,
    )


def there_and_back(result, folder):
    """What was saved, opened again; saving must not change the result itself."""
    before = result.copy(deep=True)
    path = save_result(result, folder / "result.nc")
    xr.testing.assert_identical(result, before)
    back = open_result(path)
    assert type(back) is type(result)
    for name in result.coords:
        assert back[name].dtype.kind == result[name].dtype.kind, name
    return back


RESULTS = {
    "labelled": table(**EVERY_KIND),
    "unnamed": table().rename(None),
    "named unnamed": table().rename("unnamed"),
    "named like a coordinate": table().rename("layer"),
    "named with a slash": table().rename("image/text"),
    "bool": table() > 2,
    "half": table().astype(np.float16),
    "int": table().astype(np.int64),
    "text": xr.DataArray([["a", "bc"], ["", "d"]], dims=("row", "col")),
    "with holes": table().where(table() > 2),
    "infinite": table() / 0.0,
    "a scalar": xr.DataArray(3.5, name="metric"),
    "of no layer": table().isel(layer=slice(0, 0)),
    "dataset": xr.Dataset(
        {"one": table(**EVERY_KIND), "two": table().sum("layer")}, attrs=EVERY_KIND
    ),
    "empty dataset": xr.Dataset(attrs={"paper": "-"}),
}


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.filterwarnings("ignore:divide by zero|invalid value:RuntimeWarning")
def test_a_result_comes_back_as_it_was(name, tmp_path):
    back = there_and_back(RESULTS[name], tmp_path)
    xr.testing.assert_identical(back, RESULTS[name])
    attrs, wanted = json.dumps(back.attrs), json.dumps(RESULTS[name].attrs)
    assert attrs == wanted, "identical() takes True for 1, and this does not"


plain = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=9)
# HDF5 holds no NUL in a string, and no half of a surrogate pair.
words = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
values = st.recursive(
    plain | st.floats(allow_nan=False) | words,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    value=values.filter(lambda value: not (isinstance(value, str) and "\0" in value))
)
@settings(max_examples=40)
def test_any_attribute_comes_back_as_it_was(value, tmp_path_factory):
    result = xr.DataArray([1.0], dims="layer", attrs={"kept": value})
    back = there_and_back(result, tmp_path_factory.mktemp("attrs"))
    assert back.attrs == {"kept": value}
    assert type(back.attrs["kept"]) is type(value)


def test_numpy_numbers_become_pythons_own(tmp_path):
    attrs = {"clean": np.float32(0.5), "width": np.int64(9), "exact": np.bool_(True)}
    back = there_and_back(table(**attrs), tmp_path)
    kept = {name: back.attrs[name] for name in attrs}
    assert json.dumps(kept) == '{"clean": 0.5, "width": 9, "exact": true}'


def test_the_file_is_plain_netcdf(tmp_path):
    """Whoever has no mechvlm can read it."""
    path = save_result(table(), tmp_path / "result.nc")
    with xr.open_dataset(path) as found:
        (only,) = found.data_vars.values()
        np.testing.assert_array_equal(only, table())
        assert only.attrs["units"] == "fraction"
        assert set(found.coords) == set(table().coords)


# --- labels ---------------------------------------------------------------------------


def test_labels_are_what_was_said():
    result = labelled(
        [[1, 2]], name="m", units="nats", paper="p", cut=["a"], layer=[3, 4]
    )
    wanted = xr.DataArray(
        [[1, 2]],
        coords={"cut": ["a"], "layer": [3, 4]},
        dims=("cut", "layer"),
        name="m",
        attrs={"units": "nats", "long_name": "m", "paper": "p"},
    )
    xr.testing.assert_identical(result, wanted)


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(
        ResultError, match=r"shape \(2,\) do not fit dimensions {'layer': 3"
    ):
        labelled([1, 2], name="m", units="-", paper="-", layer=range(3))
    with pytest.raises(ResultError, match=r"shape \(1, 2\) do not fit"):
        labelled([[1, 2]], name="m", units="-", paper="-", layer=range(2))


# --- what netCDF cannot hold ----------------------------------------------------------

REFUSED = {
    "an array": (table(v=np.arange(3)), "'v' is a ndarray and cannot be saved"),
    "an object": (table(v=object()), "attribute 'v' is a object and cannot be"),
    "a key with a meaning": (table(scale_factor=2.0), "would not come back from"),
    "a filling": (table(_FillValue=1.0), "would not come back from netCDF as it is"),
    "None among strings": (
        table().assign_coords(token=("position", np.array(["a", None, "b"], object))),
        "None among the strings of a coordinate",
    ),
    "stacked labels": (table().stack(cell=["layer", "position"]), "cannot hold this"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_come_back_is_refused(name, tmp_path):
    result, message = REFUSED[name]
    save_result(table(), tmp_path / "result.nc")
    with pytest.raises(ResultError, match=message):
        save_result(result, tmp_path / "result.nc")
    assert only_file(tmp_path) == "result.nc"
    xr.testing.assert_identical(open_result(tmp_path / "result.nc"), table())


@pytest.mark.parametrize("name", ["result.h5", "result", "result.nc.gz", ".nc"])
def test_another_suffix_is_refused(name, tmp_path):
    with pytest.raises(ResultError, match=r"wanted a path ending in \.nc, got"):
        save_result(table(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# --- interruptions --------------------------------------------------------------------


def only_file(folder):
    (file,) = folder.iterdir()
    return file.name


class Interrupted(BaseException):
    """As a KeyboardInterrupt: no `except Exception` holds it."""


@pytest.mark.parametrize(
    "at", ["xarray.Dataset.to_netcdf", "os.fsync", "pathlib.Path.replace"]
)
@pytest.mark.parametrize("error", [Interrupted, OSError])
def test_an_interruption_leaves_the_old_file(at, error, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise error("no space left")

    save_result(table(run="old"), tmp_path / "result.nc")
    wanted = OutputError if error is OSError else Interrupted
    with monkeypatch.context() as patch:
        patch.setattr(at, interrupted)
        with pytest.raises(wanted, match="no space left"):
            save_result(table(run="new"), tmp_path / "result.nc")
    assert only_file(tmp_path) == "result.nc"
    assert open_result(tmp_path / "result.nc").attrs["run"] == "old"


KILLED = """
import sys, xarray as xr, numpy as np
from mechvlm.axes import save_result
print("ready", flush=True)
while True:
    new = xr.DataArray(np.random.rand(500, 500), attrs={"run": "new"})
    save_result(new, sys.argv[1])
"""


def test_a_kill_leaves_a_whole_file(tmp_path):
    path = save_result(
        xr.DataArray(np.ones((2, 2)), attrs={"run": "old"}), tmp_path / "r.nc"
    )
    for delay_s in (0.05, 0.113):
        command = [sys.executable, "-c", KILLED, str(path)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(delay_s)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        assert open_result(path).attrs["run"] in ("old", "new")


def test_an_unwritable_place_says_so(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*Does the folder exist"):
        save_result(table(), tmp_path / "nowhere" / "result.nc")
    (tmp_path / "result.nc").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        save_result(table(), tmp_path / "result.nc")
    assert only_file(tmp_path) == "result.nc"


@pytest.mark.parametrize("share", [0, 0.01, 0.2, 0.5, 0.9, 0.999])
def test_a_torn_file_is_refused(share, tmp_path):
    path = save_result(table(**EVERY_KIND), tmp_path / "result.nc")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(
        OutputError, match=r"cannot open .* writing or copying was interrup"
    ):
        open_result(path)


def test_what_is_no_result_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"cannot open .*missing\.nc as a result"):
        open_result(tmp_path / "missing.nc")
    (tmp_path / "text.nc").write_text("layer,value\n0,1\n")
    with pytest.raises(OutputError, match=r"cannot open .*text\.nc as a result"):
        open_result(tmp_path / "text.nc")


# --- folders --------------------------------------------------------------------------


def write(path, **files):
    with output_folder(path) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
        assert not path.exists() or "old" in {each.name for each in path.iterdir()}


def contents(folder):
    return {each.name for each in folder.iterdir()} - {"mechvlm.json"}


def test_a_folder_appears_complete(tmp_path):
    out = tmp_path / "deep" / "out"
    with output_folder(out) as folder:
        (folder / "a").write_text("1")
        (folder / "inner").mkdir()
        (folder / "inner" / "b").write_text("22")
        assert not out.exists()
    assert contents(out) == {"a", "inner"}
    assert (out / "inner" / "b").read_text() == "22"
    manifest = json.loads((out / "mechvlm.json").read_text())
    assert manifest == {"files": {"a": 1, "inner/b": 2}}
    assert only_file(tmp_path / "deep") == "out"
    assert out.stat().st_mode & 0o777 == 0o755


def test_a_finished_folder_is_replaced(tmp_path):
    write(tmp_path / "out", old="1")
    write(tmp_path / "out", new="2")
    assert contents(tmp_path / "out") == {"new"}
    assert only_file(tmp_path) == "out"


def test_an_empty_folder_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    with output_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("2")
    assert contents(tmp_path / "out") == {"new"}


@pytest.mark.parametrize("before", [True, False])
def test_an_exception_inside_leaves_nothing(before, tmp_path):
    if before:
        write(tmp_path / "out", old="1")
    with pytest.raises(Interrupted), output_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("2")
        raise Interrupted
    assert [each.name for each in tmp_path.iterdir()] == ["out"] * before
    assert not before or contents(tmp_path / "out") == {"old"}


def test_a_failing_rename_leaves_the_old_folder(tmp_path, monkeypatch):
    write(tmp_path / "out", old="1")
    rename = type(tmp_path).rename

    def failing(self, target):
        if (self / "new").exists():
            raise Interrupted
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", failing)
    with pytest.raises(Interrupted):
        write(tmp_path / "out", new="2")
    assert only_file(tmp_path) == "out"
    assert contents(tmp_path / "out") == {"old"}


def foreign(out):
    (out / "mechvlm.json").unlink()


def half_written(out):
    (out / "old").unlink()


def changed(out):
    (out / "old").write_text("longer than it was")


def added_to(out):
    (out / "my notes.txt").write_text("I keep these here")


def unreadable(out):
    (out / "mechvlm.json").write_text("{")


@pytest.mark.parametrize(
    "spoil", [foreign, half_written, changed, added_to, unreadable]
)
def test_what_is_no_finished_output_is_not_written_over(spoil, tmp_path):
    out = tmp_path / "out"
    write(out, old="1", other="2")
    spoil(out)
    kept = contents(out)
    with (
        pytest.raises(OutputError, match="exists and is not a finished output"),
        output_folder(out),
    ):
        raise AssertionError("never reached")
    assert contents(out) == kept
    assert only_file(tmp_path) == "out"


def test_a_file_is_not_written_over(tmp_path):
    (tmp_path / "out").write_text("mine")
    with (
        pytest.raises(
            OutputError, match=r"or holds something else\. Move or delete it"
        ),
        output_folder(tmp_path / "out"),
    ):
        raise AssertionError("never reached")
    assert (tmp_path / "out").read_text() == "mine"
