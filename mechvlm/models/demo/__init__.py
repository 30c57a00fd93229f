"""The demo checkpoints: two tiny LLaVAs that `mechvlm.models.demo.train` made."""

from pathlib import Path

PATH = Path(__file__).parent / "checkpoint"
"""Folder of the demo model, in Hugging Face's format."""
CONTROL_PATH = Path(__file__).parent / "control"
"""Folder of its control, which learnt the same world with nothing planted."""
