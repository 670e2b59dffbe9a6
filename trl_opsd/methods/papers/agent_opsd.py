# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Credit by turn for agents. The gaps of a turn's tokens are one piece of evidence that the rollout will succeed, and a
belief in success follows the evidence. A turn that moves it the way that things then went gets more of the verifier's
advantage.

    e_k = sum_{t in turn k} Delta_t,  c_k = gamma c_{k-1} + e_k,  B_k = sigmoid(logit(B_0) + c_k)
    q_k = sign(A) (B_k - B_{k-1}),  z_k = (q_k - mean q) / std q
    A_t = A [(1 - lambda) + lambda clip(1 + b z_k, 1 - b, 1 + b)],  t in turn k

B_0 is the share of the group's rollouts with success, within 0.001 of 0 and 1. Options: `share` (lambda), `bound` (b)
and `decay` (gamma). Mean and std are over the turns of a rollout; a single turn keeps the verifier's advantage.

**Changed**: read in two close readings of the paper. The standard deviation is that of all turns, and 1e-6 is added to
it; neither was said. Skills stand in a column, or come from a source such as `skills`.

**Fails** where a turn's evidence is noise: credit is standardised within a rollout, so that the smallest revisions get
the whole span of b. Groups whose rewards are all the same teach nothing.
"""

import torch

from trl_opsd.losses.token_signals import at_tokens, turn_sums
from trl_opsd.methods.base import Method, TokenSignals
from trl_opsd.options import Share


def revisions(evidence: torch.Tensor, prior: torch.Tensor, decay: float) -> torch.Tensor:
    """
    Change of the belief in success at each turn, `(B, T)`.

    Args:
        evidence (`torch.Tensor` of shape `(B, T)`): Sum of the gaps of each turn.
        prior (`torch.Tensor` of shape `(B, 1)`): Belief before the first turn.
        decay (`float`): Factor on the earlier evidence at each turn.
    """
    logit, known, beliefs = prior.logit(), torch.zeros_like(prior), [prior.logit().sigmoid()]
    for turn in evidence.unbind(1):
        known = decay * known + turn.unsqueeze(1)
        beliefs.append((logit + known).sigmoid())
    return torch.cat(beliefs, dim=1).diff(dim=1)


def advantages(signals: TokenSignals) -> torch.Tensor:
    """Advantages `(B, C)`: the verifier's own in rollouts of one turn, and in those without a teacher."""
    options, turns, verifier = signals.options, signals.turns, signals.advantages
    prior = signals.group_success_rate.clamp(1e-3, 1 - 1e-3)
    exists = turn_sums(torch.ones_like(signals.gap), turns) > 0  # (B, T)
    credit = verifier.sign() * revisions(turn_sums(signals.gap, turns), prior, options["decay"]) * exists
    count = exists.sum(1, keepdim=True).clamp(min=1)
    centred = (credit - credit.sum(1, keepdim=True) / count) * exists
    deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
    factor = (1 + options["bound"] * centred / (deviation + 1e-6)).clamp(1 - options["bound"], 1 + options["bound"])
    return verifier * (1 + options["share"] * at_tokens(factor - 1, turns))


METHOD = Method(
    title="AgentOPSD: Recursive Self-Distillation for Agentic Reinforcement Learning",
    paper="2608.05987",
    authors="Zi-Han Wang and Zhengxi Lu and Zhiyuan Yao and Jinyang Wu and Jie Wu and Zhengzhou Cai and Yueqing Sun "
    "and Ziang Ye and Linji Hao and Qi Gu and Xunliang Cai and Yongliang Shen and Yujiu Yang",
    label="paper",
    needs="a reward, an agent's task with several turns, and skills in a column",
    needs_reward=True,
    defaults={"distillation_mode": "sampled_token", "distillation_alpha": 1.0, "teacher_model_kind": "live"},
    options={"share": 0.5, "bound": 0.2, "decay": 0.95},
    option_types={"share": Share, "bound": Share, "decay": Share},
    advantages=advantages,
)
