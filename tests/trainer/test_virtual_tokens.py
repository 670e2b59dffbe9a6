# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Adapters with virtual tokens: prefix tuning, cartridges, prompt tuning and p-tuning."""

import pytest
import torch
from datasets import Dataset
from peft import CPTConfig, LoraConfig, MultitaskPromptTuningConfig, PeftModel, get_peft_model

import tiny
from batches import batch_of, completions, student_prompts, teacher_reads
from conftest import length_reward
from devices import device
from families import small_model
from runs import assert_same_run, interrupted, move
from trl_opsd import View
from trl_opsd.diagnostics import preflight
from trl_opsd.model.virtual_tokens import mend_generation
from trl_opsd.privileged import rollouts_of
from trl_opsd.teacher.weights import CopiedWeights, StudentWeights
from trl_opsd.token_report.load import load_groups, load_log
from virtual_tokens import ADAPTERS, CACHED, COUNT, VIRTUAL, adapter, holding


SYSTEM = "The shop opens at nine."
LENGTHS = {"equal": [5] * 4, "unequal": [3, 30, 7, 18]}


def asking(lengths):
    rows = [{"prompt": [{"role": "user", "content": "q" * n}], "privileged_context": "c" * (40 - n)} for n in lengths]
    return {"dataset": Dataset.from_list(rows), "shuffle_dataset": False}


def always(*views):
    return lambda groups: [list(views) for _ in rollouts_of(groups)]


def system_ids(tokenizer):
    return tokenizer.apply_chat_template([{"role": "system", "content": SYSTEM}])["input_ids"]


def divergence(trainer):
    trainer._compute_loss(trainer.model, batch_of(trainer))
    return trainer._metrics["train"]["self_distillation/divergence"][-1]


