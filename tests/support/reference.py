# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The distillation loss written down once more, dense and in float64, from its formulas. Gradients are autograd's.

It shares nothing with the library but the field names of `DivergenceSpec`. Legend: N tokens, V vocabulary, K views,
C classes (tokens, or those of a top-k set and perhaps its tail); p student, q teacher.
"""

import math
from dataclasses import replace

import torch


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits - torch.logsumexp(logits, -1, keepdim=True)


def _weighted_log(weight: torch.Tensor, log_a: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
    """weight * (log a - log b). 0 with zero gradient where `log_a` is -inf, +inf where only `log_b` is."""
    absent, infinite = log_a == -torch.inf, (log_b == -torch.inf) & (log_a > -torch.inf)
    # Filled before the product, so that autograd never multiplies 0 by inf
    log_a, log_b = log_a.masked_fill(absent | infinite, 0.0), log_b.masked_fill(absent | infinite, 0.0)
    terms = weight.masked_fill(absent | infinite, 0.0) * (log_a - log_b)
    return terms.masked_fill(infinite, torch.inf)


def entries(log_p: torch.Tensor, log_q: torch.Tensor, spec, mode: str = "signed") -> torch.Tensor:
    """What each class adds to the divergence, `(N, C)`."""
    p, q, alpha = log_p.exp(), log_q.exp(), spec.alpha
    if spec.divergence == "forward_kl":
        correction = p - q if mode == "non_negative" else 0.0
        return _weighted_log(q, log_q, log_p) + correction
    if spec.divergence == "reverse_kl":
        correction = q - p if mode == "non_negative" else 0.0
        # The stop-gradient form differentiates the first factor alone
        ratio = (log_p.detach(), log_q.detach()) if spec.stop_gradient else (log_p, log_q)
        return _weighted_log(p, *ratio) + correction
    # log m with m = (1 - alpha) p + alpha q, where both may be absent
    both = torch.stack([log_p + math.log(1 - alpha), log_q + math.log(alpha)])
    nowhere = (both == -torch.inf).all(0)
    log_m = torch.logsumexp(both.masked_fill(nowhere, 0.0), 0).masked_fill(nowhere, -torch.inf)
    if spec.divergence == "skew_kl":
        correction = (1 - alpha) * (p - q) if mode == "non_negative" else 0.0
        return _weighted_log(q, log_q, log_m) + correction
    return alpha * _weighted_log(q, log_q, log_m) + (1 - alpha) * _weighted_log(p, log_p, log_m)


def teacher_temperature(spec) -> float:
    return spec.temperature if spec.teacher_temperature is None else spec.teacher_temperature


def classes(log_p: torch.Tensor, log_q: torch.Tensor, spec) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of student and teacher on the classes, `(N, C)`, and the mask of the top-k set, `(N, V)`."""
    inside = torch.ones_like(log_p, dtype=torch.bool)
    if spec.topk is None:
        return log_p, log_q, inside
    sources = {"student": [log_p], "teacher": [log_q], "union": [log_p, log_q]}[spec.topk_source]
    inside = torch.zeros_like(inside)
    for source in sources:
        inside |= torch.zeros_like(inside).scatter(
            1, source.detach().argsort(-1, descending=True)[:, : spec.topk], True
        )
    # The set's tokens in front; where rows differ in its size, the rest of the longest is ruled out
    order = inside.int().argsort(dim=-1, descending=True, stable=True)[:, : max(inside.sum(-1).tolist(), default=0)]
    on_set = []
    for log_probs in (log_p, log_q):
        chosen = log_probs.gather(1, order).masked_fill(~inside.gather(1, order), -torch.inf)
        if not spec.add_tail:
            on_set.append(chosen if spec.stop_gradient else _log_softmax(chosen))
            continue
        rest = log_probs.masked_fill(inside, -torch.inf)
        empty = (rest == -torch.inf).all(-1, keepdim=True)
        tail = torch.logsumexp(rest.masked_fill(empty, 0.0), -1, keepdim=True).masked_fill(empty, -torch.inf)
        on_set.append(torch.cat([chosen, tail], 1))
    return on_set[0], on_set[1], inside


