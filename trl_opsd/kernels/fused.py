# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The fused loss for whoever wants only the loss. Legend: N tokens, H hidden size, V vocabulary, K views."""

from dataclasses import dataclass

import torch

from trl_opsd.kernels.head import Head
from trl_opsd.kernels.inputs import LinearDivergenceInputs
from trl_opsd.kernels.linear_divergence import linear_divergence
from trl_opsd.losses import KINDS, TARGETS, DivergenceSpec


@dataclass(frozen=True)
class DivergenceStats:
    """
    What [`fused_linear_divergence`] saw of each token, without gradient, in nats at the temperature. Those that depend
    on the teacher have the shape `(N,)`, or `(K, N)` where the teacher's hidden states have three dimensions.

    Args:
        divergence (`torch.Tensor`): Divergence before any clip.
        loss (`torch.Tensor`): Divergence after all clips.
        student_logps, teacher_logps (`torch.Tensor`): Log-probability of the label; the student's is `(N,)`. `None`
            without labels.
        student_entropy, teacher_entropy (`torch.Tensor`): Entropies; the student's is `(N,)`.
        clipped (`torch.Tensor`): Teacher probability of the clipped entries, or 1 beyond the token clip.
        mass_p, mass_q (`torch.Tensor`): Student and teacher probability of the top-k set, 1 without one.
    """

    divergence: torch.Tensor
    loss: torch.Tensor
    student_logps: torch.Tensor | None
    teacher_logps: torch.Tensor | None
    student_entropy: torch.Tensor
    teacher_entropy: torch.Tensor
    clipped: torch.Tensor
    mass_p: torch.Tensor
    mass_q: torch.Tensor


def fused_linear_divergence(
    student_hidden: torch.Tensor,
    student_weight: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor | None = None,
    *,
    labels: torch.Tensor | None = None,
    token_weight: torch.Tensor | None = None,
    view_weight: torch.Tensor | None = None,
    kind: str = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    student_bias: torch.Tensor | None = None,
    teacher_bias: torch.Tensor | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    entry_clip: float | None = None,
    entry_clip_mode: str = "signed",
    token_clip: float | None = None,
    token_clip_mode: str = "hard",
    topk: int | None = None,
    topk_source: str = "student",
    add_tail: bool = False,
    stop_gradient: bool = False,
    mixture: str | None = None,
    chunk_size: int | None = None,
) -> tuple[torch.Tensor, DivergenceStats]:
    """
    Weighted sum over tokens of a divergence between teacher and student, from hidden states, without an (N, V) tensor.

    The gradient for the student's hidden states, weight and bias is formed in this call; backward only scales it. The
    teacher is constant. Statistics are float32 at least, whatever the type of the inputs.

    Args:
        student_hidden (`torch.Tensor` of shape `(N, H)`): Student hidden states.
        student_weight (`torch.Tensor` of shape `(V, H)`): Student head.
        teacher_hidden (`torch.Tensor` of shape `(N, H')` or `(K, N, H')`): Teacher hidden states, of one or K views.
        teacher_weight (`torch.Tensor` of shape `(V, H')`, *optional*): Teacher head, by default the student's with
            its bias.
        labels (`torch.Tensor` of shape `(N,)`, *optional*): Tokens whose log-probabilities are to be in the
            statistics.
        token_weight (`torch.Tensor` of shape `(N,)`, *optional*): Mask, weight and normaliser in one; by default 1 / N.
        view_weight (`torch.Tensor` of shape `(K,)` or `(K, N)`, *optional*): Share of each view; by default 1 / K.
        kind (`str`, *optional*, defaults to `"forward_kl"`): `"forward_kl"` KL(q||p), `"reverse_kl"` KL(p||q), `"jsd"`
            beta KL(q||m) + (1 - beta) KL(p||m), or `"skew_kl"` KL(q||m), of student p, teacher q and m = (1 - beta) p +
            beta q.
        beta (`float`, *optional*, defaults to `0.5`): Of `"jsd"` and `"skew_kl"`, between 0 and 1.
        temperature (`float`, *optional*, defaults to `1.0`): Of both distributions.
        student_bias, teacher_bias (`torch.Tensor` of shape `(V,)`, *optional*): Biases of the heads; -inf rules a token
            out.
        logit_scale (`float`, *optional*, defaults to `1.0`): Factor on both logits.
        logit_softcap (`float`, *optional*): Both logits become softcap * tanh(logits / softcap).
        entry_clip (`float`, *optional*): Upper bound on what each vocabulary entry adds, in the form of
            `entry_clip_mode`: `"signed"` as in the formulas, or `"non_negative"`.
        token_clip (`float`, *optional*): Upper bound on the loss of a token: `"hard"`, without gradient beyond it, or
            `"scale"`, with the gradient scaled down, by `token_clip_mode`.
        topk (`int`, *optional*): Compare only a set of the k most likely tokens of `topk_source`: `"student"`,
            `"teacher"` or `"union"`. Both sides are renormalised over it, or the rest is one more class (`add_tail`),
            or neither, and log(p/q) is held constant (`stop_gradient`, with `"reverse_kl"`).
        mixture (`str`, *optional*): Compare with one target, the `"arithmetic"` or `"geometric"` mean of the views. By
            default the divergences to the views are averaged.
        chunk_size (`int`, *optional*): Tokens whose logits are in memory at once; by default from a memory budget.

    Returns:
        The loss, a 0-d tensor, and [`DivergenceStats`].

    Raises:
        ValueError: If a shape or an option is impossible.

    Example:

    ```python
    loss, stats = fused_linear_divergence(student_hidden, model.lm_head.weight, teacher_hidden, kind="reverse_kl")
    loss.backward()
    ```
    """
    one_view = teacher_hidden.ndim == 2
    views = teacher_hidden.unsqueeze(0) if one_view else teacher_hidden
    spec = DivergenceSpec(
        kind=kind,
        beta=beta,
        temperature=temperature,
        topk=topk,
        topk_source=topk_source,
        add_tail=add_tail,
        stop_gradient=stop_gradient,
        entry_clip=entry_clip,
        entry_clip_mode=entry_clip_mode,
        token_clip=token_clip,
        token_clip_mode=token_clip_mode,
        target=mixture,
    )
    head = Head(student_weight, student_bias, logit_scale, logit_softcap)
    teacher = head if teacher_weight is None else Head(teacher_weight, teacher_bias, logit_scale, logit_softcap)
    if teacher_weight is None and teacher_bias is not None:
        raise ValueError("`teacher_bias` needs `teacher_weight`: without one, the teacher has the student's head.")
    _check_shapes(student_hidden, views, head, teacher, labels)
    _check_options(spec, len(student_weight), chunk_size)
    loss, stats = linear_divergence(
        student_hidden,
        LinearDivergenceInputs(
            head=head,
            teacher_hidden=views.detach(),
            teacher_heads=[teacher] * len(views),
            labels=student_hidden.new_zeros(len(student_hidden), dtype=torch.long) if labels is None else labels,
            weights=_weights(student_hidden, views, token_weight, view_weight),
            spec=spec,
            chunk_size=chunk_size,
        ),
    )
    if labels is None:
        stats = stats | {"student_logps": None, "teacher_logps": None}
    shaped = {
        name: value[0] if one_view and value is not None and value.ndim == 2 else value for name, value in stats.items()
    }
    return loss, DivergenceStats(**shaped)


