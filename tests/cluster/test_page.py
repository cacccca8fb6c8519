"""cluster_setup/README.md against the commands it describes, and the scripts that run on the nodes."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.commands import ROOT, on_demand, run

from esm2_hyperpod.cluster.config import User
from esm2_hyperpod.cluster.stack import users_file

SETUP = ROOT / "cluster_setup"
PAGE = (SETUP / "README.md").read_text()
COMMAND = str(SETUP / "hyperpod.py")


@pytest.fixture
def parse(monkeypatch):
    """hyperpod.py's own parsing of a command line."""
    parse_arguments = runpy.run_path(COMMAND)["parse_arguments"]

    def parse(*words):
        monkeypatch.setattr(sys, "argv", ["hyperpod.py", *words])
        return parse_arguments()

    return parse


def test_the_table_of_commands_is_what_help_says(parse, capsys):
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", PAGE, re.M)
    with pytest.raises(SystemExit):
        parse("--help")
    commands = re.search(r"\{(.*?)\}", capsys.readouterr().out)[1].split(",")
    assert [name for name, _, _ in rows] == commands
    for name, summary, flags in rows:
        with pytest.raises(SystemExit) as stop:
            parse(name, "--help")
        text = capsys.readouterr().out
        assert stop.value.code == 0 and summary in " ".join(text.split())
        offered = set(re.findall(r"^  (--\w+)", text, re.M)) - {"--config", "--help"}
        assert set(re.findall(r"`(--\w+)`", flags)) == offered, name


def test_without_its_two_packages_the_command_says_how_to_get_them():
    bare = run(sys.executable, "-S", COMMAND, "plan", check=False)
    assert bare.returncode == 1 and "pip install -r cluster_setup/requirements.txt" in bare.stderr
    assert len(bare.stderr.splitlines()) == 1


