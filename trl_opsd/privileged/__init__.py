# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Where privileged contexts come from. A source is a callable from groups of rollouts to the views of each rollout."""

from trl_opsd.privileged.asking import Asker, call, rollouts_of
from trl_opsd.privileged.base import Run, TextSource, chance
from trl_opsd.privileged.column import DatasetColumn
from trl_opsd.privileged.compose import AllOf, Cached, FirstOf, When
from trl_opsd.privileged.fixed import Fixed
from trl_opsd.privileged.image import ImageView, with_images, without_images
from trl_opsd.privileged.named import build_condition, build_source


__all__ = [
    "AllOf",
    "Asker",
    "Cached",
    "DatasetColumn",
    "FirstOf",
    "Fixed",
    "ImageView",
    "Run",
    "TextSource",
    "When",
    "build_condition",
    "build_source",
    "call",
    "chance",
    "rollouts_of",
    "with_images",
    "without_images",
]
