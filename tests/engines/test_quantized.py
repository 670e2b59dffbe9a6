# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""4-bit weights that bitsandbytes has packed for inference on a CPU: unpacked, they pass gradients again."""

import pytest
import torch

from trl_opsd.engines.quantized import is_quantized, keep_unpacked_on_cpu


bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes, which quantizes, is not installed")


def test_a_layer_that_was_used_is_unpacked():
    layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32).to("cpu").eval()
    if not getattr(layer, "support_avx512bf16_for_cpu", False):
        pytest.skip("bitsandbytes packs on CPUs with AVX512-BF16 alone")
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    inputs = torch.randn(3, 64)
    with torch.no_grad():
        layer(inputs)
    assert layer.weight.quant_state.packing_format_for_cpu
    keep_unpacked_on_cpu(torch.nn.Sequential(layer))
    with torch.no_grad():
        layer(inputs)
    inputs.requires_grad_()
    output = layer(inputs)
    # The scales were in bfloat16 while it was packed
    torch.testing.assert_close(output, inputs @ weight.T, rtol=1e-2, atol=1e-2)
    output.sum().backward()
    torch.testing.assert_close(inputs.grad, weight.sum(0).expand(3, 64), rtol=1e-2, atol=1e-2)


def test_what_is_quantized():
    assert is_quantized("some/model", object(), None)
    assert is_quantized("some/model", None, {"quantization_config": {"load_in_4bit": True}})
    assert not is_quantized("some/model", None, {"dtype": "bfloat16"})
    assert not is_quantized(torch.nn.Linear(2, 2), None, {"quantization_config": {"load_in_4bit": True}})
