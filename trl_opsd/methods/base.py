# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Definition of a self-distillation method: config defaults, a privileged source, and hooks into the loss.

Legend: B rows of a micro-batch, C completion tokens, K views, M distilled tokens, V vocabulary, H hidden size; p
student, q teacher; y the sampled token.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from trl_opsd.batches.roles import Roles
from trl_opsd.deprecated import renamed_arguments, renamed_attribute
from trl_opsd.losses import AuxiliaryLoss, Target, TokenWeight
from trl_opsd.losses.method_types import HiddenStateLoss
from trl_opsd.options import check_option, kind_of
from trl_opsd.rollouts.rollout import ROLES, Group
from trl_opsd.rollouts.step_summary import State, StepSummary


@dataclass(frozen=True)
class StepContext:
    """
    Step-level inputs of a method: active views, its options, training progress and persistent state.

    Args:
        views (`list[str]`): Names of the K views, the same on every process, in the order of every tensor here.
        options (`dict[str, Any]`): The method's own options.
        step (`int`): Optimizer steps that are done.
        progress (`float`): Share of the training that is done, from 0 to 1.
        state (`dict[str, float]`): Values that `Method.update_state` returned.
    """

    views: list[str]
    options: dict[str, Any]
    step: int = 0
    progress: float = 0.0
    state: State = field(default_factory=dict)

    def view(self, name: str) -> int:
        """
        Index of a view among the K.

        Raises:
            ValueError: If no rollout of the batch has such a view. So ask where there are tokens to score: within the
                function that is given a tile.
        """
        if name not in self.views:
            raise ValueError(
                f"The method needs a view named {name!r}, and the source gave {self.views}. Name a source's views with "
                "its option `name`."
            )
        return self.views.index(name)

    def family(self, name: str) -> list[int]:
        """Indices of the views `name`, or `name-1`, `name-2` and so on; empty if no rollout of the batch has one."""
        return [i for i, view in enumerate(self.views) if view == name or view.startswith(f"{name}-")]


@dataclass(frozen=True)
class TokenSignals:
    """
    Per-token inputs of a method's advantages for a micro-batch. Nothing of it has a gradient; logarithms are natural,
    at the sampling temperature.

    Args:
        step_context ([`StepContext`]): Step-level inputs.
        teacher_logps, teacher_entropy (`torch.Tensor` of shape `(K, B, C)`): log q(y) and entropy of q under each view,
            0 where a token is not distilled.
        student_logps, student_entropy (`torch.Tensor` of shape `(B, C)`): log p(y) and entropy of p.
        old_logps (`torch.Tensor` of shape `(B, C)`, *optional*): log p(y) when the token was sampled.
        shares (`torch.Tensor` of shape `(K, B, C)`): Share of each view at each token, 0 where it does not teach it.
        mask (`torch.Tensor` of shape `(B, C)`): 1 at distilled tokens.
        loss_mask (`torch.Tensor` of shape `(B, C)`): 1 at all tokens that the model wrote.
        advantages (`torch.Tensor` of shape `(B, 1)`): The verifier's advantages, times `policy_weight`.
        success, group_success_rate (`torch.Tensor` of shape `(B, 1)`): Whether the rollout had success, as 0 or 1, and
            the share of its group's rollouts that had.
        turns (`torch.Tensor` of shape `(B, C)`): Number of the turn that a token is of, from 0, and -1 where the model
            did not write it.
        scale (`torch.Tensor`, 0-d): Factor on a gap beside the verifier's advantages, so that TRL's mean over all
            tokens (or rows) is `distillation_weight` times the mean over the distilled ones.
        roles ([`~trl_opsd.batches.roles.Roles`], *optional*): Roles of the rows under `turns`, for [`role`],
            [`token_scale`] and [`row_scale`].
    """

    step_context: StepContext
    teacher_logps: torch.Tensor
    teacher_entropy: torch.Tensor
    student_logps: torch.Tensor
    student_entropy: torch.Tensor
    old_logps: torch.Tensor | None
    shares: torch.Tensor
    mask: torch.Tensor
    loss_mask: torch.Tensor
    advantages: torch.Tensor
    success: torch.Tensor
    group_success_rate: torch.Tensor
    turns: torch.Tensor
    scale: torch.Tensor
    roles: Roles | None = None

    moment = renamed_attribute("TokenSignals", "moment", "step_context")

    @property
    def options(self) -> dict[str, Any]:
        """Options of the method."""
        return self.step_context.options

    def role(self, name: str) -> torch.Tensor:
        """1 in rows of a role under `turns`, else 0, `(B, 1)`. Without turns all rows are `first`."""
        if self.roles is None:
            return torch.full_like(self.advantages, float(name == "first"))
        return self.roles.rows_of(name).to(self.advantages.dtype)

    def token_scale(self, name: str) -> torch.Tensor:
        """[`scale`] for a mean over the tokens of the rows of a role, 0-d. With `loss_type: dapo`."""
        return self.scale if self.roles is None else self.scale * self.roles.token_scale(name)

    def row_scale(self, name: str) -> torch.Tensor:
        """[`scale`] for a mean over the rows of a role of sums over their tokens, 0-d. With `loss_type: dapo`."""
        if self.roles is None:
            raise ValueError(f"`row_scale({name!r})` counts the rows of a role, and the run has no `turns`.")
        return self.scale * self.roles.row_scale(name)

    @property
    def group_success(self) -> torch.Tensor:
        """Whether any rollout of the group had success, `(B, 1)`, as 0 or 1."""
        return (self.group_success_rate > 0).to(self.success)

    @property
    def gap(self) -> torch.Tensor:
        """Gap log q(y) - log p(y), `(B, C)`, the mean over the views that teach the token, 0 where none does."""
        return (self.shares * (self.teacher_logps - self.student_logps)).sum(0)

    @property
    def gaps(self) -> torch.Tensor:
        """Gap log q(y) - log p(y) under each view, `(K, B, C)`, 0 where it does not teach the token."""
        return (self.teacher_logps - self.student_logps) * self.taught

    @property
    def taught(self) -> torch.Tensor:
        """Mask of the tokens that each view teaches, `(K, B, C)`."""
        return (self.shares > 0).to(self.shares.dtype)


