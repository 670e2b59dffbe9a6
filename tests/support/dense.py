# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Dense references: log-probabilities and losses from the model's own full forward, mostly in float64."""

import copy

import torch

from batches import completions, teacher_reads


def dense_logits(model, prompt_ids, prompt_mask, inputs, temperature=1.0, dtype=torch.float64):
    """Next-token log-probabilities `(B, C, V)` at the completion, from the model's own full forward."""
    model = copy.deepcopy(model).to(dtype)
    model.__dict__.pop("forward", None)
    ids = torch.cat([prompt_ids, inputs["completion_ids"]], 1)
    mask = torch.cat([prompt_mask, inputs["completion_mask"]], 1)
    length = inputs["completion_ids"].shape[1]
    logits = type(model).forward(model, input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1]
    return model, (logits / temperature).log_softmax(-1)


def reference_loss(trainer, inputs, teacher_model=None, dtype=torch.float64):
    """Forward KL, mean over the tokens of rows with a context, and its gradient on the embedding."""
    temperature = trainer.args.temperature
    model, log_p = dense_logits(trainer.model, inputs["prompt_ids"], inputs["prompt_mask"], inputs, temperature, dtype)
    teacher_ids = (
        inputs["distillation"].views["privileged"].prompt_ids,
        inputs["distillation"].views["privileged"].prompt_mask,
    )
    _, log_q = dense_logits(teacher_model or trainer.model, *teacher_ids, inputs, temperature, dtype)
    log_q = log_q.detach()
    mask = inputs["completion_mask"] * (inputs["distillation"].views["privileged"].weight > 0).unsqueeze(1)
    divergence = (log_q.exp() * (log_q - log_p)).sum(-1)
    loss = divergence[mask.bool()].sum() / mask.sum()
    loss.backward()
    return loss.item(), {name: param.grad for name, param in model.named_parameters()}


def dense_logps(model, head, tail):
    """Log-probabilities of `tail` after `head`, in float64."""
    model = copy.deepcopy(model).double().eval()
    model.__dict__.pop("forward", None)
    with torch.no_grad():
        ids = torch.tensor([head + tail], device=model.device)
        logits = model(input_ids=ids).logits[0, len(head) - 1 : -1]
    return logits.log_softmax(-1).gather(1, ids[0, len(head) :].unsqueeze(1)).squeeze(1)


def check_scores(trainer, batch, name="privileged"):
    """What the teacher says of each taught token is what a plain forward over its ids says."""
    index = list(batch["distillation"].views).index(name)
    logps, _ = trainer.objective._scores(trainer.model, batch["distillation"])
    for row, (head, tail) in enumerate(zip(teacher_reads(batch, name), completions(batch), strict=True)):
        start = int(batch["distillation"].views[name].start[row])
        wanted = logps.new_zeros(batch["completion_ids"].shape[1], dtype=torch.float64)
        wanted[start : len(tail)] = dense_logps(trainer.model, head, tail[start:])
        taught = batch["distillation"].views[name].taught[row] & batch["distillation"].mask[row].bool()
        torch.testing.assert_close(logps[index, row].double()[taught], wanted[taught], rtol=1e-4, atol=1e-5)
        assert taught.any()
