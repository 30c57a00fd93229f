"""Nodes, edges and circuits as values: what there is, what is refused, what is kept."""

import json

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unchecked import check_refusals

from mechvlm import Circuit, Edge, Node, Shape, Site
from mechvlm.errors import ArgumentError, CircuitError
from mechvlm.graph import LOGITS

MHA, GQA = Shape(3, 2, 2), Shape(3, 4, 2)
RELAY = ("[object] -> L0.v0", "L0.H0 -> L2.v0", "L2.H0 -> logits")


def relay():
    return Circuit.parse(RELAY, MHA, model="planted")


def labels(edges):
    return [str(edge) for edge in edges]


GROUPS = ["object", "a [b] c", "L0.H1", "x -> y", "x] -> [y", "two\nlines", "logits"]
LAYERS = st.integers(0, 2)
NODES = st.one_of(
    st.builds(
        Node, st.sampled_from(["head", "q", "k", "v"]), LAYERS, st.integers(0, 1)
    ),
    st.builds(lambda layer: Node("mlp", layer), LAYERS),
    st.builds(Node.tokens, st.sampled_from(GROUPS)),
    st.just(LOGITS),
)


@given(node=NODES)
def test_a_label_names_its_node(node):
    assert Node.parse(str(node)) == node


EVERY = list(GQA.edges([*map(Node.tokens, GROUPS), *GQA.heads, *GQA.mlps]))


@given(edge=st.sampled_from(EVERY))
def test_a_label_names_its_edge(edge):
    assert Edge.parse(str(edge)) == edge


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


@pytest.mark.parametrize("groups", [0, 1, 3])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 2, 2), (3, 4, 2), (4, 6, 1), (5, 2, 2)]
)
def test_edges_are_counted_without_making_them(shape, groups):
    model, names = Shape(*shape), [str(i) for i in range(groups)]
    assert model.n_edges(groups) == len(Circuit.whole(model, names))


@pytest.mark.parametrize("shape", [MHA, GQA])
def test_every_edge_is_every_pair_that_feeds(shape):
    """Oracle: all pairs of nodes, tried one by one."""
    layers, group = range(shape.n_layers), Node.tokens("x")
    givers = [group, *shape.heads, *shape.mlps]
    counts = {"q": shape.n_heads, "k": shape.n_key_value_heads}
    counts["v"] = counts["k"]
    takers = [Node(x, i, n) for x in counts for i in layers for n in range(counts[x])]
    takers += [*shape.mlps, LOGITS]
    wanted = {Edge(a, b) for a in givers for b in takers if a.feeds(b)}
    assert set(shape.edges(givers)) == wanted
    assert set(Circuit.whole(shape, {"x": 0}).edges) == wanted


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


def test_with_grouped_queries_what_leads_nowhere_is_left_out():
    """H2 asks and gives nothing, H1 and H0 are not in it: their inputs go or stay."""
    kept = ["[x] -> L1.v1", "L1.H3 -> logits"]
    stray = ["[x] -> L1.q2", "[x] -> L1.k0", "L1.H3 -> L2.v0"]
    made = Circuit.parse([*kept, *stray], GQA)
    assert labels(made.connected().edges) == kept


@given(edges=st.sets(st.sampled_from(EVERY), max_size=25))
def test_connected_is_what_lies_on_a_way(edges):
    """Oracle: networkx finds the ways from each token group to the logits."""
    made = Circuit(tuple(edges), GQA)
    graph = nx.DiGraph()
    for edge in edges:
        graph.add_edges_from((edge.sender, end) for end in GQA.served(edge.receiver))
    groups = [node for node in graph if node.kind == "tokens"]
    ways = [{node, *nx.descendants(graph, node)} for node in groups]
    ahead = set().union(*ways)
    back = {LOGITS, *nx.ancestors(graph, LOGITS)} if LOGITS in graph else set()
    used = ahead & back
    wanted = {
        edge
        for edge in edges
        if edge.sender in used and used & {*GQA.served(edge.receiver)}
    }
    assert set(made.connected().edges) == wanted
    assert made.connected().connected() == made.connected()


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


@pytest.mark.parametrize("served", [["L1.H2"], ["L1.H2", "L1.H3"]])
@pytest.mark.parametrize("kind", ["q2", "k1", "v1"])
def test_without_an_input_all_edges_to_it_go(served, kind):
    """Whether the heads that it serves are one or several."""
    into = [f"{sender} -> L1.{kind}" for sender in ("[x]", "L0.H0")]
    onward = ["[x] -> L1.q3", *(f"{head} -> logits" for head in served)]
    made = Circuit.parse([*into, *onward], GQA)
    assert made.without(Node.parse(f"L1.{kind}")) == Circuit.parse(onward, GQA)


def test_without_an_mlp_or_the_logits_all_their_edges_go():
    made = Circuit.parse(["[x] -> MLP 1", "MLP 1 -> logits", "[x] -> logits"], MHA)
    assert labels(made.without(Node("mlp", 1)).edges) == ["[x] -> logits"]
    assert labels(made.without(LOGITS).edges) == ["[x] -> MLP 1"]


