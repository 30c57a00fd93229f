"""Nodes, edges and circuits as values: what there is, what is refused, what is kept."""

import json

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechvlm import Circuit, Edge, Node, Shape, Site
from mechvlm.errors import CircuitError
from mechvlm.graph import LOGITS

MHA, GQA = Shape(3, 2, 2), Shape(3, 4, 2)
RELAY = ("[object] -> L0.v0", "L0.H0 -> L2.v0", "L2.H0 -> logits")


def relay():
    return Circuit.parse(RELAY, MHA, model="planted")


def labels(edges):
    return [str(edge) for edge in edges]


LAYERS = st.integers(0, 2)
NODES = st.one_of(
    st.builds(
        Node, st.sampled_from(["head", "q", "k", "v"]), LAYERS, st.integers(0, 1)
    ),
    st.builds(lambda layer: Node("mlp", layer), LAYERS),
    st.builds(Node.tokens, st.sampled_from(["object", "a [b] c", "L0.H1", "x -> y"])),
    st.just(LOGITS),
)


@given(node=NODES)
def test_a_label_names_its_node(node):
    assert Node.parse(str(node)) == node


@given(sender=NODES, receiver=NODES)
def test_time_runs_one_way(sender, receiver):
    """Oracle: the order of computing, written as numbers here."""
    when = {"tokens": 0, "q": 1, "k": 1, "v": 1, "head": 2, "mlp": 3}

    def time(node, reading):
        if node.kind == "logits":
            return 99
        layer = 0 if node.kind == "tokens" else 10 * (1 + node.layer)
        return layer + when[node.kind] - (0.5 if reading else 0)

    gives = sender.kind in ("tokens", "head", "mlp")
    takes = receiver.kind in ("q", "k", "v", "mlp", "logits")
    wanted = gives and takes and time(sender, False) < time(receiver, True)
    assert sender.feeds(receiver) == wanted


def test_every_edge_of_a_model_is_there_once():
    """Oracle: counted by hand for 2 layers of 2 heads and one token group."""
    edges = list(Shape(2, 2, 2).edges(Circuit.whole(Shape(2, 2, 2), ["x"]).nodes))
    # x: 6 inputs and an MLP in each layer, and the logits. Heads of layer 0: the MLPs,
    # 6 inputs of layer 1, the logits. MLP 0: 6 inputs, MLP 1, the logits. Heads of
    # layer 1: MLP 1 and the logits; MLP 1: the logits.
    assert len(edges) == len(set(edges)) == 15 + 2 * 9 + 8 + 2 * 2 + 1


def test_a_key_value_head_serves_its_heads():
    assert [str(n) for n in GQA.served(Node("v", 1, 1))] == ["L1.H2", "L1.H3"]
    assert [str(n) for n in GQA.inputs(Node("head", 1, 2))] == [
        "L1.q2",
        "L1.k1",
        "L1.v1",
    ]
    assert [str(n) for n in MHA.served(Node("v", 1, 1))] == ["L1.H1"]


def test_nodes_are_sites():
    found = [Node.parse(x).site for x in ("L1.H0", "L1.k1", "MLP 2", "[object]")]
    layer = Site("z", 1, 0), Site("k", 1, 1), Site("mlp_out", 2), Site("embed")
    assert tuple(found) == layer


def test_a_circuit_prints_sorts_and_hashes():
    circuit = relay()
    shuffled = Circuit.parse((*RELAY[::-1], RELAY[0]), MHA, model="planted")
    assert circuit == shuffled
    assert labels(circuit.edges) == [RELAY[0], RELAY[1], RELAY[2]]
    assert [str(n) for n in circuit.nodes] == ["[object]", "L0.H0", "L2.H0", "logits"]
    assert circuit.share_of_heads == 2 / 6
    assert RELAY[1] in circuit
    assert "L0.H1 -> L2.v0" not in circuit


def test_grouped_inputs_bring_in_no_head():
    """A value input serves two heads; the one that gives on is in the circuit."""
    made = Circuit.parse(["[x] -> L1.v1", "L1.H3 -> logits"], GQA)
    assert [str(n) for n in made.nodes] == ["[x]", "L1.H3", "logits"]
    assert len(made.connected()) == 2


