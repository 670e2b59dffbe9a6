# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
A model that has learnt to revise its answers teaches itself to give the revised answer at once. The teacher reads the
student's own attempt y and a phrase that says whether a verifier accepts it, all as its own turn; then it scores y
again.

    L = mean over t of (1 - f) KL(p_t || q_t) + f KL(q_t || p_t),  q_t = base(. | x, y, P_r, y_<t),  r = 0 or 1

This is the second of two phases. In the first, self-revision training (SRT), the model continues its attempts after
P_r, right revisions are kept, and it is fine-tuned on x -> y P_r y' and on (x, y, P_r) -> y'. `trl-opsd phases sd_zero`
does both (docs/phases.md). Option: `forward` is f: 0 in the paper, 0.5 in the authors' code.

**Changed**: one fine-tuning on both kinds of rows, where the code has two in a row, and one revision of each attempt;
looping and flattering revisions are not dropped. Phrases are in our own words, and the attempt is tokenized anew.

With a top-k set, which the code has (the teacher's 64), the forward half is over the whole vocabulary. The renewal of
the teacher once it saturates is `teacher_model_kind: snapshot`.

**Fails** without the first phase: the phrases then mean little to the teacher (51 of 60 points in the paper), and with
models that think at length already.
"""

import torch

from trl_opsd.losses import AuxiliaryLoss, Tile, TokenWeight
from trl_opsd.methods.base import Method, StepContext
from trl_opsd.options import Share


def token_weight(step_context: StepContext) -> TokenWeight | None:
    forward = step_context.options["forward"]
    return None if forward == 0 else lambda stats: torch.full_like(stats.student_logps, 1 - forward)


def auxiliary_loss(step_context: StepContext) -> AuxiliaryLoss | None:
    forward = step_context.options["forward"]

    def forward_kl(tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
        """f KL(q || p), the mean over the views that teach a token, and its gradient f (p - q) on logits."""
        loss, gradient = torch.zeros_like(tile.log_p[:, 0]), torch.zeros_like(tile.log_p)
        count = tile.taught.sum(0).clamp(min=1)
        for log_q, taught in zip(tile.log_qs, tile.taught, strict=True):
            weight, q = forward * taught / count, log_q.exp()
            loss += weight * (q * (log_q - tile.log_p)).sum(-1)
            gradient += weight.unsqueeze(-1) * (tile.p - q)
        return loss, gradient

    return None if forward == 0 else forward_kl


METHOD = Method(
    title="SD-Zero",
    paper="2604.12002",
    label="code",
    needs="a reward, and a model that was fine-tuned to revise its answers",
    defaults={
        "policy_weight": 0.0,
        "distillation_alpha": 1.0,
        "teacher_model_kind": "base",
        "privileged_source": "self_revision",
    },
    options={"forward": 0.0},
    option_types={"forward": Share},
    token_weight=token_weight,
    auxiliary_loss=auxiliary_loss,
)
