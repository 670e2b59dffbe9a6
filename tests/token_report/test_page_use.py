# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The page in use: keyboard and filters, contrast of every colour, narrow windows, print, and many tokens."""

import re

import pytest

from browser import browser, draw, report_pages, show
from token_records import STOP, Vocabulary, group_of, head, hostile, json_group, json_task, large, rollout, view
from trl_opsd.token_report.load import PROBED, STEPS, Group, RunLog


AA = 4.5


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture
def open_page(chromium, tmp_path):
    with report_pages(chromium, tmp_path) as opened:
        yield opened


def test_what_is_not_taught_is_told_apart(open_page):
    vocabulary = Vocabulary()
    a = view(vocabulary, [-1.0, None, -1.0], [1.0, None, 1.0])
    hint = view(vocabulary, [None, None, -3.0], [None, None, 1.0], share=[0, 0, 1], start=2)
    lines = rollout(vocabulary, ["x", "tool", "y"], [-1.0, None, -1.0], {"a": a, "hint": hint}, written=[1, 0, 1])
    bare = rollout(vocabulary, ["z"], [None], {}, index=1)
    page, _ = open_page([group_of(lines, bare, vocabulary=vocabulary)])
    draw(page)
    classes = [token.get_attribute("class") for token in page.locator(".text .k").all()]
    assert classes[1] == "k tool" and classes[3] == "k untaught" and classes[0] == "k"
    assert "the teacher reads a hint here (hint): Context." in page.locator(".text .inserted").inner_text()
    assert page.locator(".text .inserted + .k").inner_text() == "y"
    assert "a tool result" in show(page, page.locator(".text .k").nth(1))
    assert "Its hint comes later." in show(page, page.locator(".text .k").nth(0))
    page.get_by_label("Views side by side").check()
    assert page.locator(".text").count() == 3 and page.locator(".rollout h4").all_inner_texts() == [
        "View a",
        "View hint",
    ]
    page.get_by_label("Views side by side").uncheck()
    page.get_by_label("Colours of view").select_option("hint")
    draw(page)
    assert page.locator(".text .k").nth(2).get_attribute("class") == "k o3"


def test_every_token_is_reached_by_keyboard(open_page):
    page, _ = open_page([json_group(), json_group(step=2)])
    reached, stops = [], 0
    while stops < 2:
        page.keyboard.press("Tab")
        if not page.evaluate("document.activeElement.matches('.text > .k')"):
            continue
        stops += 1
        while True:
            place = page.evaluate("[document.activeElement.index, document.activeElement.textContent]")
            reached.append((stops, *place))
            assert f"Token {place[0] + 1} of 4" in page.locator("#panel").inner_text()
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            page.keyboard.press("ArrowRight")
            if page.evaluate("document.activeElement.index") == place[0]:
                break
    texts = ["The", " moon", " result", STOP]
    assert reached == [(stop, i, text) for stop in (1, 2) for i, text in enumerate(texts)]
    page.keyboard.press("Shift+Tab")
    page.locator("#step").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#step-label").inner_text() == "step 2"


def test_arrows_move_over_lines_and_ends(open_page):
    first, lines = large(1, 200)
    page, _ = open_page([Group("step 1", first, lines)])
    token = page.locator(".text .k").nth(0)
    show(page, token)
    index = "document.activeElement.index"
    page.keyboard.press("ArrowDown")
    below = page.evaluate(index)
    assert below > 3
    page.keyboard.press("ArrowUp")
    assert page.evaluate(index) < 3
    page.keyboard.press("End")
    assert page.evaluate(index) == 199
    page.keyboard.press("ArrowRight")
    assert page.evaluate(index) == 199
    page.keyboard.press("Home")
    assert page.evaluate(index) == 0
    assert page.locator(".text .k[tabindex='0']").count() == 1
    page.locator(".text .k").nth(50).hover()
    assert "Token 51 of 200" in page.locator("#panel").inner_text()


