# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What a backend answers, and that nothing else asks accelerate which engine it is."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import DistributedType

import trl_opsd
from trl_opsd.checkpoints.folders import check_processes
from trl_opsd.engines import Backend, Unsharded, backend
from trl_opsd.engines.shards import FSDP2Shards, ZeRO3Shards


PACKAGE = Path(trl_opsd.__file__).parent
ENGINE_NAMES = re.compile(
    r"distributed_type|DistributedType|zero_stage|is_fsdp2|deepspeed_plugin|fsdp_plugin|deepspeed_engine_wrapped|zero3_enabled"
)


def accelerator(kind, stage=None, fsdp2=False, processes=2, **deepspeed_config):
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config=deepspeed_config)
    state = SimpleNamespace(deepspeed_plugin=None if stage is None else plugin)
    return SimpleNamespace(distributed_type=kind, state=state, is_fsdp2=fsdp2, num_processes=processes)


# Accelerator, (is_ddp, prepares_model_in_train, gathers_whole_modules), class of the shards
BACKENDS = {
    "one process": (accelerator(DistributedType.NO), (False, False, False), Unsharded),
    "DDP": (accelerator(DistributedType.MULTI_GPU), (True, False, False), Unsharded),
    "DDP on CPUs": (accelerator(DistributedType.MULTI_CPU), (True, False, False), Unsharded),
    "ZeRO-2": (accelerator(DistributedType.DEEPSPEED, stage=2), (False, True, False), Unsharded),
    "ZeRO-3": (accelerator(DistributedType.DEEPSPEED, stage=3), (False, True, True), ZeRO3Shards),
    "FSDP1": (accelerator(DistributedType.FSDP), (False, True, True), type(None)),
    "FSDP2": (accelerator(DistributedType.FSDP, fsdp2=True), (False, True, True), FSDP2Shards),
}


@pytest.mark.parametrize("name", BACKENDS)
def test_answers(name):
    accelerator, expected, shards = BACKENDS[name]
    backend = Backend(accelerator)
    assert (backend.is_ddp, backend.prepares_model_in_train, backend.gathers_whole_modules) == expected
    assert type(backend.shards) is shards
    assert backend.shards is None or backend.shards.is_sharded == (shards is not Unsharded)


@pytest.mark.parametrize(
    ("kind", "wrapper"),
    [
        (DistributedType.DEEPSPEED, "prepare_deepspeed"),
        (DistributedType.FSDP, "prepare_fsdp"),
        (DistributedType.NO, None),
    ],
)
def test_a_frozen_model_is_wrapped_as_the_engine_needs(monkeypatch, kind, wrapper):
    for name in ("prepare_deepspeed", "prepare_fsdp"):
        monkeypatch.setattr(backend, name, lambda model, accelerator, name=name: (name, model))
    own = accelerator(kind)
    own.prepare_model = lambda model, evaluation_mode: (None, model) if evaluation_mode else "as if it were trained"
    assert Backend(own).prepare_frozen("model") == (wrapper, "model")


@pytest.mark.parametrize(
    ("kind", "loading"),
    [
        (DistributedType.NO, {}),
        (DistributedType.MULTI_CPU, {}),
        (DistributedType.MULTI_GPU, {"device_map": None}),
        (DistributedType.DEEPSPEED, {"device_map": None}),
    ],
)
def test_arguments_of_loading(monkeypatch, kind, loading):
    monkeypatch.setattr(backend, "PartialState", lambda: SimpleNamespace(distributed_type=kind))
    assert backend.loading_kwargs() == loading


def checkpoint_of(folder, processes):
    step = folder / "global_step4"
    step.mkdir()
    for rank in range(processes):
        (step / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    return str(folder)


def test_deepspeed_resumes_with_as_many_processes(tmp_path):
    checkpoint = checkpoint_of(tmp_path, 4)
    zero = accelerator(DistributedType.DEEPSPEED, stage=2)
    with pytest.raises(ValueError, match="written by 4 processes under DeepSpeed, which can't go on with 2"):
        check_processes(checkpoint, zero)
    check_processes(checkpoint, accelerator(DistributedType.DEEPSPEED, stage=2, processes=4))
    check_processes(checkpoint, accelerator(DistributedType.DEEPSPEED, stage=2, checkpoint={"load_universal": True}))
    check_processes(checkpoint, accelerator(DistributedType.FSDP, fsdp2=True))
    check_processes(checkpoint, accelerator(DistributedType.MULTI_GPU))


def test_a_checkpoint_without_deepspeeds_files_resumes_with_any(tmp_path):
    check_processes(checkpoint_of(tmp_path, 0), accelerator(DistributedType.DEEPSPEED, stage=2))


def test_only_the_engines_ask_which_engine_it_is():
    files = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "engines"]
    asking = {str(path.relative_to(PACKAGE)): ENGINE_NAMES.findall(path.read_text()) for path in files}
    asking.pop("cli/planned_run/settings.py")  # reads a launch config, before there is an engine
    assert len(files) > 100 and not {path: names for path, names in asking.items() if names}


@pytest.mark.parametrize("zero3", [True, False])
def test_zero3_shards_every_model_that_is_loaded(monkeypatch, zero3):
    monkeypatch.setattr(backend, "is_deepspeed_zero3_enabled", lambda: zero3)
    assert backend.shards_loaded_models() is zero3