@renamed_arguments(
    weigh="token_weight",
    weigh_at_once="needs_all_tokens",
    extra="auxiliary_loss",
    hidden="hidden_state_loss",
    follow="update_state",
    refresh="should_sync_teacher",
)
@dataclass(frozen=True)
class Method:
    """
    Self-distillation method: one of a paper, or one of your own. A file of `trl_opsd/methods/papers` holds one, as
    `METHOD`; the file's docstring is its entry in the docs.

    Args:
        title (`str`): Title of the paper, or the name of a method of your own.
        paper (`str`): arXiv number of the paper, or its address if it has none. Empty for a method of your own.
        authors (`str`): Authors, joined by "and" as in BibTeX. Empty if they are not known to us.
        label (`str`): Evidence for the implementation: `"own"` (a method of your own), `"paper"` (the paper's formulas,
            read there or in a close reading of it by others), `"code"` (code was read: the authors', or a copy or
            re-implementation of it) or `"proposed reading"` (too little is published).
        needs (`str`): What a user must bring, in a few words.
        needs_reward (`bool`): Whether it makes no sense without a reward.
        reads_reward (`bool`): Whether a schedule looks at rewards: they must be given, though the policy term may be
            off.
        reads_teacher_entropy (`bool`): Whether it looks at the entropy of the teacher's distribution, which a teacher
            on a server can't tell (it is `nan` there): such a run is refused.
        required (`tuple[str]`): Views, by name or as `NAME-1` and so on, that a rollout must have to be distilled: one
            that lacks any has no views at all.
        defaults (`dict[str, Any]`): Values of [`OPSDConfig`] if the user gives none, the source among them.
        options (`dict[str, Any]`): The method's own options with their defaults, which `method_options` changes.
        option_types (`dict[str, Any]`): Kinds and ranges of these options, as annotations of [`trl_opsd.options`]. An
            option without one takes values like its default.
        advantages (`Callable[[TokenSignals], torch.Tensor]`, *optional*): The advantages of shape `(B, C)` for TRL's
            loss, in place of the verifier's plus the gap. Needs `distillation_mode="sampled_token"` and no divergence.
        target (`Callable[[StepContext], Target]`, *optional*): Target distribution, made of the views.
        token_weight (`Callable[[StepContext], TokenWeight]`, *optional*): A factor on the divergence of each token.
            The function may return `None`, for none; so may that of `auxiliary_loss`.
        needs_all_tokens (`bool`): Whether that and `auxiliary_loss` must see all tokens of a micro-batch at once. It
            costs a product of each head.
        micro_batch_statistics (`bool`): Whether what it makes of a token depends on other rows of the micro-batch, by a
            mean, a quantile or a rank, say. Rows then stay in the micro-batches that TRL cuts. Otherwise they are dealt
            anew within an optimizer step, by length.
        auxiliary_loss (`Callable[[StepContext], AuxiliaryLoss]`, *optional*): A loss of each token beside the
            divergence.
        hidden_state_loss (`Callable[[StepContext], HiddenStateLoss]`, *optional*): A loss of hidden states.
        distillation_weight (`Callable[[StepContext], float]`, *optional*): A factor on the weight of the distillation
            at a step, from progress and state.
        roles (`tuple[str]`): Roles that `turns` must deal, see docs/turns.md.
        credit (`Callable[[list[Group], StepContext], list[list[float]]]`, *optional*): Advantages of the rollouts of
            whole groups, in place of TRL's, in training. Needs the policy term or `distillation_mode="sampled_token"`.
        metrics (`Callable[[TokenSignals], dict[str, tuple[torch.Tensor, torch.Tensor]]]`, *optional*): Sums and counts
            of a micro-batch by name, always the same names. Their means are logged as `self_distillation/NAME`, and a
            step's are in `StepSummary.logged`. With `distillation_mode="sampled_token"`.
        state (`dict[str, float]`): Initial state.
        update_state (`Callable[[StepSummary], dict[str, float]]`, *optional*): State after each step. It is saved with
            each checkpoint.
        should_sync_teacher (`Callable[[dict[str, float]], bool]`, *optional*): Gate of a `snapshot` teacher: whether it
            is renewed, asked every `teacher_sync_steps` steps.
    """

    title: str
    paper: str = ""
    label: str = "own"
    authors: str = ""
    needs: str = ""
    needs_reward: bool = False
    reads_reward: bool = False
    reads_teacher_entropy: bool = False
    required: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    option_types: dict[str, Any] = field(default_factory=dict)
    advantages: Callable[[TokenSignals], torch.Tensor] | None = None
    target: Callable[[StepContext], Target] | None = None
    token_weight: Callable[[StepContext], TokenWeight | None] | None = None
    needs_all_tokens: bool = False
    micro_batch_statistics: bool = False
    auxiliary_loss: Callable[[StepContext], AuxiliaryLoss | None] | None = None
    hidden_state_loss: Callable[[StepContext], HiddenStateLoss] | None = None
    distillation_weight: Callable[[StepContext], float] | None = None
    roles: tuple[str, ...] = ()
    credit: Callable[[list[Group], StepContext], list[list[float]]] | None = None
    metrics: Callable[[TokenSignals], dict[str, tuple[torch.Tensor, torch.Tensor]]] | None = None
    state: State = field(default_factory=dict)
    update_state: Callable[[StepSummary], State] | None = None
    should_sync_teacher: Callable[[State], bool] | None = None

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise ValueError(f"`label` must be one of {list(LABELS)}, got {self.label!r}.")
        if self.label != "own" and not self.paper:
            raise ValueError(f"The label {self.label!r} speaks of a paper: give it as `paper`, or leave out `label`.")
        if unknown := set(self.roles) - set(ROLES):
            raise ValueError(f"`roles` names {sorted(unknown)}; the roles are {list(ROLES)}.")
        if unknown := self.option_types.keys() - self.options.keys():
            raise ValueError(f"`option_types` names {sorted(unknown)}, which `options` does not have.")
        for option, default in self.options.items():
            check_option(f"options.{option}", default, self.type_of(option))

    def type_of(self, option: str) -> Any:
        """Kind and range of an option."""
        return self.option_types.get(option, kind_of(self.options[option]))

    @property
    def on_arxiv(self) -> bool:
        return re.fullmatch(r"\d{4}\.\d{5}", self.paper) is not None

    @property
    def bibtex(self) -> str:
        """BibTeX entry for the model card."""
        first = self.authors.split(" and ")[0].split()[-1] if self.authors else ""
        words = first + "".join(self.title.split()[:2])
        plain = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
        key = re.sub(r"\W", "", plain).lower()
        year = f"20{self.paper[:2]}" if self.on_arxiv else "2026"
        source = f"eprint       = {{arXiv:{self.paper}}}" if self.on_arxiv else f"url          = {{{self.paper}}}"
        lines = [f"title        = {{{{{self.title}}}}}", f"year         = {year}", source]
        if self.authors:
            lines.insert(1, f"author       = {{{self.authors}}}")
        kind = "article" if self.on_arxiv else "misc"
        return f"@{kind}{{{key}{year},\n" + "".join(f"    {line},\n" for line in lines) + "}"


LABELS = ("own", "paper", "code", "proposed reading")
