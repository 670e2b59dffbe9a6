# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The wheel: what it holds, its page on the package index, and the command of an environment that has nothing else."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import processes
from trl_opsd.cli import recipes


ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_THE_WHEEL = ("trl_opsd", "recipes", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, as setuptools writes beside what it builds."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    held = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, held):
        if name.split("/")[0] in OF_THE_WHEEL:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-P", str(ROOT / name), str(copy / name)], check=True)
    options = ["--quiet", "--no-deps", "--no-build-isolation"]
    done = processes.run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(folder), str(copy)])
    assert done.returncode == 0, done.stderr[-3000:]
    (made,) = folder.glob("*.whl")
    return made


def test_it_holds_recipes_and_examples(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"trl_opsd/recipes/{name}.yaml" for name in recipes.recipe_names()}
    expected |= {f"trl_opsd/recipes/accelerate/{path.name}" for path in recipes.LAUNCH.glob("*.yaml")}
    page = ROOT / "trl_opsd" / "token_report"
    expected |= {str(path.relative_to(ROOT)) for path in (page / "page.html.j2", *(page / "page").iterdir())}
    assert expected | {"trl_opsd/examples/tasks.py", "trl_opsd/cli/catalog.json"} <= names and len(expected) > 100
    assert not [name for name in names if not name.startswith("trl_opsd")]


def metadata(wheel: Path) -> Message:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(archive.read(name).decode())


def test_links_of_its_page_lead_to_files_of_the_repository(wheel):
    """Relative links would lead nowhere on the package index."""
    told = metadata(wheel)
    page = re.sub(r"```.*?```", "", told.get_payload(), flags=re.S)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", page)
    assert len(links) == len(re.findall(r"\]\(", page)) > 20
    assert [link for _, link in links if "://" not in link] == []
    home = PROJECT["urls"]["Repository"]
    roots = {
        "": f"{home}/blob/v{told['Version']}/",
        "!": f"https://raw.githubusercontent.com/trl-opsd/trl_opsd/v{told['Version']}/",
    }
    own = [(mark, link) for mark, link in links if link.startswith(home) or mark]
    assert {mark for mark, _ in own} == {"", "!"}
    for mark, link in own:
        assert link.startswith(roots[mark]), link
        file = link.removeprefix(roots[mark]).partition("#")[0]
        assert (ROOT / file).exists() and ((ROOT / file).suffix == ".png") == bool(mark), link


def test_links_within_a_page_and_in_code():
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    page = "[`a`](#b) ![c d](x/e.png) `x[0](f)` [g](https://h.org/i)\n```python\nx[0](f)\n```\n[j\nk](l.md#m)\n"
    made = setup.with_absolute_links(page, {"version": "1.2", "urls": {"Repository": "https://github.com/o/r"}})
    assert made == (
        "[`a`](https://github.com/o/r/blob/v1.2/README.md#b) "
        "![c d](https://raw.githubusercontent.com/o/r/v1.2/x/e.png) `x[0](f)` [g](https://h.org/i)\n"
        "```python\nx[0](f)\n```\n[j\nk](https://github.com/o/r/blob/v1.2/l.md#m)\n"
    )


def test_its_page_has_the_links_of_the_project(wheel):
    told = metadata(wheel)
    assert told["License-Expression"] == "Apache-2.0" and told["License-File"] == "LICENSE"
    urls = dict(line.split(", ") for line in told.get_all("Project-URL"))
    assert urls == PROJECT["urls"] and all(url.startswith(urls["Repository"]) for url in urls.values())
    for name in ("Documentation", "Changelog"):
        assert (ROOT / urls[name].split("/main/")[1]).exists()


# The command, in an environment of its own and outside the repository

MODEL, TRAINED = "demo/models/smollm2-135m", "demo/output/smollm2-json"
# In this order; each with words of its output
COMMANDS = [
    (["--version"], f"trl-opsd {PROJECT['version']}"),
    (["doctor"], "Ready to train."),
    (["recipes"], "smollm2_json"),
    (["methods", "opsd"], "Recipes: methods/opsd"),
    (["data", "json"], f"SmolLM2-135M-Instruct is in {MODEL}"),
    (["train", "--config", "smollm2_json", "--dry_run"], "Reply in JSON."),
    (["preflight", "--config", "smollm2_json", "--rows", "8"], "with the context in [[ ]]"),
    (["train", "--config", "smollm2_json", "--max_steps", "2"], "divergence"),
    (["chat", TRAINED, "What is the sun?", "--beside", MODEL, "--max_new_tokens", "16"], "sun"),
]


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A new environment with the wheel alone; packages that it needs are those of the tests' own environment."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # Folders of a .pth file come after its own; .pth files in them, such as that of a checkout, are not read
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", "--no-deps"]
    done = processes.run([*pip, "--force-reinstall", str(wheel)], env=clean())
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.mark.engines
def test_the_command_of_a_fresh_environment(environment, tmp_path):
    for argv, words in COMMANDS:
        done = processes.run([str(environment / "bin" / "trl-opsd"), *argv], cwd=tmp_path, env=clean(), timeout=500)
        assert done.returncode == 0 and words in done.stdout, f"{argv}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    run = tmp_path / TRAINED
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 2 and (run / "model.safetensors").is_file()
    code = "import trl_opsd; print(trl_opsd.__file__)"
    where = processes.run([str(environment / "bin" / "python"), "-c", code], cwd=tmp_path, env=clean()).stdout
    assert Path(where.strip()).is_relative_to(environment)
