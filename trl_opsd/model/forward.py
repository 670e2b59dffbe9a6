# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Requests that a model answers inside its wrapped forward.

The head is used where the backbone ran, inside the forward of the DDP, ZeRO-3 or FSDP2 wrapper, so that its weight is
gathered and its gradient reduced like any other. `patch.py` patches `model.forward` once more, on top of TRL's fused
head, to understand one more keyword, `distillation=`: a [`TeacherRequest`] or a [`StudentRequest`].

One forward of the student serves the policy loss and the distillation loss. TRL's loss wants a model to call, so it is
called from within that forward, by four callbacks, one in the other:

    OPSDTrainer._compute_loss
      objective.request             makes a StudentRequest; its `policy` is TRL's loss as a function of an output
      TRL's _get_per_token_logps    builds the model inputs and calls [1] ObservedForward, which adds the request
        wrapped model, patched forward
          StudentRequest.run        backbone: hidden states
            linear_divergence       log-probabilities and entropies of the sampled tokens
              [2] PolicyTerm.loss   scatters them to (B, C)
                [3] request.policy  weighs the policy loss; in sampled-token mode it makes the advantages of tokens
                  [4] TRL's loss    its "model" is a function that returns the output it is given
            linear_divergence       gradients of both losses on the logits, in one pass over the head
      trainer                       the loss, whose backward finds the gradients formed

Legend: B rows, T tokens of prompt and completion, C completion tokens, M distilled tokens of the B rows, R rows that
the teacher reads, H hidden size, K views.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from trl_opsd.batches.teacher_batch import Outputs, TeacherBatch
from trl_opsd.kernels import (
    Head,
    KnownTokens,
    LinearDivergenceInputs,
    PolicyTerm,
    label_scores,
    linear_divergence,
    top_tokens,
)
from trl_opsd.losses import DivergenceSpec
from trl_opsd.losses.method_types import HiddenStateLoss
from trl_opsd.model.head import gathered_head, head_parameters, model_head
from trl_opsd.model.shared_prefix import hidden_after_prefix


# Teacher's outputs, at `tokens` of its batch: hidden states of shape `(T, H)`, or log-probabilities and entropies of
# shape `(T,)`. A function, as no wrapper looks into one: accelerate would raise tensors in a container to float32, and
# DeepSpeed warns of other objects. They need no gradient.
TeacherOutput = Callable[[], Outputs]


@dataclass
class DistilledOutput(FusedCausalLMOutput):
    """
    TRL's output of the fused head, where `loss` is what is trained: policy and distillation loss. It is part of the
    output, not only kept aside, because DDP finds the parameters of a forward through its outputs.

    Args:
        distillation_stats (`dict[str, torch.Tensor]`): See [`~trl_opsd.kernels.linear_divergence`], scattered to
            `(K, B, C)` and `(B, C)`, zero where a token is not distilled.
    """

    distillation_stats: dict[str, torch.Tensor] | None = None


