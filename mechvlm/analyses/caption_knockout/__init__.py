"""What a free description loses when the image is cut off while it is made."""

from __future__ import annotations

from mechvlm.analyses.caption_knockout.cutting import FLOWS, Flow
from mechvlm.analyses.caption_knockout.rejudging import lost_objects, rejudge
from mechvlm.analyses.caption_knockout.sweep import caption_knockout

__all__ = ["FLOWS", "Flow", "caption_knockout", "lost_objects", "rejudge"]
