"""Answers of a language model, kept on disk by what was asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from mechvlm.axes import replacing
from mechvlm.errors import JudgeError, OutputError
from mechvlm.judges.prompting import verdict_of
from mechvlm.judges.verdict import Verdict

__all__ = ["Cache"]

Asked = Mapping[str, object]
"""Everything that decides an answer: model, prompt, sampling, both descriptions."""


class Cache:
    """A folder with one file for each comparison; what is torn in it is not there."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if need be.

        Raises:
            OutputError: It cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise OutputError(
                f"cannot make the cache folder {folder}: {cause}. Give a folder that"
                " can be written."
            ) from cause
        self._folder = folder

    def read(self, asked: Asked) -> Verdict | None:
        """The verdict that was kept; None if there is none, or none that is whole."""
        try:
            kept = json.loads(self._file(asked).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(kept, dict) or kept.get("asked") != asked:
            return None
        answer = kept.get("answer")
        if not isinstance(answer, str):
            return None
        try:
            return verdict_of(answer)
        except JudgeError:
            return None

    def write(self, asked: Asked, answer: str) -> None:
        """Keep an answer, wholly or not at all.

        Raises:
            OutputError: The file cannot be written.
        """
        text = json.dumps({"asked": asked, "answer": answer}, indent=1)
        path = self._file(asked)
        try:
            with replacing(path) as partial:
                partial.write_text(text, encoding="utf-8")
        except OSError as cause:
            raise OutputError(
                f"cannot keep the judge's answer in {path}: {cause}. Is there space,"
                " and may the folder be written?"
            ) from cause

    def _file(self, asked: Asked) -> Path:
        key = json.dumps(asked, sort_keys=True).encode()
        return self._folder / f"{sha256(key).hexdigest()}.json"
