# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Language model head: output weight, bias and logit scaling, as the kernels take them."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedModel

from trl_opsd.kernels import Head


def model_head(model: PreTrainedModel, float32: bool = False) -> Head:
    """Language model head with the logit scaling and soft cap of its model family, as TRL's fused head reads them."""
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


def check_head(model: PreTrainedModel) -> None:
    """
    Check that a model has a backbone of its own and a head that is a plain matrix.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model, under a PEFT wrapper if there is one.

    Raises:
        ValueError: If not.
    """
    name = type(model).__name__
    if model.base_model is model:
        raise ValueError(
            f"{name} has no backbone under the name {model.base_model_prefix!r} that its class gives, so its hidden "
            "states can't be read apart from its head. Use another class of its family that has one, or another family."
        )
    embedding = model.get_output_embeddings()
    weight = getattr(embedding, "weight", None)
    # A quantized head that is tied to the input embedding has that embedding's weight, which it can't multiply by
    quantized = type(embedding).__module__.startswith("bitsandbytes")
    if quantized or not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        kind = f"{type(embedding).__name__}" + ("" if weight is None else f" with a weight of type {weight.dtype}")
        raise ValueError(
            f"The output embeddings of {name} are no plain matrix ({kind}), and the fused head multiplies by their "
            "weight. Leave them out of quantization (`llm_int8_skip_modules=['lm_head']`) and, with the input "
            "embeddings where the two are tied, out of `trainable_token_indices`; `modules_to_save` trains them whole."
        )


def head_parameters(*heads: Head) -> list[nn.Parameter]:
    """Weights and biases of some heads that an engine may have sharded. The head of a copied teacher comes gathered and
    is no parameter."""
    tensors = [tensor for head in heads for tensor in (head.weight, head.bias)]
    return [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]


def gathered_head(head: Head) -> Head:
    """All-gathered head: plain tensors where FSDP2 leaves DTensors because the head is a unit of its own."""

    def full(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if not isinstance(tensor, DTensor):
            return tensor
        # Each rank holds the gradient of its own rows, and FSDP averages over ranks: without this placement the
        # gradient of the gathered weight would keep the local rank's contribution alone
        return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)

    return Head(full(head.weight), full(head.bias), head.scale, head.softcap, head.float32)
