# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The teacher reads a worked example of another problem in place of this one's solution. It can't copy the answer, so what
it teaches is how such problems are worked. Much of the gain of a true solution is kept, which tells how much of that
gain was ever the solution's.

    L = mean over t of KL(q_t || p_t),  q_t = base(. | x, x', y*', y_<t) with (x', y*') another row, drawn anew

**Changed**: only the abstract was read. Divergence and teacher are those of OPSD without its clip; how the example is
drawn (evenly among other prompts) and worded is ours: a proposed reading.

**Fails** where the rows have little in common, or where the model knows the manner already and lacks the knowledge. As
a control it is a baseline: a method on true solutions that does no better has not used them.
"""

from trl_opsd.methods.base import Method


TEMPLATE = "Here is a worked example of another problem:\n\n{privileged_context}\n\nNow work on the problem above."

METHOD = Method(
    title="OP2SD",
    paper="2608.09228",
    label="proposed reading",
    needs="solutions in a column",
    defaults={
        "distillation_alpha": 0.0,
        "teacher_model_kind": "base",
        "privileged_source": {"other_row": {"with_problem": True, "template": TEMPLATE}},
    },
)
