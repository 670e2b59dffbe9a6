# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Arguments for the named sources and conditions that need some."""

ARGUMENTS = {  # of sources that need some, and of conditions; the others are made of their defaults
    "column": {"column": ["a", "b"], "teach_bare_rows": True},
    "adaptive_exposure": {"column": "a", "answer": "b"},
    "exposure": {"column": "a", "share": 0.5, "answer": "b"},
    "fixed": {"context": "Be brief."},
    "image_view": {"text_column": "a"},
    "reflection": {"reference": "a", "threshold": 1.0},
    "sibling": {"choice": "shortest", "threshold": 0.5},
    "skills": {"k": 2, "size": 3},
    "turn_context": {"roles": ["second"]},
    "with_attempt": {"source": {"fixed": "Mind!"}, "template": "{attempt} {privileged_context}"},
    "turn_hint": {"rules": [{"hint": "Think."}], "max_hints": 2},
    "group_reward_below": {"value": 0.5},
    "probability": {"p": 0.5, "seed": 3},
    "role": {"name": "first"},
    "reward_from": {"value": 0.5, "function": "right"},
}


def arguments_of(name):
    """Of a source or condition, by its name; none where its defaults suffice."""
    return ARGUMENTS.get(name, {})
