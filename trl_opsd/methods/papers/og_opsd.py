# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The outcome decides how a rollout learns from the teacher. A right one is pulled to all that the teacher would say (the
forward KL), a wrong one off what it would not say (the reverse KL). A wrong rollout learns only as long as the running
mean of the teacher's entropy does not rise.

    L = mean over t of KL(q_t || p_t) if y is right, of 1[t < c] KL(p_t || q_t) if it is wrong
    c = the first t > first with M_t > (1 + rise) min_{first <= s < t} M_s,  M_t = mean over s <= t of H(q_s)

Options: `first`, the tokens before which nothing is cut, and `rise`.

**Changed**: only an abstract and a list's line are known to us. The two divergences, the prefix of wrong rollouts and
the running mean are published; the rule that finds c is our reading, and so are both values. A token that is cut still
counts in the mean. Another source must name its views by success too.

**Fails** where success is a poor verdict: a right answer by a wrong way is imitated in full. A low `rise` cuts where
the teacher only comes to a choice.
"""

import torch

from trl_opsd.losses import TokenStats, TokenWeight
from trl_opsd.methods.base import Method, StepContext
from trl_opsd.options import Count, NonNegative


def trusted_prefix(entropy: torch.Tensor, first: int, rise: float) -> torch.Tensor:
    """
    Mask of the tokens before the running mean rises, `(n,)`.

    Args:
        entropy (`torch.Tensor` of shape `(n,)`): Teacher's entropy at the tokens of a rollout, in their order.
        first (`int`): Tokens that are always in it.
        rise (`float`): Rise above the lowest running mean so far, as a share of it.
    """
    means = entropy.cumsum(0) / torch.arange(1, len(entropy) + 1, device=entropy.device)
    late = means[first - 1 :]
    if not len(late):
        return torch.ones_like(entropy)
    risen = late > (1 + rise) * late.cummin(0).values
    return torch.cat([torch.ones_like(entropy[: first - 1]), (risen.cumsum(0) == 0).to(entropy)])


def token_weight(step_context: StepContext) -> TokenWeight:
    options, wrong = step_context.options, step_context.family("wrong")

    def factor(stats: TokenStats) -> torch.Tensor:
        kept = torch.ones_like(stats.teacher_entropy)
        for view in wrong:
            for row in stats.rows.unique():
                tokens = stats.taught[view] & (stats.rows == row)
                kept[view, tokens] = trusted_prefix(stats.teacher_entropy[view, tokens], **options)
        return kept

    return factor


def when(condition: str, name: str) -> dict:
    return {"when": {"condition": condition, "source": {"column": {"name": name}}}}


METHOD = Method(
    title="Outcome-Guided On-Policy Self-Distillation",
    paper="2610.05070",
    authors="ZheXu Wang and Mao-Lin Luo and Yankun Hong and Zi-Hao Zhou and Bo Ye and Jian Zhao and Xialiang Tong and "
    "Min-Ling Zhang and Tong Wei",
    label="proposed reading",
    needs="a reward, and a context in a column",
    reads_reward=True,
    reads_teacher_entropy=True,
    defaults={
        "distillation_alpha": 0.0,
        "distillation_view_divergences": {"wrong": "reverse_kl"},
        "policy_weight": 0.0,
        "teacher_model_kind": "base",
        "privileged_source": {"all_of": [when("succeeded", "right"), when("failed", "wrong")]},
    },
    options={"first": 16, "rise": 0.2},
    option_types={"first": Count, "rise": NonNegative},
    token_weight=token_weight,
    needs_all_tokens=True,
)
