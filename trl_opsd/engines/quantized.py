# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Models in 4 or 8 bits (bitsandbytes), the base of QLoRA: what training them needs beside what TRL and PEFT do."""

from typing import Any

from torch import nn


def is_quantized(model: Any, quantization_config: Any | None, init_kwargs: dict[str, Any] | None) -> bool:
    """
    Whether a model is quantized, or will be when it is loaded.

    Args:
        model (`str` or `nn.Module`): The model, or where to load it from.
        quantization_config (`BitsAndBytesConfig`, *optional*): With which to load it.
        init_kwargs (`dict[str, Any]`, *optional*): Keyword arguments for loading it.
    """
    if isinstance(model, str):
        return quantization_config is not None or (init_kwargs or {}).get("quantization_config") is not None
    return bool(getattr(model, "is_quantized", False))


def check_generation(use_vllm: bool) -> None:
    """
    Refuse vLLM as the sampler of a quantized model.

    Raises:
        ValueError: If vLLM samples.
    """
    if use_vllm:
        raise ValueError(
            "`use_vllm=True` does not go with a model in 4 or 8 bits: at each sync TRL merges the adapter into the "
            "quantized weights and takes it out again, each of which rounds them anew, so that the frozen base model "
            "drifts; and vLLM does not take the packed weights (trl#4973). Leave `use_vllm` out, or `load_in_4bit` "
            "and `load_in_8bit`."
        )


def keep_unpacked_on_cpu(model: nn.Module) -> None:
    """
    Keep 4-bit weights on a CPU in the form through which gradients pass.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 packs a layer's weight anew in the first forward without gradient, which
    is that of the generation. The product with a packed weight has no backward: a layer with a bias then raises, and
    through others no gradient passes to what lies below, without a word. Its values are others too, of scales in
    bfloat16.

    Args:
        model (`nn.Module`): A model that is trained, or its teacher.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
            if module.weight.device.type == "cpu":
                module.state_dict()  # unpacks a weight that has been used
