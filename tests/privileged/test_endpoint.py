# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""An author behind an OpenAI-compatible endpoint, against a real local server."""

import asyncio
import itertools
import json
import logging
import multiprocessing
import sys
import time
from email.utils import formatdate

import pytest

import endpoint_server
from endpoint_server import breaks_off, drips, drips_headers, echoes_the_key, hangs_up, says, sends, serving, slow
from processes import free_port
from trl_opsd.privileged import EndpointAuthor, build_source
from trl_opsd.privileged.authors import endpoint_client


OPTIONS = {"max_new_tokens": 16, "temperature": 0.5}
KEY = "sk-very/secret-0123"
DELAY = "openai._base_client.INITIAL_RETRY_DELAY"


@pytest.fixture
def endpoint(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(DELAY, 0.01)
    with serving() as endpoint:
        yield endpoint


def author_of(endpoint, **options):
    return EndpointAuthor(**{"url": endpoint.url, "model": "critic-32b", **options})


def chat(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


def counted(author):
    return [author.counts[f"endpoint_{name}"] for name in ("requests", "retries", "cached", "failed")]


def test_chat_completions(endpoint):
    author = author_of(endpoint, options={"top_p": 0.9})
    assert author.write(chat("one", "two"), **OPTIONS) == ["About: one", "About: two"]
    first = min(endpoint.requests, key=lambda request: json.dumps(request["body"]))
    shared = {"model": "critic-32b", "max_tokens": 16, "temperature": 0.5, "top_p": 0.9}
    assert (first["path"], first["key"]) == ("/v1/chat/completions", None)
    assert first["body"] == {**shared, "messages": [{"role": "user", "content": "one"}]}
    assert counted(author) == [2, 0, 0, 0]


def test_plain_completions(endpoint):
    author = author_of(endpoint, url=endpoint.url + "/")
    assert author.write(["one"], **OPTIONS) == ["About: one"]
    assert endpoint.requests[0]["path"] == "/v1/completions" and endpoint.requests[0]["body"]["prompt"] == "one"


def test_an_event_loop_may_run_already(endpoint):
    async def cell():
        return author_of(endpoint).write(chat("one"), **OPTIONS)

    assert asyncio.run(cell()) == ["About: one"]


def test_nothing_to_write(endpoint):
    author = author_of(endpoint)
    assert author.write([], **OPTIONS) == [] and endpoint.requests == [] and counted(author) == [0] * 4


def test_requests_at_a_time(endpoint):
    endpoint.answer = lambda body: slow(0.05, says(endpoint_server.asked(body)))
    texts = [str(number) for number in range(9)]
    assert author_of(endpoint, concurrency=3).write(chat(*texts), **OPTIONS) == texts
    assert endpoint.most == 3


# What may pass


PASSING = {
    "a busy server": sends(503, "busy"),
    "a failing server": sends(500, "oh"),
    "too many requests": sends(429, "slow down"),
    "a time-out of its own": sends(408, ""),
    "a conflict": sends(409, "{}"),
    "no connection": hangs_up,
    "half an answer": breaks_off,
    "no JSON": sends(200, "<html>Welcome</html>"),
    "no choices": sends(200, '{"choices": []}'),
    "another JSON": sends(200, "[1]"),
    "reasoning alone": says(None),
}


@pytest.mark.parametrize("case", PASSING)
def test_what_may_pass_is_tried_again(endpoint, case):
    endpoint.replies = [PASSING[case]] * 2
    author = author_of(endpoint)
    assert author.write(chat("one"), **OPTIONS) == ["About: one"]
    assert counted(author) == [3, 2, 0, 0]


@pytest.mark.parametrize("case", PASSING)
def test_what_does_not_pass_in_the_end(endpoint, case):
    endpoint.answer = lambda body: PASSING[case]
    author = author_of(endpoint, retries=1)
    with pytest.raises(RuntimeError, match=r"1 of 1 requests to http://127\S+ failed for good; .*`max_failures=0`"):
        author.write(chat("one"), **OPTIONS)
    assert counted(author) == [2, 1, 0, 1]


@pytest.mark.parametrize("reply", [drips, drips_headers, slow(5, says("late"))], ids=["drips", "headers", "slow"])
def test_time_out(endpoint, reply):
    endpoint.replies = [reply]
    start = time.monotonic()
    assert author_of(endpoint, timeout=0.3).write(chat("one"), **OPTIONS) == ["About: one"]
    assert time.monotonic() - start < 3 and len(endpoint.requests) == 2


def test_nobody_listens():
    author = EndpointAuthor(f"http://127.0.0.1:{free_port()}/v1", "m", retries=0)
    with pytest.raises(RuntimeError, match=r"completions gives no answer .*: ConnectError: All connection attempts"):
        author.write(chat("one"), **OPTIONS)


def test_waits_grow(endpoint, monkeypatch):
    monkeypatch.setattr(DELAY, 0.1)
    endpoint.replies = [sends(500, "")] * 3
    author_of(endpoint).write(chat("one"), **OPTIONS)
    times = [request["time"] for request in endpoint.requests]
    waits = [after - before for before, after in itertools.pairwise(times)]
    for wait, base in zip(waits, (0.1, 0.2, 0.4), strict=True):
        assert 0.5 * base <= wait < base + 0.3


WAITS = [
    (lambda: "1", 0.8, 3),
    (lambda: formatdate(time.time() + 1.9, usegmt=True), 0.8, 3),
    *((lambda told=told: told, 0, 1) for told in ("soon", "-5", "", "Wed, 21 Oct 2015 07:28:00 GMT")),
    (lambda: "Wed, 21 Oct 2015 07:28:00 +99999999999999", 0, 1),
]


@pytest.mark.parametrize(("told", "least", "most"), WAITS)
def test_retry_after(endpoint, told, least, most):
    endpoint.replies = [sends(429, "", Retry_After=told())]
    assert author_of(endpoint).write(chat("one"), **OPTIONS) == ["About: one"]
    before, after = (request["time"] for request in endpoint.requests)
    assert least <= after - before < most


@pytest.mark.parametrize("told", ["3600", "1e3", "9" * 23])
def test_a_wait_that_is_too_long(endpoint, told):
    endpoint.answer = lambda body: sends(429, "quota", Retry_After=told)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=rf"429 .*quota \(Retry-After: {told}\)"):
        author_of(endpoint).write(chat("one"), **OPTIONS)
    assert time.monotonic() - start < 1 and len(endpoint.requests) == 1


def test_an_answer_without_an_end_is_left(endpoint, monkeypatch):
    monkeypatch.setattr(endpoint_client, "MOST_BYTES", 500)
    endpoint.replies = [says("x" * 500)]
    author = author_of(endpoint)
    assert author.write(chat("one"), **OPTIONS) == ["About: one"] and counted(author) == [2, 1, 0, 0]


# What stays


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_an_error_at_once(endpoint, status):
    endpoint.answer = lambda body: sends(status, '{"error": {"message": "no such model"}}')
    with pytest.raises(RuntimeError, match=rf"/v1/chat/completions answers {status} .*no such model"):
        author_of(endpoint, concurrency=1, max_failures=100).write(chat(*"abcdefgh"), **OPTIONS)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("other", [sends(503, "", Retry_After="60"), slow(60, says("late"))], ids=["waits", "asks"])
def test_a_refusal_ends_the_waiting_of_others(endpoint, other):
    endpoint.replies = [other, slow(0.1, sends(404, "gone"))]
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"404 .*gone"):
        author_of(endpoint, concurrency=2).write(chat("one", "two"), **OPTIONS)
    assert time.monotonic() - start < 3