def on_path(tmp_path, **commands):
    """A PATH on which `commands` come before the real ones."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name, body in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def set_up_node(tmp_path, mounted, **stubs):
    path = on_path(
        tmp_path, **stubs, systemctl=f'echo "$*" > {tmp_path}/systemctl', mountpoint=f"exit {1 - mounted}"
    )
    (tmp_path / "fsx" / "runs").mkdir(parents=True, exist_ok=True)  # as FSx makes it for a data bucket
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    places = {"ETC": f"{tmp_path}/etc", "FSX": f"{tmp_path}/fsx", "NODE_USER": user, "PATH": path}
    script = tmp_path / "on_init_complete.sh"
    result = run("bash", script if script.exists() else SETUP / "on_init_complete.sh", **places)
    return result.stderr, tmp_path / "fsx" / user


def test_the_nodes_set_up_keeps_shared_memory_and_makes_the_users_folder_however_often_it_runs(tmp_path):
    for _ in range(2):
        warnings, folder = set_up_node(tmp_path, mounted=True)
        assert warnings == "" and folder.is_dir()
        assert "RemoveIPC=no" in (tmp_path / "etc/systemd/logind.conf.d/esm2.conf").read_text()
        assert (tmp_path / "systemctl").read_text() == "restart systemd-logind\n"
        folder.chmod(0o700)  # as the image may have made it; the second run leaves it so
    assert folder.stat().st_mode & 0o777 == 0o700


def test_exporters_beside_the_script_are_started_by_it_and_their_failure_is_said(tmp_path):
    shutil.copy(SETUP / "on_init_complete.sh", tmp_path)
    setup, conf = tmp_path / "observability.sh", tmp_path / "observability.conf"
    setup.write_text(f"touch {tmp_path}/started\n")
    conf.write_text("")  # as hyperpod.py uploads it where there is no workspace
    set_up_node(tmp_path, mounted=True)
    assert not (tmp_path / "started").exists()
    conf.write_text("CLUSTER=esm2\n")
    warnings, folder = set_up_node(tmp_path, mounted=True)
    assert warnings == "" and (tmp_path / "started").exists() and folder.is_dir()
    setup.write_text("exit 3\n")
    warnings, _ = set_up_node(tmp_path, mounted=True)
    assert "not all metrics leave this node" in warnings


def test_users_get_accounts_and_homes_on_each_new_node_once(tmp_path):
    """One has an account already, as after the first run; one does not; a changed number is refused."""
    me, number = subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip(), os.getuid()
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAItiny+key/xyz"
    people = {name: User(number, f"{key} {name}'s laptop") for name in (me, "nobody-yet")}
    text = users_file(SimpleNamespace(users=people))
    (tmp_path / "users.txt").write_text(text)
    shutil.copy(SETUP / "on_init_complete.sh", tmp_path)
    for _ in range(2):
        warnings, _ = set_up_node(tmp_path, mounted=True, useradd=f'echo "$*" >> {tmp_path}/useradd')
        assert warnings == ""
        for name, user in people.items():
            home = tmp_path / "fsx" / name
            assert (home / ".ssh" / "authorized_keys").read_text() == f"{user.key}\n"
            assert (home / ".ssh").stat().st_mode & 0o777 == 0o700
    made = (tmp_path / "useradd").read_text().splitlines()
    account = (
        f"--uid {number} --home-dir {tmp_path}/fsx/nobody-yet --no-create-home --shell /bin/bash nobody-yet"
    )
    assert made == [account] * 2  # the stub makes no account
    (tmp_path / "users.txt").write_text(f"{me} 59999 {key}\n")
    warnings, _ = set_up_node(tmp_path, mounted=True)
    assert f"{me} has the number {number} here, not 59999" in warnings


def test_who_logs_in_submits_to_the_workers_unless_told_otherwise(tmp_path):
    set_up_node(tmp_path, mounted=True)
    shown = f'. {tmp_path}/etc/profile.d/esm2.sh; echo "$SBATCH_PARTITION $SALLOC_PARTITION $SLURM_PARTITION"'
    for partitions, asked, expected in (
        ("train", "", "train train train"), ("", "", "  "), ("train", "mine", "mine  ")
    ):  # fmt: skip
        path = on_path(tmp_path, sinfo=f'case "$*" in *--partition=train*) echo {partitions} ;; esac')
        found = run("bash", "-c", shown, PATH=path, SBATCH_PARTITION=asked)
        assert found.stdout == f"{expected}\n"


def test_a_node_without_the_file_system_comes_up_all_the_same(tmp_path):
    warnings, folder = set_up_node(tmp_path, mounted=False)
    assert "fsx is not mounted" in warnings and not folder.exists()


def create_environment(tmp_path, *arguments, **environment):
    place = {
        "VENV": f"{tmp_path}/shared/.venv",
        "TMPDIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PYTHON": "python3",
    }
    script = SETUP / "create_environment.sh"
    return run("bash", script, *arguments, check=False, **(place | environment))


def borrowed_environment(tmp_path):
    """An environment in which pip finds all it should install to be there, so that it needs no network."""
    venv = tmp_path / "shared" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site_packages,) = venv.glob("lib/python*/site-packages")
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return venv


@on_demand
def test_the_environment_is_made_proven_and_left_alone_when_nothing_changed(tmp_path):
    venv = borrowed_environment(tmp_path)
    first = create_environment(tmp_path)
    assert first.returncode == 0, first.stderr
    assert "two training steps on" in first.stdout and f"{venv} is ready" in first.stdout
    second = create_environment(tmp_path)
    assert second.stdout == f"{venv} is complete and up to date\n"
    assert not list(tmp_path.glob("tmp.*"))  # mktemp's names: no scratch is left

    (venv / ".made_from").write_text("an older requirements.txt")
    broken = {"PYTHONPATH": str(tmp_path / "broken")}
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "accelerate.py").write_text("raise ImportError('half installed')")
    (tmp_path / "broken" / "pip.py").touch()  # the first run has shown the real one
    third = create_environment(tmp_path, **broken)
    assert third.returncode == 1 and "cannot be imported" in third.stderr
    assert not (venv / ".made_from").exists()  # what has not passed the check is not marked as complete


def test_a_node_that_should_have_gpus_is_not_verified_on_its_cpu(tmp_path):
    """Before anything is imported; CUDA_VISIBLE_DEVICES= asks for the CPU."""
    (tmp_path / "type").write_text("g5.12xlarge\n")
    broken = on_path(tmp_path, **{"nvidia-smi": "echo 'No devices were found'; exit 6"})
    node = {"PATH": broken, "INSTANCE_TYPE_FILE": f"{tmp_path}/type", "PCI_DEVICES": f"{tmp_path}/none"}
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    result = subprocess.run(
        ["bash", SETUP / "create_environment.sh", "verify"],
        env=environment | node,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert "should have 1 GPU(s), but nvidia-smi --list-gpus shows 0" in result.stderr
    cpu = create_environment(tmp_path, "verify", CUDA_VISIBLE_DEVICES="", **node)
    assert "no environment at" in cpu.stderr


def test_an_environment_that_is_not_there_or_a_wrong_word_is_one_line(tmp_path):
    absent = create_environment(tmp_path, "verify")
    assert absent.returncode == 1 and absent.stderr.startswith(
        "create_environment.sh: error: no environment at"
    )
    wrong = create_environment(tmp_path, "--force")
    assert wrong.returncode == 1 and "unknown argument --force" in wrong.stderr
    assert len(absent.stderr.splitlines()) == len(wrong.stderr.splitlines()) == 1


def test_an_old_python_gives_way_to_conda_and_without_it_is_one_line(tmp_path):
    old = on_path(tmp_path, python3="exit 1")
    refused = create_environment(tmp_path, PATH=f"{Path(old.split(':')[0])}:/usr/bin:/bin")
    assert (
        refused.returncode == 1 and "is not Python 3.10 or newer and conda is not installed" in refused.stderr
    )
    asked = on_path(tmp_path, python3="exit 1", conda=f'echo "$*" > {tmp_path}/conda; exit 1')
    create_environment(tmp_path, PATH=asked)
    assert (
        f"create --yes --quiet --prefix {tmp_path}/shared/.venv python=3.11"
        in (tmp_path / "conda").read_text()
    )


def test_two_runs_do_not_make_the_same_environment(tmp_path):
    (tmp_path / "shared").mkdir()
    lock = tmp_path / "shared" / ".venv.lock"
    command = f"flock {lock} bash {SETUP}/create_environment.sh"
    result = run("bash", "-c", command, check=False, VENV=f"{tmp_path}/shared/.venv")
    assert result.returncode == 1 and "another run is making" in result.stderr
