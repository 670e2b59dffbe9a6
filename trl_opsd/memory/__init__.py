# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Memory calculator: bytes on each GPU of a training run by formulas, whether they fit, and what makes them fit."""

from trl_opsd.memory.formulas import ENGINES, PHASES, Part, Run, at, offloaded, parts, peak
from trl_opsd.memory.remedies import Change, Remedy, remedies
from trl_opsd.memory.shapes import MODELS, Shape, known_config
from trl_opsd.memory.verdict import BARELY, NO, YES, Verdict, gb, judge


__all__ = [
    "BARELY",
    "ENGINES",
    "MODELS",
    "NO",
    "PHASES",
    "YES",
    "Change",
    "Part",
    "Remedy",
    "Run",
    "Shape",
    "Verdict",
    "at",
    "gb",
    "judge",
    "known_config",
    "offloaded",
    "parts",
    "peak",
    "remedies",
]
