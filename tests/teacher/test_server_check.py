# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What is looked for on a teacher's servers before training."""

import pytest
import torch

import tiny
from endpoint_server import sends
from scoring_server import NAME, says, scoring
from trl_opsd.teacher.server_check import PROBE, check_servers
from trl_opsd.teacher.server_client import ServerClient, ServerOptions


@pytest.fixture
def server(tokenizer):
    with scoring(tiny.model(tokenizer), tokenizer) as server:
        yield server


def check(*servers, topk=5, tokenizer=None, same_twice=True, **options):
    client = ServerClient([one.url for one in servers], ServerOptions(**{"retries": 0, **options}))
    return check_servers(client, tokenizer or tiny.tokenizer(), topk, 259, same_twice)


def test_what_is_found(server, tokenizer):
    facts = check(server)
    assert (facts.model, facts.max_length, facts.spread) == (NAME, 511, 0.0)
    ids = tokenizer(PROBE)["input_ids"]
    with torch.no_grad():
        logps = server.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)[:-1]
    expected = logps[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    torch.testing.assert_close(torch.tensor(facts.probe_logps), expected)


def test_a_short_context(server):
    server.length = 40
    assert check(server).max_length == 39 and all(len(body["prompt"]) == 39 for body in server.scored)


def test_the_server_does_not_run():
    client = ServerClient(["http://127.0.0.1:9"], ServerOptions(retries=0))
    with pytest.raises(ValueError, match=r"can't be reached.*127\.0\.0\.1:9/v1/models gives no answer"):
        check_servers(client, tiny.tokenizer(), 5, 259)


def test_another_model_than_the_wanted_one(server):
    with pytest.raises(ValueError, match=r"serves \['tiny'\], and not 'qwen': set `model`"):
        check(server, model="qwen")


def another_vocabulary(server, tokenizer=None):
    with pytest.raises(ValueError, match=r"another vocabulary than the student.*same family"):
        check(server, tokenizer=tokenizer)


@pytest.mark.parametrize("side", ["student", "server"])
def test_a_token_more(server, side):
    """None of the probe, so that its text alone does not tell."""
    larger = tiny.tokenizer()
    larger.add_tokens(["<|new|>"])
    if side == "server":
        server.tokenizer = larger
    another_vocabulary(server, larger if side == "student" else None)


def test_two_ids_that_are_exchanged(server, monkeypatch):
    """Of tokens that the probe lacks."""
    first, second = (server.tokenizer.convert_tokens_to_ids(token) for token in "~^")
    swapped = {first: second, second: first}
    text = lambda body: says({"prompt": server.tokenizer.decode([swapped.get(i, i) for i in body["tokens"]])})  # noqa: E731
    monkeypatch.setattr(server, "_text", text)
    another_vocabulary(server)


def test_another_tokenizer(server):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["answer"])
    with pytest.raises(ValueError, match=r"another vocabulary than the student \(260 tokens\)"):
        check(server, tokenizer=tokenizer)


def test_a_server_without_a_tokenizer(server, monkeypatch):
    monkeypatch.setattr(server, "_tokens", lambda body: sends(404, "Not Found"))
    with pytest.raises(ValueError, match=r"can't be compared.*/tokenize and /detokenize.*404"):
        check(server)


def test_more_likeliest_tokens_than_the_server_gives(server):
    with pytest.raises(ValueError, match=r"greater than max allowed: 20.*`--max-logprobs 100`.*`distillation_topk`"):
        check(server, topk=100)


def test_answers_that_differ(server):
    server.noise = 0.5
    with pytest.raises(ValueError, match=r"nats differently.*`tolerance`.*allows 0\.2"):
        check(server)
    assert 0 < check(server, tolerance=10.0).spread < 10
    assert check(server, same_twice=False).spread == 0.0


def test_two_servers_of_different_weights(server, tokenizer):
    with scoring(tiny.model(tokenizer, seed=1), tokenizer) as other:
        with pytest.raises(ValueError, match=r"Do all servers serve the same weights"):
            check(server, other)
    with scoring(tiny.model(tokenizer), tokenizer) as same:
        assert check(server, same).spread == 0.0 and len(same.scored) == 3


def test_weights_that_are_lost(server):
    """After a sleep, say: every token is equally likely."""
    for param in server.model.parameters():
        torch.nn.init.zeros_(param)
    with pytest.raises(ValueError, match=r"equally likely.*lost when it slept"):
        check(server)


def test_logits_instead_of_log_probabilities(server):
    server.raw = True
    with pytest.raises(ValueError, match=r"no log-probabilities.*raw_logits"):
        check(server)


def test_a_list_of_models_that_is_none(server, monkeypatch):
    monkeypatch.setattr(server, "_models", lambda body: says({"error": "no"}))
    with pytest.raises(ValueError, match=r"serves \[\]"):
        check(server)
