"""The judge that asks a language model, against a server that this test runs itself."""

import json
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from unchecked import check_refusals

from mechvlm.errors import JudgeError, OutputError
from mechvlm.judges import Judge, LLMJudge, Verdict
from mechvlm.judges.prompting import verdict_of

pytest.importorskip("openai", reason="the extra llm is not installed")

KEY = "sk-secret-0123456789"
GOOD = {
    "reference_objects": ["dog", "sofa"],
    "candidate_objects": ["couch"],
    "matches": [{"reference": "sofa", "candidate": "couch"}],
}
WANTED = Verdict(("dog", "sofa"), ("couch",), (("sofa", "couch"),))
TEXTS = {"candidate": "A couch.", "reference": "A dog on a sofa."}


class Server:
    """What is answered, in order (the last one for ever), and what was asked."""

    def __init__(self):
        self.answers, self.asked, self.url = [], [], ""

    def next(self):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def said(content):
    """A status of 200 and a chat completion that says this."""
    text = json.dumps(content) if isinstance(content, dict | list) else content
    message = {"role": "assistant", "content": text}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    return 200, body | {"choices": [{"index": 0, "message": message}]}


def failed(status, text="no"):
    return status, {"error": {"message": text, "type": "test", "code": None}}


@contextmanager
def serving(server):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent = {
                "path": self.path,
                "headers": {k.lower(): v for k, v in self.headers.items()},
            }
            server.asked.append(sent | {"body": json.loads(body)})
            status, answer = server.next()
            if status == "late":
                time.sleep(answer)
                status, answer = failed(500)
            text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_):
            """A client that waited no longer is no fault of the server."""

    httpd = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    try:
        yield server
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


@pytest.fixture
def server():
    with serving(Server()) as running:
        yield running


@pytest.fixture
def make(server, tmp_path):
    """A judge of that server, with few and quick retries unless said otherwise."""

    def made(**more):
        given = {"base_url": server.url, "cache": tmp_path / "kept", "api_key": KEY}
        return LLMJudge("small", **(given | {"max_retries": 2} | more))

    return made


# --- asking ---------------------------------------------------------------------------


def test_the_request_is_what_was_promised(server, make):
    server.answers = [said(GOOD)]
    judge = make()
    assert isinstance(judge, Judge)
    assert judge.compare(**TEXTS) == WANTED
    (sent,) = server.asked
    assert sent["path"] == "/v1/chat/completions"
    assert sent["headers"]["authorization"] == f"Bearer {KEY}"
    body = sent["body"]
    assert (body["model"], body["temperature"], body["seed"]) == ("small", 0, 42)
    form = body["response_format"]
    assert (form["type"], form["json_schema"]["strict"]) == ("json_schema", True)
    assert set(form["json_schema"]["schema"]["required"]) == set(GOOD)
    last = body["messages"][-1]
    assert last == {
        "role": "user",
        "content": "Reference: A dog on a sofa.\n\nCandidate: A couch.",
    }


def test_the_example_in_the_prompt_is_a_right_answer(server, make):
    """Few-shot text that miscounts would teach the judge to miscount."""
    server.answers = [said(GOOD)]
    make().compare(**TEXTS)
    example = server.asked[0]["body"]["messages"][2]["content"]
    assert verdict_of(example).f1 == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("more", "gone", "form"),
    [
        ({"temperature": None}, "temperature", "json_schema"),
        ({"seed": None}, "seed", "json_schema"),
        ({"answers": "json"}, "json_schema", "json_object"),
        ({"answers": "text"}, "response_format", None),
    ],
)
def test_what_an_endpoint_does_not_know_can_be_left_out(server, make, more, gone, form):
    server.answers = [said(f"```json\n{json.dumps(GOOD)}\n```")]
    assert make(**more).compare(**TEXTS) == WANTED
    body = server.asked[0]["body"]
    assert gone not in body
    assert body.get("response_format", {}).get("type") == form