def test_a_redirect_is_not_followed(endpoint, monkeypatch):
    monkeypatch.setenv("CRITIC_KEY", KEY)
    with serving() as other:
        endpoint.answer = lambda body: sends(302, "", Location=f"{other.url}/chat/completions")
        with pytest.raises(RuntimeError, match="answers 302"):
            author_of(endpoint, api_key_env="CRITIC_KEY").write(chat("one"), **OPTIONS)
        assert other.requests == []


# A limit on failures


def failing(*texts):
    return lambda body: sends(500, "") if endpoint_server.asked(body) in texts else says("fine")


@pytest.mark.parametrize(("limit", "fails"), [(2, False), (1, True), (0.5, False), (0.4, True), (0, True)])
def test_failures_within_the_limit(endpoint, limit, fails, caplog):
    endpoint.answer = failing("b", "d")
    author = author_of(endpoint, retries=0, max_failures=limit)
    if fails:
        with pytest.raises(RuntimeError, match=rf"2 of 4 .* `max_failures={limit}` allows 1|`max_failures=0`"):
            author.write(chat(*"abcd"), **OPTIONS)
    else:
        with caplog.at_level(logging.WARNING):
            assert author.write(chat(*"abcd"), **OPTIONS) == ["fine", None, "fine", None]
        assert "2 of 4 requests" in caplog.text
    assert counted(author) == [4, 0, 0, 2]


