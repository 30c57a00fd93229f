"""The picture of a circuit: its geometry by hand, its words, and what it refuses."""

import json
import math
import random
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from test_viz import HOSTILE

from mechvlm import viz
from mechvlm.errors import ArgumentError, CircuitError
from mechvlm.graph.circuit import Circuit
from mechvlm.graph.nodes import Edge, Node, Shape
from mechvlm.models.planted import EDGES
from mechvlm.viz.graphs.layered import Link, apart, crossings, ordered, placed
from mechvlm.viz.graphs.wiring import wired

RELAY = EDGES["relay"]
SMALL = Shape(3, 2, 2)


def relay(effects=None, about=None):
    edges = tuple(map(Edge.parse, RELAY))
    return Circuit(edges, SMALL, "relay", effects or {}, about or {})


def some(n, *, seed=0, shape=None, known=1.0):
    """A circuit of `n` edges drawn from a few layers, with effects of both signs."""
    draw = random.Random(seed)
    shape = shape or Shape(6, 4, 4)
    nodes = [*map(Node.tokens, ("object", "query")), *shape.heads, *shape.mlps]
    every = list(shape.edges(nodes))
    edges = sorted(draw.sample(every, n))
    effects = {
        str(edge): draw.choice((-1, 1, 1)) * draw.expovariate(20)
        for edge in edges[: round(known * n)]
    }
    return Circuit(tuple(edges), shape, "made", effects)


# -- geometry ------------------------------------------------------------------------


def test_a_relay_is_placed_as_by_hand():
    """Four rows of boxes 24, 32, 32 and 26 high, 48 apart, all in one column."""
    found = wired(relay())
    assert [(s.label, s.y, s.height) for s in found.spots] == [
        ("[object]", 16.0, 24.0),
        ("L0.H0", 92.0, 32.0),
        ("L2.H0", 172.0, 32.0),
        ("logits", 249.0, 26.0),
    ]
    assert found.height == 266.0
    assert {s.x for s in found.spots} == {38.0}, "half of the logits' 76 pixels"
    assert [(b.name, b.low, b.high) for b in found.bands] == [
        ("layer 0", 52.0, 132.0),
        ("layer 2", 132.0, 212.0),
    ]
    at = {way.label: way.points for way in found.ways}
    port = 38 + 0.3 * 54
    assert at == {
        RELAY[0]: ((38.0, 28.0), (pytest.approx(port, abs=0.06), 76.0)),
        RELAY[1]: ((38.0, 108.0), (pytest.approx(port, abs=0.06), 156.0)),
        RELAY[2]: ((38.0, 188.0), (38.0, 236.0)),
    }


def test_widths_are_to_scale():
    effects = dict(zip(RELAY, (0.5, -0.25, 0.1), strict=True))
    found = wired(relay(effects))
    assert [way.label for way in found.ways] == list(RELAY), "the strongest first"
    widths = [way.width for way in found.ways]
    assert widths[1] == pytest.approx(widths[0] * 0.25 / 0.5)
    assert widths[2] == pytest.approx(widths[0] * 0.1 / 0.5)


def test_unknown_effects_have_no_width():
    found = wired(relay())
    assert all(math.isnan(way.width) for way in found.ways)
    found = wired(relay({RELAY[1]: 0.1}))
    assert found.ways[0].label == RELAY[1]
    assert [math.isnan(way.width) for way in found.ways] == [False, True, True]


