"""Example notebooks run, and files for clusters are valid."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import nbformat
import pytest
import ray
import yaml
from nbclient import NotebookClient
from small_runs import write_digits

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def pictures(notebook):
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    write_digits(tmp_path / "digits", 20)  # a folder is taken before what has its name
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("EPOCHS", "1")
    monkeypatch.setenv("IMAGE_SIZE", "8")
    notebook = nbformat.read(path, as_version=4)
    shown = pictures(notebook)
    assert shown > 0
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=place).execute()  # raises what a cell raises
    assert pictures(notebook) == shown
    assert (tmp_path / "checkpoints" / "teacher_best.pth").exists()


CLUSTER = ROOT / "examples" / "cluster"
[INSTALLED_RAY] = re.findall(r"^ray==(.*)$", (ROOT / ".constraints.txt").read_text(), re.MULTILINE)


def test_the_cluster_launcher_file_fits_the_schema_of_ray():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    assert f"ray[default]=={INSTALLED_RAY}" in " ".join(config["setup_commands"])


def test_the_kuberay_job_is_complete():
    job = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == INSTALLED_RAY and "kdtune" in job["spec"]["entrypoint"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["image"] and container["resources"]["limits"]["memory"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


FAKES = {
    "scontrol": "echo first; echo second",
    "srun": 'echo "srun $*" >> "$SAID"; exec sleep 60',
    "openssl": "echo 0123",
    "kdtune": 'echo "kdtune $* $RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> "$SAID"; '
    'until [ "$(grep -c ^srun "$SAID")" = 2 ]; do sleep 0.05; done; '
    "trap 'exit 143' TERM; sleep ${SECONDS_OF_SWEEP:-0} & wait; exit ${CODE:-0}",
}


COMMAND = ["bash", str(CLUSTER / "sweep.sbatch"), "sweep.yaml", "x"]


@pytest.fixture
def variables(tmp_path):
    """Put the fakes on the path, and return the environment of a Slurm job."""
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(tmp_path / "said"),
        "SLURM_JOB_NODELIST": "n", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "4", "USER": "me",
    }  # fmt: skip


@pytest.mark.parametrize("exists", [False, True])
def test_the_slurm_script_starts_ray_on_each_node_and_the_sweep_on_the_first(
    tmp_path, variables, exists
):
    if exists:
        (tmp_path / "results" / "x").mkdir(parents=True)
        (tmp_path / "results" / "x" / "log.jsonl").touch()
    variables |= {"HEAD_SECONDS": "0.2", "CODE": "5"}
    code = subprocess.run(COMMAND, cwd=tmp_path, env=variables, timeout=30).returncode
    assert code == 5  # the sweep's
    lines = (tmp_path / "said").read_text().splitlines()
    head, worker = (line for line in lines if line.startswith("srun"))
    assert "--nodelist=first" in head and "ray start --head --port=20007" in head
    assert "--nodelist=second" in worker and "ray start --address=first:20007" in worker
    what = "resume results/x" if exists else "sweep sweep.yaml --name x"
    expected = f"kdtune {what} --address first:20007 --shutdown-grace 90s token 0123"
    assert [line for line in lines if line.startswith("kdtune")] == [expected]


def test_sigterm_from_slurm_reaches_the_sweep(tmp_path, variables):
    said = tmp_path / "said"
    variables |= {"HEAD_SECONDS": "0", "SECONDS_OF_SWEEP": "60"}
    with subprocess.Popen(COMMAND, cwd=tmp_path, env=variables) as job:
        deadline = time.monotonic() + 20
        while not (said.exists() and "kdtune" in said.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)  # its trap is set
        job.terminate()
        assert job.wait(timeout=20) == 143


def seconds_since_a_save(folder):
    """Return the age of the search's state, which Ray overwrites in place every two seconds."""
    times = [path.stat().st_mtime for path in folder.glob("search_gen_state-*.json")]
    return time.time() - max(times, default=0)


def has_a_checkpoint_and_a_state_at_rest(folder):
    return (
        any(folder.glob("*/checkpoint_000000/student.pth"))
        and 0.5 < seconds_since_a_save(folder) < 1.5
    )


def has_no_state_yet(folder):
    return (folder / "tuner.pkl").exists() and not [*folder.glob("search_gen_state-*.json")]


@pytest.mark.slow
def test_the_script_of_rays_resumes_after_kills(folder, teacher_file, tmp_path):
    out = tmp_path / "ray-tune"
    words = [
        sys.executable, str(ROOT / "examples" / "ray_tune.py"), "--data", str(folder),
        "--teacher", str(teacher_file), "--image-size", "8", "--epochs", "2", "--trials", "2",
        "--concurrent", "1",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TUNE_GLOBAL_CHECKPOINT_S": "2"}
    env["RAY_ADDRESS"] = "local"  # else it joins a cluster that another test runs meanwhile
    deadline = time.monotonic() + 300
    for may_be_killed in (has_no_state_yet, has_a_checkpoint_and_a_state_at_rest):
        with subprocess.Popen(words, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL) as run:
            while not may_be_killed(out):
                assert run.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            run.kill()
    again = subprocess.run(words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, timeout=300)
    assert again.returncode == 0 and b"2 trials; the best: 0." in again.stdout
    trained = {path.parent.parent for path in out.glob("*/checkpoint_*/student.pth")}
    assert len(trained) >= 2
    assert any((trial / "checkpoint_000001").exists() for trial in trained)  # ASHA may stop one
