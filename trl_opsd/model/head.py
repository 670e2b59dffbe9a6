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
