# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The teacher: kinds of teacher, storage of their weights, updates and checkpoint state."""

from trl_opsd.teacher.kinds import TEACHER_KINDS
from trl_opsd.teacher.teacher import Teacher


__all__ = ["TEACHER_KINDS", "Teacher"]