def test_counts_are_of_one_call(endpoint):
    author = author_of(endpoint, retries=0, max_failures=1)
    endpoint.replies = [sends(500, "")]
    author.write(chat("one"), **OPTIONS)
    assert counted(author) == [1, 0, 0, 1]
    author.write(chat("one"), **OPTIONS)
    assert counted(author) == [1, 0, 0, 0]


# The key


@pytest.mark.parametrize("key", ["sk-secret\nx", "sk-\u00e4"])
def test_a_key_that_no_header_takes_is_named_by_its_variable(endpoint, monkeypatch, key):
    monkeypatch.setenv("CRITIC_KEY", key)
    author = author_of(endpoint, api_key_env="CRITIC_KEY")
    for ask in (author.setup, lambda: author.write(chat("one"), **OPTIONS)):
        with pytest.raises(ValueError, match="the environment variable CRITIC_KEY holds what no key has") as caught:
            ask()
        assert key[:3] not in str(caught.value)
    assert endpoint.requests == []


def test_the_key_is_sent_and_told_to_nobody(endpoint, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CRITIC_KEY", f" {KEY}\n")
    author = author_of(endpoint, api_key_env="CRITIC_KEY", cache_dir=str(tmp_path), retries=0, max_failures=1)
    author.setup()
    author.write(chat("one"), **OPTIONS)
    assert endpoint.requests[0]["key"] == f"Bearer {KEY}"
    endpoint.replies = [sends(500, f"key {KEY} is not loved")]
    with caplog.at_level(logging.WARNING):
        assert author.write(chat("two"), **OPTIONS) == [None]
    endpoint.replies = [sends(401, f"key {KEY} is wrong")]
    with pytest.raises(RuntimeError, match=r"key \*\*\* is wrong") as caught:
        author.write(chat("three"), **OPTIONS)
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "key *** is not loved" in caplog.text and "About: one" in kept
    for text in (str(caught.value), repr(caught.value.__context__), repr(author), caplog.text, kept):
        assert KEY not in text


def test_the_key_is_masked_wherever_it_is_repeated(endpoint, monkeypatch, caplog):
    monkeypatch.setenv("CRITIC_KEY", KEY)
    echo = {"error": {"message": f"Incorrect API key provided: {KEY}"}}
    for reply in (echoes_the_key, sends(200, json.dumps(echo)), sends(429, KEY, Retry_After=KEY)):
        endpoint.replies = [reply]
        with caplog.at_level(logging.DEBUG), pytest.raises(RuntimeError) as caught:
            author_of(endpoint, api_key_env="CRITIC_KEY", retries=0).write(chat("one"), **OPTIONS)
        for text in (str(caught.value), repr(caught.value.__context__), caplog.text):
            assert KEY not in text and "sk-" not in text
        assert "***" in str(caught.value)


def escaped(key, how):
    """The key as servers write it: in JSON, in HTML and in an address."""
    every = {
        "plain": str,
        "slashes": lambda one: one.replace("/", "\\/"),
        "unicode": lambda one: "".join(f"\\u{ord(c):04x}" for c in one),
        "some unicode": lambda one: one.replace("/", "\\u002F"),
        "HTML": lambda one: "".join(f"&#{ord(c)};" for c in one),
        "HTML in hex": lambda one: "".join(f"&#x{ord(c):X};" for c in one),
        "HTML by name": lambda one: one.replace("&", "&amp;"),
        "address": lambda one: "".join(f"%{ord(c):02x}" for c in one),
    }
    return every[how](key)


HOW = ("plain", "slashes", "unicode", "some unicode", "HTML", "HTML in hex", "HTML by name", "address")


@pytest.mark.parametrize("how", HOW)
def test_the_key_is_masked_however_it_is_written(endpoint, monkeypatch, tmp_path, caplog, how):
    """In a refusal, and in an answer: which becomes a context, and is kept in the cache and in a checkpoint."""
    key = "sk-very/secret&0123"
    monkeypatch.setenv("CRITIC_KEY", key)
    author = author_of(endpoint, api_key_env="CRITIC_KEY", cache_dir=str(tmp_path))
    endpoint.replies = [sends(401, f"bad {escaped(key, how)}!")]
    with caplog.at_level(logging.DEBUG), pytest.raises(RuntimeError, match=r"bad \*\*\*!"):
        author.write(chat("one"), **OPTIONS)
    body = '{"choices": [{"message": {"content": "Key %s!"}}]}'
    endpoint.replies = [sends(200, body % escaped(key, how))]
    assert author.write(chat("two"), **OPTIONS) == ["Key ***!"]
    (kept,) = tmp_path.rglob("*.json")
    assert json.loads(kept.read_text()) == {"text": "Key ***!"}
    assert escaped(key, how) not in caplog.text and key not in caplog.text


def test_a_word_that_stands_for_no_key_may_be_in_an_answer(endpoint, monkeypatch):
    monkeypatch.setenv("CRITIC_KEY", "EMPTY")
    endpoint.replies = [says("It is EMPTY.")]
    assert author_of(endpoint, api_key_env="CRITIC_KEY").write(chat("one"), **OPTIONS) == ["It is EMPTY."]


@pytest.mark.parametrize("key", ["sk-very/secret-0123", "hf_secretsecret0123", "sk-secret\n"])
def test_a_key_at_the_place_of_its_variable_is_not_shown(monkeypatch, key):
    monkeypatch.delenv(key, raising=False)
    with pytest.raises(ValueError, match="`api_key_env`") as caught:
        EndpointAuthor("http://localhost/v1", "m", api_key_env=key).setup()
    assert "secret" not in str(caught.value)


SHOWS = [
    {"endpoint": "http://me:secret@localhost/v1"},
    {"endpoint": {"url": "http://me:secret@localhost/v1", "model": "m"}},
    {"endpoint": {"url": ["http://me:secret@localhost/v1"], "model": "m"}},
    {"endpoint": {"url": "http://localhost/v1", "model": {"secret": "secret"}}},
    {"endpoint": {"url": "http://localhost/v1", "model": "m", "api_key": "secret"}},
    {"endpoint": {"url": "http://localhost/v1", "model": "m", "options": "secret"}},
    {"endpoint": {"url": "http://localhost/v1", "model": "m", "retries": "secret"}},
    {"endpoint": {"url": "http://localhost/v1"}, "model": "secret"},
]


@pytest.mark.parametrize("author", SHOWS, ids=range(len(SHOWS)))
def test_no_error_of_a_recipe_shows_what_may_be_a_key(author):
    written = {"written": {"author": author}}
    specs = [written, [written], {**written, "column": "x"}, {"first_of": written}, {"when": {"condition": written}}]
    for spec in [*specs, {"with_baselines": {"sauce": written}}]:
        with pytest.raises(ValueError) as caught:
            build_source(spec)
        assert "secret" not in str(caught.value)


def test_options_that_are_no_json():
    for options in ({"a": {1, 2}}, {"a": float("nan")}):
        with pytest.raises(ValueError, match="`options` can't be sent as JSON"):
            EndpointAuthor("http://localhost/v1", "m", options=options)


def test_no_other_key_or_header_is_sent(endpoint, monkeypatch):
    """`openai` sends what these variables hold, to whatever address it is given."""
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "elsewhere")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: elsewhere\nX-Key: elsewhere")
    assert author_of(endpoint).write(chat("one"), **OPTIONS) == ["About: one"]
    assert "elsewhere" not in str(endpoint.requests) and endpoint.requests[0]["key"] is None


