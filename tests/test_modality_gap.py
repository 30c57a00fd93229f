"""The gap between modalities: arithmetic on a table of answers, and plain passes."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import whole_passes
from unchecked import check_refusals

import mechvlm as mv
from mechvlm import Ask, Entity, Fact
from mechvlm.errors import MetricError, PromptError
from mechvlm.models import planted
from mechvlm.models.planted import TOLERANCE

WHO = "who is this ?"


class Parrot:
    """A model's words, looked up by what it is asked and whether it sees a picture."""

    def __init__(self, monkeypatch, vlm, table):
        self.asked, self.lengths, self._prompts = [], set(), []
        prompt, generate = vlm.prompt, vlm.generate

        def ask(text, image=None):
            made = prompt("what color", image)
            self._prompts.append(made)
            self.asked.append((text, image is not None))
            return made

        def say(given, *, max_new_tokens):
            (place,) = [i for i, made in enumerate(self._prompts) if made is given]
            self.lengths.add(max_new_tokens)
            said = generate(given, max_new_tokens=1)
            return replace(said, text=table[self.asked[place]])

        monkeypatch.setattr(vlm, "prompt", ask)
        monkeypatch.setattr(vlm, "generate", say)


def entity(name, n_facts, **more):
    facts = [
        Fact(f"{name} {i} ?", f"this {i} of {name} ?", (f"right{i}", "indeed"), f"r{i}")
        for i in range(n_facts)
    ]
    return Entity(name, tiny.picture(), tuple(facts), **more)


# By name, by picture: which facts are answered right.
TRUTH = {
    "zorblax": ([1, 1, 1, 1], [1, 0, 0, 0]),  # 1.00 against 0.25
    "quindle": ([1, 0], [1, 0]),  # 0.50 against 0.50
    "marvok": ([0, 1, 1], [0, 0, 0]),  # 0.67 against 0.00
}


@pytest.fixture
def found(tiny_vlm, monkeypatch):
    """Three entities that are recognised, one that is not, and their table."""
    people = [entity(name, len(ways[0])) for name, ways in TRUTH.items()]
    people.insert(1, entity("nobody", 2, kind="logo", id="n"))
    table = {("who ?", True): "it is zorblax quindle marvok", ("logo ?", True): "?"}
    for name, ways in TRUTH.items():
        for i, (alone, seen) in enumerate(zip(*ways, strict=True)):
            table[f"{name} {i} ?", False] = f"it is right{i}" if alone else "wrong"
            table[f"this {i} of {name} ?", True] = "INDEED." if seen else f"this {i}"
    parrot = Parrot(monkeypatch, tiny_vlm, table)
    identify = Ask({"": "who ?", "logo": "logo ?"}, max_new_tokens=3)
    result = mv.modality_gap(
        tiny_vlm, people, identify=identify, answer=Ask(max_new_tokens=7)
    )
    return result, parrot


def test_the_gap_is_paired_over_recognised_entities(found):
    result, _ = found
    assert result["entity"].values.tolist() == ["zorblax", "n", "quindle", "marvok"]
    assert result["recognised"].values.tolist() == [True, False, True, True]
    assert result["kind"].values.tolist() == ["", "logo", "", ""]
    assert result["n_questions"].values.tolist() == [4, 2, 2, 3]
    by_name, by_picture = [1, np.nan, 0.5, 2 / 3], [0.25, np.nan, 0.5, 0]
    np.testing.assert_allclose(result["accuracy_by_name"], by_name)
    np.testing.assert_allclose(result["accuracy_by_picture"], by_picture)
    # Each entity counts once, however many facts it has.
    assert float(result["gap"]) == pytest.approx((0.75 + 0 + 2 / 3) / 3)
    assert float(result["mean_by_name"]) == pytest.approx((1 + 0.5 + 2 / 3) / 3)
    assert float(result["mean_by_picture"]) == pytest.approx(0.25)
    # Two of three differ, both upwards: 2 of the 4 signs of two ranks are as extreme.
    assert float(result["wilcoxon_p"]) == pytest.approx(0.5)
    assert (int(result["n_recognised"]), int(result["n"])) == (3, 4)
    assert float(result["recognised_rate"]) == 0.75
    # Three pairs are too few for a bootstrap; Wilson's interval has its width at once.
    assert np.isnan(result["gap_low"]) and np.isnan(result["gap_high"])
    assert result["recognised_rate_low"] < 0.75 < result["recognised_rate_high"]


