"""Private and undocumented parts of Ray, one test for each name of `ray_private`."""

import os
import sys
from types import SimpleNamespace

import pytest
import ray
from optuna.distributions import FloatDistribution, IntDistribution
from ray import tune
from ray._private import services
from ray.tune.schedulers import FIFOScheduler
from ray.util.placement_group import placement_group_table, remove_placement_group

from kdtune.tuning.cluster import ray_private
from kdtune.tuning.cluster.placement import Allocation
from kdtune.tuning.cluster.ray_private import TuneOrderScheduler


def test_loopback_only():
    before = ray.util.get_node_ip_address()
    with ray_private.loopback_only():
        assert ray.util.get_node_ip_address() == "127.0.0.1"
        assert os.environ[ray_private.LOOPBACK_VARIABLE] == "0"
    assert ray.util.get_node_ip_address() == before
    assert ray_private.LOOPBACK_VARIABLE not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="on Linux alone")
def test_own_process_group():
    before = services.ConsolePopen
    with ray_private.own_process_group():
        with services.ConsolePopen([sys.executable, "-c", "input()"], stdin=-1) as process:
            group = os.getpgid(process.pid)
            process.communicate(b"\n")
    assert group == process.pid != os.getpgid(0)
    assert services.ConsolePopen is before


def test_disable_memory_monitor(monkeypatch):
    name = "RAY_memory_monitor_refresh_ms"
    monkeypatch.setenv(name, "250")
    ray_private.disable_memory_monitor()
    assert os.environ[name] == "250"  # the user's choice
    monkeypatch.delenv(name)
    ray_private.disable_memory_monitor()
    assert os.environ[name] == "0"


@pytest.mark.slow
def test_is_ray_node(ray_session):
    assert ray_private.is_ray_node()


@pytest.fixture
def node_id(ray_session):
    return ray.get_runtime_context().get_node_id()


@pytest.mark.slow
def test_trial_resources(node_id):
    for target in (node_id, 56 * "0"):  # the second node does not exist
        resources = ray_private.trial_resources(Allocation(target, 1, 1, 0.0))
        group = resources.to_placement_group()
        assert group.wait(30)
        assert placement_group_table(group)["bundles_to_node_id"] == {0: node_id}
        remove_placement_group(group)


def run_tune(folder, scheduler):
    """Run two trials of Tune; return their results."""
    return tune.Tuner(
        lambda config: {"score": config["x"]},
        param_space={"x": tune.grid_search([1, 2])},
        tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=1),
        run_config=tune.RunConfig(name="x", storage_path=str(folder), verbose=0),
    ).fit()


@pytest.mark.slow
def test_configure_tune(ray_session, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for variable in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "RAY_AIR_NEW_OUTPUT"):
        monkeypatch.delenv(variable, raising=False)
    before = os.environ.copy()
    with ray_private.configure_tune(verbose=False):
        run_tune(tmp_path, FIFOScheduler())
    assert os.environ == before
    assert not list(tmp_path.rglob("result.json")) and not list(tmp_path.rglob("progress.csv"))
    assert "Trial status" not in capfd.readouterr().out


def test_not_saved():
    class Callback(ray_private.NotSaved, tune.Callback):
        def __init__(self):
            self.events = (event for event in ())  # cannot be pickled

    assert vars(ray.cloudpickle.loads(ray.cloudpickle.dumps(Callback()))) == {}


@pytest.mark.slow
def test_tune_order_scheduler(ray_session, tmp_path):
    scheduler = TuneOrderScheduler()
    assert scheduler.choose_trial_to_run(SimpleNamespace()) is None
    results = run_tune(tmp_path, scheduler)
    assert sorted(result.metrics["score"] for result in results) == [1, 2]


def test_to_optuna():
    assert ray_private.to_optuna(tune.loguniform(0.1, 1)) == FloatDistribution(0.1, 1, log=True)
    assert ray_private.to_optuna(tune.quniform(0, 1, 0.5)) == FloatDistribution(0, 1, step=0.5)
    assert ray_private.to_optuna(tune.randint(1, 4)) == IntDistribution(1, 3)
    with pytest.raises(ValueError):
        ray_private.to_optuna(tune.randn(0, 1))