@dataclass
class TeacherRequest:
    """
    Ask a model for the hidden states that predict the completions, or for what its head makes of them.

    Args:
        batch ([`~trl_opsd.batches.teacher_batch.TeacherBatch`]): What to read.
        score_temperature (`float`, *optional*): Ask for log-probabilities of the completion's tokens, and entropies, at
            this temperature.
        float32_head (`bool`): Whether the head runs in float32 (`cast_lm_head_to_fp32`).
        with_hidden (`bool`): Whether the hidden states are wanted beside those scores.
        for_head_alone (`bool`): Whether only a head reads the hidden states. They are then in the type of its products
            where that is the narrower one, as under autocast.
        chunk_size (`int`, *optional*): Tokens that pass the head at once.
    """

    batch: TeacherBatch
    score_temperature: float | None = None
    with_hidden: bool = False
    float32_head: bool = False
    for_head_alone: bool = False
    chunk_size: int | None = None

    def model_inputs(self) -> dict[str, torch.Tensor]:
        """Inputs of the wrapped model. With a shared prefix, `run` does its own calls of the backbone."""
        if self.batch.share_prefix:
            return {"input_ids": self.batch.prompt_ids, "attention_mask": self.batch.prompt_mask}
        return self.batch.model_inputs()

    def run(self, model: PreTrainedModel, inner: Any, args: tuple, kwargs: dict[str, Any]) -> TeacherOutput:
        batch, length = self.batch, self.batch.completion_ids.shape[1]
        if batch.share_prefix:
            prompts = kwargs["input_ids"], kwargs["attention_mask"], batch.prompt_of
            completions = batch.completion_ids, batch.completion_mask
            hidden = hidden_after_prefix(model.base_model, *prompts, *completions, kwargs.get("position_ids"))
        else:
            # Position i predicts token i + 1; TRL's head does the same shift
            hidden = _backbone(model, args, kwargs)[:, -length - 1 : -1]
        hidden = hidden.flatten(0, 1)[batch.tokens.to(hidden.device)]
        head = model_head(model, self.float32_head)
        if self.score_temperature is None:
            dtype = head.compute_dtype(hidden) if self.for_head_alone else hidden.dtype
            hidden = hidden.to(dtype) if dtype.itemsize < hidden.dtype.itemsize else hidden
            return lambda: (hidden,)
        device = head.weight.device
        with maybe_gather_lm_head_ctx(head.weight, head.bias):
            hidden, labels = hidden.to(device), batch.completion_ids.flatten()[batch.tokens].to(device)
            prepared = gathered_head(head).prepared(hidden)
            scores = label_scores(prepared, hidden, labels, self.score_temperature, self.chunk_size)
        return lambda: (*scores, hidden) if self.with_hidden else scores


@dataclass
class TopTokensRequest:
    """
    Ask for the likeliest tokens of both sides, beside a loss.

    Args:
        index (`torch.Tensor` of shape `(R,)`): Tokens, counted along the rows of the completions, `(B, C)`.
        teacher_hidden (`torch.Tensor` of shape `(K, R, H')`): Hidden states of each view there.
        live (`Sequence[bool]` of length K): Views that the student's own weights read.
        count (`int`): Tokens of a list.
        temperature, teacher_temperature (`float`): Of the student's and of the teacher's distributions.
    """

    index: torch.Tensor
    teacher_hidden: torch.Tensor
    live: Sequence[bool]
    count: int
    temperature: float
    teacher_temperature: float

    def run(self, hidden: torch.Tensor, own: Head, other: Head) -> dict[str, torch.Tensor]:
        """Result of [`~trl_opsd.kernels.top_tokens`], from the student's hidden states `(B * C, H)` and both heads."""
        device = hidden.device
        heads = [own if live else other for live in self.live]
        chosen = hidden.detach()[self.index.to(device)]
        return top_tokens(
            chosen, own, self.teacher_hidden.to(device), heads, self.count, self.temperature, self.teacher_temperature
        )