def token_losses(logits: torch.Tensor, teacher_logits: torch.Tensor, spec) -> dict[str, torch.Tensor]:
    """
    Loss of each token, `(N,)`, differentiable in the logits `(N, V)`, and what is recorded beside it.

    The values of a loss that a finite `token_clip` bounds are exact also where the divergence is infinite.
    """
    log_p = _log_softmax(logits.double() / spec.temperature)
    log_q = _log_softmax(teacher_logits.detach().double() / teacher_temperature(spec))
    classes_p, classes_q, inside = classes(log_p, log_q, spec)
    divergence = loss = entries(classes_p, classes_q, spec).sum(-1)
    clipped = torch.zeros_like(loss)
    if spec.entry_clip is not None:
        terms = entries(classes_p, classes_q, spec, spec.entry_clip_mode)
        clipped = (classes_q.exp() * (terms > spec.entry_clip)).sum(-1)
        loss = terms.clamp(max=spec.entry_clip).sum(-1)
    if spec.token_clip is not None:
        over = loss.detach() > spec.token_clip
        loss = loss.clamp(max=spec.token_clip)
        clipped = torch.where(over, 1.0, clipped)
    return {
        "loss": loss,
        "divergence": divergence.detach(),
        "clipped": clipped.detach(),
        "mass_p": (log_p.exp() * inside).sum(-1).detach(),
        "mass_q": (log_q.exp() * inside).sum(-1).detach(),
        "log_p": log_p,
        "log_q": log_q,
    }


def head_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: float, softcap: float | None
) -> torch.Tensor:
    """Logits `(N, V)` of a head with a scale and a soft-cap."""
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    logits = scale * logits
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _entropy(log_probs: torch.Tensor) -> torch.Tensor:
    return -(log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0.0)).sum(-1)


def mean_target(teacher_logits: list[torch.Tensor], shares: torch.Tensor, spec) -> torch.Tensor:
    """Logits whose distribution at the temperature is the mean of the views', with shares `(K, N)`."""
    temperature = teacher_temperature(spec)
    log_qs = torch.stack([_log_softmax(logits.detach().double() / temperature) for logits in teacher_logits])
    shares = shares.unsqueeze(-1)
    if spec.target == "arithmetic":
        return (shares.log() + log_qs).logsumexp(0) * temperature
    # A view without share says nothing, also where it rules a token out
    return torch.where(shares > 0, shares * log_qs, 0.0).sum(0) * temperature


def view_shares(weights: torch.Tensor) -> torch.Tensor:
    """Share of each view in its token, `(K, N)`: of its weight, or alike where no view has one."""
    total = weights.sum(0)
    return torch.where(total > 0, weights / total, 1 / len(weights))


def policy_loss(logits: torch.Tensor, labels: torch.Tensor, loss, temperature: float) -> torch.Tensor:
    """`loss` of the labels' log-probabilities and the entropies at a temperature, differentiable in `logits`."""
    log_p = _log_softmax(logits.double() / temperature)
    return loss(log_p[torch.arange(len(labels)), labels], _entropy(log_p))


def dense_loss(
    logits: torch.Tensor,
    teacher_logits: list[torch.Tensor],
    labels: torch.Tensor,
    weights: torch.Tensor,
    spec,
    old_logps: torch.Tensor | None = None,
    names: str = "abcdef",
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Weighted sum over tokens and views, differentiable in `logits`, and the statistics of the fused loss.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`): The student's.
        teacher_logits (`list[torch.Tensor]`): The teacher's, `(N, V)` for each view.
        labels (`torch.Tensor` of shape `(N,)`): Sampled tokens.
        weights (`torch.Tensor` of shape `(K, N)`): Factor on each token under each view.
        spec: Options of the loss.
        old_logps (`torch.Tensor` of shape `(N,)`, *optional*): For the importance weight.
        names (`str`): Names of the views, of one letter each.
    """
    picked = torch.arange(len(labels)), labels
    student = _log_softmax(logits.double() / spec.temperature).detach()
    importance = torch.ones(len(labels), dtype=torch.float64)
    if spec.is_clip is not None and old_logps is not None:
        gap = (student[picked] - old_logps.double()).clip(-20, 20)
        importance = torch.minimum(gap.exp(), torch.tensor(spec.is_clip, dtype=torch.float64))
    if spec.target is None:
        targets = teacher_logits
    else:
        shares = view_shares(weights.double())
        targets = [mean_target(teacher_logits, shares, spec)] * len(teacher_logits)
    given = spec.view_divergences or {}
    specs = [replace(spec, divergence=given.get(name, spec.divergence), view_divergences=None) for name in names]
    views = [token_losses(logits, *of_view) for of_view in zip(targets, specs, strict=False)]
    own = [_log_softmax(teacher.detach().double() / teacher_temperature(spec)) for teacher in teacher_logits]
    total = sum((view["loss"] * weights[k].double() * importance).sum() for k, view in enumerate(views))
    stats = {
        name: torch.stack([view[name].detach() for view in views])
        for name in ("loss", "divergence", "clipped", *(() if spec.topk is None else ("mass_p", "mass_q")))
    }
    stats["teacher_logps"] = torch.stack([log_q[picked] for log_q in own])
    stats["teacher_entropy"] = torch.stack([_entropy(log_q) for log_q in own])
    stats["student_logps"] = student[picked]
    stats["student_entropy"] = _entropy(student)
    return total, stats
