"""Items, facts and readings: what they are made of, and what they refuse."""

import numpy as np
import pytest
from unchecked import check_refusals

from mechvlm import Entity, Fact, Item, readings
from mechvlm.errors import PromptError


def test_an_item_keeps_boxes_and_masks():
    mask = np.ones((4, 6), dtype=bool)
    item = Item("a.png", "?", objects={"box": (0, 1, 2.5, 9), "mask": mask})
    assert item.objects["box"] == (0, 1, 2.5, 9)
    assert item.objects["mask"] is mask
    with pytest.raises(PromptError, match=r"target 'cat' is none of .* box, mask"):
        Item("a.png", "?", objects=item.objects, target="cat")


def test_an_entitys_golds_are_its_names():
    fact = Fact("where is it ?", "where is this ?", ("Paris", "France"))
    tower = Entity("Eiffel Tower", "a.png", (fact,), aliases=("La Tour",))
    assert (tower.golds, tower.facts) == (("Eiffel Tower", "La Tour"), (fact,))


@pytest.mark.parametrize(
    "question",
    ["Is there one ?", "Is there a {} in {place} ?", "a {name} ?", "a {} { ?", "{}}"],
)
def test_polling_needs_one_place_for_the_targets_name(question):
    """Without it every item is asked the same; with another it has no words for it."""
    with pytest.raises(PromptError, match=r"wanted \{\} where the target's name"):
        readings.polling(question)


def test_polling_asks_for_the_target():
    item = Item("a.png", "?", objects={"red {}": (0, 0, 9, 9)}, target="red {}")
    assert readings.polling("a {} ?").question(item) == "a red {} ?"


# Here beartype would say so first; a user's calls go unchecked.
WRONG_KINDS = """
import numpy as np
from mechvlm import ArgumentError, Entity, Fact, Item, PromptError
item = Item("a.png", "?", objects={"cat": [0, 0, 9, 9.5]}, target="cat")
assert item.area == (0, 0, 9, 9.5) and type(item.area) is tuple
fact = Fact("q", "p", ["red", "crimson"])
assert fact.answers == ("red", "crimson")
them = Entity("cat", "a.png", [fact], aliases=["tom"])
assert (them.facts, them.golds) == ((fact,), ("cat", "tom"))
mixed = {1: [0, 0, 9, 9], "1": [0, 0, 8, 8]}
box = lambda where: lambda: Item("a.png", "?", objects={"cat": where})
cases = [
    (lambda: Fact("q", "p", "red"), ArgumentError, "Fact.answers to 'q' is the one"),
    (lambda: Entity("cat", "a.png", (fact,), aliases="x"), ArgumentError, "aliases of"),
    (lambda: Entity("cat", "a.png", fact), ArgumentError, "Entity.facts of 'cat' is "),
    (lambda: Entity("cat", "a.png", ("q",)), ArgumentError, "facts of 'cat'[0] is 'q'"),
    (lambda: Item("a.png", "?", objects=["cat"]), ArgumentError, "Item.objects is ["),
    (lambda: Item(None, "?"), ArgumentError, "Item.image is None"),
    (lambda: Item("a.png", None), ArgumentError, "Item.question is None"),
    (lambda: Item("a.png", "?", 3), ArgumentError, "Item.answer is 3 (int)"),
    (lambda: Item("a.png", "?", target=["cat"]), ArgumentError, "Item.target is ["),
    (lambda: Item("a.png", "?", prefix=None), ArgumentError, "Item.prefix is None"),
    (lambda: Item("a.png", "?", id=3), ArgumentError, "Item.id is 3 (int)"),
    (lambda: Item("a.png", "?", objects=mixed), ArgumentError, "the keys [1, '1']"),
    (lambda: Fact("q", None, ["red"]), ArgumentError, "Fact.by_picture is None"),
    (lambda: Entity(3, "a.png", (fact,)), ArgumentError, "Entity.name is 3"),
    (lambda: Entity("cat", b"a.png", (fact,)), ArgumentError, "Entity.image is b'a"),
    (box("here"), ArgumentError, "Item.objects['cat'] is 'here' (str)"),
    (box([0, 0, 9]), PromptError, "'cat' is at [0, 0, 9], which is no box of four"),
    (box((0, 0, 9, "9")), PromptError, "which is no box of four numbers"),
    (box([[True, False], [True, True]]), PromptError, "np.array(rows, dtype=bool)"),
    (box(np.zeros((2, 2, 3))), PromptError, "and no mask"),
]
"""


def test_what_is_of_another_kind_is_named():
    check_refusals(WRONG_KINDS)
