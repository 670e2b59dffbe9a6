# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Depth pruning: which block is found, what is left, and that it can be loaded again."""

import copy
import math

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from families import small_model
from trl_opsd.cli import main as cli
from trl_opsd.examples import data
from trl_opsd.phases.pruning import angular_distances, drop_layers, layers_of


ROWS = [[5, 9, 40, 77, 12], [8, 8, 30], [100, 3, 7, 61]]


@pytest.fixture
def model(tokenizer):
    return tiny.model(tokenizer, num_hidden_layers=6).eval()


def logits(model, ids=(5, 9, 40, 77)):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


def make_identity(layer):
    """Both branches add nothing to the residual stream."""
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


def test_no_layer_left_out_changes_nothing(model):
    before = logits(model)
    distances = angular_distances(model, ROWS, 0)
    drop_layers(model, int(distances.argmin()), 0)
    assert torch.equal(logits(model), before) and model.config.num_hidden_layers == 6
    torch.testing.assert_close(distances, torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("start", [0, 2, 4])
def test_a_block_that_does_nothing_is_found_and_can_go(model, start):
    for layer in layers_of(model)[start : start + 2]:
        make_identity(layer)
    before, distances = logits(model), angular_distances(model, ROWS, 2)
    assert int(distances.argmin()) == start and len(distances) == 5
    assert distances[start] < 1e-6 and distances.sort().values[1] > 1e-3
    drop_layers(model, start, 2)
    assert torch.equal(logits(model), before) and len(layers_of(model)) == 4


def test_distances_against_the_definition(model):
    """Float64, from the states that the model itself gives; those of the last block are taken before the last norm."""
    found = angular_distances(model, ROWS, 3)
    states = []
    layers = layers_of(model)
    hook = layers[-1].register_forward_hook(lambda module, args, output: states.append(output))
    total, tokens = torch.zeros(4, dtype=torch.float64), 0
    with torch.no_grad():
        for ids in ROWS:
            states.clear()
            output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
            last = states[0][0] if isinstance(states[0], tuple) else states[0]
            whole = [one[0].double() for one in (*output.hidden_states[:-1], last.reshape(1, len(ids), -1))]
            for start in range(4):
                for one, other in zip(whole[start], whole[start + 3], strict=True):
                    total[start] += math.acos(float(one @ other / (one.norm() * other.norm()))) / math.pi
            tokens += len(ids)
    hook.remove()
    torch.testing.assert_close(found, total / tokens, rtol=1e-6, atol=1e-9)


def test_what_is_left_can_be_loaded_and_generates(model, tmp_path):
    """Lists of the config with a value for each layer follow; caches are those of the layers that stay."""
    model.config.layer_types = ["full_attention"] * 6
    reference = copy.deepcopy(model)
    drop_layers(model, 1, 2)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.num_hidden_layers == 4 and len(loaded.config.layer_types) == 4
    assert torch.equal(logits(loaded), logits(model))
    for one, other in zip(layers_of(loaded), [layers_of(reference)[i] for i in (0, 3, 4, 5)], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    ids = torch.tensor([[5, 9, 40]])
    texts = [one.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cached).tolist()
             for one in (model, loaded) for cached in (True, False)]  # fmt: skip
    assert all(text == texts[0] for text in texts)


def test_layers_of_several_kinds(tokenizer, tmp_path):
    """Sliding and full attention: each layer keeps its own kind."""
    model = small_model("gemma2", tokenizer)
    kinds = list(model.config.layer_types)
    assert len(set(kinds)) == 2
    drop_layers(model, 0, 1)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.layer_types == kinds[1:]
    torch.testing.assert_close(logits(loaded.eval()), logits(model.eval()))


@pytest.mark.parametrize(("rows", "block", "words"), [(ROWS, 6, "from 0 to 5"), ([], 2, "no text")])
def test_mistakes(model, rows, block, words):
    with pytest.raises(ValueError, match=words):
        angular_distances(model, rows, block)


# The command


@pytest.fixture
def folder(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_identity(layers_of(model)[3])
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    data.prepare("addition", tmp_path / "data")
    return tmp_path


def test_the_command(folder, capsys):
    line = ["--model_name_or_path", "model", "--dataset_name", "data", "--rows", "4"]
    cli.main(["prune", *line, "--layers", "1", "--output_dir", "out"])
    assert "without layers 3 to 3 of 6 is in out" in capsys.readouterr().out
    whole, pruned = (AutoModelForCausalLM.from_pretrained(name).eval() for name in ("model", "out"))
    assert len(layers_of(pruned)) == 5 and torch.equal(logits(pruned), logits(whole))
    assert AutoTokenizer.from_pretrained("out").chat_template
    options = {"model_name_or_path": "model", "dataset_name": "data", "layers": 2, "output_dir": "config"}
    (folder / "prune.yaml").write_text(yaml.safe_dump(options))
    cli.main(["prune", "--config", "prune.yaml", "--layers", "0"])
    assert "without no layer" in capsys.readouterr().out
    assert len(layers_of(AutoModelForCausalLM.from_pretrained("config"))) == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": None}, "`layers` is missing"),
        ({"layers": 9}, "`layers` must be from 0 to 5"),
        ({"layers": -1}, "at least 0"),
        ({"rows": 0}, "`rows` must be a whole number of at least 1"),
        ({"layer": 1}, "no option `layer` (did you mean `layers`?)"),
        ({"dataset_train_split": "tarin"}, "`dataset_train_split` is tarin"),
        ({"model_name_or_path": "./gone"}, "`model_name_or_path` is the folder ./gone"),
    ],
)
def test_mistakes_of_the_command(folder, capsys, changes, words):
    options = {"model_name_or_path": "model", "dataset_name": "data", "layers": 1, "output_dir": "out", **changes}
    (folder / "prune.yaml").write_text(yaml.safe_dump({k: v for k, v in options.items() if v is not None}))
    with pytest.raises(SystemExit) as end:
        cli.main(["prune", "--config", "prune.yaml"])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and error.startswith("error: ") and words in error