def written_by_whole_forwards(model, prompt, count=8):
    """Likeliest tokens, one by one, each by a forward of all tokens before it."""
    ids = list(prompt)
    for _ in range(count):
        read = torch.tensor([ids], device=model.device)
        with torch.no_grad():
            ids.append(model(input_ids=read, attention_mask=torch.ones_like(read)).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", [*CACHED, "prompt"])
def test_a_prefix_that_is_the_system_message(make_trainer, tokenizer, name, lengths, size):
    """The student with it and the teacher that reads the message are one model."""
    model = holding(tiny.model(tokenizer), name, system_ids(tokenizer))
    views = always(View(SYSTEM, place="system"))
    trainer = make_trainer(model, privileged=views, per_device_train_batch_size=size, **asking(LENGTHS[lengths]))
    assert abs(divergence(trainer)) < 3e-7
    move(trainer.model)
    assert divergence(trainer) > 1e-3


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_base_teacher_is_the_model_without_it(make_trainer, tokenizer, name):
    trainer = make_trainer(peft_config=adapter(name), teacher_model_kind="base")
    move(trainer.model, 0.5)
    assert type(trainer.teacher.weights) is StudentWeights
    ids = torch.arange(9, 19, device=device()).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with trainer.teacher.teacher_forward(trainer.model) as teacher:
        given = teacher(**inputs).logits
    torch.testing.assert_close(given, tiny.model(tokenizer).to(device()).eval()(**inputs).logits)
    assert not torch.allclose(given, trainer.model.eval()(**inputs).logits[:, -10:], atol=1e-3)


def test_a_copied_teacher_keeps_the_prefix(make_trainer):
    trainer = make_trainer(peft_config=adapter("prefix"), teacher_model_kind="ema", max_steps=1)
    assert type(trainer.teacher.weights) is CopiedWeights
    trainer.train()
    assert trainer.teacher.num_updates == 1


@pytest.mark.parametrize("name", ADAPTERS)
def test_gradients_of_a_batch_are_those_of_its_rows(make_trainer, tokenizer, name):
    """Against float64, row by row, through PEFT's own forward; nothing but the adapter has a gradient."""
    trainer = make_trainer(peft_config=adapter(name), **asking(LENGTHS["unequal"]))
    move(trainer.model)
    batch = batch_of(trainer)
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()

    student = get_peft_model(tiny.model(tokenizer), adapter(name))
    student.load_state_dict(trainer.model.state_dict())
    student, teacher = (one.to(device()).double().eval() for one in (student, tiny.model(tokenizer)))
    total, tokens = torch.zeros((), dtype=torch.float64, device=device()), 0
    for prompt, read, completion in zip(student_prompts(batch), teacher_reads(batch), completions(batch), strict=True):
        log_p, log_q = (
            reader(input_ids=torch.tensor([ids + completion], device=device())).logits[0, -len(completion) - 1 : -1]
            for reader, ids in ((student, prompt), (teacher, read))
        )
        log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
        total = total + (log_q.detach().exp() * (log_q.detach() - log_p)).sum()
        tokens += len(completion)
    (total / tokens).backward()
    assert loss.item() == pytest.approx((total / tokens).item(), rel=1e-4)
    expected = dict(student.named_parameters())
    for name, param in trainer.model.named_parameters():
        assert (param.grad is not None) == ("prompt_encoder" in name and "frozen" not in name), name
        if param.grad is not None:
            assert param.grad.abs().max() > 0
            torch.testing.assert_close(param.grad.double(), expected[name].grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ADAPTERS)
def test_generation_is_that_of_whole_forwards(make_trainer, name):
    """Of rows of several lengths, by the student and by the teacher without the adapter; under transformers 5.24 PEFT
    by itself forgets the prompt after one token."""
    trainer = make_trainer(peft_config=adapter(name), **asking(LENGTHS["unequal"]))
    move(trainer.model.eval(), 0.5)
    trainer.eos_token_ids = []  # no text ends early
    prompts = student_prompts(batch_of(trainer))
    model = trainer.model.eval()
    for weights, reader in (("live", model), ("teacher", model.get_base_model())):
        wanted = [written_by_whole_forwards(reader, prompt) for prompt in prompts]
        assert trainer.text_generator.answers(prompts, weights, temperature=0.0) == wanted


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_saved_adapter_is_plain_peft(make_trainer, tokenizer, tmp_path, name):
    trainer = make_trainer(peft_config=adapter(name), max_steps=2)
    start = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    for key, value in trainer.model.state_dict().items():
        trained = "prompt_encoder" in key and "frozen" not in key
        assert torch.equal(value, start[key]) != trained, key
    trainer.save_model(str(tmp_path / "saved"))
    trainer.create_model_card()
    loaded = PeftModel.from_pretrained(tiny.model(tokenizer), tmp_path / "saved").to(device()).eval()
    ids = torch.arange(9, 19, device=device()).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    torch.testing.assert_close(loaded(**inputs).logits, trainer.model.eval()(**inputs).logits)
    mend_generation(loaded)
    written = loaded.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, 10:].tolist()
    assert written == written_by_whole_forwards(loaded, ids[0].tolist())