def test_without_a_key_none_is_taken_from_the_environment(server, make, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.answers = [said(GOOD)]
    make(api_key=None).compare(**TEXTS)
    assert KEY not in json.dumps(server.asked)


# --- the cache ------------------------------------------------------------------------


def test_what_was_answered_is_not_asked_again(server, make):
    server.answers = [said(GOOD)]
    first, second = make(), make()
    assert first.compare(**TEXTS) == first.compare(**TEXTS) == WANTED
    assert second.compare(**TEXTS) == WANTED
    assert len(server.asked) == 1
    assert (first.tally.asked, first.tally.cached) == (1, 1)
    assert (second.tally.asked, second.tally.cached) == (0, 1)


def test_everything_that_decides_an_answer_is_part_of_the_key(server, make):
    server.answers = [said(GOOD)]
    judge = make()
    judge.compare(**TEXTS)
    judge.compare(candidate="A dog on a sofa.", reference="A couch.")
    make(seed=7).compare(**TEXTS)
    LLMJudge("other", base_url=server.url, cache=judge._cache._folder).compare(**TEXTS)
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    "torn",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace("A couch.", "A bed."),
        lambda text: text.replace("sofa", "\\ud800"),
        lambda text: json.dumps(json.loads(text) | {"answer": "{}"}),
        lambda text: json.dumps(json.loads(text) | {"answer": 3}),
        lambda text: "[]",
    ],
)
def test_a_torn_entry_is_ignored_and_asked_again(server, make, tmp_path, torn):
    server.answers = [said(GOOD)]
    judge = make()
    judge.compare(**TEXTS)
    (file,) = (tmp_path / "kept").iterdir()
    whole = file.read_text()
    file.write_text(torn(whole))
    assert judge.compare(**TEXTS) == WANTED
    assert len(server.asked) == 2
    assert file.read_text() == whole


def test_bytes_that_are_no_text_are_ignored_too(server, make, tmp_path):
    server.answers = [said(GOOD)]
    judge = make()
    judge.compare(**TEXTS)
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(b"\xff\xfe\x00")
    assert judge.compare(**TEXTS) == WANTED


def test_no_key_stands_in_the_cache_or_in_what_is_printed(server, make, tmp_path):
    server.answers = [said(GOOD)]
    judge = make()
    judge.compare(**TEXTS)
    kept = [file.read_text() for file in (tmp_path / "kept").iterdir()]
    assert len(kept) == 1
    assert KEY not in "".join([*kept, repr(judge), judge.name])