def test_without_the_openai_package(endpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, endpoint_client.__name__, None)
    author = author_of(endpoint)
    for ask in (author.setup, lambda: author.write(chat("one"), **OPTIONS)):
        with pytest.raises(ImportError, match=r"needs the openai package: `pip install 'trl-opsd\[endpoint\]'`"):
            ask()


def test_a_wait_of_its_own_is_deprecated(endpoint):
    with pytest.warns(FutureWarning, match="`backoff` has no effect"):
        author_of(endpoint, backoff=1.0)


def test_a_key_that_is_not_set(endpoint, monkeypatch):
    monkeypatch.delenv("CRITIC_KEY", raising=False)
    with pytest.raises(ValueError, match="environment variable CRITIC_KEY is not set"):
        author_of(endpoint, api_key_env="CRITIC_KEY").setup()


BAD = [
    ({"url": "localhost:8000/v1"}, "`url` must be like"),
    ({"url": "file:///etc/passwd"}, "`url` must be like"),
    ({"url": "http://me:secret@localhost/v1"}, "`url` must be like"),
    ({"url": "http://:secret@localhost/v1"}, "`url` must be like"),
    ({"url": "http://localhost:secret/v1"}, "`url` must be like"),
    ({"url": "http://localhost:99999/v1"}, "`url` must be like"),
    ({"url": "http://localhost/v1?key=secret"}, "`url` must be like"),
    ({"url": "http://localhost/v1;key=secret"}, "`url` must be like"),
    ({"url": "http://localhost/v1#secret"}, "`url` must be like"),
    ({"url": None}, "`url` must be like"),
    ({"concurrency": 0}, "`concurrency` must be a whole number of at least 1"),
    ({"retries": -1}, "`retries` must be a whole number of at least 0"),
    ({"retries": 1.5}, "`retries` must be a whole number of at least 0"),
    ({"max_failures": -0.1}, "`max_failures` must be a finite number of at least 0"),
    ({"timeout": 0}, "`timeout` must be a finite number above 0"),
]


