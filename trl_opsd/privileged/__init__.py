# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Where privileged contexts come from. A source is a callable from groups of rollouts to the views of each rollout."""

from trl_opsd.privileged.asking import Asker, call, rollouts_of
from trl_opsd.privileged.base import Run, TextSource, chance
from trl_opsd.privileged.baselines import WithBaselines
from trl_opsd.privileged.column import DatasetColumn
from trl_opsd.privileged.compose import AllOf, Cached, FirstOf, When
from trl_opsd.privileged.controls import Empty, OtherRow, Shuffled, WrongDemonstration
from trl_opsd.privileged.environment import EnvironmentFeedback
from trl_opsd.privileged.exposure import PartialExposure
from trl_opsd.privileged.feedback import VerifierFeedback
from trl_opsd.privileged.fixed import Fixed
from trl_opsd.privileged.hints import Rule, TurnHint
from trl_opsd.privileged.image import ImageView, with_images, without_images
from trl_opsd.privileged.named import build_condition, build_source
from trl_opsd.privileged.pseudo_reference import PseudoReference
from trl_opsd.privileged.reflection import Reflection
from trl_opsd.privileged.retrieval import Retrieval
from trl_opsd.privileged.sibling import SiblingSuccess
from trl_opsd.privileged.skills import Skills


__all__ = [
    "AllOf",
    "Asker",
    "Cached",
    "DatasetColumn",
    "Empty",
    "EnvironmentFeedback",
    "FirstOf",
    "Fixed",
    "ImageView",
    "OtherRow",
    "PartialExposure",
    "PseudoReference",
    "Reflection",
    "Retrieval",
    "Rule",
    "Run",
    "Shuffled",
    "SiblingSuccess",
    "Skills",
    "TextSource",
    "TurnHint",
    "VerifierFeedback",
    "When",
    "WithBaselines",
    "WrongDemonstration",
    "build_condition",
    "build_source",
    "call",
    "chance",
    "rollouts_of",
    "with_images",
    "without_images",
]
