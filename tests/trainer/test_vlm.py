# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Vision-language models: which pixels the teacher sees, through TRL's own batches, and what it makes of them."""

import copy
from itertools import cycle

import pytest
import torch
from datasets import Dataset

import tiny_vlm
from batches import batch_of, completions, student_prompts, teacher_reads
from conftest import length_reward
from runs import BUFFERED, LORA_WITH_DROPOUT, Leaves, assert_same_run
from trl_opsd import View, preflight
from trl_opsd.batches.pixels import MODALITIES
from trl_opsd.privileged import ImageView, rollouts_of, with_images, without_images
from trl_opsd.rollouts.message_images import images_of
from trl_opsd.rollouts.rollout import message_text
from trl_opsd.trainer.text_generator import TextGenerator
from views import giving


every_kind = pytest.mark.parametrize("kind", tiny_vlm.KINDS)
# Images of each row in turn
ONE_OR_TWO = {kind: (2,) if kind == "idefics3" else (1, 2) for kind in tiny_vlm.KINDS}
MIXED = {kind: (2,) if kind == "idefics3" else (0, 1, 2) for kind in tiny_vlm.KINDS}
SAMPLED = {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}
LIVE = {"teacher_model_kind": "live"}


def pictured(counts=(1,), number=8, **columns):
    """Rows of several widths and as many images as `counts` says in turn, each of its own colors and size."""
    rows = []
    for i in range(number):
        images = [tiny_vlm.image(10 * i + j, 32 + 16 * (i % 2)) for j in range(counts[i % len(counts)])]
        row = {"prompt": [{"role": "user", "content": "What " + "very " * (i % 3) + f"{i}?"}], "images": images}
        rows.append(row | {name: made(i) for name, made in columns.items()})
    return Dataset.from_list(rows)


@pytest.fixture
def make(make_trainer):
    def made(kind, dataset=None, **options):
        dataset = pictured() if dataset is None else dataset
        options = {"processing_class": tiny_vlm.processor(kind), **options}
        return make_trainer(tiny_vlm.model(kind), dataset=dataset, **options)

    return made


def dense(trainer, prompt_ids, images, completion, temperature=1.0):
    """Log-probabilities `(C, V)` of one row in float64, from the processor's own tensors of its images."""
    model = copy.deepcopy(trainer.model).double().eval()
    model.__dict__.pop("forward", None)
    ids = torch.tensor([prompt_ids + completion], device=model.device)
    seen = {}
    if images:
        text = [trainer.processing_class.image_token * len(images)]
        seen = dict(trainer.processing_class(images=[images], text=text, return_tensors="pt"))
        seen = {name: value.to(model.device) for name, value in seen.items() if name.startswith(("pixel", "image"))}
        seen["pixel_values"] = seen["pixel_values"].double()
    types = {"qwen2_vl": "mm_token_type_ids", "gemma3": "token_type_ids"}.get(model.config.model_type)
    if types is not None:
        seen[types] = (ids == model.config.image_token_id).long()
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **seen).logits[0]
    return (logits[len(prompt_ids) - 1 : -1] / temperature).log_softmax(-1)


def rollouts_in(trainer, batch):
    by_index = {rollout.index: rollout for rollout in trainer.collected.rollouts}
    return [by_index[index] for index in batch["distillation"].index.tolist()]


def check_loss(trainer, batch, seen_by_teacher, names=("privileged",)):
    """The loss is the forward KL of a dense computation, row by row, with the pixels that each side is said to see."""
    total, tokens = 0.0, 0
    for row, rollout in enumerate(rollouts_in(trainer, batch)):
        completion = completions(batch)[row]
        log_p = dense(trainer, student_prompts(batch)[row], images_of(rollout.prompt), completion)
        for name in names:
            if not batch["distillation"].views[name].weight[row]:
                continue
            images = seen_by_teacher(rollout) if callable(seen_by_teacher) else seen_by_teacher[name](rollout)
            log_q = dense(trainer, teacher_reads(batch, name)[row], images, completion)
            total += (log_q.exp() * (log_q - log_p)).sum().item() / len(names)
            tokens += len(completion) / len(names)
    loss = trainer._compute_loss(trainer.model, batch)
    assert tokens > 0 and loss.item() == pytest.approx(total / tokens, rel=2e-4)
    return loss


