# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Options that a teacher on a server goes with, and those that are refused when the config is built."""

import inspect

import pytest

from runs import SAMPLED
from trl_opsd import OPSDConfig
from trl_opsd.cli.catalog import catalog
from trl_opsd.methods.registry import method_of


URL = "http://localhost:8001"
TOP = {"distillation_mode": "topk_logits", "distillation_topk": 20, "distillation_topk_source": "teacher"}
TRL_SERVER = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://127.0.0.1:8000"}
LIVE = {"teacher_server_options": {"live": True}, "teacher_model_server_url": "http://localhost:8000/v1"}


@pytest.fixture
def config(tmp_path):
    def build(**options):
        own = {"teacher_model_kind": "server", "teacher_model_server_url": URL, "use_cpu": True, **options}
        return OPSDConfig(str(tmp_path), **own)

    return build


TAKEN = [
    TOP,
    {**TOP, "distillation_add_tail": True, "distillation_alpha": 0.5},
    {**TOP, "distillation_alpha": 1.0, "distillation_stop_gradient": True},
    {**TOP, "temperature": 1.1, "distillation_temperature": 1.0},
    {**TOP, "temperature": 1.1, "distillation_teacher_temperature": 1.0},
    {**TOP, "distillation_view_divergences": {"wrong": "reverse_kl"}},
    {**TOP, "method": "opsd"},
    {**TOP, "teacher_server_options": {"model": "qwen", "concurrency": 4}},
    SAMPLED,
    {**SAMPLED, "temperature": 0.7, "distillation_teacher_temperature": 1.0},
    {**TOP, **TRL_SERVER},
    {**TOP, **TRL_SERVER, **LIVE},
]


@pytest.mark.parametrize("options", TAKEN)
def test_what_goes_with_it(config, options):
    assert config(**options).teacher_model_server_url == [options.get("teacher_model_server_url", URL)]


REFUSED = [
    ({}, ["`distillation_mode='full_logits'`", "'topk_logits'", "'sampled_token'"]),
    ({**TOP, "distillation_topk_source": "student"}, ["set of the student", "`distillation_topk_source='teacher'`"]),
    ({**TOP, "distillation_topk_source": "union"}, ["set of the union", "`distillation_topk_source='teacher'`"]),
    ({**TOP, "distillation_target": "geometric"}, ["`distillation_target`", "leave it out"]),
    ({**TOP, "temperature": 0.7}, ["temperature 1", "would be 0.7", "`distillation_temperature=1.0`"]),
    ({**TOP, "distillation_teacher_temperature": 0.5}, ["would be 0.5", "`distillation_teacher_temperature=1.0`"]),
    ({**SAMPLED, "temperature": 0.7}, ["would be 0.7", "`distillation_teacher_temperature=1.0` for the teacher"]),
    ({**TOP, "teacher_model_server_url": None}, ["needs `teacher_model_server_url`"]),
    ({**TOP, "teacher_model_server_url": []}, ["needs `teacher_model_server_url`"]),
    ({**TOP, "teacher_model_server_url": [URL, "host:8000"]}, ["`teacher_model_server_url`", "'host:8000'"]),
    ({**TOP, "teacher_server_options": {"topk": 3}}, ["`teacher_server_options`", "'topk'"]),
    ({**TOP, "log_tokens": 2}, ["`log_tokens=2`", "Leave it out"]),
    ({**TOP, "method": "taid"}, ["'taid'", "whole distribution", "target", "'checkpoint'"]),
    ({**TOP, "method": "og_opsd"}, ["'og_opsd'", "the teacher's entropy"]),
    ({"method": "egrsd", "num_generations": 2}, ["'egrsd'", "the teacher's entropy"]),
    ({**TOP, "method": "crisp"}, ["`teacher_sync_steps"]),
    ({**TOP, **LIVE}, ["`live: true`", "`use_vllm=True`", "NCCL", "`teacher_model_kind='live'`"]),
    ({**TOP, **TRL_SERVER, **LIVE, "teacher_model_server_url": URL}, ["that server's address alone"]),
    ({**TOP, **TRL_SERVER, **LIVE, "num_iterations": 2}, ["`live: true`", "`num_iterations=1`"]),
    ({**TOP, **TRL_SERVER, **LIVE, "steps_per_generation": 4}, ["`steps_per_generation`", "(1)"]),
    (
        {**TOP, **TRL_SERVER, "teacher_model_server_url": "http://localhost:8000"},
        ["no frozen teacher", "`live: true`", "another server"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "texts"), REFUSED)
def test_what_is_refused(config, options, texts):
    with pytest.raises(ValueError) as caught:
        config(**options)
    assert all(text in str(caught.value) for text in texts), str(caught.value)


@pytest.mark.parametrize("name", list(catalog()["methods"]))
def test_methods_that_read_the_teachers_entropy_say_so(name):
    method = method_of(name)
    functions = [method.advantages, method.token_weight, method.target, method.auxiliary_loss, method.update_state]
    sources = {inspect.getsource(inspect.getmodule(one)) for one in functions if one is not None}
    assert method.reads_teacher_entropy == any("teacher_entropy" in one.split("METHOD = ")[0] for one in sources)
