# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The page in a browser: it asks for nothing, shows every text as text, and is reached by keyboard alone."""

import json
import math
import re

import pytest

from browser import browser, watch
from token_records import STOP, Vocabulary, head, json_task, large, lists, rollout, view
from trl_opsd.token_report.load import Group, RunLog
from trl_opsd.token_report.page import SCRIPTS, build_page
from trl_opsd.token_report.page_data import embedded, page_data


HOSTILE = [
    "<img src=x onerror=\"alert('x')\">",
    "</script><script>alert('y')</script>",
    "<!--<script>",
    "\u202ereversed\u202c",
    "\x00\x1b[2J",
    "מילים",
    " ומשפט",
    "",
    "👩\u200d🚀",
    STOP,
    "\n",
    "\t",
    "]]>&amp;&lt;b&gt;",
]
AA = 4.5


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture
def open_page(chromium, tmp_path):
    """Opens a page of groups in the browser; returns it with what it asked for and said."""
    contexts = []

    def opened(groups, log=None, context=True, **options):
        path = tmp_path / "report.html"
        path.write_text(build_page(groups, log or RunLog("run"), context), encoding="utf-8")
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        seen = watch(page)
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        return page, seen

    yield opened
    for one in contexts:
        one.close()


def group_of(*lines, vocabulary, step=1, **options):
    return Group(f"step {step}", head(vocabulary, step), list(lines), **options)


def hostile():
    """A rollout whose texts, prompts, names and strings try to get out."""
    vocabulary = Vocabulary()
    count = len(HOSTILE)
    top = [[(text, -1.0, -0.5), ("</script>", -2.0, -3.0)] for text in HOSTILE]
    name = "<b>view</b>"
    prompt = {"ids": [1], "text": "".join(HOSTILE), "context": [[0, 20]]}
    taught = view(vocabulary, [-0.5] * count, [1.0] * count, top=top, prompt=prompt)
    student = lists(vocabulary, top)
    both = {"ids": student["ids"], "p": student["p"], "q": {name: student["q"]}}
    others = {"top": both, "leak": "quote: <i>x</i>", "rewards": {"<u>r</u>": 1.0}, "success": False}
    line = rollout(vocabulary, HOSTILE, [-1.0] * count, {name: taught}, **others)
    return group_of(line, vocabulary=vocabulary)


def json_group(**options):
    vocabulary = Vocabulary()
    lines = [json_task(vocabulary), json_task(vocabulary, index=1)]
    return group_of(*lines, vocabulary=vocabulary, **options)


def draw(page):
    """All rollouts: they are drawn when they come near the window."""
    for text in page.locator(".text").all():
        text.scroll_into_view_if_needed()
        text.locator(".k").last.wait_for(state="attached")


def show(page, token):
    """Focus a token; text of the panel."""
    draw(page)
    token.focus()
    return page.locator("#panel").inner_text()


def test_data_round_trips():
    for group in (hostile(), json_group()):
        text = embedded(page_data([group], RunLog("run </script>")))
        assert "<" not in text
        data = json.loads(text)
        (shown,) = data["groups"]
        assert data["run"] == "run </script>" and data["strings"] == group.head["strings"]
        for line, own in zip(group.rollouts, shown["rollouts"], strict=True):
            for name in ("ids", "texts", "p", "entropy", "rewards", "leak"):
                assert own[name] == line[name]
            for of_page in own["views"]:
                of_record = line["views"][of_page["name"]]
                assert all(of_page[key] == of_record[key] for key in ("q", "divergence", "loss", "entropy", "start"))
                assert "".join(piece for piece, _ in of_page["prompt"]) == of_record["prompt"]["text"]
                for (begin, end), piece in zip(
                    of_record["prompt"]["context"], [text for text, marked in of_page["prompt"] if marked], strict=True
                ):
                    assert of_record["prompt"]["text"][begin:end] == piece