def test_what_leads_nowhere_is_left_out():
    stray = ("L0.H1 -> L1.q0", "[object] -> L1.v1", "MLP 1 -> logits")
    made = Circuit.parse((*RELAY, *stray), MHA)
    assert made.connected() == Circuit.parse(RELAY, MHA)
    assert len(Circuit.parse(stray, MHA).connected()) == 0
    assert relay().connected() == relay()


@pytest.mark.parametrize("part", ["L0.H0", "[object]"])
def test_without_a_node_all_its_edges_go(part):
    left = relay().without(Node.parse(part))
    gone = {"L0.H0": RELAY[2:], "[object]": RELAY[1:]}
    assert labels(left.edges) == list(gone[part])


def test_without_one_of_two_heads_their_common_input_stays():
    both = ["[x] -> L1.v1", "L1.H2 -> logits", "L1.H3 -> logits"]
    left = Circuit.parse(both, GQA).without(Node.parse("L1.H2"))
    assert labels(left.edges) == ["[x] -> L1.v1", "L1.H3 -> logits"]
    none = left.without(Node.parse("L1.H3"))
    assert labels(none.edges) == []


def test_without_an_edge_the_others_stay():
    left = relay().without(Edge.parse(RELAY[1]))
    assert labels(left.edges) == [RELAY[0], RELAY[2]]


def test_a_circuit_comes_back_from_its_file(tmp_path):
    about = {"metric": "logit difference", "pairs": 3}
    effects = {RELAY[0]: 0.75}
    circuit = Circuit(relay().edges, MHA, "planted", effects, about)
    path = circuit.save(tmp_path / "relay.json")
    again = Circuit.open(path)
    assert again == circuit
    assert (again.effects, again.about) == (effects, about)
    assert json.loads(path.read_text())["edges"] == list(RELAY)
    assert [file.name for file in tmp_path.iterdir()] == ["relay.json"]


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path):
    path = relay().save(tmp_path / "relay.json")
    old = path.read_text()
    broken = Circuit(relay().edges, MHA, about={"prompt": object()})
    with pytest.raises(CircuitError, match=r"cannot write the circuit to .*relay\.json"):
        broken.save(path)
    assert path.read_text() == old


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "x", "version": 1}', '{"format": "mechvlm circuit"}']
)
def test_other_files_are_no_circuits(tmp_path, text):
    path = tmp_path / "circuit.json"
    path.write_text(text)
    with pytest.raises(CircuitError, match="circuit"):
        Circuit.open(path)


def test_a_missing_file_is_said_so(tmp_path):
    with pytest.raises(CircuitError, match=r"cannot read a circuit from .*no\.json"):
        Circuit.open(tmp_path / "no.json")


def test_as_a_graph_it_leads_from_tokens_to_logits():
    graph = relay().to_networkx()
    way = nx.shortest_path(graph, "[object]", "logits")
    assert way == ["[object]", "L0.v0", "L0.H0", "L2.v0", "L2.H0", "logits"]
    assert graph.nodes["L2.v0"] == {"kind": "v", "layer": 2, "head": 0, "group": ""}
    assert graph.edges["L0.v0", "L0.H0"]["kind"] == "input"
    assert graph.edges["L0.H0", "L2.v0"]["kind"] == "edge"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Node("head", 1), "a node of kind 'head' with layer=1, head=None"),
        (lambda: Node("mlp", 1, 2), "an MLP a layer alone"),
        (lambda: Node("head", -1, 0), "layers and heads count from 0"),
        (lambda: Node.parse("L2.X0"), r"no node is called 'L2\.X0'; wanted L2\.H0"),
        (lambda: LOGITS.site, "the logits are no site"),
        (lambda: Edge.parse("L0.H0"), "'L0.H0' is no edge; wanted two nodes"),
        (lambda: Edge.parse("L1.H0 -> L1.q0"), "no edge goes from L1.H0 to L1.q0"),
        (lambda: Edge.parse("logits -> MLP 1"), "no edge goes from logits"),
        (lambda: Circuit.parse(["L3.H0 -> logits"], MHA), "L3.H0: the model has 3 lay"),
        (lambda: Circuit.parse(["[x] -> L0.v2"], GQA), "2 key-value heads each"),
    ],
)
def test_what_no_model_has_is_refused(wrong, message):
    with pytest.raises(CircuitError, match=message):
        wrong()
