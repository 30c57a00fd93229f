"""Judges of descriptions: which objects are found, and what their scores are."""

import subprocess
import sys
import unicodedata

import pytest
from unchecked import check_refusals

import mechvlm as mv
from mechvlm.errors import JudgeError
from mechvlm.judges import COCO, NO_OBJECTS, Judge, ObjectListJudge, Verdict
from mechvlm.matching import words

COMMON = ObjectListJudge()

# --- scores ---------------------------------------------------------------------------


def verdict(reference, candidate, matched):
    pairs = tuple((name, name) for name in matched)
    return Verdict(tuple(reference), tuple(candidate), pairs)


@pytest.mark.parametrize(
    ("reference", "candidate", "precision", "recall", "f1"),
    [
        ("abcd", "ab", 1, 1 / 2, 2 / 3),
        ("ab", "abcd", 1 / 2, 1, 2 / 3),
        ("abc", "ade", 1 / 3, 1 / 3, 1 / 3),
        ("ab", "cd", 0, 0, 0),
        ("ab", "ba", 1, 1, 1),
        ("ab", "", 0, 0, 0),
        ("", "ab", 0, 0, 0),
        ("", "", 1, 1, 1),
    ],
)
def test_precision_recall_and_f1(reference, candidate, precision, recall, f1):
    """By hand; two empty descriptions agree, one empty description finds nothing."""
    shared = [name for name in reference if name in candidate]
    found = verdict(reference, candidate, shared)
    scores = (found.precision, found.recall, found.f1)
    assert scores == pytest.approx((precision, recall, f1))


def test_what_is_lost_and_what_is_invented():
    found = Verdict(("dog", "sofa"), ("couch", "cat"), (("sofa", "couch"),))
    assert (found.lost, found.invented) == (("dog",), ("cat",))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ((("a", "a"), ("a",), (("a", "a"),)), "hold one twice"),
        ((("a",), ("b", "b"), ()), "hold one twice"),
        ((("a",), ("b",), (("a", "c"),)), "must pair two of the objects listed"),
        ((("a",), ("b", "c"), (("a", "b"), ("a", "c"))), "none twice"),
    ],
)
def test_a_verdict_that_does_not_add_up_is_refused(made, told):
    with pytest.raises(JudgeError, match=told):
        Verdict(*made)


# --- the list of objects --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A man rides a horse.", {"person", "horse"}),
        ("People, women, children and firemen", {"person"}),
        ("two dogs and a dog", {"dog"}),
        ("Puppies on buses with knives", {"dog", "bus", "knife"}),
        ("a traffic light", {"traffic light"}),
        ("TRAFFIC-LIGHTS", {"traffic light"}),
        ("the traffic, light and calm", set()),
        ("a hot dog", {"hot dog"}),
        ("it is hot. Dogs sleep", {"dog"}),
        ("a teddy bear beside a bear", {"teddy bear", "bear"}),
        ("a stuffed bear", {"teddy bear"}),
        ("an orange cat", {"cat"}),
        ("orange, cat", {"orange", "cat"}),
        ("an orange and a banana", {"orange", "banana"}),
        ("an orange shirt", set()),
        ("a man with glasses", {"person"}),
        ("two wine glasses", {"wine glass"}),
        ("a car park at the bus stop", set()),
        ("mice on a table", {"mouse", "dining table"}),
        ("a category of scarlet cartoons", set()),
        ("several individuals near skis and a ski", {"person", "skis"}),
        ("a jet ski", set()),
        ("sheep and a pair of scissors", {"sheep", "scissors"}),
        ("the woman's handbag", {"person", "handbag"}),
        ("", set()),
        ("\uff24\uff4f\uff47, in wide letters", {"dog"}),
    ],
)
def test_objects_of_natural_descriptions(text, wanted):
    assert set(COMMON.objects(text)) == wanted


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize("name", ["caf\u00e9", "cafe", "CAFE\u0301"])
def test_accents_do_not_decide(name, form):
    """In the list or in the text, in one letter or two; the mention holds them all."""
    judge = ObjectListJudge([name, "hot p\u00e2t\u00e9"])
    parts = ["caf\u00e9", "caf\u00e9s", "cafe", "hot pate"]
    parts = [unicodedata.normalize(form, part) for part in parts]
    text = " | ".join(parts)
    found = judge.mentions(text)
    assert [each.name for each in found] == [name] * 3 + ["hot p\u00e2t\u00e9"]
    assert [text[each.start : each.stop] for each in found] == parts


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize(
    "text",
    [
        *(
            "\ud55c\uad6d\uc5b4 \u304c",
            "\u0928\u092e\u0938\u094d\u0924\u0947",
            "fish\u2122 \u00bd",
        ),
        *(
            "\ufb01sh",
            "\u338f of stra\u00dfe",
            "\u0130stanbul",
            "it's x\u0301\u0323",
            "a\u00a8b",
        ),
    ],
)
def test_texts_are_split_as_matchers_split_them(text, form):
    """Every word of `matching.words` is one that the list can hold, and no other."""
    text = unicodedata.normalize(form, text)
    judge = ObjectListJudge(list(dict.fromkeys(words(text))))
    assert judge.objects(text) == tuple(judge.vocabulary)


