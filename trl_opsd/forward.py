# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
What runs inside the wrapped model's forward.

The head is used where the backbone ran, inside the forward of the DDP, ZeRO-3 or FSDP2 wrapper, so that its weight is
gathered and its gradient reduced like any other. [`add_distillation_forward`] patches `model.forward` once more, on top
of TRL's fused head, to understand one more keyword, `distillation=`: a [`TeacherPass`] or a [`StudentPass`].

Legend: B rows, T tokens of prompt and completion, C completion tokens, H hidden size, K views.
"""

import functools
import types
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from trl_opsd.kernels import Head, linear_divergence
from trl_opsd.losses import DivergenceSpec


# Model inputs beside ids and mask that TRL's forward takes from a batch
MODALITIES = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


@dataclass
class DistilledOutput(FusedCausalLMOutput):
    """
    TRL's output of the fused head with the distillation loss beside it.

    Args:
        distillation_loss (`torch.Tensor`, 0-d): Weighted sum over tokens and views. It is part of the output, not only
            kept aside, because DDP finds the parameters of a forward through its outputs.
        distillation_stats (`dict[str, torch.Tensor]`): See [`~trl_opsd.kernels.linear_divergence`], scattered to
            `(K, B, C)` and `(B, C)`, zero where a token is not distilled.
    """

    distillation_loss: torch.Tensor | None = None
    distillation_stats: dict[str, torch.Tensor] | None = None


@dataclass
class TeacherPass:
    """
    Ask a model for the hidden states `(B, C, H)` that predict the last C tokens, without its head.

    Args:
        completion_length (`int`): C.
    """

    completion_length: int

    def run(self, model: PreTrainedModel, inner: Any, args: tuple, kwargs: dict[str, Any]) -> BaseModelOutput:
        hidden = _backbone(model, args, kwargs)
        # Position i predicts token i + 1; TRL's head does the same shift
        return BaseModelOutput(last_hidden_state=hidden[:, -self.completion_length - 1 : -1])


@dataclass
class StudentPass:
    """
    Ask for the distillation loss beside (or instead of) TRL's log-probabilities, from one run of the backbone.

    Args:
        spec ([`~trl_opsd.losses.DivergenceSpec`]): What is compared and how.
        teacher_hidden (`list[torch.Tensor]`): Of each view: hidden states of shape `(B, C, H)`.
        teacher_head (`Callable`): Gives the teacher's [`~trl_opsd.kernels.Head`], or `None` for the student's own, when
            called inside the forward.
        weights (`torch.Tensor` of shape `(K, B, C)`): Factor on each token's loss under each view.
        old_logps (`torch.Tensor` of shape `(B, C)`, *optional*): Log-probabilities at sampling time.
        policy_head (`bool`): Whether TRL's head runs too, for log-probabilities with gradient. Without it, the output
            carries those of the distilled tokens from the same pass, without gradient.
        float32_head (`bool`): Whether the head runs in float32 (`cast_lm_head_to_fp32`).
    """

    spec: DivergenceSpec
    teacher_hidden: list[torch.Tensor]
    teacher_head: Callable[[], Head | None]
    weights: torch.Tensor
    old_logps: torch.Tensor | None = None
    policy_head: bool = True
    float32_head: bool = False

    def run(self, model: PreTrainedModel, inner: Any, args: tuple, kwargs: dict[str, Any]) -> DistilledOutput:
        if self.policy_head:
            with _caught_hidden_states(model) as caught:
                output = dict(inner(*args, **kwargs))
            hidden = caught[0]
        else:
            hidden = _backbone(model, args, kwargs)
            output = {}
        length = self.weights.shape[-1]
        loss, stats = self._divergence(model, hidden[:, -length - 1 : -1], kwargs["labels"][:, -length:])
        if not self.policy_head:
            output = {"log_probs": stats["student_logps"], "entropy": stats["student_entropy"]}
        return DistilledOutput(**output, distillation_loss=loss, distillation_stats=stats)

    def _divergence(
        self, model: PreTrainedModel, hidden: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and statistics of the tokens that weigh something; the rest of the batch costs no head."""
        student = model_head(model, self.float32_head)
        device = student.weight.device
        selected = (self.weights != 0).any(0).to(device)  # (B, C)
        teacher = self.teacher_head() or student
        with maybe_gather_lm_head_ctx(student.weight, student.bias, teacher.weight, teacher.bias):
            student, teacher = _local(student), _local(teacher)
            vocabulary = min(student.weight.shape[0], teacher.weight.shape[0])
            loss, stats = linear_divergence(
                hidden.to(device)[selected],
                student.cut(vocabulary),
                torch.stack([states.to(device)[selected] for states in self.teacher_hidden]),
                teacher.cut(vocabulary),
                labels.to(device)[selected],
                self.weights.to(device)[:, selected],
                self.spec,
                None if self.old_logps is None else self.old_logps.to(device)[selected],
            )
        return loss, {name: _scatter(value, selected) for name, value in stats.items()}


