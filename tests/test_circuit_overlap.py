"""What two circuits share: counted by hand."""

import numpy as np
import pytest
from unchecked import check_refusals

import mechvlm as mv
from mechvlm import Circuit, Edge, Node, Shape
from mechvlm.errors import ArgumentError, CircuitError

SHAPE = Shape(4, 2, 2)
ONE = ("[name] -> L0.v0", "L0.H0 -> MLP 1", "MLP 1 -> L3.q1", "L3.H1 -> logits")
TWO = ("[object] -> L0.v0", "L0.H0 -> MLP 2", "L2.H0 -> MLP 2", "L3.H1 -> logits")


def circuit(labels, shape=SHAPE):
    return Circuit.parse(labels, shape, model=str(shape.n_layers))


def row(found, part):
    names = ("first", "second", "shared", "jaccard", "chance", "p", "alike")
    return {name: float(found[name].sel(part=part)) for name in names}


def test_it_counts_what_is_shared():
    found = mv.circuit_overlap(
        circuit(ONE), circuit(TWO), groups={"name": "object"}, bands=4
    )
    heads = row(found, "heads")
    # L0.H0, L3.H1 of the first; L0.H0, L2.H0, L3.H1 of the second; 8 in the model.
    assert (heads["first"], heads["second"], heads["shared"]) == (2, 3, 2)
    assert heads["jaccard"] == pytest.approx(2 / 3)
    assert heads["chance"] == pytest.approx(2 * 3 / 8)
    assert heads["p"] == pytest.approx(3 / 28)  # 3 of the 28 pairs are within the three
    edges = row(found, "edges")
    assert (edges["first"], edges["second"], edges["shared"]) == (4, 4, 2)
    assert edges["jaccard"] == pytest.approx(2 / 6)
    # [object], L0.H0, MLP 1 and L3.H1 give 8 + 5 + 4 + 1 = 18 edges to one another and
    # the logits, the second's nodes 11 + 8 + 5 + 4 + 1 = 29; both have 7 + 4 + 1 = 12.
    assert edges["chance"] == pytest.approx(4 * 4 * 12 / (18 * 29))
    assert np.isnan(edges["p"])
    assert row(found, "tokens")["jaccard"] == 1
    assert np.isnan(row(found, "tokens")["p"])
    assert row(found, "mlps")["jaccard"] == 0


def among(heads, shape=SHAPE, groups=("x",)):
    nodes = [*map(Node.tokens, groups), *shape.mlps, *map(Node.parse, heads)]
    return Circuit.among(nodes, shape)


def test_edges_that_other_nodes_cannot_have_are_not_expected_to_be_shared():
    """Two circuits of every edge among their nodes can share no more and no less."""
    grouped = Shape(4, 4, 2)
    one = among(["L0.H0", "L1.H2"], grouped)
    for heads in (["L2.H1", "L3.H0"], ["L1.H3"], ["L1.H2", "L0.H0"]):
        edges = row(mv.circuit_overlap(one, among(heads, grouped)), "edges")
        assert edges["chance"] == pytest.approx(edges["shared"])
        assert edges["shared"] == len(set(one.edges) & set(among(heads, grouped).edges))


def test_an_edge_to_an_input_that_no_head_takes_by_is_possible_too():
    made = circuit(["[x] -> L1.v0", "[x] -> logits"], Shape(4, 4, 2))
    assert row(mv.circuit_overlap(made, made), "edges")["chance"] == 2


def test_chance_is_what_random_draws_share():
    """Oracle: 2000 draws of edges among each circuit's nodes, counted."""
    rng = np.random.default_rng(0)
    areas = among(["L0.H0", "L1.H1"]).edges, among(["L0.H0", "L2.H1"]).edges

    def drawn(area, n):
        return [area[i] for i in rng.choice(len(area), n, replace=False)]

    ours = Circuit((*areas[0][:20], *areas[0][-30:]), SHAPE)
    theirs = Circuit(areas[1][::2], SHAPE)
    for part, area in zip((ours, theirs), areas, strict=True):
        assert Circuit.among(part.nodes, SHAPE).edges == area
    shared = [
        len({*drawn(areas[0], len(ours))} & {*drawn(areas[1], len(theirs))})
        for _ in range(2000)
    ]
    error = np.std(shared) / len(shared) ** 0.5
    found = row(mv.circuit_overlap(ours, theirs), "edges")
    assert abs(found["chance"] - np.mean(shared)) < 4 * error


def test_nothing_as_large_as_the_model_is_built(monkeypatch):
    """The nodes of two small circuits say all that is asked of their model."""
    big = Shape(64, 64, 64)
    small = circuit(ONE, big), circuit(TWO, big)
    made, check = [], Shape.edges

    def edges(shape, nodes):
        made.append(shape)
        return check(shape, nodes)

    monkeypatch.setattr(Shape, "edges", edges)
    found = row(mv.circuit_overlap(*small, groups={"name": "object"}), "edges")
    assert found["chance"] == pytest.approx(4 * 4 * 12 / (18 * 29))
    assert made == []