def test_a_cache_that_cannot_be_written_is_told(server, make, tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(OutputError, match="cannot make the cache folder"):
        make(cache=tmp_path / "file")
    server.answers = [said(GOOD)]
    judge = make()
    (tmp_path / "kept").rmdir()
    with pytest.raises(OutputError, match="cannot keep the judge's answer"):
        judge.compare(**TEXTS)


# --- what goes wrong ------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, make, status):
    server.answers = [failed(status), failed(status), said(GOOD)]
    judge = make()
    assert judge.compare(**TEXTS) == WANTED
    assert len(server.asked) == 3
    assert (judge.tally.asked, judge.tally.retried) == (1, 2)


def test_a_server_that_stays_busy_is_given_up(server, make):
    server.answers = [failed(429, "slow down")]
    with pytest.raises(JudgeError, match=r"failed, in up to 3 tries: .*slow down"):
        make().compare(**TEXTS)
    assert len(server.asked) == 3


def test_a_refused_key_is_told_without_the_key(server, make):
    server.answers = [failed(401, f"wrong key {KEY}")]
    with pytest.raises(JudgeError, match=r"refuses the key: .*Give api_key") as caught:
        make().compare(**TEXTS)
    assert KEY not in str(caught.value)
    assert caught.value.__context__ is None
    assert len(server.asked) == 1


def test_an_unknown_model_is_told(server, make):
    server.answers = [failed(404, "no model small")]
    with pytest.raises(JudgeError, match=r"no such model or address: .*no model small"):
        make(api_key=None).compare(**TEXTS)
    assert len(server.asked) == 1


def test_a_refused_parameter_is_told_with_what_to_leave_out(server, make):
    server.answers = [failed(400, "unknown field seed")]
    with pytest.raises(JudgeError, match=r"unknown field seed.*seed=None"):
        make().compare(**TEXTS)


def test_a_server_that_is_not_there_is_told(make):
    judge = make(base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(JudgeError, match=r"127.0.0.1:9/v1 cannot be reached, in 1 tri"):
        judge.compare(**TEXTS)


def test_a_server_that_does_not_answer_is_told(server, make):
    server.answers = [("late", 1.0)]
    judge = make(timeout_s=0.1, max_retries=0)
    with pytest.raises(JudgeError, match=r"gave no answer within 0.1 s, in 1 tri"):
        judge.compare(**TEXTS)


@pytest.mark.parametrize("body", [b"<html>hello</html>", {"choices": []}, {"no": 1}])
def test_another_kind_of_server_is_told(server, make, body):
    server.answers = [(200, body)]
    with pytest.raises(JudgeError, match="is no chat completion"):
        make().compare(**TEXTS)


def without(key):
    return {name: value for name, value in GOOD.items() if name != key}


MALFORMED = [
    ("I see a dog.", "is no JSON"),
    ("", "is no JSON"),
    (["dog"], "is not an object of reference_objects"),
    (without("matches"), "is not an object of reference_objects"),
    (GOOD | {"note": "x"}, "is not an object of reference_objects"),
    (GOOD | {"candidate_objects": "couch"}, "where names should stand"),
    (GOOD | {"candidate_objects": ["couch", 1]}, "where names should stand"),
    (GOOD | {"candidate_objects": ["couch", " "]}, "where names should stand"),
    (GOOD | {"matches": [["sofa", "couch"]]}, "is no list of"),
    (GOOD | {"matches": {"sofa": "couch"}}, "is no list of"),
    (GOOD | {"matches": [{"reference": "sofa", "candidate": "bed"}]}, "must pair two"),
    (
        GOOD
        | {
            "matches": [
                {"reference": "sofa", "candidate": "couch"},
                {"reference": "dog", "candidate": "couch"},
            ]
        },
        "none twice",
    ),
]


@pytest.mark.parametrize(("answer", "told"), MALFORMED)
def test_a_malformed_answer_is_asked_again_with_another_seed(
    server, make, answer, told, tmp_path
):
    server.answers = [said(answer)]
    judge = make()
    with pytest.raises(JudgeError, match=rf"answered 3 times in a form .*{told}"):
        judge.compare(**TEXTS)
    assert [sent["body"]["seed"] for sent in server.asked] == [42, 43, 44]
    assert judge.tally.malformed == 3
    assert list((tmp_path / "kept").iterdir()) == []
    server.answers = [said(answer), said(GOOD)]
    assert judge.compare(**TEXTS) == WANTED


def test_no_content_at_all_is_malformed(server, make):
    server.answers = [said(None), said(GOOD)]
    assert make().compare(**TEXTS) == WANTED


def test_case_and_repetition_are_forgiven(server, make):
    server.answers = [
        said(
            GOOD
            | {
                "reference_objects": ["Dog", " sofa ", "dog"],
                "matches": [{"reference": "SOFA", "candidate": "couch"}] * 2,
            }
        )
    ]
    assert make().compare(**TEXTS) == WANTED


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"max_retries": -1}, "max_retries=-1"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"max_malformed": -1}, "max_malformed=-1"),
        ({"cache": ""}, "cache='': wanted a folder"),
        ({"cache": "  "}, "cache='  ': wanted a folder"),
        ({"base_url": ""}, "base_url='': wanted an address that begins with http"),
        ({"base_url": "localhost:8000/v1"}, "wanted an address that begins with http"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(make, more, told):
    with pytest.raises(JudgeError, match=told):
        make(**more)


def test_a_model_without_a_name_is_refused(server, tmp_path):
    with pytest.raises(JudgeError, match="model='': wanted the name"):
        LLMJudge("", base_url=server.url, cache=tmp_path)


WRONG_KINDS = """
from mechvlm.errors import ArgumentError
from mechvlm.judges import LLMJudge
url = "http://localhost:8000/v1"
cases = [
    (lambda: LLMJudge(None, base_url=url, cache="kept"), "model is None (NoneType)"),
    (lambda: LLMJudge("m", base_url=8000, cache="kept"), "base_url is 8000 (int)"),
    (lambda: LLMJudge("m", base_url=url, cache=None), "cache is None (NoneType)"),
]
"""


def test_names_of_the_wrong_kind_are_named(tmp_path):
    check_refusals(WRONG_KINDS, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_client_is_told_with_how_to_get_it(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(JudgeError, match=r'pip install "mechvlm\[llm\]"'):
        make()