@pytest.mark.parametrize(("options", "text"), BAD)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text) as caught:
        EndpointAuthor(**{"url": "http://localhost/v1", "model": "m", **options})
    assert "secret" not in str(caught.value)


# The cache


def test_cache(endpoint, tmp_path):
    folder = tmp_path / "a" / "b"
    author = author_of(endpoint, cache_dir=str(folder))
    prompts = chat("one", "two", "Ü \ud83d\ude00 \x00")
    texts = author.write(prompts, **OPTIONS)
    assert counted(author) == [3, 0, 0, 0]
    again = author_of(endpoint, cache_dir=str(folder))
    assert again.write(prompts, **OPTIONS) == texts and counted(again) == [0, 0, 3, 0]
    assert len(endpoint.requests) == 3
    assert not list(folder.rglob("*.part"))


OTHERS = [
    {"prompts": chat("One")},
    {"model": "another"},
    {"max_new_tokens": 17},
    {"temperature": 0.0},
    {"options": {"seed": 1}},
    {"prompts": ["one"]},
]


@pytest.mark.parametrize("change", OTHERS, ids=str)
def test_what_is_asked_otherwise_is_not_in_the_cache(endpoint, tmp_path, change):
    own = {name: change[name] for name in ("model", "options") if name in change}
    how = {name: change[name] for name in OPTIONS if name in change}
    author_of(endpoint, cache_dir=str(tmp_path)).write(chat("one"), **OPTIONS)
    author = author_of(endpoint, cache_dir=str(tmp_path), **own)
    author.write(change.get("prompts", chat("one")), **{**OPTIONS, **how})
    assert counted(author) == [1, 0, 0, 0]


