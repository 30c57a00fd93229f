"""A judge that asks a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from mechvlm.errors import JudgeError
from mechvlm.judges.cache import Cache
from mechvlm.judges.endpoint import Endpoint
from mechvlm.judges.prompting import PROMPT_VERSION, messages, verdict_of
from mechvlm.judges.verdict import Verdict
from mechvlm.wanted import one

__all__ = ["LLMJudge", "Tally"]

Answers: TypeAlias = Literal["schema", "json", "text"]


@dataclass(frozen=True, slots=True)
class Tally:
    """What comparisons have cost so far.

    Attributes:
        asked: Requests that were answered.
        cached: Comparisons that the cache answered.
        retried: Requests that failed and were sent again.
        malformed: Answers that were none, and were asked for again.
    """

    asked: int = 0
    cached: int = 0
    retried: int = 0
    malformed: int = 0


class LLMJudge:
    """Have a language model list the objects of two descriptions and match them.

    It asks for a JSON object at temperature 0 and a fixed seed, checks every part of
    it, and keeps it on disk, so that a comparison is paid for once. Even so two
    descriptions that say the same in other words do not quite reach 1: read every
    score beside that of the arm in which nothing was cut.

    Any server that speaks OpenAI's protocol will do, such as one on this machine, and
    nothing is sent anywhere else. With the server running, from a shell::

        vllm serve path/to/model --port 8000 --served-model-name local

    score descriptions by it, or score again those of an earlier run::

        judge = mv.judges.LLMJudge(
            "local", base_url="http://localhost:8000/v1", cache="judged")
        found = mv.caption_knockout(vlm, prompts, judge=judge)
        again = mv.rejudge(mv.open_result("captions.nc"), judge)
        judge.tally  # how much was asked, and how much was known already

    Paper: Kaduri et al. 2024, arXiv:2411.17491 (the judge; the prompt is our own).
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        cache: str | Path,
        api_key: str | None = None,
        answers: Answers = "schema",
        temperature: int | float | None = 0,
        seed: int | None = 42,
        timeout_s: int | float = 60,
        max_retries: int = 4,
        max_malformed: int = 2,
    ) -> None:
        """Connect to an endpoint; nothing is asked yet.

        Args:
            model: Name by which the endpoint knows the model.
            base_url: Address of the endpoint, such as "http://localhost:8000/v1".
            cache: Folder that keeps the answers; made if it is not there.
            api_key: Secret of the endpoint. None sends a placeholder, as local servers
                want it; no environment variable is read, so that no key can go to
                another server than you name.
            answers: How JSON is asked for: by "schema" where the endpoint knows
                structured output, as "json" object, or in "text", by the prompt alone.
            temperature: Of the sampling; None leaves it out, for models that refuse it.
            seed: Of the sampling; None leaves it out.
            timeout_s: Longest wait for one answer, seconds.
            max_retries: Requests sent again, with growing pauses, after a timeout, a
                refused connection or an answer 408, 409, 429 or 5xx.
            max_malformed: Answers that may be malformed before giving up; each is asked
                for again with the next seed.

        Raises:
            JudgeError: The client is not installed, or an argument means nothing.
            ArgumentError: A name or address is no string.
            OutputError: The cache folder cannot be made.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     judge = LLMJudge(
            ...         "llama", base_url="http://localhost:8000/v1", cache=folder)
            >>> judge.tally.asked
            0
        """
        _check_named(model, base_url, cache)
        if answers not in ("schema", "json", "text"):
            raise JudgeError(f"answers={answers!r}: wanted 'schema', 'json' or 'text'.")
        if max_retries < 0 or max_malformed < 0 or timeout_s <= 0:
            raise JudgeError(
                f"max_retries={max_retries}, max_malformed={max_malformed},"
                f" timeout_s={timeout_s}: wanted counts from 0 and a time above 0."
            )
        self.model, self.tally = model, Tally()
        self._sampling: Mapping[str, int | float] = {
            name: value
            for name, value in (("temperature", temperature), ("seed", seed))
            if value is not None
        }
        self._answers: Answers = answers
        self._max_malformed = max_malformed
        self._endpoint = Endpoint(
            base_url, api_key, timeout_s=timeout_s, max_retries=max_retries
        )
        self._cache = Cache(Path(cache))

    def __repr__(self) -> str:
        """Its name; never the key."""
        return f"LLMJudge({self.name})"

    @property
    def name(self) -> str:
        """What results call it."""
        return f"{self.model}, prompt {PROMPT_VERSION}"

    def compare(self, candidate: str, *, reference: str) -> Verdict:
        """Objects of both descriptions and their matches, from the cache or the model.

        Args:
            candidate: The description that is judged.
            reference: The description that it is held against.

        Raises:
            JudgeError: The endpoint cannot be reached, refuses the request, or answers
                in another form again and again.
            OutputError: The answer cannot be kept.
        """
        asked = {
            "model": self.model,
            "prompt": PROMPT_VERSION,
            "sampling": dict(self._sampling),
            "reference": reference,
            "candidate": candidate,
        }
        known = self._cache.read(asked)
        if known is not None:
            self.tally = replace(self.tally, cached=self.tally.cached + 1)
            return known
        answer, verdict = self._ask(candidate, reference)
        self._cache.write(asked, answer)
        return verdict

    def _ask(self, candidate: str, reference: str) -> tuple[str, Verdict]:
        """The first answer that is one."""
        faults: list[JudgeError] = []
        for attempt in range(self._max_malformed + 1):
            sampling = dict(self._sampling)
            if "seed" in sampling:  # the same seed would give the same answer
                sampling["seed"] += attempt
            reply = self._endpoint.ask(
                self.model, messages(candidate, reference), sampling, self._answers
            )
            tally = self.tally
            self.tally = replace(
                tally, asked=tally.asked + 1, retried=tally.retried + reply.retries
            )
            try:
                return reply.text, verdict_of(reply.text)
            except JudgeError as fault:
                faults.append(fault)
            self.tally = replace(self.tally, malformed=self.tally.malformed + 1)
        raise JudgeError(
            f"{self.model} answered {self._max_malformed + 1} times in a form that is"
            f" not the one asked for; the last time: {faults[-1]}\nUsual causes: the"
            " endpoint ignores response_format (try answers='json' or 'text'), or the"
            " model is too small for the task."
        ) from faults[-1]


def _check_named(model: str, base_url: str, cache: str | Path) -> None:
    """Refuse what names no model, no endpoint or no folder."""
    one(model, str, "model", 'the name by which the endpoint knows it, "llama"')
    one(base_url, str, "base_url", '"http://localhost:8000/v1"')
    one(cache, (str, Path), "cache", 'a folder, cache="judged"')
    if not model.strip():
        raise JudgeError(
            f"model={model!r}: wanted the name by which the endpoint knows it."
        )
    if not base_url.startswith(("http://", "https://")):
        raise JudgeError(
            f"base_url={base_url!r}: wanted an address that begins with http:// or"
            ' https://, such as "http://localhost:8000/v1".'
        )
    if not str(cache).strip():
        raise JudgeError(
            f"cache={cache!r}: wanted a folder for the answers, such as"
            ' cache="judged"; the working folder itself is cache=".".'
        )