def test_it_counts_by_depth():
    found = mv.circuit_overlap(
        circuit(ONE), circuit(TWO), groups={"name": "object"}, bands=2
    )
    heads = found.sel(part="heads")
    assert heads["first_by_depth"].values.tolist() == [1, 1]
    assert heads["second_by_depth"].values.tolist() == [1, 2]
    assert heads["shared_by_depth"].values.tolist() == [1, 1]
    # Half of the first lies in each band, one and two thirds of the second.
    assert float(heads["alike"]) == pytest.approx(1 - (1 / 6 + 1 / 6) / 2)
    # v0 of layer 0, MLP 1 | q1 of layer 3, logits; v0 of layer 0 | MLP 2 twice, logits.
    edges = found.sel(part="edges")
    assert edges["first_by_depth"].values.tolist() == [2, 2]
    assert edges["second_by_depth"].values.tolist() == [1, 3]
    assert np.isnan(float(found["alike"].sel(part="tokens")))


def test_a_circuit_is_wholly_in_itself():
    found = mv.circuit_overlap(circuit(ONE), circuit(ONE))
    assert (found["jaccard"] == 1).all()
    known = found.sel(part=["heads", "mlps", "edges"])
    assert (known["alike"] == 1).all()
    assert (found["shared_by_depth"] == found["first_by_depth"]).all()


def test_without_a_name_for_the_group_its_edges_are_others():
    found = mv.circuit_overlap(circuit(ONE), circuit(TWO))
    assert row(found, "tokens")["shared"] == 0
    assert row(found, "edges")["shared"] == 1


def test_models_of_other_shapes_are_compared_by_depth_alone():
    deep = ("[object] -> L0.v0", "L0.H0 -> MLP 2", "L7.H5 -> logits")
    found = mv.circuit_overlap(circuit(ONE), circuit(deep, Shape(8, 6, 6)), bands=2)
    assert np.isnan(found["shared"]).all()
    assert np.isnan(found["p"]).all()
    assert np.isnan(found["shared_by_depth"]).all()
    assert float(found["alike"].sel(part="heads")) == 1
    assert found.attrs["same_shape"] == 0


def test_it_comes_back_from_disk(tmp_path):
    found = mv.circuit_overlap(circuit(ONE), circuit(TWO))
    path = mv.save_result(found, tmp_path / "overlap.nc")
    assert mv.open_result(path).identical(found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mv.circuit_overlap(circuit(ONE), Circuit((), SHAPE)),
            "the second circ",
        ),
        (
            lambda: mv.circuit_overlap(
                circuit([*ONE, "[object] -> MLP 1"]),
                circuit(TWO),
                groups={"name": "object"},
            ),
            r"groups makes one token group of \[name\], \[object\] of the first",
        ),
        (
            lambda: mv.circuit_overlap(
                circuit(ONE), circuit(TWO), groups={"name": "ball"}
            ),
            r"groups names \['ball'\] of the second circuit, whose token groups are",
        ),
        (
            lambda: mv.circuit_overlap(
                circuit(ONE), circuit(TWO), groups={"ball": "object"}
            ),
            r"groups names \['ball'\] of the first circuit, whose token groups are",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(CircuitError, match=message):
        call()


def test_groups_can_change_places():
    two = ["[a] -> L0.v0", "[b] -> L0.k0", "L0.H0 -> logits"]
    turned = ["[b] -> L0.v0", "[a] -> L0.k0", "L0.H0 -> logits"]
    found = mv.circuit_overlap(
        circuit(two), circuit(turned), groups={"a": "b", "b": "a"}
    )
    assert row(found, "edges")["jaccard"] == 1


def test_bands_are_one_or_more():
    with pytest.raises(ArgumentError, match="bands is 0; wanted 1 or more"):
        mv.circuit_overlap(circuit(ONE), circuit(TWO), bands=0)


def test_other_kinds_of_arguments_are_named():
    check_refusals("""
import mechvlm as mv
one = mv.Circuit.parse(["[x] -> L0.v0", "L0.H0 -> logits"], mv.Shape(2, 2, 2))
cases = [
    (lambda: mv.circuit_overlap(one, "[x]"), "second is '[x]' (str); wanted Circuit"),
    (lambda: mv.circuit_overlap(one, one, bands="4"), "bands is '4' (str); wanted a"),
    (lambda: mv.circuit_overlap(one, one, groups="x"), "groups is 'x' (str); wanted"),
    (lambda: mv.circuit_overlap(one, one, groups={"x": 1}), "groups['x'] is 1 (int)"),
]
""")


def test_it_changes_neither_circuit():
    one, two = circuit(ONE), circuit(TWO)
    mv.circuit_overlap(one, two, groups={"name": "object"})
    assert one == circuit(ONE)
    assert Edge.parse(ONE[0]) in one.edges
    assert two == circuit(TWO)