def test_facts_are_asked_by_name_without_and_by_picture_with_it(found):
    result, parrot = found
    asked = parrot.asked
    assert sorted(asked[:4]) == [("logo ?", True), *[("who ?", True)] * 3]
    assert len(asked) == 4 + 2 * 9
    assert not any("nobody" in text for text, _ in asked)
    assert all(seen == text.startswith("this") for text, seen in asked[4:])
    assert parrot.lengths == {3, 7}
    table = result.isel(question=1)
    assert (table["asked_by_name"].item(), table["said_by_name"].item()) == (
        "zorblax 1 ?",
        "it is right1",
    )
    assert (table["asked_by_picture"].item(), table["said_by_picture"].item()) == (
        "this 1 of zorblax ?",
        "this 1",
    )
    assert (table["entity_id"].item(), table["relation"].item()) == ("zorblax", "r1")
    assert table["right_by_name"].item() and not table["right_by_picture"].item()


def test_trap_paper_matcher_the_question_is_no_part_of_the_answer(demo):
    """Recognition asks "who is this ?": the words of the question are not a name."""
    emblem = mv.scenes.Scene((mv.scenes.Emblem("zorblax", 4),)).image
    facts = (Fact("where does zorblax live ?", WHO, ("live",)),)
    people = [Entity("zorblax", emblem, facts, aliases=("this",))]
    heard = []

    def listening(said, golds):
        heard.append(said)
        return True

    mv.modality_gap(
        demo, people, identify=Ask(WHO, listening), answer=Ask(matcher=listening)
    )
    assert len(heard) == 3
    assert not any(
        word in said.split() for said in heard for word in ("who", "where", "user")
    )


def test_the_answers_are_those_of_whole_passes():
    """Oracle: Hugging Face without a cache, with and without a picture."""
    vlm = mv.HookedVLM(*whole_passes.talkative(tiny.Kind("llama", 2, "siglip")))
    picture = tiny.picture(3)
    fact = Fact("what color is the cat ?", "what is a dog ?", ("red",))
    always = lambda said, golds: True  # noqa: E731
    found = mv.modality_gap(
        vlm,
        [Entity("cat", picture, (fact,))],
        identify=Ask("is the cat red ?", always, max_new_tokens=4),
        answer=Ask(matcher=always, max_new_tokens=6),
    )
    for name, text, image, n_new in (
        ("said", "is the cat red ?", picture, 4),
        ("said_by_name", fact.by_name, None, 6),
        ("said_by_picture", fact.by_picture, picture, 6),
    ):
        ids, _ = whole_passes.speak(vlm, vlm.prompt(text, image), n_new)
        wanted = vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert found[name].values.tolist() == [wanted], name


def test_a_planted_model_tells_by_picture_and_not_by_name():
    """The direct circuit reads the class off the picture and knows no name at all."""
    vlm = mv.HookedVLM(*planted.build("direct"))
    people = [
        Entity(word, planted.scene(i), (Fact("what", planted.QUESTION, (word,)),))
        for i, word in enumerate(planted.ANSWERS[:3])
    ]
    found = mv.modality_gap(
        vlm, people, identify=Ask(planted.QUESTION), answer=Ask(max_new_tokens=2)
    )
    assert found["recognised"].all() and float(found["mean_by_picture"]) == 1
    # Without a picture all words tie, so that one and the same is said of all.
    assert len(set(found["said_by_name"].values)) == 1
    assert float(found["gap"]) <= 1 / 3 - 1 + TOLERANCE


