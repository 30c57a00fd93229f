"""The door to an OpenAI-compatible endpoint: the only place that knows the client."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mechvlm.errors import JudgeError
from mechvlm.judges.prompting import SCHEMA

__all__ = ["Endpoint", "Reply"]

_NO_KEY = "none"
"""What stands in the place of a key: without one the client would look for its own."""

_FORMATS: Mapping[str, Mapping[str, object]] = {
    "schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "comparison", "strict": True, "schema": SCHEMA},
        }
    },
    "json": {"response_format": {"type": "json_object"}},
    "text": {},
}


class Reply(NamedTuple):
    """An answer, and how often the request had to be sent again for it."""

    text: str
    retries: int


class Endpoint:
    """One endpoint with its key; it tries again where that may help."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        timeout_s: int | float,
        max_retries: int,
    ) -> None:
        """Make the client; nothing is sent yet.

        Raises:
            JudgeError: The client is not installed.
        """
        try:
            import openai
        except ImportError as cause:
            raise JudgeError(
                "LLMJudge asks through the client `openai`, which is not installed."
                ' Get it with\n    pip install "mechvlm[llm]"\nor use ObjectListJudge,'
                " which needs nothing."
            ) from cause
        self._base_url, self._api_key = base_url, api_key
        self._timeout_s, self._max_retries = timeout_s, max_retries
        self._client: Any = openai.OpenAI(
            base_url=base_url,
            api_key=api_key or _NO_KEY,
            timeout=timeout_s,
            max_retries=max_retries,
        )

    def ask(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        sampling: Mapping[str, int | float],
        answers: str,
    ) -> Reply:
        """The answer to a conversation; empty where the endpoint gives none.

        Raises:
            JudgeError: The endpoint cannot be reached or refuses the request.
        """
        import openai

        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=model, messages=list(messages), **sampling, **_FORMATS[answers]
            )
        except openai.APIError as fault:
            told = self._told(fault)
        else:
            return Reply(self._content(raw.text), raw.retries_taken)
        # Outside: the client's own error carries the request, and with it the key.
        raise JudgeError(told)

    def _content(self, body: str) -> str:
        """What the model said, out of the endpoint's answer."""
        try:
            said = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise JudgeError(
                f"{self._base_url} answers what is no chat completion:"
                f" {body[:200]!r}. Does base_url end as it wants (usually in /v1)?"
            ) from None
        return said if isinstance(said, str) else ""

    def _told(self, fault: Exception) -> str:
        import openai

        tries = f"{self._max_retries + 1} tries"
        said = str(fault).replace(self._api_key, "***") if self._api_key else str(fault)
        if isinstance(fault, openai.APITimeoutError):
            return (
                f"{self._base_url} gave no answer within {self._timeout_s} s, in"
                f" {tries}. Give more timeout_s, or look whether the server is busy."
            )
        if isinstance(fault, openai.APIConnectionError):
            return (
                f"{self._base_url} cannot be reached, in {tries}. Is the server"
                " running, and does base_url end as it wants (usually in /v1)?"
            )
        if isinstance(fault, openai.AuthenticationError | openai.PermissionDeniedError):
            return f"{self._base_url} refuses the key: {said} Give api_key=..."
        if isinstance(fault, openai.BadRequestError):
            return (
                f"{self._base_url} refuses the request: {said} If it does not know a"
                " parameter, leave it out: temperature=None, seed=None, or ask in"
                " another way with answers='json' or 'text'."
            )
        if isinstance(fault, openai.NotFoundError):
            return (
                f"{self._base_url} knows no such model or address: {said} Look at the"
                " model's name, and whether base_url ends in /v1."
            )
        return f"{self._base_url} failed, in up to {tries}: {said}"
