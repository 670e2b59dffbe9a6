# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Requests to a teacher's servers: in turn, several at a time, again after what passes, and not after what stays."""

import json

import pytest
import torch

import tiny
from endpoint_server import breaks_off, drips, hangs_up, sends, slow
from scoring_server import NAME, refuses, scoring
from trl_opsd.teacher import server_client
from trl_opsd.teacher.server_client import ServerClient, ServerError, ServerOptions, check_urls
from trl_opsd.teacher.server_scores import score


IDS = list(range(5, 25))


@pytest.fixture(scope="module")
def model():
    return tiny.model(tiny.tokenizer())


@pytest.fixture
def server(model, monkeypatch):
    monkeypatch.setattr(server_client, "FIRST_WAIT", 0.01)
    with scoring(model, tiny.tokenizer()) as server:
        yield server


def client_of(*servers, **options):
    return ServerClient([one.url for one in servers], ServerOptions(**options))


def scored(client, topk=4, vocabulary=259, start=8):
    return score(client, NAME, IDS, start, topk, vocabulary)


def test_scores_are_those_of_the_model(server, model):
    scores = scored(client_of(server))
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([IDS])).logits[0].log_softmax(-1)[7:-1]
    top = logps.topk(4, dim=-1)
    assert torch.equal(scores.ids.long(), top.indices)
    torch.testing.assert_close(scores.logps, top.values)
    torch.testing.assert_close(scores.label_logps, logps[torch.arange(12), torch.tensor(IDS[8:])])
    (body,) = server.scored
    assert body == {
        "model": NAME, "prompt": IDS, "prompt_logprobs": 4, "max_tokens": 1, "temperature": 0.0,
        "add_special_tokens": False,
    }  # fmt: skip


def test_without_likeliest_tokens_the_sampled_ones_are_scored(server):
    client = client_of(server)
    scores = scored(client, topk=0)
    assert scores.ids.shape == scores.logps.shape == (12, 0)
    torch.testing.assert_close(scores.label_logps, scored(client).label_logps)


def test_tokens_that_the_student_lacks_are_left_out(server):
    client = client_of(server)
    whole, cut = scored(client), scored(client, vocabulary=100)
    for ids, logps, own, label in zip(whole.ids, cut.logps, cut.ids, range(12), strict=True):
        kept = [token for token in ids.tolist() if token < 100]
        assert own.tolist() == kept + [IDS[8 + label]] * (4 - len(kept))
        assert logps[len(kept) :].tolist() == [cut.label_logps[label].item()] * (4 - len(kept))


PASSING = [hangs_up, breaks_off, sends(503, "busy"), sends(429, "slow down"), sends(200, "no json"), sends(500, "")]


@pytest.mark.parametrize("reply", PASSING)
def test_what_passes_is_tried_again(server, reply):
    server.replies = [reply, reply]
    client = client_of(server, timeout=1.0)
    torch.testing.assert_close(scored(client).logps, scored(client).logps)
    assert len(server.scored) == 4 and client.retried == 2


@pytest.mark.parametrize("reply", [drips, slow(30, sends(200, "{}"))])
def test_an_attempt_has_its_time(server, reply):
    server.replies = [reply]
    client = client_of(server, timeout=1.0)
    torch.testing.assert_close(scored(client).logps, scored(client_of(server)).logps)
    assert client.retried >= 1


def test_the_error_after_the_last_retry(server):
    server.always = sends(503, "the engine is dead")
    with pytest.raises(ServerError, match=r"503: the engine is dead \(after 2 retries\).*`timeout`.*`concurrency`"):
        scored(client_of(server, retries=2))
    assert len(server.scored) == 3


def test_nobody_is_there(server):
    client = ServerClient(["http://127.0.0.1:9"], ServerOptions(retries=1))
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9/v1/completions gives no.*ConnectionRefused.*its log"):
        scored(client)


def test_a_refusal_is_an_error_at_once(server):
    server.replies = [refuses(400, "This model's maximum context length is 16 tokens.")]
    client = client_of(server)
    with pytest.raises(ServerError, match=r"answers 400.*maximum context length is 16"):
        scored(client)
    assert client.retried == 0 and len(server.scored) == 1


