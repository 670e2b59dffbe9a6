# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Several views of one solution score each sampled token; its advantage is what they agree on, and of what only some of
them say as much as they agree. The sign is always that of the consensus. This is the published default; `avsd` is the
mode over whole distributions.

    L = -mean over t of sg(G_t + C_t R_t J_t) log p(y_t),  D^m = log q^m(y_t) - log p(y_t)
    G = mean_m D^m,  J = max(log mean_m exp(D^m) - G, 0),  C = |G| / mean_m |D^m|,  R = |G| / (|G| + J)

Views as in `avsd`. With a reward the verifier's advantages are added (`policy_weight`).

**Changed**: TRL's loss trains it, so that its clips and importance weights apply. Prompts are in our own words.

**Fails** where the views share a mistake of style: consensus is no proof. With one view it is plain distillation.
"""

import torch

from trl_opsd.losses.mixing import coherent_gap
from trl_opsd.methods.base import Method, TokenSignals
from trl_opsd.methods.papers.avsd import METHOD as AVSD


def advantages(signals: TokenSignals) -> torch.Tensor:
    """Advantages `(B, C)`: the verifier's own at tokens without a view."""
    return signals.advantages + signals.scale * coherent_gap(signals.gaps, signals.shares)


METHOD = Method(
    title=AVSD.title,
    paper=AVSD.paper,
    authors=AVSD.authors,
    label="code",
    needs=AVSD.needs,
    defaults={
        "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0,
        "teacher_model_kind": "base",
        "privileged_source": AVSD.defaults["privileged_source"],
    },
    advantages=advantages,
)
