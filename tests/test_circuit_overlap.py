"""What two circuits share: counted by hand."""

import numpy as np
import pytest
from scipy.stats import hypergeom

import mechvlm as mv
from mechvlm import Circuit, Edge, Shape
from mechvlm.errors import CircuitError

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
    n = len(Circuit.whole(SHAPE, ["object"]))
    assert edges["p"] == pytest.approx(hypergeom(n, 4, 4).sf(1))
    assert row(found, "tokens")["jaccard"] == 1
    assert np.isnan(row(found, "tokens")["p"])
    assert row(found, "mlps")["jaccard"] == 0


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
        (lambda: mv.circuit_overlap(circuit(ONE), circuit(TWO), bands=0), "bands=0"),
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


def test_it_changes_neither_circuit():
    one, two = circuit(ONE), circuit(TWO)
    mv.circuit_overlap(one, two, groups={"name": "object"})
    assert one == circuit(ONE)
    assert Edge.parse(ONE[0]) in one.edges
    assert two == circuit(TWO)
