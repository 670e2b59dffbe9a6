# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Headless Chromium of the system, driven by Playwright, which brings none of its own here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from trl_opsd.token_report.load import Group, RunLog
from trl_opsd.token_report.page import build_page


CHROMIUM = Path("/usr/bin/chromium")


@dataclass
class Seen:
    """Everything that a page asked for and said."""

    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@contextmanager
def browser() -> Iterator[Any]:
    """A browser; skips the tests where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install '.[dev]'")
    if not CHROMIUM.exists():
        pytest.skip(f"There is no {CHROMIUM}: apt-get install -y chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


def watch(page: Any) -> Seen:
    """Record what a page asks for and says from now on."""
    seen = Seen()
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("console", lambda message: seen.messages.append(message.text))
    page.on("pageerror", lambda error: seen.messages.append(str(error)))
    page.on("dialog", lambda dialog: seen.messages.append(f"dialog: {dialog.message}"))
    return seen


@contextmanager
def report_pages(opened: Any, folder: Path) -> Iterator[Callable[..., tuple[Any, Seen]]]:
    """Opens token reports of groups in a browser; each page comes with what it asked for and said."""
    contexts = []

    def open_page(groups: list[Group], log: RunLog | None = None, context: bool = True, **options: Any) -> Any:
        path = folder / "report.html"
        path.write_text(build_page(groups, log or RunLog("run"), context), encoding="utf-8")
        contexts.append(opened.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        seen = watch(page)
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        return page, seen

    yield open_page
    for one in contexts:
        one.close()


def draw(page: Any) -> None:
    """Draw all rollouts of a report, by coming near them."""
    for text in page.locator(".text").all():
        text.scroll_into_view_if_needed()
        text.locator(".k").last.wait_for(state="attached")


def show(page: Any, token: Any) -> str:
    """Focus a token of a report; text of its panel."""
    draw(page)
    token.focus()
    return page.locator("#panel").inner_text()