def test_the_demo_knows_more_by_name_than_by_picture(demo):
    """Training never asked for any fact of these beside their picture."""
    people = [
        Entity(
            name,
            mv.scenes.Scene((mv.scenes.Emblem(name, 4),)).image,
            tuple(
                Fact(
                    mv.scenes.FACT_QUESTIONS[relation].format(name),
                    mv.scenes.FACT_QUESTIONS[relation].format(mv.scenes.IN_PICTURE),
                    (mv.scenes.fact(name, relation),),
                    relation,
                )
                for relation in mv.scenes.RELATIONS
            ),
        )
        for name in mv.scenes.never_taught_by_picture()[:6]
    ]
    words = Ask(matcher=mv.matching.mentions, max_new_tokens=4)
    found = mv.modality_gap(demo, people, identify=Ask(WHO), answer=words)
    assert int(found["n_recognised"]) >= 4
    assert float(found["gap"]) > 0.2


def test_the_result_is_saved_and_opened(found, tmp_path):
    result, _ = found
    again = mv.open_result(mv.save_result(result, tmp_path / "gap.nc"))
    assert again.identical(result)
    assert "Cohen" in mv.cite(result)
    assert result.attrs["identify"] == {"": "who ?", "logo": "logo ?"}
    assert all(each.attrs["units"] for each in result.values())


def test_nobody_recognised_says_what_was_said(tiny_vlm, monkeypatch):
    people = [entity("zorblax", 1), entity("quindle", 1)]
    Parrot(monkeypatch, tiny_vlm, {("who ?", True): "a cat"})
    with pytest.raises(MetricError, match=r"none of 2 .*\n.*'zorblax': said 'a cat'"):
        mv.modality_gap(tiny_vlm, people, identify=Ask("who ?"), answer=Ask())


def test_what_has_no_gap_is_refused(tiny_vlm, no_forward):
    def gap(*entities, identify=None, answer=None):
        mv.modality_gap(
            tiny_vlm,
            entities,
            identify=identify or Ask("who ?"),
            answer=answer or Ask(),
        )

    with pytest.raises(PromptError, match="no entity is given"):
        gap()
    with pytest.raises(PromptError, match=r"entities share ids \['a'\]"):
        gap(entity("a", 1), entity("b", 1, id="a"))
    with pytest.raises(PromptError, match="entity 'a' has no facts"):
        gap(entity("a", 0))
    with pytest.raises(PromptError, match="the fact 'q' of entity 'a' has no answer"):
        gap(Entity("a", tiny.picture(), (Fact("q", "p", ()),)))
    with pytest.raises(PromptError, match="every fact brings its own two"):
        gap(entity("a", 1), answer=Ask("what ?"))
    with pytest.raises(PromptError, match="no question is given for entities of kind"):
        gap(entity("a", 1, kind="logo"), identify=Ask({"": "who ?"}))


# Here beartype would say so first; a user's calls go unchecked.
WRONG_KINDS = """
import mechvlm as mv
vlm = mv.load("demo")
fact = mv.Fact("where ?", "where is this ?", ("here",))
them = [mv.Entity("zorblax", "a.png", (fact,))]
gap = lambda *a, **k: mv.modality_gap(
    vlm, *a, **{"identify": mv.Ask("who ?"), "answer": mv.Ask()} | k)
cases = [
    (lambda: gap([mv.Item("a.png", "?")]), "entities[0] is "),
    (lambda: gap(them[0]), "entities is "),
    (lambda: gap(them, identify="who ?"), "identify is 'who ?' (str); wanted Ask"),
    (lambda: gap(them, answer="red"), "answer is 'red' (str); wanted Ask"),
]
"""


def test_arguments_of_another_kind_are_named():
    check_refusals(WRONG_KINDS)
