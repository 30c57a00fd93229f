"""Matchers: what counts as said, written out case by case."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechvlm.errors import ArgumentError
from mechvlm.matching import begins, mentions, names, words, yes_or_no

LEONARDO = ["Leonardo da Vinci", "Leonardo di ser Piero"]


@pytest.mark.parametrize(
    ("said", "golds", "wanted"),
    [
        ("This is Leonardo da Vinci.", LEONARDO, True),
        ("painted by VINCI, LEONARDO", LEONARDO, True),
        ("It was Leonardo DiCaprio", LEONARDO, False),  # one of two telling words
        ("Piero, called Leonardo", LEONARDO, True),  # of the alias
        ("Obama", ["Barack Obama", "Obama"], True),
        ("Tom Cruise", ["Tom Cruise"], True),
        ("Beyonce Knowles", ["Beyoncé"], True),
        ("Beyonce\u0301", ["Beyoncé"], True),
        ("the city of Istanbul", ["İstanbul"], True),
        ("\uff29\uff22\uff2d", ["IBM"], True),  # full-width letters
        ("Duran Duran", ["Duran Duran"], True),
        ("Эйфелева башня", ["эйфелева башня"], True),
        ("", LEONARDO, False),
        ("anything", [], False),
        ("anything", ["", " ", "!"], False),
    ],
)
def test_names(said, golds, wanted):
    assert names(said, golds) is wanted


@pytest.mark.parametrize(
    ("gold", "said", "not_said"),
    [
        ("IBM", "an IBM machine", "a submarine"),
        ("BMW", "This is a bmw.", "a car by B M W's rival"),
        ("H&M", "the H&M logo", "the HM logo"),
        ("Jay-Z", "It's Jay-Z!", "jay walks, z sleeps"),
        ("U2", "the band U2", "the band U 2"),
        ("IT", "IT Crowd", "sitting"),
    ],
)
def test_trap_paper_matcher_names_of_short_words_can_match_and_only_whole(
    gold, said, not_said
):
    """With words of four letters alone, no answer could ever name them."""
    assert names(said, [gold])
    assert not names(not_said, [gold])


@pytest.mark.parametrize(
    ("said", "golds", "wanted"),
    [
        ("it is located here", ["cat"], False),
        ("a Cat.", ["cat"], True),
        ("light of the traffic", ["traffic light"], False),
        ("two traffic lights", ["traffic light"], False),
        ("a traffic-light", ["traffic light"], True),
        ("a dog", ["cat", "dog"], True),
        ("a dog", [""], False),
    ],
)
def test_trap_19_a_mention_is_whole_words_in_a_row(said, golds, wanted):
    assert mentions(said, golds) is wanted


def test_begins_and_yes_or_no():
    assert begins("Traffic light, red", ["traffic light"])
    assert not begins("a traffic light", ["traffic light"])
    assert not begins("trafficlight", ["traffic"])
    assert not begins("anything", [""])
    assert [yes_or_no(x) for x in ("Yes.", "NO, it is", "yesterday", "", "!")] == [
        True,
        False,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("matcher", [begins, mentions, names])
@pytest.mark.parametrize("golds", ["parrot", ""])
def test_one_string_for_several_golds_is_refused(matcher, golds):
    """Its letters would be names, and "a" is said in most answers."""
    with pytest.raises(ArgumentError, match=r"letter by letter; wanted \("):
        matcher("a red circle", golds)
    assert not matcher("a red circle", ["parrot"])


@given(st.text())
def test_every_text_with_words_names_itself(text):
    """Loose is never stricter than strict."""
    found = words(text)
    assert names(text, [text]) == mentions(text, [text]) == bool(found)
    assert words(" ".join(found)) == found


@given(said=st.text(), golds=st.lists(st.text(), max_size=3))
def test_what_is_mentioned_is_named(said, golds):
    assert names(said, golds) or not mentions(said, golds)
