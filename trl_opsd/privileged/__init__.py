# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Sources of privileged contexts: callables from groups of rollouts to the views of each rollout."""

import warnings
from collections.abc import Callable
from typing import Any

from trl_opsd.deprecated import deprecated_names
from trl_opsd.privileged.asking import Asker, call, rollouts_of
from trl_opsd.privileged.authors.endpoint import EndpointAuthor
from trl_opsd.privileged.authors.model_author import ModelAuthor
from trl_opsd.privileged.base import Run, Source, TextSource, as_source, rollout_rng
from trl_opsd.privileged.baselines import WithBaselines
from trl_opsd.privileged.checks import source_name
from trl_opsd.privileged.compose import AllOf, FirstOf, When
from trl_opsd.privileged.named import build_condition, build_source
from trl_opsd.privileged.sources.bare import Bare
from trl_opsd.privileged.sources.column import DatasetColumn
from trl_opsd.privileged.sources.controls import Empty, OtherRow, Shuffled, WrongDemonstration
from trl_opsd.privileged.sources.critic import Critic
from trl_opsd.privileged.sources.environment import EnvironmentFeedback
from trl_opsd.privileged.sources.exposure import PartialExposure
from trl_opsd.privileged.sources.feedback import VerifierFeedback
from trl_opsd.privileged.sources.fixed import Fixed
from trl_opsd.privileged.sources.hints import Rule, TurnHint
from trl_opsd.privileged.sources.image import ImageView, with_images, without_images
from trl_opsd.privileged.sources.pseudo_reference import PseudoReference
from trl_opsd.privileged.sources.reflection import Reflection
from trl_opsd.privileged.sources.retrieval import Retrieval
from trl_opsd.privileged.sources.sibling import SiblingSuccess
from trl_opsd.privileged.sources.skills import Skills
from trl_opsd.privileged.sources.written import Written


__all__ = [
    "AllOf",
    "Asker",
    "Bare",
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
    "Source",
    "TextSource",
    "TurnHint",
    "VerifierFeedback",
    "When",
    "WithBaselines",
    "Written",
    "WrongDemonstration",
    "as_source",
    "build_condition",
    "build_source",
    "call",
    "rollout_rng",
    "rollouts_of",
    "with_images",
    "without_images",
]

__getattr__ = deprecated_names(__name__, {"chance": "trl_opsd.privileged.rollout_rng"})


def together(run: Run, work: Callable[[], Any], source: Any) -> Any:
    """Deprecated: use `with run.raise_on_all_ranks(name):` around the work."""
    warnings.warn("`together` is now `run.raise_on_all_ranks(name)`, a context.", FutureWarning, stacklevel=2)
    with run.raise_on_all_ranks(source_name(source)):
        return work()