def test_the_same_prompts_under_other_weights(open_page):
    """The token in view stays in view; the first group stands beside the chosen one."""
    vocabulary, groups = Vocabulary(), [json_group()]
    for step in (0, 5, 10):
        lines = [json_task(vocabulary, index=index, success=step > 5) for index in (0, 1)]
        for line in lines:
            line["views"]["privileged"]["divergence"] = [20.0 - step, 0.25, None, 0.75]
        groups.append(Group(f"after step {step}", head(vocabulary, step), lines, series=PROBED))
    page, seen = open_page(groups)
    assert page.locator("#series option").all_inner_texts() == [STEPS, PROBED]
    assert not page.locator("#step").is_visible() and not page.locator("#beside").is_visible()
    page.locator("#series").select_option(PROBED)
    assert page.locator("#step-label").inner_text() == "after step 0"
    draw(page)
    assert "20 nats" in show(page, page.locator(".text .k").nth(0))
    top = page.evaluate("document.getElementById('list').getBoundingClientRect().top")
    # Playwright's `fill` scrolls by itself
    page.evaluate(
        "(() => { const s = document.getElementById('step'); s.value = 2; s.dispatchEvent(new Event('input')); })()"
    )
    assert "10 nats" in page.locator("#panel").inner_text()
    assert abs(page.evaluate("document.getElementById('list').getBoundingClientRect().top") - top) < 2
    changed = page.get_by_role("table", name="What has changed").locator("tbody tr").all_inner_texts()
    assert [row.split()[:3] for row in changed] == [["after", "step", str(step)] for step in (0, 5, 10)]
    assert "7" in changed[0] and "100" in changed[2]
    page.get_by_label("with “after step 0” beside it").check()
    draw(page)
    assert page.locator(".rollout").nth(0).locator("h4").all_inner_texts()[:2] == ["after step 0", "after step 10"]
    colours = [page.locator(".rollout .text").nth(i).locator(".k").nth(0) for i in (0, 1)]
    assert "20 nats" in show(page, colours[0]) and "10 nats" in show(page, colours[1])
    page.locator("#series").select_option(STEPS)
    assert page.locator(".rollout .text").count() == 2 and not page.locator("#beside").is_visible()
    assert seen.messages == []


def test_filters_and_search(open_page):
    vocabulary = Vocabulary()
    known = [{"rewards": {"right": i / 2}, "success": i > 0, "leak": "quote: it" if i == 2 else None} for i in range(3)]
    lines = [json_task(vocabulary, index=i, **one) for i, one in enumerate(known)]
    lines[1]["texts"] = ["The", " mo", "ose", STOP]
    page, _ = open_page([group_of(*lines, vocabulary=vocabulary)])
    names = lambda: page.locator(".rollout h3").all_inner_texts()  # noqa: E731
    assert names() == ["Rollout 1", "Rollout 2", "Rollout 3"]
    page.get_by_label("Success").select_option("true")
    assert names() == ["Rollout 2", "Rollout 3"]
    page.get_by_label("Leak").select_option("false")
    assert names() == ["Rollout 2"]
    page.get_by_label("Success").select_option("")
    page.get_by_label("At least").fill("0.25")
    assert names() == ["Rollout 2"] and "1 of 3 rollouts" in page.locator("#count").inner_text()
    page.get_by_label("Leak").select_option("")
    page.get_by_label("At least").fill("")
    page.get_by_label("Search").fill("MOOSE")
    assert names() == ["Rollout 2"]
    draw(page)
    assert page.locator(".text .hit").all_inner_texts() == [" mo", "ose"]
    page.get_by_label("Search").fill("context.")
    assert len(names()) == 3, "found in what the teacher reads"


def luminance(colour):
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


