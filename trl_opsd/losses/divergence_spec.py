# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`DivergenceSpec`: every option of the token-level distillation loss, checked when it is built."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from trl_opsd.losses.divergences import DIVERGENCES
from trl_opsd.losses.targets import TARGETS
from trl_opsd.options import Count, Positive, check_fields


TOPK_SOURCES = ("student", "teacher", "union")
ENTRY_CLIP_MODES = ("signed", "non_negative")
# What `alpha` alone means, as in TRL; between its ends it is the parameter of "jsd"
KL_OF_ALPHA = {0.0: "forward_kl", 1.0: "reverse_kl"}
LEAST_SHARE = 1e-6  # of `alpha` from an end; beside 1 float32 knows nothing below 6e-8


@dataclass(frozen=True)
class DivergenceSpec:
    """
    Options of the token-level distillation loss: a divergence, its support, its clips, and what a method adds.

    A plain value, so that it can pass through a wrapped model's forward. [`~trl_opsd.OPSDConfig`] has all options but
    the last three under the same names with `distillation_` before them.

    Args:
        divergence (`str`, *optional*): A name in `DIVERGENCES`: `"forward_kl"` KL(q||p), `"reverse_kl"` KL(p||q),
            `"jsd"` alpha KL(q||m) + (1 - alpha) KL(p||m), or `"skew_kl"` KL(q||m), of student p, teacher q and m = (1 -
            alpha) p + alpha q. `None`: `alpha` names it, 0 `"forward_kl"`, 1 `"reverse_kl"`, between them `"jsd"`.
        alpha (`float`): Parameter of a divergence that has one: weight of the teacher in the mixture m.
        temperature (`float`): Temperature of both distributions.
        teacher_temperature (`float`, *optional*): Temperature of the teacher's instead. Below that of the student it
            teaches a sharper distribution.
        view_divergences (`dict[str, str]`, *optional*): Divergences of single views by their names, such as `{"wrong":
            "reverse_kl"}`; the other views have `divergence`. A source that names its views by success thereby gives
            rollouts of one kind another divergence.
        topk (`int`, *optional*): Size of the top-k set of tokens that are compared. `None`: the whole vocabulary.
        topk_source (`str`): Whose most likely tokens form the set: `"student"`, `"teacher"`, or `"union"` for both.
        add_tail (`bool`): Whether the rest of the vocabulary is one more class. Otherwise the set is renormalised.
        stop_gradient (`bool`): Whether the set has neither, and the loss is the sum over it of p sg(log p/q), a form of
            the reverse KL.
        target (`str` or `Target`, *optional*): One target made of the views, a name in `TARGETS` or a function (see
            `losses/targets.py`). `None`: the mean of the divergences to each view.
        entry_clip (`float`, *optional*): Upper bound on what each class adds to the divergence.
        entry_clip_mode (`str`): Form of what is clipped: `"signed"` as in the formula, or `"non_negative"`, which sums
            to the same divergence.
        token_clip (`float`, *optional*): Upper bound on the loss of each token, which has no gradient beyond it.
        is_clip (`float`, *optional*): Upper bound on the importance weight p/p_old of each token.
        token_weight (`TokenWeight`, *optional*): A factor on each token's loss, from [`TokenStats`].
        needs_all_tokens (`bool`): Whether `token_weight` and `auxiliary_loss` must see all tokens of the micro-batch at
            once, for a quantile, say. That costs one more product of each head.
        auxiliary_loss (`AuxiliaryLoss`, *optional*): A loss of each token beside the divergence, from [`Tile`], with
            the same weights but for `token_weight`.

    Raises:
        ValueError: If an option has an impossible value, or two of them do not go together.
    """

    divergence: str | None = field(default=None, metadata={"choices": DIVERGENCES})
    alpha: float = 0.0
    temperature: Positive = 1.0
    teacher_temperature: Positive | None = None
    view_divergences: dict[str, str] | None = None
    topk: Count | None = None
    topk_source: str = field(default="student", metadata={"choices": TOPK_SOURCES})
    add_tail: bool = False
    stop_gradient: bool = False
    target: str | Callable[..., torch.Tensor] | None = field(default=None, metadata={"choices": TARGETS})
    entry_clip: Positive | None = None
    entry_clip_mode: str = field(default="signed", metadata={"choices": ENTRY_CLIP_MODES})
    token_clip: Positive | None = None
    is_clip: Positive | None = None
    token_weight: Callable[..., torch.Tensor] | None = None
    needs_all_tokens: bool = False
    auxiliary_loss: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        self._resolve_divergence()
        self._check_top_k()
        self._check_view_divergences()
        if self.entry_clip is None and self.entry_clip_mode != "signed":
            raise ValueError("`entry_clip_mode` is set, but `entry_clip` is None: set both.")

    @property
    def clip_reverses_signs(self) -> bool:
        """Whether the signed entry clip of the forward KL is the only clip: the gradient on a clipped entry then has
        the wrong sign (2609.38995), and the statistic `clipped` is the teacher's mass on these entries."""
        signed = self.entry_clip is not None and self.entry_clip_mode == "signed"
        return signed and self.divergence == "forward_kl" and self.token_clip is None

    def _resolve_divergence(self) -> None:
        """Name the divergence that `alpha` stands for, and check the parameter of a named one."""
        if self.divergence is None:
            if not 0.0 <= self.alpha <= 1.0:
                raise ValueError(f"`alpha` must be a finite number between 0 and 1, got {self.alpha!r}.")
            object.__setattr__(self, "divergence", KL_OF_ALPHA.get(self.alpha, "jsd"))
            if self.divergence != "jsd":
                object.__setattr__(self, "alpha", 0.0)  # it has said all that it says
        span = DIVERGENCES[self.divergence].alpha_range
        if span is None and self.alpha != 0.0:
            raise ValueError(
                f"`divergence={self.divergence!r}` has no parameter, so `alpha={self.alpha!r}` would do nothing: leave "
                "`alpha` out."
            )
        if span is not None and not span[0] < self.alpha < span[1]:
            raise ValueError(
                f"`divergence={self.divergence!r}` needs `alpha` between {span[0]:g} and {span[1]:g}, ends excluded, "
                f"got {self.alpha!r}."
            )
        if span is not None and min(self.alpha - span[0], span[1] - self.alpha) < LEAST_SHARE:
            raise ValueError(
                f"`alpha={self.alpha!r}` is so near an end that the divergence would be 0 in float32. Keep it "
                f"{LEAST_SHARE:g} away, or take a KL by `alpha=0.0` or `alpha=1.0`."
            )

    def of_view(self, name: str) -> "DivergenceSpec":
        """The spec with the divergence of a view, `NAME-2` and so on being of the family `NAME`."""
        given = self.view_divergences or {}
        divergence = given.get(name, given.get(re.sub(r"-\d+$", "", name)))
        if divergence is None:
            return self
        has_parameter = DIVERGENCES[divergence].alpha_range is not None
        return replace(self, divergence=divergence, alpha=self.alpha if has_parameter else 0.0, view_divergences=None)

    def _check_view_divergences(self) -> None:
        """Refuse divergences that no view can have, by building the spec of each."""
        if self.view_divergences and self.target is not None:
            raise ValueError(
                "`view_divergences` compares the student with each view, and `target` makes one distribution of all "
                "views: leave out one of them."
            )
        for name, divergence in (self.view_divergences or {}).items():
            if divergence not in DIVERGENCES:
                raise ValueError(
                    f"`view_divergences` gives the view {name!r} the divergence {divergence!r}: it must be one of "
                    f"{', '.join(DIVERGENCES)}."
                )
            self.of_view(name)

    def _check_top_k(self) -> None:
        stops = self.stop_gradient
        elsewhere = self.divergence != "reverse_kl" or self.topk is None
        if stops and (elsewhere or self.add_tail or self.entry_clip is not None):
            raise ValueError(
                "`stop_gradient` is a form of the reverse KL on a top-k set: it needs `divergence='reverse_kl'` (or "
                "`alpha=1.0`) and `topk`, and allows neither `add_tail` nor `entry_clip`."
            )
        if self.topk == 1 and not (self.add_tail or stops or self.topk_source == "union"):
            raise ValueError(
                "`topk=1` renormalised over one token is the same on both sides, so its divergence is always 0. Set "
                "`add_tail=True` or a larger `topk`."
            )
