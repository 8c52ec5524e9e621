"""The scripts that start runs say what they would do, and do nothing else."""

import os
import pathlib
import re
import shlex
import subprocess

import pytest
import tyro

from experiments import run

ROOT = pathlib.Path(__file__).parent.parent


def say(script, *args, path=None, **environment):
    """Runs a script where no other program is found, unless on ``path``."""
    here = {"PATH": path or "/usr/bin:/bin", "HOME": "/nowhere", **environment}
    return subprocess.run(
        [ROOT / "experiments" / script, *args],
        env=here,
        capture_output=True,
        text=True,
    )


def parsed(words):
    """The config that ``python -m experiments.run`` would make of a command's words."""
    arguments = words[words.index("experiments.run") + 1 :]
    return tyro.extras.overridable_config_cli(run.find_configs(), args=arguments)


@pytest.fixture
def tools(tmp_path):
    """Programs that write down that they were called, and a PATH with them alone."""
    for name in ("gcloud", "git", "srun", "python"):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >> {tmp_path}/calls\n')
        tool.chmod(0o755)
    return tmp_path


def test_one_host_is_one_process():
    said = say("gpu.sh", "--dry-run", "cifar10_mesh", "--workdir=a b", "--epochs=3")
    assert said.returncode == 0
    words = shlex.split(said.stdout)
    assert words[:3] == ["python", "-m", "experiments.run"]
    config = parsed(words)
    assert (config.workdir, config.epochs) == (pathlib.Path("a b"), 3)
    assert not config.parallel.distributed


def test_slurm_starts_one_process_a_gpu():
    options = {"NODES": "2", "GPUS": "4", "PYTHON": "/opt/python"}
    words = shlex.split(say("gpu.sh", "--dry-run", "digits_mesh", **options).stdout)
    assert words[:4] == [
        "srun",
        "--nodes=2",
        "--gpus-per-node=4",
        "--ntasks-per-node=4",
    ]
    assert words[4] == "/opt/python"
    assert parsed(words).parallel.distributed


def remote(said):
    """What a line would have run on the hosts."""
    (command,) = (w for w in shlex.split(said) if w.startswith("--command="))
    return command.removeprefix("--command=")


def test_a_run_on_a_tpu_is_one_command_on_all_hosts():
    options = ["--sparsity=0.95", "--workdir=a b"]
    said = say("tpu.sh", "--dry-run", "run", "vm", "cifar10_mesh", *options, ZONE="z")
    words = shlex.split(said.stdout)
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "vm"]
    assert {"--worker=all", "--zone=z"} <= {*words}
    command = remote(said.stdout)
    assert command.startswith("cd jaxprune && .venv/bin/python -m")
    config = parsed(shlex.split(command))
    assert (config.sparsity, config.workdir) == (0.95, pathlib.Path("a b"))
    assert config.parallel.distributed
    assert config.data.dir == "$HOME/tfds"  # The host's, not this machine's.


def test_a_vm_is_created_as_the_environment_says():
    given = {"ZONE": "here", "TYPE": "v9-8", "VERSION": "new"}
    words = shlex.split(say("tpu.sh", "--dry-run", "create", "vm", **given).stdout)
    assert words[4:6] == ["create", "vm"]
    wanted = {"--zone=here", "--accelerator-type=v9-8", "--version=new"}
    assert wanted == {*words[6:]}


def test_what_is_installed_and_downloaded_is_what_the_project_has():
    said = say("tpu.sh", "--dry-run", "install", "vm").stdout.splitlines()
    assert [shlex.split(line)[0] for line in said] == ["git", "gcloud", "gcloud"]
    command = remote(said[2])
    (extras,) = re.findall(r"-e '\.\[(.*?)\]'", command)
    project = (ROOT / "pyproject.toml").read_text()
    assert all(
        re.search(rf"^{extra} = \[", project, re.M) for extra in extras.split(",")
    )
    command = remote(say("tpu.sh", "--dry-run", "data", "vm", DATASET="mnist").stdout)
    assert "tfds build mnist --file_format=array_record" in command


STEPS = {
    "gpu": ["gpu.sh", "digits_mesh"],
    "slurm": ["gpu.sh", "digits_mesh"],
    **{x: ["tpu.sh", x, "vm", "digits_mesh"] for x in ("create", "data", "run")},
    "install": ["tpu.sh", "install", "vm"],
    "delete": ["tpu.sh", "delete", "vm"],
}


@pytest.mark.parametrize("step", STEPS)
def test_only_without_dry_run_is_anything_called(step, tools):
    script, *args = STEPS[step]
    given = {
        "path": f"{tools}:{os.defpath}",
        **({"NODES": "1"} if step == "slurm" else {}),
    }
    dry = say(script, "--dry-run", *args, **given)
    assert dry.returncode == 0 and not (tools / "calls").exists()
    real = say(script, *args, **given)
    assert real.returncode == 0, real.stderr
    called = (tools / "calls").read_text().splitlines()
    wanted = [word for line in real.stdout.splitlines() for word in shlex.split(line)]
    assert called == wanted
    assert dry.stdout == real.stdout


@pytest.mark.parametrize("args", [[], ["vm"], ["fly", "vm"], ["run", "vm"]])
def test_a_wrong_step_says_which_there_are(args):
    said = say("tpu.sh", *args)
    assert said.returncode == 2 and not said.stdout
    assert "run" in said.stderr


@pytest.mark.parametrize("page", ["tpu.md", "gpu.md", "tutorials/accelerator.md"])
def test_the_pages_commands_are_understood(page):
    text = (ROOT / "docs" / page).read_text()
    lines = re.findall(r"^experiments/(\S+) (?:--dry-run )?([^#\n]*)", text, re.M)
    assert len(lines) >= 3
    for script, words in lines:
        said = say(script, "--dry-run", *shlex.split(words))
        assert said.returncode == 0, said.stderr
    options = re.findall(r"^\| `(.*?)` \|", text, re.M)
    for option in options:
        parsed(["experiments.run", "cifar10_mesh", *shlex.split(option)])