def test_without_an_edge_the_others_stay():
    left = relay().without(Edge.parse(RELAY[1]))
    assert labels(left.edges) == [RELAY[0], RELAY[2]]


@pytest.mark.parametrize(
    "part",
    ["L1.H3", "L1.H0", "L2.H0", "L1.q2", "L1.v0", "MLP 0", "[y]", "[x] -> L1.k1"],
)
def test_what_is_not_in_a_circuit_cannot_be_taken_away(part):
    """H3 and layer 2's H0 are served by a value input, but neither asks nor gives."""
    made = Circuit.parse(["[x] -> L1.v1", "[x] -> L2.v0", "L1.H2 -> logits"], GQA)
    given = Edge.parse(part) if "->" in part else Node.parse(part)
    with pytest.raises(CircuitError, match=r"is not in the circuit, so that nothing"):
        made.without(given)


def test_without_every_giver_a_circuit_loses_something():
    for made in (relay(), Circuit.whole(GQA, ["x"]), Circuit(tuple(EVERY[::7]), GQA)):
        for node in made.nodes:
            assert node not in made.without(node).nodes


def test_effects_are_of_its_own_edges_in_their_order():
    told = {"[x] -> logits": 0.1} | dict.fromkeys(reversed(RELAY), -0.5)
    stray = Edge.parse("L0.H1 -> L1.q0")
    edges = (*relay().edges, stray)
    made = Circuit(edges, MHA, effects=told | {str(stray): 0.25})
    assert list(made.effects) == [RELAY[0], RELAY[1], str(stray), RELAY[2]]
    assert made.effects[str(stray)] == 0.25
    assert made.connected().effects == dict.fromkeys(RELAY, -0.5)
    assert list(made.without(Node("head", 0, 0)).effects) == [str(stray), RELAY[2]]


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


def test_what_it_was_made_of_may_change_afterwards():
    effects, about = {RELAY[0]: 0.75}, {"pairs": 3}
    circuit = Circuit(relay().edges, MHA, effects=effects, about=about)
    effects.clear()
    about.clear()
    assert (circuit.effects, circuit.about) == ({RELAY[0]: 0.75}, {"pairs": 3})


@given(edges=st.sets(st.sampled_from(EVERY)))
def test_every_circuit_comes_back_from_its_file(edges, tmp_path_factory):
    folder = tmp_path_factory.mktemp("circuits")
    circuit = Circuit(tuple(edges), GQA, effects={str(edge): 0.5 for edge in edges})
    again = Circuit.open(circuit.save(folder / "circuit.json"))
    assert again == circuit
    assert again.effects == circuit.effects


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path):
    path = relay().save(tmp_path / "relay.json")
    old = path.read_text()
    broken = Circuit(relay().edges, MHA, about={"prompt": object()})
    with pytest.raises(
        CircuitError, match=r"cannot write the circuit to .*relay\.json"
    ):
        broken.save(path)
    assert path.read_text() == old


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"format": "x", "version": 1}', '{"format": "mechvlm circuit"}'),
        '{"format": "mechvlm circuit", "version": 1, "layers": 1, "heads": 3,'
        ' "key_value_heads": 2, "edges": [], "model": "", "effects": {}, "about": {}}',
    ],
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
    assert graph.nodes["L2.v0"] == {"kind": "v", "layer": 2, "head": 0}
    assert graph.nodes["[object]"] == {"kind": "tokens", "group": "object"}
    assert graph.edges["L0.v0", "L0.H0"]["kind"] == "input"
    assert graph.edges["L0.H0", "L2.v0"]["kind"] == "edge"


def test_as_a_graph_it_can_be_written(tmp_path):
    """Neither what is missing nor what `about` holds is in the way."""
    about = {
        "name": "x",
        "incoming_graph_data": 1,
        "gains": [("L0.H0", 0.5)],
        "by": None,
    }
    made = Circuit(relay().edges, MHA, "planted", {RELAY[1]: 0.75}, about)
    nx.write_graphml(made.to_networkx(), tmp_path / "relay.graphml")
    graph = nx.read_graphml(tmp_path / "relay.graphml")
    assert graph.nodes["L2.v0"] == {"kind": "v", "layer": 2, "head": 0}
    assert graph.edges["L0.H0", "L2.v0"] == {"kind": "edge", "effect": 0.75}
    assert graph.edges["L2.H0", "logits"] == {"kind": "edge"}
    told = made.to_networkx().graph
    gains = json.dumps([["L0.H0", 0.5]])
    wanted = {"name": "x", "incoming_graph_data": 1, "gains": gains, "model": "planted"}
    assert told == wanted