def test_another_server_is_not_in_the_cache(endpoint, tmp_path):
    with serving() as other:
        for one in (endpoint, other):
            author = author_of(one, cache_dir=str(tmp_path))
            author.write(chat("one"), **OPTIONS)
            assert counted(author) == [1, 0, 0, 0]


@pytest.mark.parametrize("content", ["", "{", '{"text": 3}', "[]", '{"text": "\udcff'])
def test_a_broken_file_is_asked_anew(endpoint, tmp_path, content):
    author = author_of(endpoint, cache_dir=str(tmp_path))
    author.write(chat("one"), **OPTIONS)
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert author.write(chat("one"), **OPTIONS) == ["About: one"] and counted(author) == [1, 0, 0, 0]
    assert json.loads(path.read_text()) == {"text": "About: one"}


CUT = {"message": {"content": "Quote: half of"}, "finish_reason": "length"}


@pytest.mark.parametrize("reply", [says(" "), sends(200, json.dumps({"choices": [CUT]}))], ids=["empty", "cut"])
def test_an_empty_or_cut_text_is_not_kept(endpoint, tmp_path, reply):
    author = author_of(endpoint, cache_dir=str(tmp_path))
    endpoint.replies = [reply]
    assert author.write(chat("one"), **OPTIONS) in ([" "], ["Quote: half of"])
    assert author.write(chat("one"), **OPTIONS) == ["About: one"] and counted(author) == [1, 0, 0, 0]


def test_a_failure_is_not_kept(endpoint, tmp_path):
    author = author_of(endpoint, cache_dir=str(tmp_path), retries=0, max_failures=1)
    endpoint.replies = [sends(500, "")]
    assert author.write(chat("one"), **OPTIONS) == [None]
    assert author.write(chat("one"), **OPTIONS) == ["About: one"]


def write_all(url, folder, queue):
    author = EndpointAuthor(url, "m", cache_dir=folder, concurrency=4)
    queue.put([author.write(chat(*map(str, range(40))), **OPTIONS) for _ in range(2)])


def test_two_processes_share_a_cache(endpoint, tmp_path):
    """Both write the same 40 texts at the same time; every file is whole, and a third reader needs no server."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = endpoint.url, str(tmp_path), queue
    both = [context.Process(target=write_all, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    told = [queue.get(timeout=60) for _ in both]
    for process in both:
        process.join(60)
    expected = [f"About: {number}" for number in range(40)]
    assert told == [[expected] * 2] * 2
    asked = len(endpoint.requests)
    reader = author_of(endpoint, model="m", cache_dir=str(tmp_path))
    assert reader.write(chat(*map(str, range(40))), **OPTIONS) == expected and counted(reader) == [0, 0, 40, 0]
    assert (
        len(endpoint.requests) == asked <= 80
        and len(list(tmp_path.rglob("*"))) == len({path.parent for path in tmp_path.rglob("*.json")}) + 40
    )
