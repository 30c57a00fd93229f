"""Readers of published data sets, from folders that the user has downloaded."""

from mechvlm.datasets import coco as coco
from mechvlm.datasets import mme as mme
from mechvlm.datasets import pictures as pictures
from mechvlm.datasets import popvqa as popvqa

__all__ = ["coco", "mme", "pictures", "popvqa"]
