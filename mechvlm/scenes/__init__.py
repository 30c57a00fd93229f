"""Synthetic scenes that carry their truth: pictures, masks, boxes, questions, facts."""

from mechvlm.scenes.asked import Question
from mechvlm.scenes.counterfactual import CHANGES, Counterfactual, counterfactual
from mechvlm.scenes.entities import (
    FACT_QUESTIONS,
    FACT_SENTENCES,
    IN_PICTURE,
    NAMES,
    RELATIONS,
    VALUES,
    fact,
    never_taught_by_picture,
    taught_by_picture,
)
from mechvlm.scenes.questions import KINDS, question, questions
from mechvlm.scenes.sampling import MAX_THINGS, sample, sample_scene, twin
from mechvlm.scenes.scene import Scene, arrange
from mechvlm.scenes.world import (
    CELL_PX,
    COLORS,
    COLUMNS,
    GRID,
    IMAGE_PX,
    NUMBERS,
    PLURALS,
    ROWS,
    SHAPES,
    SIZES,
    Emblem,
    Thing,
    place,
)

__all__ = [
    "CELL_PX",
    "CHANGES",
    "COLORS",
    "COLUMNS",
    "FACT_QUESTIONS",
    "FACT_SENTENCES",
    "GRID",
    "IMAGE_PX",
    "IN_PICTURE",
    "KINDS",
    "MAX_THINGS",
    "NAMES",
    "NUMBERS",
    "PLURALS",
    "RELATIONS",
    "ROWS",
    "SHAPES",
    "SIZES",
    "VALUES",
    "Counterfactual",
    "Emblem",
    "Question",
    "Scene",
    "Thing",
    "arrange",
    "counterfactual",
    "fact",
    "never_taught_by_picture",
    "place",
    "question",
    "questions",
    "sample",
    "sample_scene",
    "taught_by_picture",
    "twin",
]
