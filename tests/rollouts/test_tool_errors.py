# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Tool results that report an error, or look as if: no text of a tool ends a run."""

import pytest

from trl_opsd import Turn


TEXTS = {
    "{'error': 'no such key'}": "no such key",
    "{'error': None}": "None",
    '{"error": null}': '{"error": null}',
    "{'error': {[]: 1}}": "{'error': {[]: 1}}",
    "{'error': 1, {}: 2}": "{'error': 1, {}: 2}",
    "{'error': {1, [2]}}": "{'error': {1, [2]}}",
    "{'error': " + "[" * 5000 + "}": "{'error': " + "[" * 5000 + "}",
    "{'error': " + "-" * 100_000 + "1}": "{'error': " + "-" * 100_000 + "1}",
    "{'error': 0x" + "f" * 5000 + "}": "{'error': 0x" + "f" * 5000 + "}",
    "{'error': 1}['error']": "{'error': 1}['error']",
    "{'error': 1}, 2": "{'error': 1}, 2",
    "all is well": None,
}


@pytest.mark.parametrize(("text", "error"), TEXTS.items(), ids=[text[:24] for text in TEXTS])
def test_errors_of_a_turn(text, error):
    turn = Turn(0, 1, {"role": "assistant", "content": "x"}, [{"role": "tool", "content": text}])
    assert turn.errors == ([] if error is None else [error])
