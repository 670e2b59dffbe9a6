# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The teacher: which weights answer, how they follow the student, where they are."""

from trl_opsd.teacher.teacher import Teacher


__all__ = ["Teacher"]