def test_waits_grow_and_heed_the_server(server, monkeypatch):
    waits = []
    client = client_of(server, retries=8)
    monkeypatch.setattr(client._closed, "wait", waits.append)
    monkeypatch.setattr(client._random, "uniform", lambda low, high: high)
    monkeypatch.setattr(server_client, "FIRST_WAIT", 0.5)
    busy = sends(503, "")
    server.replies = [busy, busy, sends(429, "", Retry_After="20"), busy, busy, busy, busy]
    scored(client)
    assert waits == [0.5, 1.0, 20.0, 4.0, 8.0, 8.0, 8.0]


def test_several_servers_in_turn_and_a_dead_one(model, server):
    with scoring(model, tiny.tokenizer()) as other:
        client = client_of(server, other)
        for _ in range(6):
            scored(client)
        assert len(server.scored) == len(other.scored) == 3
        other.always = hangs_up
        for _ in range(4):
            scored(client)
        assert client.retried == 2 and len(server.scored) == 7


def test_an_answer_about_other_tokens(server):
    for answer in ('{"choices": [{"text": "x"}]}', '{"choices": [{"prompt_logprobs": [null, {"1": {"logprob": 0}}]}]}'):
        server.replies = [sends(200, answer)]
        with pytest.raises(ServerError, match=r"without `prompt_logprobs` of the tokens that were sent"):
            scored(client_of(server))


def test_no_probability_is_told_as_one(server):
    entries = {str(IDS[-1]): {"logprob": -9999.0}, "7": {"logprob": 0.0}}
    told = [None, *({str(one): {"logprob": -1.0}} for one in IDS[1:-1]), entries]
    server.replies = [sends(200, json.dumps({"choices": [{"prompt_logprobs": told}]}))]
    scores = score(client_of(server), NAME, IDS, len(IDS) - 1, 2, 259)
    assert scores.label_logps.tolist() == [-torch.inf]
    assert scores.ids.tolist() == [[7, IDS[-1]]] and scores.logps.tolist() == [[0.0, -torch.inf]]


def test_the_key_is_sent_and_never_shown(server, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "sk-a/very+secret")
    client = client_of(server, api_key_env="TEACHER_KEY")
    scored(client)
    assert server.requests[-1]["key"] == "Bearer sk-a/very+secret"
    server.replies = [sends(401, "no such key: sk-a\\/very+secret")]
    with pytest.raises(ServerError, match=r"answers 401: no such key: \*\*\*") as caught:
        scored(client)
    assert "very+secret" not in repr(caught.value)
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(ValueError, match=r"TEACHER_KEY is not set"):
        client_of(server, api_key_env="TEACHER_KEY")


def test_after_the_end_nothing_is_tried_again(server):
    server.always = sends(503, "busy")
    client = client_of(server, retries=50, concurrency=1)
    asked = [client.submit(scored, client) for _ in range(3)]
    client.close()
    for one in asked:
        with pytest.raises(BaseException, match=r"Given up|^$"):
            one.result(timeout=20)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"concurency": 3}, r"no 'concurency' \(did you mean `concurrency`\?\)"),
        ({"concurrency": 0}, "`concurrency` must be a whole number of at least 1"),
        ({"timeout": 0}, "`timeout` must be a finite number above 0"),
        ({"live": "yes"}, "`live` must be true or false"),
        ({"api_key_env": "sk-123"}, "name of an environment variable, and not the key"),
    ],
)
def test_options_that_are_refused(options, text):
    with pytest.raises(ValueError, match=f"`teacher_server_options`.*{text}"):
        ServerOptions.of(options)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "http://", "http://user:pw@host", "http://host/?key=1", "ftp://host"]
)
def test_addresses_that_are_refused(url):
    with pytest.raises(ValueError, match=r"`teacher_model_server_url`.*http://localhost:8000") as caught:
        check_urls(["http://fine:1", url])
    assert "pw" not in str(caught.value)