SHAPES = [Shape(6, 4, 4), Shape(6, 4, 2), Shape(2, 8, 1), Shape(12, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_nothing_lies_on_anything_else(shape, seed):
    found = wired(some(30, seed=seed, shape=shape))
    boxes = [
        (s.x - s.width / 2, s.x + s.width / 2, s.y - s.height / 2, s.y + s.height / 2)
        for s in found.spots
    ]
    assert min(box[0] for box in boxes) >= 0
    assert max(box[1] for box in boxes) <= found.width
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            beside = one[1] < other[0] or other[1] < one[0]
            assert beside or one[3] < other[2] or other[3] < one[2]
    for way in found.ways:
        for x, y in along(way.points):
            for left, right, bottom, top in boxes:
                inside = left < x < right and bottom + 0.1 < y < top - 0.1
                assert not inside, f"{way.label} cuts a box"


def along(points):
    """Points of the drawn curve: cubic, vertical at both ends of every piece."""
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        for t in (0.1, 0.3, 0.5, 0.7, 0.9):
            a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
            yield x0 * (a + b) + x1 * (c + d), y0 * a + middle * (b + c) + y1 * d


@pytest.mark.parametrize("seed", range(4))
def test_edges_run_upwards_from_sender_to_receiver(seed):
    found = wired(some(40, seed=seed))
    for way in found.ways:
        sender, receiver = found.spots[way.sender], found.spots[way.receiver]
        ups = [y for _, y in way.points]
        assert ups == sorted(ups)
        assert ups[0] == pytest.approx(sender.y + sender.height / 2, abs=0.06)
        assert ups[-1] == pytest.approx(receiver.y - receiver.height / 2, abs=0.06)
        assert abs(way.points[0][0] - sender.x) <= sender.width / 2
        assert abs(way.points[-1][0] - receiver.x) <= receiver.width / 2
        taker = Edge.parse(way.label).receiver
        assert way.port == (taker.kind if taker.kind in "qkv" else "")


@pytest.mark.parametrize("seed", range(2))
def test_every_edge_has_its_own_track(seed):
    """Where edges pass a row, from its bottom to its top, none lies on another."""
    given = some(40, seed=seed)
    strong = Circuit(given.edges, given.shape, "", dict.fromkeys(given.effects, 1.0))
    found = wired(strong)
    rows = {(s.y - s.height / 2, s.y + s.height / 2) for s in found.spots}
    tracks = {}
    for way in found.ways:
        for (x, low), (top_x, high) in zip(
            way.points[1:-1:2], way.points[2:-1:2], strict=True
        ):
            assert x == top_x
            assert any(
                abs(low - bottom) < 0.1 > abs(high - top) for bottom, top in rows
            )
            tracks.setdefault(low, []).append(x)
    assert sum(map(len, tracks.values())) > 40
    for places in tracks.values():
        gaps = [right - left for left, right in pairwise(sorted(places))]
        assert all(gap >= found.ways[0].width for gap in gaps)


def test_the_same_circuit_is_placed_the_same_way():
    one, other = some(40, seed=2), some(40, seed=2)
    assert wired(one) == wired(other)


def test_shared_inputs_are_boxes_joined_to_their_heads():
    shape = Shape(2, 4, 2)
    labels = "[object] -> L1.k0", "L0.H0 -> L1.q1", "L1.H0 -> logits"
    found = wired(Circuit.parse(labels, shape))
    names = [spot.label for spot in found.spots]
    joined = {(names[taker], names[head]) for taker, head in found.served}
    assert joined == {("L1.k0", "L1.H0"), ("L1.k0", "L1.H1")}
    way = next(way for way in found.ways if way.label == labels[0])
    assert names[way.receiver] == "L1.k0"


def test_fewer_ways_cross_than_before():
    draw = random.Random(0)
    rows = [list(range(8)), list(range(8, 16)), list(range(16, 24))]
    links = [
        Link(draw.choice(low), draw.choice(high))
        for low, high in (rows[:2], rows[1:])
        for _ in range(14)
    ]

    def crossed(order):
        total = 0
        for i, one in enumerate(links):
            for other in links[:i]:
                for low, high in pairwise(order):
                    if one.lower in low and other.lower in low:
                        a = low.index(one.lower) - low.index(other.lower)
                        b = high.index(one.upper) - high.index(other.upper)
                        total += a * b < 0
        return total

    found = ordered(rows, links)
    assert [sorted(row) for row in found] == rows
    assert crossed(found) < 0.6 * crossed(rows)
    between = [[x for x in links if x.lower in row] for row in rows[:2]]
    assert sum(crossings(rows[i], rows[i + 1], between[i]) for i in (0, 1)) == crossed(
        rows
    )


def test_places_hold_to_their_gaps_and_weights():
    assert apart([], [], []) == []
    assert apart([5.0, 0.0], [0.0, 2.0], [1.0, 1.0]) == [1.5, 3.5]
    assert apart([5.0, 0.0], [0.0, 2.0], [3.0, 1.0]) == [3.25, 5.25]
    widths = {0: 10.0, 1: 10.0, 2: 4.0}
    found = placed([[0, 1], [2]], [Link(1, 2)], widths=widths, gap=6.0)
    assert found == {0: 5.0, 1: 21.0, 2: 21.0}


# -- words ---------------------------------------------------------------------------


def spec_of(figure):
    return json.loads(json.dumps(figure.spec))


def test_the_data_are_effects_over_edges():
    data = viz.circuit(relay({RELAY[1]: 0.25})).data
    assert data.dims == ("edge",)
    assert list(data["edge"].values) == list(RELAY)
    assert data["sender"].values.tolist() == ["[object]", "L0.H0", "L2.H0"]
    assert data["receiver"].values.tolist() == ["L0.v0", "L2.v0", "logits"]
    assert [math.isnan(value) for value in data.values] == [True, False, True]
    assert data.sel(edge=RELAY[1]) == 0.25
    assert data.attrs["model"] == "relay"


def test_the_text_counts_and_names_the_strongest():
    effects = dict(zip(RELAY, (0.5, -0.75, 0.1), strict=True))
    about = {"metric": "log-odds", "ablation": "mean", "pairs": 7, "looked_in": "here"}
    figure = viz.circuit(relay(effects, about))
    assert "3 edges, 2 of 6 heads (33.3 %)" in figure.alt
    assert "0 MLPs, 1 token group" in figure.alt
    strongest = figure.alt.partition("Strongest edges")[2]
    assert strongest.index("L0.H0 -> L2.v0 \N{MINUS SIGN}0.75") < strongest.index("0.5")
    page = figure.html
    assert "relay · metric: log-odds" in page
    assert figure.spec["found_by"] == "ablation: mean · 7 pairs · looked in here"


def test_several_metrics_are_counted():
    about = {"metrics": ["red - blue", "red - green"], "pairs": 1}
    figure = viz.circuit(relay(about=about))
    assert figure.data.attrs["metric"] == "red - blue and 1 more"
    assert figure.spec["found_by"] == "1 pair"


def test_without_effects_the_picture_says_so():
    figure = viz.circuit(relay())
    assert "What single edges do is not known." in figure.alt
    assert spec_of(figure)["known"] == 0
    assert {edge["effect"] for edge in spec_of(figure)["edges"]} == {None}
    assert "all are equally thin" in words_of(figure)


def words_of(figure):
    """What the still writes, read from its drawing."""
    return " ".join(
        text.get_text() for axes in figure.draw().axes for text in axes.texts
    )


@pytest.mark.parametrize(("n", "at_first"), [(80, 80), (81, 60), (120, 60)])
def test_a_large_circuit_shows_its_strongest_and_says_so(n, at_first):
    found = some(n, shape=Shape(8, 4, 4))
    figure = viz.circuit(found)
    spec = spec_of(figure)
    assert spec["shown"] == at_first
    assert spec["total"] == len(spec["edges"]) == n
    sizes = [abs(edge["effect"]) for edge in spec["edges"]]
    assert sizes == sorted(sizes, reverse=True)
    if n > at_first:
        least = sorted(map(abs, found.effects.values()))[-at_first]
        assert f"60 of {n} edges shown, the strongest (from {least:.3g})" in words_of(
            figure
        )


def test_a_page_carries_the_strongest_and_states_the_rest():
    found = some(90, shape=Shape(8, 4, 4))
    figure = viz.circuit(found, most=20)
    spec = spec_of(figure)
    assert (len(spec["edges"]), spec["total"], spec["shown"]) == (20, 90, 20)
    assert "20 of 90 edges shown" in words_of(figure)
    assert figure.data.sizes["edge"] == 90
    strongest = sorted(found.effects.values(), key=abs)[-20:]
    assert {edge["effect"] for edge in spec["edges"]} == {
        float(f"{effect:.4g}") for effect in strongest
    }


def test_the_spec_holds_widths_in_the_ratio_of_effects():
    edges = spec_of(viz.circuit(some(50)))["edges"]
    first = edges[0]
    for edge in edges:
        ratio = abs(edge["effect"] / first["effect"])
        assert edge["width"] == pytest.approx(
            first["width"] * ratio, rel=0.01, abs=1e-3
        )


def test_hostile_names_are_words():
    edges = [Edge(Node.tokens(name), Node("v", 0, 0)) for name in HOSTILE]
    edges.append(Edge(Node("head", 0, 0), Node("logits")))
    figure = viz.circuit(Circuit(tuple(edges), SMALL, HOSTILE[1]))
    assert "<script>window" not in figure.html
    assert figure.html.count("</script>") == figure.html.count("<script")
    ET.fromstring(figure.svg)


def test_long_names_are_cut_in_the_box_and_whole_in_the_words():
    name = "w" * 60
    edges = Edge(Node.tokens(name), Node("v", 0, 0)), Edge.parse("L0.H0 -> logits")
    node = spec_of(viz.circuit(Circuit(edges, SMALL)))["nodes"][0]
    assert len(node["name"]) < 25
    assert node["full"] == f"[{name}]"


# -- refusals ------------------------------------------------------------------------


def test_an_empty_circuit_is_refused():
    with pytest.raises(CircuitError, match="has no edge, so there is nothing to draw"):
        viz.circuit(Circuit((), SMALL))


def test_unmeasured_edges_are_not_chosen_among():
    unknown = some(30, known=0.3)
    with pytest.raises(
        CircuitError, match=r"30 edges, and effects of 9 of them.*most=30"
    ):
        viz.circuit(unknown, most=20)
    assert len(spec_of(viz.circuit(unknown, most=30))["edges"]) == 30
    assert len(spec_of(viz.circuit(unknown, most=9))["edges"]) == 9


def test_most_is_a_number_of_edges():
    with pytest.raises(ArgumentError, match="most is 0; wanted 1 or more"):
        viz.circuit(relay(), most=0)
