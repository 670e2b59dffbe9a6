# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Former home of [`trl_opsd.privileged.guided`], kept for recipes of version 0.1; it goes in 0.3."""

import warnings

from trl_opsd.privileged.guided import GuidedRollouts, guided_rollouts


__all__ = ["GuidedRollouts", "guided_rollouts"]

warnings.warn("`trl_opsd.guided` is now `trl_opsd.privileged.guided`.", FutureWarning, stacklevel=2)