def test_as_a_graph_an_input_leads_to_the_heads_of_the_circuit():
    made = Circuit.parse(["[x] -> L1.v1", "L1.H2 -> logits"], GQA).to_networkx()
    assert list(made.edges("L1.v1")) == [("L1.v1", "L1.H2")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Node("head", 1), "a node of kind 'head' with layer=1, head=None"),
        (lambda: Node("mlp", 1, 2), "an MLP a layer alone"),
        (lambda: Node.parse("L2.X0"), r"no node is called 'L2\.X0'; wanted L2\.H0"),
        (lambda: LOGITS.site, "the logits are no site"),
        (lambda: Edge.parse("L0.H0"), "'L0.H0' is no edge; wanted two nodes"),
        (lambda: Edge.parse("L1.H0 -> L1.q0"), "no edge goes from L1.H0 to L1.q0"),
        (lambda: Edge.parse("logits -> MLP 1"), "no edge goes from logits"),
        (lambda: Circuit.parse(["L3.H0 -> logits"], MHA), "L3.H0: the model has 3 lay"),
        (lambda: Circuit.parse(["[x] -> L0.v2"], GQA), "2 key-value heads each"),
        (lambda: Shape(2, 3, 2), "3 heads cannot share 2 key-value heads evenly"),
        (lambda: MHA.inputs(Node("mlp", 1)), "MLP 1 is no head"),
        (
            lambda: Circuit.among([Node("q", 1, 0)], MHA),
            "take for a head, and give not",
        ),
        (lambda: relay().of_kind("v"), "no node of a circuit is of kind 'v'"),
        (
            lambda: Circuit(relay().edges, MHA, effects={"[object] to L0": 1.0}),
            r"'\[object\] to L0' is no edge",
        ),
    ],
)
def test_what_no_model_has_is_refused(wrong, message):
    with pytest.raises(CircuitError, match=message):
        wrong()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Node("head", -1, 0), "layer of a head node is -1; wanted 0 or more"),
        (lambda: Node("v", 3, -2), "head of a v node is -2; wanted 0 or more"),
        (lambda: Shape(0, 2, 2), "n_layers is 0; wanted 1 or more"),
        (lambda: Shape(2, 2, -1), "n_key_value_heads is -1; wanted 1 or more"),
        (lambda: MHA.n_edges(-1), "groups is -1; wanted 0 or more"),
    ],
)
def test_numbers_of_no_model_are_refused(wrong, message):
    with pytest.raises(ArgumentError, match=message):
        wrong()


def test_other_kinds_of_arguments_are_named():
    check_refusals("""
from mechvlm import Circuit, CircuitError, Edge, Node, Shape
shape = Shape(2, 2, 2)
circuit = Circuit.parse(["[x] -> L0.v0", "L0.H0 -> logits"], shape)
edges = circuit.edges
cases = [
    (lambda: circuit.without("L0.H0"), "part is 'L0.H0' (str); wanted Node or Edge"),
    (lambda: circuit.without(None), "part is None"),
    (lambda: Circuit.whole(shape, "image"), "groups is the one string 'image'"),
    (lambda: Circuit.whole(shape, [3]), "groups[0] is 3 (int)"),
    (lambda: Circuit.parse("[x] -> logits", shape), "labels is '[x] -> logits' (str)"),
    (lambda: Circuit.parse([edges[0]], shape), "labels[0] is Edge('[x] -> L0.v0')"),
    (lambda: Circuit(("[x] -> logits",), shape), "edges[0] is '[x] -> logits' (str)"),
    (lambda: Circuit(edges, (2, 2, 2)), "shape is (2, 2, 2) (tuple); wanted Shape"),
    (lambda: Circuit(edges, shape, None), "model is None"),
    (lambda: Circuit(edges, shape, effects={edges[0]: "x"}), "wanted names to Real"),
    (lambda: Circuit(edges, shape, about=[1]), "about is [1] (list)"),
    (lambda: Circuit.among(["[x]"], shape), "nodes[0] is '[x]' (str); wanted a list"),
    (lambda: Circuit.among("[x]", shape), "nodes is '[x]' (str); wanted a list"),
    (lambda: Circuit.among([], 2), "shape is 2 (int); wanted Shape"),
    (lambda: edges[0].sender in circuit, "edge is Node('[x]') (Node); wanted Edge or"),
    (lambda: circuit.of_kind("heads"), CircuitError, "is of kind 'heads'; wanted 'tok"),
    (lambda: Node("heads", 1, 0), CircuitError, "no node is of kind 'heads'"),
    (lambda: Node.parse(None), "label is None"),
    (lambda: Edge.parse(edges[0]), "label is Edge("),
    (lambda: Edge("[x]", "logits"), "an edge from '[x]' to 'logits': wanted two nodes"),
    (lambda: Node.tokens(3), "group of a node is 3; wanted a name"),
    (lambda: Node("head", 1.5, 0), "layer of a head node is 1.5 (float); wanted a who"),
    (lambda: Node("head", 1, True), "head of a head node is True (bool); wanted a who"),
    (lambda: Shape(2, "2", 2), "n_heads is '2' (str); wanted a whole number of 1 or m"),
    (lambda: shape.n_edges(None), "groups is None"),
]
import numpy as np
same = Node("head", np.int64(1), np.int64(0))
assert same == Node("head", 1, 0) and type(same.layer) is type(same.head) is int
told = Circuit(edges, shape, effects={edges[0]: np.float32(0.5)}).effects
assert told == {"[x] -> L0.v0": 0.5} and type(*told.values()) is float
""")