@every_kind
def test_the_loss_equals_a_dense_reference(make, kind):
    """The same image in both contexts, and a text that the student does not read."""
    trainer = make(kind, privileged=giving(View("It is red.")), **LIVE)
    batch = batch_of(trainer)
    loss = check_loss(trainer, batch, lambda rollout: images_of(rollout.prompt))
    assert loss.item() > 1e-3
    loss.backward()
    tower = [param for name, param in trainer.model.named_parameters() if "vis" in name]
    assert any(param.grad is not None and param.grad.abs().max() > 0 for param in tower), "the student sees"


def no_images(rollout):
    return []


def student_images(rollout):
    return images_of(rollout.prompt)


@every_kind
def test_a_text_instead_of_pixels(make, kind):
    """The student has an image, the teacher its text alone."""
    data = pictured(ONE_OR_TWO[kind], text=lambda i: f"Picture {i}." if i % 3 else None)
    trainer = make(kind, data, privileged=ImageView(text_column="text"), **LIVE, per_device_train_batch_size=8)
    batch = batch_of(trainer)
    sampled = {rollout.index for rollout in trainer.collected.rollouts if rollout.row["text"] is not None}
    assert set(batch["distillation"].index.tolist()) == sampled and 0 < len(sampled) < 8
    token = trainer.model.config.image_token_id
    for student, teacher, rollout in zip(
        student_prompts(batch), teacher_reads(batch), rollouts_in(trainer, batch), strict=True
    ):
        assert token in student and token not in teacher
        assert f"?\n\n{rollout.row['text']}<|im_end|>" in trainer._tokenizer.decode(teacher)
    check_loss(trainer, batch, no_images)


@every_kind
def test_other_pictures(make, kind):
    data = pictured(ONE_OR_TWO[kind], crop=lambda i: tiny_vlm.image(i + 100, 48) if i % 4 else None)
    trainer = make(kind, data, privileged=ImageView(image_column="crop"), **LIVE)
    batch = batch_of(trainer)
    crop = lambda rollout: [rollout.row["crop"]]  # noqa: E731
    loss = check_loss(trainer, batch, crop)
    with pytest.raises(AssertionError):  # the reference tells pictures apart, also of one size
        check_loss(trainer, batch, lambda rollout: [tiny_vlm.image(77, 48)])
    assert loss.item() > 5e-5


VIEWS = {
    "text": no_images,
    "same": student_images,
    "crop": lambda rollout: [rollout.row["crop"]],
    "both": lambda rollout: [*images_of(rollout.prompt), rollout.row["crop"]],
    "two": lambda rollout: [tiny_vlm.image(1), tiny_vlm.image(2, 48)],
}


def many_views(groups):
    """None, one or several views: without image, with the student's, with others."""

    def views(rollout):
        prompt, crop = rollout.prompt, rollout.row["crop"]
        made = [
            View(prompt=without_images(prompt), name="text"),
            View("A hint.", name="same"),
            View(prompt=with_images(prompt, [crop], keep=True), name="both"),
            View(prompt=with_images(prompt, [crop]), name="crop"),
            View(prompt=with_images(prompt, [tiny_vlm.image(1), tiny_vlm.image(2, 48)]), name="two"),
        ]
        number = int(message_text(rollout.prompt[0]).split()[-1].rstrip("?"))
        return made[number % 4 :] if number % 5 else []

    return [views(rollout) for rollout in rollouts_of(groups)]


