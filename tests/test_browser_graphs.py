"""Circuits and flow graphs in a real browser: what is lit, chosen, read and counted."""

import pytest
from pages import MATRIX, fits, needs_browser
from test_viz import HOSTILE
from test_viz_circuit import relay, some
from test_viz_flow import PLAIN, flows

from mechvlm import viz
from mechvlm.graph.circuit import Circuit
from mechvlm.graph.nodes import Edge, Node, Shape

pytestmark = needs_browser

EFFECTS = {"[object] -> L0.v0": 0.5, "L0.H0 -> L2.v0": -0.25, "L2.H0 -> logits": 0.1}


def hostile():
    """Every hostile name as a token group, in a circuit that shares its inputs."""
    edges = [Edge(Node.tokens(name), Node("k", 0, 0)) for name in (*HOSTILE, "w" * 60)]
    edges.append(Edge(Node("head", 0, 1), Node("logits")))
    return Circuit(tuple(edges), Shape(1, 2, 1), HOSTILE[1])


CUTS = {(HOSTILE[1], HOSTILE[3], HOSTILE[0]): (-50.0, "kept")}
FIGURES = {
    "relay": lambda: viz.circuit(relay(EFFECTS)),
    "large": lambda: viz.circuit(some(100, shape=Shape(8, 4, 4))),
    "unknown": lambda: viz.circuit(relay()),
    "hostile": lambda: viz.circuit(hostile()),
    "flow": lambda: viz.flow(flows(PLAIN)),
    "hostile flow": lambda: viz.flow(
        flows(CUTS, groups=HOSTILE, bands=HOSTILE[:2], model=HOSTILE[1])
    ),
    "no edge": lambda: viz.flow(flows({("object", "last", "late"): (0.2, "other")})),
}


@MATRIX
@pytest.mark.parametrize("kind", FIGURES)
def test_it_fits(visit, kind, theme, width):
    fits(visit, FIGURES[kind]().html, theme, width)


def lit(page, kind):
    """Numbers of the shown ways of a kind that are not faded."""
    return page.evaluate(
        """kind => [...document.querySelectorAll(`g[data-${kind}]`)]
          .filter(g => g.style.display !== 'none' && !g.classList.contains('mv-out'))
          .map(g => Number(g.dataset[kind])).sort((a, b) => a - b)""",
        kind,
    )


def drawn(page):
    return page.evaluate(
        """[...document.querySelectorAll('g[data-edge]')]
          .filter(g => getComputedStyle(g).display !== 'none').length"""
    )


def test_pointing_at_a_node_lights_exactly_its_edges(visit):
    found = some(60, seed=3)
    figure = viz.circuit(found)
    made = visit(figure.html)
    edges, nodes = figure.spec["edges"], figure.spec["nodes"]
    assert len(lit(made.page, "edge")) == 60
    busy = max(
        range(len(nodes)), key=lambda i: sum(i in (e["from"], e["to"]) for e in edges)
    )
    made.page.locator(f'g[data-node="{busy}"] rect').hover(force=True)
    own = [i for i, e in enumerate(edges) if busy in (e["from"], e["to"])]
    assert 2 < len(own) < 60
    assert lit(made.page, "edge") == own
    ends = {end for i in own for end in (edges[i]["from"], edges[i]["to"])}
    assert lit(made.page, "node") == sorted(ends)
    assert made.parts()[0] == nodes[busy]["full"]
    made.page.mouse.move(2, 2)
    assert len(lit(made.page, "edge")) == 60


def test_the_read_out_lists_what_goes_in_and_out(visit):
    made = visit(viz.circuit(relay(EFFECTS)).html)
    made.page.locator('g[data-node="1"] rect').hover(force=True)
    assert made.parts() == ["L0.H0", "in: [object] by v 0.5", "out: L2.v0 -0.25"]


def test_a_head_takes_by_the_inputs_that_it_shares(visit):
    labels = "[object] -> L1.k0", "L0.H0 -> L1.q1", "L1.H0 -> logits", "L1.H1 -> logits"
    figure = viz.circuit(Circuit.parse(labels, Shape(2, 4, 2)))
    made = visit(figure.html)
    names = [node["full"] for node in figure.spec["nodes"]]
    made.page.locator(f'g[data-node="{names.index("L1.H1")}"] rect').hover(force=True)
    said = [labels.index(figure.data["edge"].values[i]) for i in range(4)]
    assert said == [0, 1, 2, 3]
    assert made.read_out().count("[object]") == 1
    assert "L0.H0 by q" in made.read_out()
    assert len(lit(made.page, "edge")) == 3


def test_pointing_at_an_edge_reads_it(visit):
    made = visit(viz.circuit(relay(EFFECTS)).html)
    made.page.locator('g[data-edge="1"] path').last.hover(force=True)
    assert lit(made.page, "edge") == [1]
    assert made.parts()[:2] == ["L0.H0 → L2.v0", "-0.25"]


