# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Where privileged contexts come from. A source is a callable from groups of rollouts to the views of each rollout."""

from trl_opsd.privileged.asking import Asker, call, rollouts_of
from trl_opsd.privileged.base import Run, TextSource, chance
from trl_opsd.privileged.baselines import WithBaselines
from trl_opsd.privileged.column import DatasetColumn
from trl_opsd.privileged.compose import AllOf, Cached, FirstOf, When
from trl_opsd.privileged.controls import Empty, OtherRow, Shuffled, WrongDemonstration
from trl_opsd.privileged.critic import Critic
from trl_opsd.privileged.endpoint import EndpointAuthor
from trl_opsd.privileged.environment import EnvironmentFeedback
from trl_opsd.privileged.exposure import PartialExposure
from trl_opsd.privileged.feedback import VerifierFeedback
from trl_opsd.privileged.fixed import Fixed
from trl_opsd.privileged.hints import Rule, TurnHint
from trl_opsd.privileged.image import ImageView, with_images, without_images
from trl_opsd.privileged.model_author import ModelAuthor
from trl_opsd.privileged.named import build_condition, build_source
from trl_opsd.privileged.pseudo_reference import PseudoReference
from trl_opsd.privileged.reflection import Reflection
from trl_opsd.privileged.retrieval import Retrieval
from trl_opsd.privileged.sibling import SiblingSuccess
from trl_opsd.privileged.skills import Skills
from trl_opsd.privileged.written import Written


__all__ = [
    "AllOf",
    "Asker",
    "Cached",
    "Critic",
    "DatasetColumn",
    "Empty",
    "EndpointAuthor",
    "EnvironmentFeedback",
    "FirstOf",
    "Fixed",
    "ImageView",
    "ModelAuthor",
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
    "Written",
    "WrongDemonstration",
    "build_condition",
    "build_source",
    "call",
    "chance",
    "rollouts_of",
    "with_images",
    "without_images",
]