def _weights(
    hidden: torch.Tensor, views: torch.Tensor, token_weight: torch.Tensor | None, view_weight: torch.Tensor | None
) -> torch.Tensor:
    """Factor on each token under each view, `(K, N)`."""
    (k, n), dtype = views.shape[:2], torch.promote_types(hidden.dtype, torch.float32)
    if token_weight is None:
        token_weight = hidden.new_full((n,), 1 / max(n, 1), dtype=dtype)
    if view_weight is None:
        view_weight = hidden.new_full((k,), 1 / max(k, 1), dtype=dtype)
    if token_weight.shape != (n,) or view_weight.shape not in ((k,), (k, n)):
        raise ValueError(
            f"`token_weight` must have the shape ({n},) and `view_weight` ({k},) or ({k}, {n}), got "
            f"{tuple(token_weight.shape)} and {tuple(view_weight.shape)}."
        )
    shares = view_weight.unsqueeze(1) if view_weight.ndim == 1 else view_weight
    return (token_weight.detach() * shares.detach()).to(dtype)


def _check_shapes(
    hidden: torch.Tensor, views: torch.Tensor, head: Head, teacher: Head, labels: torch.Tensor | None
) -> None:
    if hidden.ndim != 2 or views.ndim != 3 or views.shape[1] != hidden.shape[0] or not len(views):
        raise ValueError(
            "`student_hidden` must have the shape (N, H) and `teacher_hidden` (N, H') or (K, N, H') with the same N "
            f"and K > 0, got {tuple(hidden.shape)} and {tuple(views.shape)}."
        )
    vocabulary, sizes = len(head.weight), (hidden.shape[1], views.shape[2])
    if (head.weight.shape, teacher.weight.shape) != ((vocabulary, sizes[0]), (vocabulary, sizes[1])):
        raise ValueError(
            f"`student_weight` and `teacher_weight` must have the shapes (V, {sizes[0]}) and (V, {sizes[1]}) with the "
            f"same V, got {tuple(head.weight.shape)} and {tuple(teacher.weight.shape)}."
        )
    if labels is not None and labels.shape != hidden.shape[:1]:
        raise ValueError(f"`labels` must have the shape ({len(hidden)},), got {tuple(labels.shape)}.")


def _check_options(spec: DivergenceSpec, vocabulary: int, chunk_size: int | None) -> None:
    choices = {
        "kind": tuple(KINDS),
        "topk_source": ("student", "teacher", "union"),
        "entry_clip_mode": ("signed", "non_negative"),
        "token_clip_mode": ("hard", "scale"),
        "target": (None, *TARGETS),
    }
    for name, values in choices.items():
        if getattr(spec, name) not in values:
            called = "mixture" if name == "target" else name
            raise ValueError(f"`{called}` must be one of {list(values)}, got {getattr(spec, name)!r}.")
    if spec.kind in ("jsd", "skew_kl") and not 0 < spec.beta < 1:
        raise ValueError(f"`beta` must lie between 0 and 1 for {spec.kind!r}, got {spec.beta}.")
    for name, value in (("temperature", spec.temperature), ("chunk_size", chunk_size)):
        if value is not None and not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")
    if spec.topk is not None and not 0 < spec.topk <= vocabulary:
        raise ValueError(f"`topk` must lie between 1 and the vocabulary, {vocabulary}, got {spec.topk}.")
    elsewhere = spec.kind != "reverse_kl" or spec.topk is None
    if spec.stop_gradient and (elsewhere or spec.add_tail or spec.entry_clip is not None):
        raise ValueError(
            "`stop_gradient` is a form of the reverse KL on a top-k set: it needs `kind='reverse_kl'` and `topk`, and "
            "allows neither `add_tail` nor `entry_clip`."
        )
