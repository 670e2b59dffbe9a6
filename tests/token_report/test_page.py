# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The page in a browser: it asks for nothing, shows every text as text, and has the values of the record."""

import json
import math
import re

import pytest

from browser import browser, draw, report_pages, show
from token_records import HOSTILE, Vocabulary, group_of, head, hostile, json_group, json_task, rollout, view
from trl_opsd.token_report.load import CHECKPOINTS, Group, RunLog
from trl_opsd.token_report.page import SCRIPTS, build_page
from trl_opsd.token_report.page_data import embedded, page_data


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture
def open_page(chromium, tmp_path):
    with report_pages(chromium, tmp_path) as opened:
        yield opened


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
        first = {name: value for name, value in head(vocabulary).items() if name != "step"}
        groups.append(Group(label, {**first, "temperature": 0.5}, lines, series=CHECKPOINTS))
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
