"""The demo checkpoint: a tiny LLaVA that `mechvlm.models.demo.train` made."""

from pathlib import Path

PATH = Path(__file__).parent / "checkpoint"
"""Folder of the checkpoint, in Hugging Face's format."""