@dataclass
class StudentRequest:
    """
    Ask for the loss, from one run of the backbone and one pass over the head.

    Args:
        spec ([`~trl_opsd.losses.DivergenceSpec`]): What is compared and how.
        view_specs (`Sequence[DivergenceSpec]` of length K, *optional*): The same for each view, where they differ.
        index (`torch.Tensor` of shape `(M,)`): Distilled tokens, counted along the rows of the completions, `(B, C)`.
        teacher_hidden (`torch.Tensor` of shape `(K, M, H')`): Hidden states of each view there.
        teacher_head (`Callable`): Gives the teacher's [`~trl_opsd.kernels.Head`], or `None` for the student's own, when
            called inside the forward.
        live (`Sequence[bool]` of length K, *optional*): Views that the student's own weights read, with its own head.
        weights (`torch.Tensor` of shape `(K, M)`): Factor on each token's loss under each view.
        completion_length (`int`): C.
        known ([`~trl_opsd.kernels.KnownTokens`], *optional*): What a server tells of the teacher, in place of hidden
            states and heads.
        old_logps (`torch.Tensor` of shape `(M,)`, *optional*): Log-probabilities at sampling time.
        relative_positions, turns (`torch.Tensor` of shape `(M,)`, *optional*): As in [`~trl_opsd.losses.TokenStats`].
        hidden_state_loss (`HiddenStateLoss`, *optional*): A loss of hidden states, with gradient to the student's `(M,
            H)`, from those of the teacher, `(K, M, H)`, and `weights`.
        policy (`Callable[[FusedCausalLMOutput], torch.Tensor]`, *optional*): Gives the policy loss from TRL's output,
            with `log_probs` and `entropy` of shape `(B, C)` in it. It runs inside the forward: its gradient passes the
            head together with that of the distillation loss.
        temperature (`float`): Temperature of those log-probabilities.
        float32_head (`bool`): Whether the head runs in float32 (`cast_lm_head_to_fp32`).
        chunk_size (`int`, *optional*): Tokens that pass the head at once.
        stats (`dict[str, torch.Tensor]`): Statistics that do not come from this pass.
        top ([`TopTokensRequest`], *optional*): Likeliest tokens to tell beside the statistics.
    """

    spec: DivergenceSpec
    index: torch.Tensor
    teacher_hidden: torch.Tensor
    teacher_head: Callable[[], Head | None]
    weights: torch.Tensor
    completion_length: int
    known: KnownTokens | None = None
    live: Sequence[bool] = ()
    view_specs: Sequence[DivergenceSpec] | None = None
    relative_positions: torch.Tensor | None = None
    turns: torch.Tensor | None = None
    hidden_state_loss: HiddenStateLoss | None = None
    old_logps: torch.Tensor | None = None
    policy: Callable[[FusedCausalLMOutput], torch.Tensor] | None = None
    temperature: float = 1.0
    float32_head: bool = False
    chunk_size: int | None = None
    stats: dict[str, torch.Tensor] = field(default_factory=dict)
    top: TopTokensRequest | None = None

    def run(self, model: PreTrainedModel, inner: Any, args: tuple, kwargs: dict[str, Any]) -> DistilledOutput:
        hidden, aux_loss = self._backbone(model, inner, args, kwargs)
        length = self.completion_length
        loss, stats, top = self._loss(model, hidden[:, -length - 1 : -1], kwargs["labels"][:, -length:], aux_loss)
        stats = (stats if len(self.weights) else {}) | top  # of a view, if there is one
        # TRL asks for log-probabilities; it has had them where it needs them, in the policy loss
        logps = loss.new_zeros(len(hidden), length)
        return DistilledOutput(loss=loss, log_probs=logps, aux_loss=aux_loss, distillation_stats=stats)

    @staticmethod
    def _backbone(
        model: PreTrainedModel, inner: Any, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Last hidden states, and the load-balancing loss where TRL asks for one."""
        if not kwargs.get("output_router_logits"):
            return _backbone(model, args, kwargs), None
        # TRL's own forward computes that loss, and its head has no token to score
        kwargs = kwargs | {"labels": torch.full_like(kwargs["labels"], -100)}
        with _caught_hidden_states(model) as caught:
            aux_loss = inner(*args, **kwargs).aux_loss
        return caught[0], aux_loss

    def _loss(
        self, model: PreTrainedModel, hidden: torch.Tensor, labels: torch.Tensor, aux_loss: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Loss, statistics and likeliest tokens from hidden states `(B, C, H)`. Tokens that nobody trains cost no
        head."""
        teacher = self.teacher_head()
        student = model_head(model, self.float32_head)
        teacher = teacher or student
        device, shape = student.weight.device, labels.shape
        labels, index = labels.to(device).flatten(), self.index.to(device)
        first = index
        if self.policy is not None:  # the other tokens of the policy term follow the distilled ones
            others = (labels != -100).index_fill(0, index, False)
            index = torch.cat([index, others.nonzero().squeeze(1)])
        with maybe_gather_lm_head_ctx(*head_parameters(student, teacher)):
            own = gathered_head(student)
            other = own if teacher is student else gathered_head(teacher)
            vocabulary = min(own.weight.shape[0], other.weight.shape[0])
            task = LinearDivergenceInputs(
                head=own.cut(vocabulary),
                teacher_hidden=self.teacher_hidden.to(device),
                teacher_heads=self._heads(own.cut(vocabulary), other.cut(vocabulary)),
                known=None if self.known is None else self.known.to(device),
                labels=labels[index],
                weights=self.weights.to(device),
                spec=self.spec,
                view_specs=self.view_specs,
                old_logps=None if self.old_logps is None else self.old_logps.to(device),
                relative_positions=None if self.relative_positions is None else self.relative_positions.to(device),
                turns=None if self.turns is None else self.turns.to(device),
                rows=torch.div(first, shape[1], rounding_mode="floor"),
                policy=None if self.policy is None else self._policy_term(index, shape, aux_loss),
                chunk_size=self.chunk_size,
            )
            flat = hidden.to(device).flatten(0, 1)
            chosen = flat[index]
            loss, stats = linear_divergence(chosen, task)
            top = self.top.run(flat, own.cut(vocabulary), other.cut(vocabulary)) if self.top else {}
        if self.hidden_state_loss is not None:
            loss = loss + self.hidden_state_loss(chosen[: len(first)], task.teacher_hidden, task.weights)
        return loss, {name: _scatter(value, first, shape) for name, value in stats.items()}, top

    def _heads(self, own: Head, other: Head) -> list[Head]:
        if self.known is not None:
            return []
        return [own if live else other for live in self.live or [False] * len(self.weights)]

    def _policy_term(self, index: torch.Tensor, shape: torch.Size, aux_loss: torch.Tensor | None) -> PolicyTerm:
        def loss(logps: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
            per_token = {"log_probs": _scatter(logps, index, shape), "entropy": _scatter(entropy, index, shape)}
            # Detached, as only the gradient on the tokens is taken here
            return self.policy(
                FusedCausalLMOutput(**per_token, aux_loss=None if aux_loss is None else aux_loss.detach())
            )

        return PolicyTerm(loss, self.temperature)


def _scatter(values: torch.Tensor, index: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Values of the tokens `index`, `(..., N)`, at their places in a batch, `(..., B, C)`, 0 elsewhere."""
    scattered = values.new_zeros((*values.shape[:-1], shape.numel())).index_copy(-1, index, values)
    return scattered.unflatten(-1, shape)


def _backbone(model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """Last hidden states `(B, T, H)` of the model without its head."""
    ignored = ("labels", "fused_lm_head", "use_cache")
    kwargs = {name: value for name, value in kwargs.items() if name not in ignored}
    return model.base_model(*args, **kwargs, use_cache=False).last_hidden_state


@contextmanager
def _caught_hidden_states(model: PreTrainedModel):
    """Catch the backbone's last hidden states while TRL's own forward runs it, with their gradient."""
    caught: list[torch.Tensor] = []
    hook = model.base_model.register_forward_hook(lambda module, args, output: caught.append(output.last_hidden_state))
    try:
        yield caught
    finally:
        hook.remove()


@dataclass
class ObservedForward:
    """
    Stands in for the model where TRL builds its inputs: adds `distillation=request` and keeps the output.

    Args:
        model (`torch.nn.Module`): The wrapped model.
        request ([`StudentRequest`]): What to compute.
        output ([`DistilledOutput`]): What the forward returned.
    """

    model: torch.nn.Module
    request: StudentRequest
    output: DistilledOutput | None = field(default=None)

    def __call__(self, **kwargs: Any) -> Any:
        self.output = self.model(**kwargs, distillation=self.request)
        return self.output
