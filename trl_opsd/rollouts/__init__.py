# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Plain data of sampling: rollouts in groups of one prompt, and the views that a source returns for them."""

from trl_opsd.rollouts.rollout import Group, Messages, Rollout, Turn
from trl_opsd.rollouts.view import PrivilegedSource, View


__all__ = ["Group", "Messages", "PrivilegedSource", "Rollout", "Turn", "View"]