def test_other_adapters_generate_as_before(tokenizer):
    model = get_peft_model(tiny.model(tokenizer), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    before = model.base_model_prepare_inputs_for_generation
    mend_generation(model)
    assert model.base_model_prepare_inputs_for_generation == before


@pytest.mark.parametrize("kind", ["base", "live"])
def test_prompts_are_shared_where_it_is_off(make_trainer, kind):
    rows = {**asking([5, 30, 5, 30]), "num_generations": 4, "per_device_train_batch_size": 8}
    losses = {}
    for share in (True, False):
        torch.manual_seed(0)
        trainer = make_trainer(
            peft_config=adapter("prefix"), teacher_model_kind=kind, teacher_share_prefix=share,
            privileged=always(View(SYSTEM * 3)), **rows,
        )  # fmt: skip
        move(trainer.model)
        batch = batch_of(trainer)
        (one,) = batch["distillation"].teacher_batches
        assert one.share_prefix == (share and kind == "base")
        losses[share] = trainer._compute_loss(trainer.model, batch).item()
        assert trainer.sharing.allowed(False) == (share and kind == "base"), "the check against a plain read agreed"
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_the_reference_of_beta(make_trainer, tokenizer):
    """The model without a new adapter; of an adapter that comes with the model, its start."""
    options = {"reward_funcs": length_reward, "beta": 0.1, "max_steps": 1}
    given = get_peft_model(tiny.model(tokenizer), adapter("prefix"))
    kl = {}
    for name, model, config in (("new", None, adapter("prefix")), ("given", given, None)):
        trainer = make_trainer(model, peft_config=config, **options)
        trainer.train()
        kl[name] = trainer.state.log_history[0]["kl"]
    assert kl["given"] == 0.0 and kl["new"] > 1e-3


@pytest.mark.parametrize("name", CACHED)
def test_a_resumed_run_is_the_uninterrupted_one(make_trainer, name):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make_trainer(peft_config=adapter(name), **options)
    whole.train()
    interrupted(make_trainer, 3, peft_config=adapter(name), **options)
    resumed = make_trainer(peft_config=adapter(name), **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_a_checkpoint_without_the_encoder(make_trainer):
    options = {"peft_config": adapter("p-tuning"), "save_strategy": "steps", "save_steps": 1}
    make_trainer(max_steps=1, **options).train()
    with pytest.raises(ValueError, match=r"`resume_from_checkpoint` would load another model.* P_TUNING"):
        make_trainer(max_steps=2, **options).train(resume_from_checkpoint=True)


def test_records_of_tokens_and_the_preflight(make_trainer, tmp_path):
    options = {"peft_config": adapter("prefix"), "log_tokens": 2, "max_steps": 1}
    trainer = make_trainer(score_func=length_reward, **options)
    report = preflight(trainer, rows=4, temperature=0.0)
    (view,) = report.views
    assert view.divergence > 0 and report.student_score is not None
    trainer.train()
    log = load_log(tmp_path / "out")
    (group,) = load_groups(tmp_path / "out", log, None, None)
    assert log.options["virtual_tokens"] == COUNT and group.rollouts
    assert not group.same_weights, "a teacher without them is not the student, whatever it reads"


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize("given", ["peft_config", "model"])
def test_gradient_checkpointing_would_drop_the_cache(make_trainer, tokenizer, name, given):
    model = get_peft_model(tiny.model(tokenizer), adapter(name)) if given == "model" else None
    config = adapter(name) if model is None else None
    with pytest.raises(ValueError, match=r"`gradient_checkpointing=True`.*set `gradient_checkpointing=False`"):
        make_trainer(model, peft_config=config, gradient_checkpointing=True)


@pytest.mark.parametrize("name", ["prompt", "p-tuning"])
def test_embeddings_train_under_gradient_checkpointing(make_trainer, name):
    norms = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        trainer = make_trainer(peft_config=adapter(name), gradient_checkpointing=checkpointing, max_steps=1)
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 0


@pytest.mark.parametrize(
    ("config", "options", "match"),
    [
        (adapter("prompt"), {"use_vllm": True}, "vLLM would sample without the virtual tokens.*`use_vllm`"),
        (
            adapter("prefix"), {"use_transformers_continuous_batching": True},
            "would sample without the virtual tokens.*`use_transformers_continuous_batching`",
        ),
        (MultitaskPromptTuningConfig(**VIRTUAL, num_tasks=1), {}, "MULTITASK_PROMPT_TUNING, which takes inputs"),
        (
            CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[5] * COUNT, cpt_mask=[1] * COUNT,
                      cpt_tokens_type_mask=[1] * COUNT),
            {}, "CPT, which takes inputs",
        ),
        (
            adapter("prefix", prefix_projection=True),
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
            "`load_best_model_at_end` would load another model",
        ),
    ],
)  # fmt: skip
def test_options_that_do_not_go_with_it(make_trainer, config, options, match):
    """Before a model is loaded: there is none of this name."""
    rows = Dataset.from_list([{"prompt": "q", "privileged_context": "c"}] * 4)
    with pytest.raises(ValueError, match=match):
        make_trainer("no/such-model", peft_config=config, eval_dataset=rows, **options)


@pytest.mark.parametrize(
    ("family", "config", "match"),
    [
        ("mistral", {"sliding_window": 16}, "MistralForCausalLM see a window"),
        ("lfm2", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False},
         "Lfm2ForCausalLM see a window"),
        ("bloom", {}, "BloomForCausalLM takes no position ids"),
    ],
)  # fmt: skip
def test_models_that_cannot_read_it(make_trainer, tokenizer, family, config, match):
    with pytest.raises(ValueError, match=match):
        make_trainer(small_model(family, tokenizer, **config), peft_config=adapter("prompt"))
