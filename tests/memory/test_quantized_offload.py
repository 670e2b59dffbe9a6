# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The memory calculator on weights in 4 bits, and on a teacher in host memory."""

from dataclasses import replace

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from trl_opsd.memory import MODELS, YES, Run, Shape, at, judge, offloaded, parts, remedies
from trl_opsd.memory.shapes import KEYS


SMALL = dict(zip(KEYS, ("qwen2", 4, 256, 1280, 8, 4, 32, 2000, True), strict=True))
ONE = {"engine": "none", "gpus": 1, "vllm": False, "dtype": "bfloat16"}


def sizes(run):
    return {part.name: part.bytes for part in parts(run)}


@pytest.mark.parametrize("nested", [False, True])
def test_weights_in_four_bits_are_those_of_bitsandbytes(tmp_path, nested):
    """Exact without nested scales; with them, but for the last of their blocks and one offset of each matrix."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes, which quantizes, is not installed")
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**SMALL)).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype="bfloat16")
    held = 0
    for param in model.parameters():
        held += param.nbytes
        state = getattr(param, "quant_state", None)
        if state is not None:
            held += state.absmax.nbytes + (state.state2.absmax.nbytes if nested else 0)
    run = Run(Shape(SMALL), **ONE, lora=8, bits=4, nested=nested)
    adapter = run.trained * run.trained_entry
    assert sizes(run)["weights"] - adapter == pytest.approx(held, rel=1e-4 if nested else 0)
    assert run.trained_entry == 2, "as TRL casts the adapters of a quantized model"
    assert sizes(replace(run, bits=0))["weights"] > 2.5 * sizes(run)["weights"]


@pytest.mark.parametrize("wrong", [{"lora": 0}, {"engine": "zero3"}, {"vllm": True}], ids=str)
def test_four_bits_that_are_not_counted(wrong):
    with pytest.raises(ValueError, match="`load_in_4bit` is counted under an adapter"):
        Run(**{"shape": Shape(SMALL), **ONE, "lora": 8, "bits": 4, **wrong})


@pytest.mark.parametrize("kind", ["base", "ema"])
def test_a_teacher_in_host_memory(kind):
    """It is there in the teacher's phase, and its head in the loss."""
    here = Run(Shape(MODELS["qwen3-0.6b"]), **ONE, teacher=kind)
    there = replace(here, offload=True)
    copy, head = here.shape.parameters * here.teacher_entry, here.shape.head * here.trained_entry
    assert sizes(here)["teacher"] == copy and sizes(there)["teacher"] == 0
    assert sizes(there)["teacher: lending"] == here.shape.parameters * here.trained_entry
    saved = copy - (0 if kind == "ema" else head)  # an average in float32 lends a cast head in any case
    assert at(parts(here), "head") - at(parts(there), "head") == saved
    assert at(parts(here), "backward") - at(parts(there), "backward") == copy
    moved = here.accumulation * (copy + here.shape.head * here.teacher_entry)
    assert offloaded(here) == 0 and offloaded(there) == moved + (2 * copy if kind == "ema" else 0)
    assert offloaded(replace(there, views=5)) == moved + here.accumulation * copy + (2 * copy if kind == "ema" else 0)


@pytest.mark.parametrize("wrong", [{"teacher": "live"}, {"lora": 8}, {"engine": "fsdp2", "gpus": 2}], ids=str)
def test_nothing_to_offload(wrong):
    with pytest.raises(ValueError, match="`teacher_offload` is for a teacher that is a copy"):
        Run(**{"shape": Shape(SMALL), **ONE, "offload": True, **wrong})


def test_offload_is_a_remedy():
    """Where a copy is what is too much: before anything that changes what is trained."""
    run = Run(Shape(MODELS["qwen3-1.7b"]), **ONE, gpu_gb=22.0, rows=1, accumulation=8)
    assert judge(run).fits != YES
    first = remedies(run)[0]
    assert first.run.offload and not first.changes_training and judge(first.run).fits == YES