def test_lists_begin_with_the_likeliest():
    vocabulary = Vocabulary()
    top = [[("a", -3.0, -2.0), ("b", -0.25, -1.0), ("c", -2.0, None)]]
    taught = view(vocabulary, [-1.0], [0.5], top=top)
    line = rollout(vocabulary, ["b"], [-0.25], {"v": taught})
    (shown,) = page_data([group_of(line, vocabulary=vocabulary)], RunLog("r"))["groups"][0]["rollouts"]
    ids = [vocabulary(text) for text in ("b", "a", "c")]
    assert shown["views"][0]["top"] == {"ids": [ids], "p": [[-0.25, -3.0, -2.0]], "q": [[-1.0, -2.0, None]]}


def test_the_script_closes_nothing_and_sets_no_markup():
    """The content security policy allows these scripts by their hash; they write text and no markup."""
    page = build_page([json_group()], RunLog("run"))
    assert page.count("</script>") == 2 and page.count("<script") == 2
    assert "default-src 'none'; style-src 'sha256-" in page and "unsafe" not in page.split("<body>")[0]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(", page), SCRIPTS


def test_it_asks_for_nothing_and_says_nothing(open_page):
    page, seen = open_page([json_group(), json_group(step=2)], RunLog("run", warnings=[{"step": 1, "warning": "w"}]))
    page.locator("#step").fill("1")
    for measure in page.locator("#measure option").all():
        page.locator("#measure").select_option(measure.get_attribute("value"))
    page.locator("summary").first.click()
    show(page, page.locator(".text .k").first)
    assert len(seen.requests) == 1 and seen.requests[0].startswith("file://") and not seen.messages


def test_hostile_text_is_shown_inert_and_whole(open_page):
    page, seen = open_page([hostile()], RunLog("<img src=x onerror=alert(1)>", [{"step": 1, "eval_avg@<b>": 0.5}]))
    page.locator("summary").click()
    draw(page)
    tokens = page.locator(".text .k")
    assert tokens.count() == len(HOSTILE)
    for i, text in enumerate(HOSTILE):
        panel = show(page, tokens.nth(i))
        assert f"Token {i + 1} of {len(HOSTILE)}" in panel
        names = tokens.nth(i).evaluate("e => [...e.querySelectorAll('[data-code]')].map(x => x.dataset.code)")
        hidden = [char for char in text if f"U+{ord(char):04X}" in names]
        assert tokens.nth(i).evaluate("e => e.textContent") == "".join(c for c in text if c not in hidden)
        assert len(names) == len(hidden) == sum(char in "\u202e\u202c\x00\x1b" for char in text)
        own = page.locator("#panel h3 bdi").evaluate("e => e.textContent")
        wanted = "".join(char for char in text if char not in hidden and char != "\n")
        wanted = wanted.replace(" ", "␣", text.startswith(" "))
        assert own == (wanted if text else "part of a character")
    for tag in ("img", "b", "u", "script"):
        assert page.locator(f"#list {tag}, #panel {tag}, #overview td {tag}").count() == 0
    assert page.locator("script").count() == 2 and not seen.messages and len(seen.requests) == 1
    whole = page.locator(".sides pre").nth(1).evaluate("e => e.textContent")
    assert "<img src=x onerror=\"alert('x')\"></script><script>alert('y')</script>" in whole
    assert page.locator(".sides mark").evaluate("e => e.textContent") == "".join(HOSTILE)[:20]
    assert "<i>x</i>" in page.locator(".leak").inner_text()


def test_right_to_left_text_is_drawn_from_the_right(open_page):
    vocabulary = Vocabulary()
    taught = view(vocabulary, [-1.0] * 3, [1.0] * 3)
    line = rollout(vocabulary, ["שלום", " עולם", " טוב"], [-1.0] * 3, {"v": taught})
    page, _ = open_page([group_of(line, vocabulary=vocabulary)])
    draw(page)
    places = [token.bounding_box()["x"] for token in page.locator(".text .k").all()]
    assert places == sorted(places, reverse=True) and len(places) == 3


def test_the_panel_has_the_values_of_the_record(open_page):
    group = json_group()
    page, _ = open_page([group])
    line = group.rollouts[0]
    taught = line["views"]["privileged"]
    for i in (0, 1, 3):
        text = show(page, page.locator(".text").first.locator(".k").nth(i))
        facts = pairs(page)
        assert number(facts["gap"]) == pytest.approx(taught["q"][i] - line["p"][i], rel=5e-3)
        assert number(facts["divergence"]) == taught["divergence"][i]
        assert f"log q {taught['q'][i]:g}" in facts["teacher"] and f"log p {line['p'][i]:g}" in facts["student"]
        assert ("loss 5" in facts["divergence"]) == (i == 0)
        assert (
            number(facts["entropy"]) == taught["entropy"][i] and f"student’s {line['entropy'][i]}" in facts["entropy"]
        )
        assert f"id {line['ids'][i]}" in text
        for k, top in enumerate((taught["top"], line["top"])):
            rows = page.locator("#panel table").nth(k).locator("tbody tr").all()
            assert len(rows) == len(top["ids"][i]) == 2
            likeliest = max(top["q"][i] if k == 0 else top["p"][i])
            shown = [shares(row) for row in rows]
            assert max(one[k] for one in shown) == shown[0][k] == pytest.approx(math.exp(likeliest), rel=6e-3)


def pairs(page):
    names, values = (page.locator(f"#panel {tag}").all_inner_texts() for tag in ("dt", "dd"))
    return {name: plain(value) for name, value in zip(names, values, strict=True)}


def number(text):
    return float(text.split()[0])


def plain(text):
    """A text with ordinary spaces and minus signs."""
    return text.replace("\u00a0", " ").replace("−", "-").strip()


def shares(row):
    """Teacher's and student's probability of a row."""
    texts = [plain(cell.inner_text()) for cell in row.locator("td.with-bar").all()]
    return [0.0 if text.startswith("<") else float(text.removesuffix(" %")) / 100 for text in texts]


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


def test_overview(open_page):
    log = RunLog("run", [{"step": step, "self_distillation/divergence": 1 / step} for step in (1, 2, 3)],
                 [{"step": 2, "warning": "The <b>loss</b> is 0."}])  # fmt: skip
    page, _ = open_page([json_group()], log)
    told = plain(page.locator("#headline").inner_text())
    assert told.startswith('The teacher would rather write {" where the student wrote The: 2 times, 95.2 % of the')
    table = page.get_by_role("table", name="The teacher would rather write")
    assert [plain(cell) for cell in table.locator("tr").nth(1).locator("td").all_inner_texts()] == [
        "The", '{"', "95.2 %", "2", "-12",
    ]  # fmt: skip
    assert page.locator(".warned").count() == 1 and "The <b>loss</b> is 0." in page.locator("#warnings").inner_text()
    assert page.locator(".checks .ok").count() == 3 and page.locator(".checks .bad").count() == 0
    assert page.locator(".line").get_attribute("points").count(",") == 3


def test_groups_need_no_step(open_page):
    """Such as two checkpoints beside each other, here at another temperature."""
    groups = []
    for label in ("before", "after"):
        vocabulary = Vocabulary()
        lines = [json_task(vocabulary)]
        groups.append(Group(label, {"temperature": 0.5, "strings": vocabulary.strings}, lines))
    page, seen = open_page(groups, RunLog("run", [{"step": 1, "reward": 1.0}, {"step": 2, "reward": 1.0}]))
    assert page.locator("#count").inner_text() == "1 rollout, before, at temperature 0.5"
    page.locator("#step").fill("1")
    assert page.locator("#step-label").inner_text() == "after" and not page.locator(".here").is_visible()
    assert not seen.messages


def test_views_and_prompts_without_contexts(open_page):
    page, _ = open_page([json_group()], context=False)
    page.locator("summary").first.click()
    assert "Left out of this page." in page.locator(".sides").first.inner_text()
    assert page.locator("mark").count() == 0


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
