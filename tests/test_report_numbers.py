"""Numbers on a page: every value comes back, and no spreadsheet runs a token."""

import base64
import csv
import gzip
import io
import re

import numpy as np
import pandas
import pytest
import xarray as xr
from test_viz import HOSTILE, patching

from mechvlm.graph import Circuit, Shape
from mechvlm.report import report
from mechvlm.report.tables import MOST_ROWS, tables_of

LINK = re.compile(
    r'<a class="mv-csv" download="([^"]*)" href="data:application/gzip;base64,([^"]*)"'
)


def tables_in(path):
    """Each table of a page by its file's name, as rows of a dict."""
    found = {}
    for name, data in LINK.findall(path.read_text("utf-8")):
        assert name.endswith(".csv.gz")
        text = gzip.decompress(base64.b64decode(data)).decode()
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        assert name not in found
        found[name.removesuffix(".csv.gz")] = rows
    return found


def odd_numbers(dtype):
    """Values that a careless format would round, of both signs, some missing."""
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(3, 4)) * 10.0 ** rng.integers(-30, 30, (3, 4))).astype(
        dtype
    )
    values[0, 0], values[1, 1] = np.nan, 1 / 3
    return xr.DataArray(
        values,
        {
            "layer": [2, 5, 31],
            "position": [0, 1, 2, 9],
            "token": ("position", ["=1+1", " -x", 'a"b,\nc', "\0'"]),
            "raw": (("layer", "position"), values * 2),
        },
        ("layer", "position"),
        name="recovery",
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_digit_comes_back(dtype, tmp_path):
    result = odd_numbers(dtype)
    page = report({"Odd": result}, tmp_path / "odd.html")
    (rows,) = tables_in(page).values()
    assert list(rows[0]) == ["layer", "position", "token", "raw", "recovery"]
    assert len(rows) == 12
    for name in ("recovery", "raw"):
        again = [np.dtype(dtype).type(row[name] or "nan") for row in rows]
        wanted = result.values if name == "recovery" else result[name].values
        np.testing.assert_array_equal(np.array(again), wanted.ravel())
    assert rows[0]["recovery"] == "", "a missing value is an empty cell"
    assert [row["layer"] for row in rows[::4]] == ["2", "5", "31"]
    assert [row["position"] for row in rows[:4]] == ["0", "1", "2", "9"]


def test_no_cell_is_a_formula_and_every_token_can_be_read_back(tmp_path):
    page = report(odd_numbers("float64"), tmp_path / "odd.html")
    (rows,) = tables_in(page).values()
    tokens = [row["token"] for row in rows[:4]]
    assert tokens == ["'=1+1", "' -x", 'a"b,\nc', "\N{SYMBOL FOR NULL}'"]
    bare = [token.removeprefix("'") for token in tokens[:3]]
    assert bare == ["=1+1", " -x", 'a"b,\nc']


@pytest.mark.parametrize(
    "start", ["=", "+", "-", "@", "\t=", "'", "\N{FULLWIDTH EQUALS SIGN}"]
)
def test_what_a_spreadsheet_would_run_is_quoted(start):
    token = f"{start}cmd"
    result = xr.DataArray([1.0], {"item": [token]}, "item", name=token)
    (table,) = tables_of(result, "x")
    head, row = csv.reader(io.StringIO(table.csv.decode(), newline=""))
    assert (head, row) == (["item", f"'{token}"], [f"'{token}", "1.0"])


@pytest.mark.parametrize("token", ["\r", "a\rb", "\n", "x\r\ny", '"', ","])
def test_a_token_that_breaks_lines_stays_in_its_cell(token):
    tokens = {"token": ("position", [token, "red"])}
    (table,) = tables_of(xr.DataArray([1.0, 2.0], tokens, "position"), "x")
    rows = list(csv.DictReader(io.StringIO(table.csv.decode(), newline="")))
    assert [row["token"] for row in rows] == [token, "red"]
    again = pandas.read_csv(io.BytesIO(table.csv))
    assert again["token"].tolist() == [token, "red"]
    assert again["value"].tolist() == [1.0, 2.0]


def test_a_negative_number_is_no_formula():
    (table,) = tables_of(xr.DataArray([-1.5, -np.inf], dims="layer"), "x")
    assert table.csv == b"layer,value\r\n0,-1.5\r\n1,-inf\r\n"


def test_hostile_tokens_come_back(tmp_path):
    result = patching()
    page = report(result, tmp_path / "heat.html")
    (rows,) = tables_in(page).values()
    n = result.sizes["position"]
    assert [row["token"] for row in rows[:n]] == result["token"].values.tolist()
    assert HOSTILE[0] in rows[0]["token"]


def test_a_dataset_has_a_table_for_each_set_of_dimensions(tmp_path):
    found = xr.Dataset(
        {
            "rate": ("source", [0.5, 1.0]),
            "rate_low": ("source", [0.25, 0.5]),
            "rate_high": ("source", [0.75, 1.0]),
            "right": (("item", "source"), [[True, False], [True, True]]),
            "right_clean": ("item", [True, True]),
            "n_runs": 7,
        },
        {"source": [0, 5], "item": ["a", "b"]},
        {"n": 2},
    )
    tables = tables_in(report({"Held": found}, tmp_path / "x.html"))
    assert set(tables) == {"held_source", "held_item_source", "held_item", "held"}
    assert tables["held_source"][1] == {
        "source": "5", "rate": "1.0", "rate_low": "0.5", "rate_high": "1.0"
    }  # fmt: skip
    assert [row["right"] for row in tables["held_item_source"]] == [
        "TRUE", "FALSE", "TRUE", "TRUE"
    ]  # fmt: skip
    assert tables["held"] == [{"n_runs": "7"}]


def test_dimensions_in_another_order_stay_with_their_values():
    one = xr.DataArray([[1.0, 2.0], [3.0, 4.0]], dims=("cut", "layer"))
    found = xr.Dataset({"a": one, "b": one.transpose("layer", "cut") * 10})
    (table,) = tables_of(found, "x")
    rows = [b"0,0,1.0,10.0", b"0,1,2.0,20.0", b"1,0,3.0,30.0", b"1,1,4.0,40.0"]
    assert table.csv.splitlines() == [b"cut,layer,a,b", *rows]


def test_a_circuit_lists_its_edges(tmp_path):
    labels = ["[object] -> L0.v0", "L0.H0 -> logits"]
    plain = Circuit.parse(labels, Shape(2, 2, 2))
    circuit = Circuit(plain.edges, plain.shape, "demo", {"L0.H0 -> logits": 0.125})
    rows = tables_in(report(circuit, tmp_path / "x.html"))["circuit"]
    assert rows == [
        {"sender": "[object]", "receiver": "L0.v0", "effect": ""},
        {"sender": "L0.H0", "receiver": "logits", "effect": "0.125"},
    ]


def test_what_is_too_long_for_a_page_is_offered_as_drawn(tmp_path):
    n = 200
    tokens = ["image"] * (n - 2) + ["what", "?"]
    groups = ["image"] * (n - 2) + ["query"] * 2
    coords = {
        f"{end}_{what}": (end, values)
        for end in ("target", "source")
        for what, values in (("token", tokens), ("group", groups))
    }
    pattern = np.full((1, 3, n, n), 1 / n)
    whole = xr.DataArray(
        pattern, coords | {"layer": [4]}, ("layer", "head", "target", "source"),
        name="attention",
    )  # fmt: skip
    assert whole.size > MOST_ROWS
    page = report(whole, tmp_path / "x.html")
    text = page.read_text("utf-8")
    dims = "layer_head_target_source".replace("_", " \N{MULTIPLICATION SIGN} ")
    assert f"{dims} (120,000 rows)" in text
    assert "mv.save_result(result" in text
    tables = tables_in(page)
    assert max(map(len, tables.values())) == 3 * 3 * 3, "the image is one position"


def test_the_same_result_gives_the_same_bytes():
    first, second = (tables_of(patching(), "x")[0].packed for _ in range(2))
    assert first == second