def _scatter(values: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
    """Values of the selected tokens, `(..., N)`, back at their places, `(..., B, C)`, 0 elsewhere."""
    scattered = values.new_zeros((*values.shape[:-1], *selected.shape))
    scattered[..., selected] = values
    return scattered


def _local(head: Head) -> Head:
    """The head with plain tensors: FSDP2 leaves a DTensor where the head is a unit of its own."""

    def full(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if not isinstance(tensor, DTensor):
            return tensor
        # Each rank holds the gradient of its own rows, and FSDP averages over ranks: without this placement the
        # gradient of the gathered weight would keep the local rank's contribution alone
        return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)

    return Head(full(head.weight), full(head.bias), head.scale, head.softcap, head.float32)


def model_head(model: PreTrainedModel, float32: bool = False) -> Head:
    """The head of a causal language model with what its family does to the logits, as TRL's fused head reads it."""
    config = model.config.get_text_config()
    embedding = model.get_output_embeddings()
    scale = 1.0
    # Cohere, Muse Glimmer and Falcon-H1 multiply; Granite and MiniCPM3 divide by `logits_scaling`, HyperCLOVA X
    # multiplies by it
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling"):
        value = getattr(config, name, None)
        if value is not None:
            divides = name == "logits_scaling" and config.model_type != "hyperclovax"
            scale = 1 / value if divides else value
            break
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(embedding.weight, embedding.bias, scale, softcap, float32)


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


def add_distillation_forward(model: PreTrainedModel) -> None:
    """
    Let `model(..., distillation=request)` answer a [`TeacherPass`] or a [`StudentPass`]; without it nothing changes.

    Call it after TRL's `add_fused_lm_head` and before any wrapping, on the model under a PEFT wrapper.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model to patch.
    """
    inner = model.forward

    # Keep the original signature: `generate` validates its model kwargs against it
    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *args: Any, distillation: Any = None, **kwargs: Any) -> Any:
        if distillation is None:
            return inner(*args, **kwargs)
        return distillation.run(self, inner, args, kwargs)

    model.forward = types.MethodType(forward, model)


@dataclass
class ObservedForward:
    """
    Stands in for the model in TRL's loss: adds `distillation=request` to its one student forward and keeps the output.

    Args:
        model (`torch.nn.Module`): The wrapped model.
        request ([`StudentPass`], *optional*): What to compute beside TRL's log-probabilities.
        on_output (`Callable`, *optional*): Called with the output before TRL sees it.
        output ([`DistilledOutput`]): What the forward returned.
    """

    model: torch.nn.Module
    request: StudentPass | None = None
    on_output: Callable[[Any], None] | None = None
    output: DistilledOutput | None = field(default=None)

    def __call__(self, **kwargs: Any) -> Any:
        if self.request is not None:
            kwargs["distillation"] = self.request
        self.output = self.model(**kwargs)
        if self.on_output is not None:
            self.on_output(self.output)
        return self.output