def test_every_class_is_found_in_singular_plural_and_by_its_other_words():
    assert len(COCO) == 80
    for name, others in COCO.items():
        for word in (name, *others):
            assert COMMON.objects(f"There is a {word} here.") == (name,), word
    for plural, name in (("cars", "car"), ("benches", "bench"), ("ladies", "person")):
        assert COMMON.objects(plural) == (name,)


def test_every_ignored_phrase_names_nothing():
    for phrase in NO_OBJECTS:
        assert COMMON.objects(f"near the {phrase} today") == (), phrase


def test_an_object_is_said_where_its_mention_says():
    text = "Two puppies, a stop sign and a puppy"
    found = COMMON.mentions(text)
    assert [(each.name, text[each.start : each.stop]) for each in found] == [
        ("dog", "puppies"),
        ("stop sign", "stop sign"),
        ("dog", "puppy"),
    ]
    assert COMMON.objects(text) == ("dog", "stop sign")


def test_attributes_count_where_the_list_names_them():
    """The same things in other colours: nothing shared by pairs, all by shapes."""
    one, other = "a red circle and a blue ring .", "a blue circle and a red ring ."
    pairs = [f"{color} {shape}" for color in ("red", "blue") for shape in ("circle",)]
    pairs += ["red ring", "blue ring"]
    by_pairs = ObjectListJudge(pairs).compare(other, reference=one)
    by_shapes = ObjectListJudge(["circle", "ring"]).compare(other, reference=one)
    assert (by_pairs.f1, by_shapes.f1) == (0.0, 1.0)
    assert by_pairs.lost == ("red circle", "blue ring")
    assert by_pairs.invented == ("blue circle", "red ring")


def test_synonyms_match_and_counts_do_not_matter():
    found = COMMON.compare("three kittens on a sofa", reference="a cat on a couch")
    assert found == Verdict(
        ("cat", "couch"), ("cat", "couch"), (("cat", "cat"), ("couch", "couch"))
    )


def test_candidate_and_reference_are_not_swapped():
    found = COMMON.compare("a dog", reference="a dog and a cat")
    assert (found.precision, found.recall) == (1.0, 0.5)
    assert found.lost == ("cat",)


def test_descriptions_of_scenes_are_read_as_they_are_written():
    names = [f"{c} {s}" for c in mv.scenes.COLORS for s in mv.scenes.SHAPES]
    judge = ObjectListJudge([*names, *mv.scenes.NAMES])
    for seed in range(20):
        scene = mv.scenes.sample(seed=seed, n=3)
        wanted = {f"{thing.color} {thing.shape}" for thing in scene.things}
        assert set(judge.objects(scene.describe())) == wanted


def test_both_are_judges():
    assert isinstance(COMMON, Judge)
    assert not isinstance("a judge", Judge)
    assert (COMMON.name, repr(COMMON)) == (
        "list of 80 objects",
        "ObjectListJudge(list of 80 objects)",
    )


@pytest.mark.parametrize(
    ("vocabulary", "told"),
    [
        ([], "vocabulary is empty"),
        ({"cat": ("pet",), "dog": ("pet",)}, "'pet' is a word for both 'cat' and"),
        (["..."], "'...' names no object"),
        ("cat", "is the word 'cat'; wanted a list"),
        (["caf\u00e9", "cafe"], "'cafe' is a word for both"),
    ],
)
def test_a_vocabulary_that_cannot_serve_is_refused(vocabulary, told):
    with pytest.raises(JudgeError, match=told):
        ObjectListJudge(vocabulary)


def test_what_is_ignored_cannot_be_an_object():
    with pytest.raises(JudgeError, match="it cannot be both"):
        ObjectListJudge(["bus stop"], ignoring=["bus stop"])


WRONG_KINDS = """
from mechvlm.errors import ArgumentError
from mechvlm.judges import ObjectListJudge
cases = [
    (lambda: ObjectListJudge(5), "vocabulary is 5 (int); wanted a list"),
    (lambda: ObjectListJudge([("cat",)]), "vocabulary[0] is ('cat',) (tuple)"),
    (lambda: ObjectListJudge({"cat": "kitten"}), "['cat'] is the one string 'kitten'"),
    (lambda: ObjectListJudge(["bus"], ignoring="bus stop"), "ignoring is the one str"),
]
"""


def test_words_of_the_wrong_kind_are_named():
    check_refusals(WRONG_KINDS)


def test_importing_judges_asks_for_no_client():
    """Air-gapped: neither the client nor anything that could open a connection."""
    code = (
        "import sys, mechvlm.judges as j; j.ObjectListJudge().objects('a cat');"
        "print([m for m in ('openai', 'httpx', 'httpx2') if m in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "[]"