@pytest.mark.parametrize(("kind", "accumulation"), zip(tiny_vlm.KINDS, cycle([2, 4]), strict=False))
def test_rows_are_dealt_with_their_pixels(make, kind, accumulation):
    """0, 1 and 2 images in a row, 0 to 5 views of it, shuffled, split, dealt anew, idle rows left out."""
    counts = MIXED[kind]
    data = pictured(counts, 16, crop=lambda i: tiny_vlm.image(i + 100, 32 + 16 * (i % 2)))
    steps = {"num_generations": 2, "gradient_accumulation_steps": accumulation, "steps_per_generation": 4}
    trainer = make(kind, data, privileged=many_views, **steps, **LIVE)
    batch_of(trainer)
    seen, rows, bare = set(), 0, 0
    for batch in trainer._buffered_inputs:
        logps = trainer.objective._scores(trainer.model, batch["distillation"])[0]
        own = student_logps(trainer, batch)
        bare += sum(batch["num_images"]) == 0
        for row, rollout in enumerate(rollouts_in(trainer, batch)):
            rows += 1
            seen.add(len(images_of(rollout.prompt)))
            tail = completions(batch)[row]
            student = student_prompts(batch)[row]
            assert_scores(own[row], dense(trainer, student, images_of(rollout.prompt), tail), tail)
            for place, name in enumerate(sorted(VIEWS)):
                if batch["distillation"].views[name].weight[row]:
                    images = VIEWS[name](rollout)
                    wanted = dense(trainer, teacher_reads(batch, name)[row], images, tail)
                    assert_scores(logps[place, row], wanted, tail)
    assert seen == set(counts) and rows < 16 and bool(bare) == (0 in counts)


