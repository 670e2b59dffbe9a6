# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""docs/methods.md is made of the methods, and up to date."""

from scripts import method_docs
from trl_opsd.methods import method_names, method_of


def test_the_page_is_current():
    advice = "run `python scripts/method_docs.py`"
    assert method_docs.PAGE.read_text(encoding="utf-8") == method_docs.page(), advice


def test_each_method_is_in_the_table_and_has_a_block():
    page = method_docs.page()
    for name in method_names():
        method = method_of(name)
        assert f"| [{name}](#{name}) |" in page and page.count(f"\n## {name}\n") == 1
        block = " ".join(method_docs.block(name).split())  # whose lines are wrapped
        assert method.title in block and method.paper in block and method.needs in block and "**Fails**" in block
        assert all(f"`{option}: " in block for option in [*method.defaults, *method.options])
