# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Comparison of the fused head with the model's own logits, on a few tokens.

The fused head is a matrix with a bias, a factor and a soft cap. A family that does more before or after it (another
cap, a dense layer, a norm) has other distributions than those that would be compared and trained.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from trl.trainer.utils import maybe_gather_lm_head_ctx

from trl_opsd.kernels import Head
from trl_opsd.model.evaluation import rounding_step
from trl_opsd.model.head import gathered_head, model_head


_TOKENS = 8
# Root mean square of the hidden states that the head is tried on: a cap shows in large logits only
_SCALE = 100.0
# Logits may differ by so many of the type's steps, relative to the largest, and by so much in any case: matrix products
# in TF32 are less exact than float32 says
_STEPS, _LEAST = 4, 2e-3


@dataclass
class HeadCheckRequest:
    """
    Ask a model whether its logits are what the fused head makes of its last hidden states.

    Args:
        device (`torch.device`): Where the model reads.
        float32_head (`bool`): Whether the head runs in float32 (`cast_lm_head_to_fp32`).
    """

    device: torch.device
    float32_head: bool = False

    def model_inputs(self) -> dict[str, torch.Tensor]:
        """Inputs of the wrapped model: the first few tokens of the vocabulary."""
        ids = torch.arange(_TOKENS, device=self.device).unsqueeze(0)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def run(self, model: PreTrainedModel, inner: Any, args: tuple, kwargs: dict[str, Any]) -> ModelOutput:
        """
        Compare, and return the model's own logits of the first tokens of the vocabulary, for [`check_answers`].

        Raises:
            ValueError: If the logits differ by more than rounding explains.
        """
        inputs = self.model_inputs()  # and not `kwargs`, to which a prompt-learning adapter adds
        with _enlarged_hidden_states(model.base_model) as caught:
            logits = inner(**inputs, use_cache=False).logits[0]
        # Some families call a part of their backbone
        hidden = caught[-1] if caught else model.base_model(**inputs, use_cache=False).last_hidden_state
        head = model_head(model, self.float32_head)
        with maybe_gather_lm_head_ctx(head.weight, head.bias):
            fused = _projected(gathered_head(head).prepared(hidden), hidden[0])
        tolerance = max(_STEPS * rounding_step(model, hidden), _LEAST)
        problem = _difference(logits, fused, tolerance)
        if problem is not None:
            raise ValueError(
                f"The logits of {type(model).__name__} are not its output embeddings times its last hidden states, "
                f"with the factor and cap that its config names: {problem}. Its head has parts that the fused head "
                "does not know, so that other distributions than the model's would be trained. Use a model of another "
                "family."
            )
        return ModelOutput(logits=logits, steps=torch.tensor(rounding_step(model, hidden), device=logits.device))


def check_answers(student: ModelOutput, teacher: ModelOutput, equal: bool) -> None:
    """
    Check that a teacher has weights, and those that it should have, by what both sides' [`HeadCheckRequest`] gave.

    Args:
        student, teacher (`ModelOutput`): Their logits `(T, V)` on the same tokens, and the rounding of their type.
        equal (`bool`): Whether the teacher has the student's weights.

    Raises:
        ValueError: If it finds all tokens equally likely, or differs from a student with the same weights.
    """
    own, other = student.logits.float(), teacher.logits.float().to(student.logits.device)
    largest = own.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    if (other.amax(-1) - other.amin(-1)).max().item() <= 1e-6:
        raise ValueError(
            "The teacher finds every token equally likely, whatever it reads: its weights were not loaded. Check "
            "`teacher_model_name_or_path`, or the model where the teacher is a copy of it."
        )
    tolerance = max(_STEPS * float(student.steps), _STEPS * float(teacher.steps), _LEAST)
    if equal and not torch.allclose(own, other, rtol=0.0, atol=tolerance * largest, equal_nan=True):
        by = (own - other).abs().max().item() / max(largest, torch.finfo(torch.float32).tiny)
        raise ValueError(
            f"The teacher has the student's weights, and yet its logits on the same tokens differ by {by:.0%} of the "
            "largest: a divergence would not be that of the contexts. A forward of the model that is not the same "
            "twice, such as dropout in evaluation mode, does that. `teacher_self_test=False` trains all the same."
        )


@contextmanager
def _enlarged_hidden_states(backbone: nn.Module):
    """Catch the last hidden states of a backbone within this block, and pass them on enlarged."""
    caught: list[torch.Tensor] = []

    def enlarge(module: nn.Module, args: tuple, output: Any) -> None:
        hidden = output.last_hidden_state
        norm = hidden.float().square().mean().sqrt().clamp(min=1e-30)  # whose inverse is finite
        output.last_hidden_state = (hidden.float() * (_SCALE / norm)).to(hidden.dtype)
        caught.append(output.last_hidden_state)

    hook = backbone.register_forward_hook(enlarge)
    try:
        yield caught
    finally:
        hook.remove()


def _projected(head: Head, hidden: torch.Tensor) -> torch.Tensor | None:
    """Logits of a prepared head, `None` where the hidden states do not fit it."""
    if hidden.shape[-1] != head.weight.shape[1]:
        return None
    return head.transform(head.project(hidden.to(head.weight.device)))


def _difference(logits: torch.Tensor, fused: torch.Tensor | None, tolerance: float) -> str | None:
    """Difference of two sets of logits, `None` where it is within `tolerance` of the largest."""
    if fused is None or logits.shape != fused.shape:
        return "the shapes do not fit"
    logits = logits.to(fused)
    largest = fused.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    if torch.allclose(logits, fused, rtol=0.0, atol=tolerance * largest, equal_nan=True):
        return None
    return f"the two differ by up to {(logits - fused).abs().max().item() / largest:.0%} of the largest"