# Text colour of an element, and the first background below it that is not transparent
COLOURS = """element => {
  let below = element;
  const clear = (one) => getComputedStyle(one).backgroundColor === 'rgba(0, 0, 0, 0)';
  while (clear(below) && below.parentElement) below = below.parentElement;
  return [getComputedStyle(element).color, getComputedStyle(below).backgroundColor];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_text_on_every_colour(open_page, scheme):
    vocabulary = Vocabulary()
    sizes = [0, 0.25, 1, 2, 4, 8]
    gaps = [*sizes, *(-size for size in sizes[1:]), None, None]
    q = [None if gap is None else -10.0 + gap for gap in gaps]
    p = [None if gap is None else -10.0 for gap in gaps]
    taught = view(vocabulary, q, [None if gap is None else 1.0 for gap in gaps], top=[[("a", -1.0, -2.0)]] * len(gaps))
    texts = [f"t{i}" for i in range(len(gaps))]
    line = rollout(vocabulary, texts, p, {"v": taught}, written=[1] * 12 + [0], leak="quote: x")
    groups = [group_of(line, vocabulary=vocabulary)]
    log = RunLog("r", [{"step": 1, "reward": 1.0}], [{"step": 1, "warning": "w"}])
    page, _ = open_page(groups, log, color_scheme=scheme)
    show(page, page.locator(".text .k").first)
    page.locator("summary").click()
    classes = [token.get_attribute("class") for token in page.locator(".text .k").all()]
    levels = [f"k {side}{level}" for side in "bo" for level in range(1, 6)]
    assert classes == ["k", *levels, "k untaught", "k tool"]
    checked = 0
    for selector in (".text .k", ".chip", "p", "td", "th", "dt", "dd", "li", "small", "mark", "pre span", "label", "a",
                     ".token", ".inserted", "h1", "h2", "h3", "summary", "figcaption", "output"):  # fmt: skip
        for text, back in page.locator(selector).evaluate_all(f"all => all.map({COLOURS})"):
            assert contrast(text, back) >= AA, (selector, text, back)
            checked += 1
    assert checked > 100
    thick = "e => parseFloat(getComputedStyle(e).textDecorationThickness)"
    style = "e => getComputedStyle(e).textDecorationStyle"
    for side, kind in (("b", "solid"), ("o", "dashed")):
        tokens = [page.locator(f".text .{side}{level}") for level in range(1, 6)]
        sizes = [token.evaluate(thick) for token in tokens]
        assert sizes == sorted(set(sizes)) and {token.evaluate(style) for token in tokens} == {kind}


@pytest.mark.parametrize(
    "options",
    [{"viewport": {"width": 375, "height": 700}}, {"color_scheme": "dark"}, {"viewport": {"width": 375, "height": 700},
     "color_scheme": "dark"}, {"viewport": {"width": 820, "height": 900}}, {}],
    ids=["phone", "dark", "dark phone", "tablet", "desk"],
)  # fmt: skip
def test_nothing_is_wider_than_the_window(open_page, options):
    first, lines = large(1, 60)
    lines[0]["texts"][3] = "x" * 300
    page, seen = open_page([hostile(), json_group(step=2), Group("step 3", first, lines)], **options)
    for step in range(3):
        page.locator("#step").fill(str(step))
        show(page, page.locator(".text .k").first)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), step
        page.keyboard.press("Escape")
        page.locator("summary").first.click()
        page.wait_for_timeout(50)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), step
    assert not seen.messages


def test_print_has_every_rollout(open_page):
    first, lines = large(12, 300)
    page, _ = open_page([Group("step 1", first, lines)], viewport={"width": 794, "height": 1123}, color_scheme="dark")
    page.locator(".text").first.scroll_into_view_if_needed()
    page.locator(".text .k").first.focus()
    assert page.locator("#panel").is_visible()
    assert page.locator(".text .k").count() < 12 * 300, "drawn as they come near"
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".text .k").count() == 12 * 300
    assert not page.locator("#filters").is_visible() and not page.locator("#panel").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".text .b3").first.evaluate("e => getComputedStyle(e).printColorAdjust") == "exact"
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert luminance(paper) > 0.9, "on white paper in dark mode too"


def test_a_large_page(open_page, tmp_path):
    first, lines = large(16, 2048)
    page, seen = open_page([Group("step 1", first, lines)])
    size = (tmp_path / "report.html").stat().st_size
    ready = page.evaluate("performance.now()")
    print(f"{size / 1e6:.1f} MB, ready within {ready:.0f} ms")
    assert size < 10e6 and not seen.messages
    last = page.locator(".text").last
    assert last.locator(".k").count() == 0, "drawn when it comes near"
    last.scroll_into_view_if_needed()
    last.locator(".k").nth(2047).wait_for(state="attached")
