"""Which objects two descriptions share: plug-ins that compare a caption with another.

`ObjectListJudge` looks words up and needs nothing; `LLMJudge` asks a language model
behind any OpenAI-compatible endpoint. Anything else with a `name` and a `compare` of
that form is a `Judge` too.
"""

from __future__ import annotations

from mechvlm.judges.coco import COCO, NO_OBJECTS
from mechvlm.judges.llm import LLMJudge, Tally
from mechvlm.judges.objects import Mention, ObjectListJudge
from mechvlm.judges.verdict import Judge, Verdict

__all__ = [
    "COCO",
    "NO_OBJECTS",
    "Judge",
    "LLMJudge",
    "Mention",
    "ObjectListJudge",
    "Tally",
    "Verdict",
]
