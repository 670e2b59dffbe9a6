# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Where privileged contexts come from. A source is a callable from rollouts to the views of each."""

from trl_opsd.privileged.column import DatasetColumn
from trl_opsd.privileged.prompts import check_context, teacher_prompt


__all__ = ["DatasetColumn", "check_context", "teacher_prompt"]