def test_lines_are_as_thick_as_the_spec_says_and_coloured_by_sign(visit):
    figure = viz.circuit(relay(EFFECTS))
    page = visit(figure.html).page
    widths = page.evaluate(
        """[0, 1, 2].map(i => Number(document.querySelector(`g[data-edge="${i}"] path`)
          .getAttribute('stroke-width')))"""
    )
    assert widths == [edge["width"] for edge in figure.spec["edges"]]
    red, _, blue = page.evaluate(
        """[...document.querySelector('g[data-edge="1"] path').getAttribute('stroke')
          .matchAll(/\\d+/g)].map(Number)"""
    )
    assert red > blue, "an edge that holds the answer back is orange"


def test_the_slider_says_and_shows_how_many(visit):
    found = some(200, shape=Shape(8, 4, 4))
    made = visit(viz.circuit(found).html)
    count = made.page.locator(".mv-count")
    assert drawn(made.page) == 60
    assert count.inner_text().startswith("60 of 200 edges shown, the strongest")
    slider = made.page.locator("input[type=range]")
    slider.focus()
    for _ in range(3):
        made.page.keyboard.press("ArrowLeft")
    assert drawn(made.page) == 57
    assert count.inner_text().startswith("57 of 200 edges shown")
    slider.fill("200")
    assert drawn(made.page) == 200
    assert count.inner_text() == "all 200 edges shown"


def test_a_page_that_does_not_carry_all_says_so(visit):
    made = visit(viz.circuit(some(90, shape=Shape(8, 4, 4)), most=20).html)
    assert drawn(made.page) == 20
    said = made.page.locator(".mv-count").inner_text()
    assert said.startswith("20 of 90 edges shown")
    assert said.endswith("this page has no more")


def test_without_effects_there_is_no_slider_and_a_word(visit):
    made = visit(viz.circuit(relay()).html)
    assert made.page.locator("input[type=range]").count() == 0
    assert "all are equally thin" in made.page.locator(".mv-count").inner_text()


def test_arrow_keys_walk_the_nodes(visit):
    made = visit(viz.circuit(relay(EFFECTS)).html)
    made.page.locator(".mv-plot").focus()
    walked = []
    for key in ("ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowDown"):
        made.page.keyboard.press(key)
        walked.append(made.parts()[0])
    assert walked == ["[object]", "L0.H0", "L2.H0", "logits", "logits", "L2.H0"]
    assert lit(made.page, "edge") == [1, 2]
    made.page.keyboard.press("Escape")
    assert len(lit(made.page, "edge")) == 3


def test_touching_a_node_keeps_it_lit(visit):
    made = visit(viz.circuit(relay(EFFECTS)).html)
    made.page.locator('g[data-node="2"] rect').click(force=True)
    made.page.mouse.move(2, 2)
    assert lit(made.page, "edge") == [1, 2]
    made.page.locator("svg.mv-graph").click(position={"x": 3, "y": 3})
    assert len(lit(made.page, "edge")) == 3


# -- flow ----------------------------------------------------------------------------


def ribbon(figure, name):
    drawn = figure.spec["ribbons"]
    return next(i for i, each in enumerate(drawn) if each["name"].startswith(name))


def test_pointing_at_a_ribbon_reads_its_numbers(visit):
    figure = viz.flow(flows(PLAIN))
    made = visit(figure.html)
    i = ribbon(figure, "query → last")
    made.page.locator(f'g[data-ribbon="{i}"] path').last.hover(force=True)
    assert made.parts() == [
        "query → last, late (layers 3-5)",
        "-40 % (-42 to -37)",
        "8 prompts",
        "random cuts of its size -0.5 % (-0.75 to -0.25)",
        "beyond 95 % of them by -39",
        "an edge: costs more than random cuts",
    ]
    assert lit(made.page, "ribbon") == [i]


def test_a_ribbon_without_a_control_is_striped_and_explained(visit):
    figure = viz.flow(flows(PLAIN))
    made = visit(figure.html)
    i = ribbon(figure, "object → last")
    line = made.page.locator(f'g[data-ribbon="{i}"] path')
    assert line.first.get_attribute("stroke-dasharray")
    line.last.hover(force=True)
    assert made.parts()[-1] == "no random cuts of its size exist: it may be chance"
    assert "random cuts of its size -" not in made.read_out()
    others = made.page.locator("g[data-ribbon] path[stroke-dasharray]")
    assert others.count() == 1


def test_arrow_keys_walk_the_ribbons_from_the_strongest(visit):
    made = visit(viz.flow(flows(PLAIN)).html)
    made.page.locator(".mv-plot").focus()
    walked = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        made.page.keyboard.press(key)
        walked.append(made.parts()[0].partition(",")[0])
    assert walked == ["object → query", "query → last", "object → query"]


def test_pointing_at_a_group_lists_its_edges(visit):
    figure = viz.flow(flows(PLAIN))
    made = visit(figure.html)
    box = made.page.locator('g[data-group="2"] text').first.bounding_box()
    made.page.mouse.move(box["x"] + 4, box["y"] + 4)
    assert made.parts() == ["last", "1 token", "query → last, late (layers 3-5) -40 %"]
    assert lit(made.page, "ribbon") == sorted(
        ribbon(figure, name) for name in ("query → last", "object → last")
    )
