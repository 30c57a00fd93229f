"""Readers of published data sets and of one's own pictures, from folders on disk."""

from mechvlm.datasets import coco as coco
from mechvlm.datasets import mme as mme
from mechvlm.datasets import pairs as pairs
from mechvlm.datasets import pictures as pictures
from mechvlm.datasets import popvqa as popvqa

__all__ = ["coco", "mme", "pairs", "pictures", "popvqa"]