def assert_scores(scores, dense_logps, tokens):
    wanted = dense_logps.gather(1, torch.tensor(tokens, device=scores.device).unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(scores[: len(tokens)].double(), wanted, rtol=1e-4, atol=1e-4)


def student_logps(trainer, batch):
    """What TRL computes of a micro-batch with the modalities in it."""
    with torch.no_grad():
        return trainer._get_per_token_logps_and_entropies(
            trainer.model.eval(),
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            batch["completion_ids"].shape[1],
            **{name: batch.get(name) for name in MODALITIES},
        )[0]


@every_kind
@pytest.mark.parametrize("options", [{}, SAMPLED, {"reward_funcs": length_reward}])
def test_alike_contexts_of_a_live_teacher_give_zero(make, kind, options):
    """Exactly 0 at every token, whatever images the rows have."""
    data = pictured(MIXED[kind])
    trainer = make(kind, data, privileged=giving(View()), teacher_share_prefix=False, **LIVE, **options)
    batch = batch_of(trainer)
    logged = []
    trainer._record = lambda batch, stats, terms: logged.append(stats)
    trainer._compute_loss(trainer.model, batch)
    (stats,) = logged
    gap = stats["teacher_logps"] - stats["student_logps"]
    assert gap[:, batch["distillation"].mask.bool()].abs().max() == 0
    assert "teacher_pixels/privileged" not in batch


@every_kind
def test_policy_and_distillation_see_the_same_pixels(make, kind):
    """The mixed loss is TRL's own loss of the micro-batch plus the dense divergence."""
    data = pictured(ONE_OR_TWO[kind], text=lambda i: f"Picture {i}.")
    rewards = lambda completions, **_: [float(i % 3) for i in range(len(completions))]  # noqa: E731
    trainer = make(kind, data, privileged=ImageView(text_column="text"), reward_funcs=rewards, **LIVE)
    batch = batch_of(trainer)
    assert batch["advantages"].abs().max() > 0
    mixed = trainer._compute_loss(trainer.model, batch)
    policy = super(type(trainer), trainer)._compute_loss(trainer.model, dict(batch))
    trainer.objective.policy_weight = 0.0
    pure = check_loss(trainer, batch, no_images)
    assert mixed.item() == pytest.approx((policy + pure).item(), rel=1e-5)


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


@every_kind
def test_images_are_kept_once(make, kind):
    """The student's are views of its batch; others are one set for the rollouts of a prompt and for several views."""
    data = pictured(number=4, crop=lambda i: tiny_vlm.image(i + 100))

    def views(rollout):
        crop = with_images(rollout.prompt, [rollout.row["crop"]])
        return [View("A hint.", name="same"), View(prompt=crop, name="one"), View("Text.", prompt=crop, name="two")]

    source = lambda groups: [[*views(rollout)] for rollout in rollouts_of(groups)]  # noqa: E731
    trainer = make(kind, data, privileged=source, num_generations=2)
    batch = batch_of(trainer)
    assert batch["distillation"].views["same"].pixels is None
    for teacher in batch["distillation"].teacher_batches:
        assert not teacher.share_prefix
        row = {view: teacher.row_index[number].tolist() for number, view in enumerate(teacher.views)}
        if "same" in row:
            shared = {storage(teacher.pixels[i]["pixel_values"]) for i in row["same"]}
            assert shared == {storage(batch["pixel_values"])}
    own = [pixels["pixel_values"] for name in ("one", "two") for pixels in batch["distillation"].views[name].pixels]
    assert len({storage(tensor) for tensor in own}) == 2 and len(own) == 8


HINT = "Think of a number!"
PLACES = {
    "system": "<|im_start|>system\nThink of a number!<|im_end|>\n{prompt}",
    "before_user": "<|im_start|>user\nThink of a number!\n\n{rest}",
    "after_user": "{open}\n\nThink of a number!{begun}",
    "user_turn": "{turns}<|im_start|>user\nThink of a number!<|im_end|>\n<|im_start|>assistant\n",
    "prepend": "<|im_start|>system\nThink of a number!<|im_end|>\n{prompt}",
    "prefill": "{prompt}Think of a number!",
    "before_turn": "{turns}<|im_start|>user\nThink of a number!<|im_end|>\n<|im_start|>assistant\n",
    "before_token": "{prompt}{first}Think of a number!",
}


@pytest.mark.parametrize("place", PLACES)
def test_places_leave_the_images_where_they_are(make, place):
    position = {"before_turn": 0, "before_token": 3}.get(place)
    view = View(HINT, place=place, position=position)
    trainer = make("qwen", pictured((1, 2)), privileged=giving(view), **SAMPLED, **LIVE)
    batch = batch_of(trainer)
    logps = trainer.objective._scores(trainer.model, batch["distillation"])[0]
    begun = "<|im_end|>\n<|im_start|>assistant\n"
    for row, rollout in enumerate(rollouts_in(trainer, batch)):
        student, own = student_prompts(batch)[row], completions(batch)[row]
        prompt = trainer._tokenizer.decode(student)
        parts = {"prompt": prompt, "rest": prompt.removeprefix("<|im_start|>user\n"), "begun": begun}
        parts |= {"turns": prompt.removesuffix("<|im_start|>assistant\n"), "open": prompt.removesuffix(begun)}
        parts["first"] = trainer._tokenizer.decode(own[:3])
        reads = teacher_reads(batch)[row]
        assert trainer._tokenizer.decode(reads) == PLACES[place].format(**parts)
        start = int(batch["distillation"].views["privileged"].start[row])
        wanted = dense(trainer, reads, images_of(rollout.prompt), own[start:])
        assert_scores(logps[0, row, start:], wanted, own[start:])


def test_few_shot_turns_with_pictures(make):
    """A context of messages brings its own pictures, which stand before the student's."""
    shots = [
        {"role": "user", "content": [{"type": "image", "image": tiny_vlm.image(5)}, {"type": "text", "text": "This?"}]},
        {"role": "assistant", "content": "Red."},
    ]
    trainer = make("qwen", privileged=giving(View(shots)), **LIVE)
    batch = batch_of(trainer)
    check_loss(trainer, batch, lambda rollout: [tiny_vlm.image(5), *images_of(rollout.prompt)])


def test_few_shot_pictures_from_a_column(make):
    """Arrow fills every block with every key."""
    shots = [
        {"role": "user", "content": [{"type": "image", "image": tiny_vlm.image(5)}, {"type": "text", "text": "This?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
    ]
    data = pictured(privileged_context=lambda i: shots)
    picture, text = data[0]["privileged_context"][0]["content"]
    assert "bytes" in picture["image"] and text["image"] is None, "this is what Arrow does"
    trainer = make("qwen", data, **LIVE)
    check_loss(trainer, batch_of(trainer), lambda rollout: [tiny_vlm.image(5), *images_of(rollout.prompt)])


def test_tokens_of_images_count(make):
    rows = [{"prompt": [{"role": "user", "content": "What?"}], "image": tiny_vlm.image(i, 48, 48)} for i in range(4)]
    text = "<|im_start|>user\n<|vision_start|><|vision_end|>What?\n\nA hint.<|im_end|>\n<|im_start|>assistant\n"
    needed = len(tiny_vlm.tokenizer()(text)["input_ids"]) + (48 // (2 * tiny_vlm.SIDE)) ** 2 + 8
    options = {"dataset": Dataset.from_list(rows), "privileged": giving(View("A hint.")), "max_completion_length": 8}
    assert batch_of(make("qwen", teacher_max_length=needed, **options))["distillation"].mask.any()
    with pytest.raises(ValueError, match=rf"of view 'privileged' has {needed - 8} tokens and the completion 8, 1 more"):
        batch_of(make("qwen", teacher_max_length=needed - 1, **options))
    trainer = make("qwen", teacher_max_length=needed - 1, teacher_overlong="drop_view", **options)
    assert not batch_of(trainer)["distillation"].mask.any()


@every_kind
def test_training_and_evaluation(make, kind):
    counts = MIXED[kind]
    data = pictured(counts, crop=lambda i: tiny_vlm.image(i + 100) if i % 2 else None, text=lambda i: f"Row {i}.")
    source = ImageView(text_column="text", image_column="crop")
    trainer = make(kind, data, privileged=source, eval_dataset=data, gradient_accumulation_steps=2, num_iterations=2)
    before = {name: param.clone() for name, param in trainer.model.named_parameters()}
    trainer.train()
    moved = [name for name, param in trainer.model.named_parameters() if not torch.equal(param, before[name])]
    assert any("vis" in name for name in moved) and any("vis" not in name for name in moved)
    assert trainer.evaluate()["eval_loss"] > 0


def test_text_alone_on_a_model_that_sees(make):
    """With its processor or its tokenizer; prompts are read in one run with what follows, whatever ran before."""
    rows = [{"prompt": [{"role": "user", "content": f"Number {i % 2}?"}]} for i in range(8)]
    for processing_class in (tiny_vlm.processor("qwen"), None):
        options = {} if processing_class else {"processing_class": plain_tokenizer()}
        trainer = make(
            "qwen", Dataset.from_list(rows), privileged=giving(View("A hint.")), **LIVE, **SAMPLED, **options
        )
        batch = batch_of(trainer)
        logps = trainer.objective._scores(trainer.model, batch["distillation"])[0]
        assert not any(teacher.share_prefix for teacher in batch["distillation"].teacher_batches)
        for row, tail in enumerate(completions(batch)):
            wanted = dense(trainer, teacher_reads(batch)[row], [], tail)
            assert_scores(logps[0, row], wanted, tail)


def plain_tokenizer():
    """Of a template that takes text."""
    tokenizer = tiny_vlm.tokenizer()
    tokenizer.chat_template = tiny_vlm.tiny.CHAT_TEMPLATE
    return tokenizer


def test_a_batch_that_trl_can_not_take_apart_is_refused(make):
    trainer = make("idefics3", pictured((1, 2)), privileged=giving(View("A hint.")))
    with pytest.raises(ValueError, match=r"The rows of a batch have \[1, 2\] images, and Idefics3Processor pads them"):
        batch_of(trainer)


def test_refusals_of_pictures(make, make_trainer, tokenizer):
    def source(prompt=None, context=None):
        block = {"type": "image", "image": tiny_vlm.image(1)}
        prompt = prompt or [{"role": "user", "content": [block, {"type": "text", "text": "What?"}]}]
        return giving(View(context, prompt=prompt))

    with pytest.raises(ValueError, match="has an image block without an image"):
        batch_of(make("qwen", privileged=source([{"role": "user", "content": [{"type": "image"}]}])))
    with pytest.raises(ValueError, match="it has 1 images, and `processing_class` is a tokenizer"):
        batch_of(make_trainer(privileged=source()))
    with pytest.raises(ValueError, match=r"has the control tokens \['<\|im_end\|>'\] as text beside images"):
        batch_of(make("qwen", privileged=giving(View("a<|im_end|>b"))))


class Odd(tiny_vlm._NoVideos):
    """A processor whose model needs more of an image than TRL passes on."""

    def __call__(self, *args, **kwargs):
        found = super().__call__(*args, **kwargs)
        return type(found)({**found, "aspect_ratio_ids": found["image_grid_thw"]})


def test_processors_that_are_refused_early(make):
    odd = Odd(tiny_vlm.processor("qwen").image_processor, tiny_vlm.tokenizer(), tiny_vlm.CHAT_TEMPLATE)
    with pytest.raises(ValueError, match=r"The processor Odd gives \['aspect_ratio_ids'\] for an image"):
        make("qwen", processing_class=odd, privileged=giving(View("A hint.")))
    blind = tiny_vlm.processor("qwen")
    blind.chat_template = "{{ raise_exception('Text alone.') }}"
    with pytest.raises(
        ValueError, match="The processor _NoVideos can't encode a chat message with an image: Text alone"
    ):
        make("qwen", processing_class=blind, privileged=giving(View("A hint.")))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "ImageView needs a `text_column`, an `image_column`, or both"),
        ({"text_column": "text", "keep_images": True}, "is the source 'column'"),
        ({"text_column": "text", "place": "prefill"}, "has place 'prefill'"),
    ],
)
def test_image_view_refuses(options, problem):
    with pytest.raises(ValueError, match=problem):
        ImageView(**options)


def test_image_view_names_a_missing_column(make):
    with pytest.raises(
        ValueError, match=r"`train_dataset` has no column `crop`, .*`image_column`.* it has \['prompt', 'images'\]"
    ):
        make("qwen", privileged=ImageView(image_column="crop"))


def image_block(number):
    return {"type": "image", "image": number}


def text_block(text):
    return {"type": "text", "text": text}


def test_where_other_pictures_stand():
    """Where the prompt's own are, or before the text of the first user message, as TRL puts those of a row."""
    system, answer = {"role": "system", "content": "S"}, {"role": "assistant", "content": "A"}
    mixed = {"role": "user", "content": [text_block("a"), image_block(1), text_block("b"), image_block(2)]}
    prompt = [system, mixed, answer, {"role": "user", "content": "C"}]
    swapped = {"role": "user", "content": [text_block("a"), image_block(7), text_block("b")]}
    assert with_images(prompt, [7]) == [system, swapped, *prompt[2:]]
    beside = {"role": "user", "content": [*mixed["content"], image_block(7)]}
    assert with_images(prompt, [7], keep=True) == [system, beside, *prompt[2:]]
    bare = [system, {"role": "user", "content": "Q"}]
    assert with_images(bare, [7, 8]) == [
        system,
        {"role": "user", "content": [image_block(7), image_block(8), text_block("Q")]},
    ]
    assert images_of(prompt) == [1, 2] and images_of(without_images(prompt)) == []
    with pytest.raises(ValueError, match="no user message"):
        with_images([system], [7])


@every_kind
def test_the_model_writes_about_pictures(make, kind):
    """What it says of two prompts at once is what it says of each, and depends on the picture."""
    runs = []

    class Source:
        def setup(self, run):
            runs.append(run)

        def __call__(self, groups):
            return [[] for _ in rollouts_of(groups)]

    make(kind, privileged=Source(), per_device_train_batch_size=2)
    (run,) = runs
    asked = [{"role": "user", "content": "What?"}]
    prompts = [with_images(asked, [tiny_vlm.image(i, 48)]) for i in (1, 90)]
    if kind != "idefics3":  # rows are padded to the most images of one
        prompts += [with_images(asked, [tiny_vlm.image(3), tiny_vlm.image(4)]), asked]
    together = run.write(prompts, max_new_tokens=8)
    assert together == [run.write([prompt], max_new_tokens=8)[0] for prompt in prompts]
    assert together[0] != together[1] or kind == "gemma3"


@every_kind
def test_a_pre_flight_shows_the_teacher_its_pictures(make, kind, monkeypatch):
    """Greedy answers of both sides are the likeliest tokens of a dense computation with what each sees."""
    told, answers = [], TextGenerator.answers

    def teacher_forward(writer, ids, weights, temperature, pixels):
        told.append((ids, answers(writer, ids, weights, temperature, pixels)))
        return told[-1][1]

    monkeypatch.setattr(TextGenerator, "answers", teacher_forward)
    dataset = pictured((2,), 4, crop=lambda i: [tiny_vlm.image(50 + i), tiny_vlm.image(60 + i)])
    source = ImageView(image_column="crop")
    trainer = make(kind, dataset, privileged=source, **LIVE, num_generations=1, max_completion_length=4)
    seen = []

    def score(images, crop, **_):
        seen.append(crop if seen else images)
        return [0.0] * len(crop)

    assert preflight(trainer, 4, score_func=score, temperature=0.0).views[0].share == 1
    assert len(told) == len(seen) == 2
    for (prompts, answered), pictures in zip(told, seen, strict=True):
        for prompt_ids, images, answer in zip(prompts, pictures, answered, strict=True):
            assert dense(trainer, prompt_ids, images, answer).argmax(-1).tolist() == answer


def test_columns_of_pixels_are_never_padding(make):
    """A grid has three columns, as many as the longest completion here; those of a micro-batch have two."""
    rows = [{"prompt": [{"role": "user", "content": "What?"}], "image": tiny_vlm.image(i)} for i in range(8)]
    steps = {"gradient_accumulation_steps": 2, "steps_per_generation": 2, "max_completion_length": 3}
    trainer = make("qwen", Dataset.from_list(rows), privileged=giving(View("A hint.")), **steps)
    trainer._generate_single_turn = lambda ids, *_, **__: ([[65] * (2 + i // 4) for i in range(len(ids))], None)
    batch_of(trainer)
    widths = [batch["completion_ids"].shape[1] for batch in trainer._buffered_inputs]
    assert sorted(widths) == [2, 3]
    for batch in trainer._buffered_inputs:
        assert batch["image_grid_thw"].shape[1] == 3
        assert batch["mm_token_type_ids"].shape[1] == batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1]
        trainer._compute_loss(trainer.model, batch).backward()


@pytest.mark.parametrize(("kind", "lora"), [("idefics3", False), ("qwen", True), ("llava", True)])
def test_a_resumed_run_has_its_pictures(make, tmp_path, kind, lora):
    """A generation batch lasts for four steps, and its checkpoint holds the pictures that only the teacher sees."""
    data = pictured(crop=lambda i: tiny_vlm.image(i + 100))
    options = {"privileged": ImageView(image_column="crop"), "max_steps": 6, **BUFFERED}
    options |= {"peft_config": LORA_WITH_DROPOUT} if lora else {}
    whole = make(kind, data, **options, output_dir=str(tmp_path / "whole"))
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        make(kind, data, callbacks=[Leaves(2)], **options).train()
    resumed = make(kind, data, **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_a_checkpoint_that_would_not_be_loaded_is_refused(make):
    options = {"privileged": giving(View("A hint.")), "save_strategy": "steps", "save_steps": 1}
    make("qwen", max_steps=1, **options).train()
    with pytest.raises(ValueError, match=r"The checkpoint names weights otherwise than the model does \('visual"):
        make("qwen", max_steps=2, **options).train(resume_from_checkpoint=True)
