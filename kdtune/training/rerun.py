"""Training from a YAML file, compared with the accuracy that the file records."""

from pathlib import Path
from typing import Any

import torch

from kdtune.config.same_settings import hash_settings
from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.plugins import PLUGINS
from kdtune.runtime.console import printable_path
from kdtune.runtime.environment import describe_environment
from kdtune.storage.files import read_yaml
from kdtune.training.epoch_data import find_data
from kdtune.training.run import RunWatch, check_run, run_training
from kdtune.training.teacher import teacher_sha256


def train_from_file(
    path: Path,
    threads: int | None = None,
    recipe: str | None = None,
    dry_run: bool = False,
    watch: RunWatch | None = None,
) -> dict[str, Any]:
    """Train once with the settings of a YAML file.

    A sweep's file records under ``provenance`` the accuracy of its trial, and its machine.

    Args:
        path: of the file.
        threads: CPU threads of torch; None for as many as the file records, or torch's default.
        recipe: gives the settings that the file leaves out; None for the file's own recipe.
        dry_run: check everything, train nothing, and return nothing.
        watch: see `run_training`.

    Returns:
        The results of `run_training`; ``recorded_accuracy``, None if there is none or if settings
        were edited; and ``causes``, sentences on why the run reached another accuracy.
    """
    settings = read_yaml(path)
    provenance = settings.pop("provenance", None) or {}
    if not isinstance(provenance, dict):
        raise UserError(f"{path}: provenance must hold 'key: value' lines, or be left out.")
    PLUGINS.require(str(path), provenance.get("plugins", ()))
    if recipe is not None and settings.get("recipe", recipe) != recipe:
        raise UserError(f"{path} names the recipe '{settings['recipe']}'; leave --recipe out.")
    config = TrainConfig.parse({**settings, **({"recipe": recipe} if recipe else {})})
    threads = threads or provenance.get("threads", torch.get_num_threads())
    if not isinstance(threads, int) or threads < 1:
        raise UserError(f"{path}: threads cannot be {threads!r}; give a whole number above 0.")
    torch.set_num_threads(threads)
    if dry_run:
        check_run(config)
        return {}
    recorded = provenance.get("best_validation_accuracy")
    if provenance.get("settings_sha256") != hash_settings(settings):
        recorded = None  # the file was edited: what it records is another run's
    result = run_training(config, watch=watch)
    causes = []
    if recorded not in (None, result["best_accuracy"]):
        causes = _explain_difference(config, provenance, result["training_history"][-1])
    return {**result, "recorded_accuracy": recorded, "causes": causes}


def _explain_difference(
    config: TrainConfig, recorded: dict[str, Any], epoch: dict[str, Any]
) -> list[str]:
    current = {key: epoch[key] for key in ("device", "threads")}
    current["data_fingerprint"] = find_data(config)[0].fingerprint
    if config.teacher_model is not None:
        current["teacher_sha256"] = teacher_sha256(config.teacher_model)
    if isinstance(recorded_environment := recorded.get("environment"), dict):
        current |= describe_environment()
        recorded = {**recorded, **recorded_environment}
    causes = [
        f"{key} was {printable_path(str(recorded[key]))}, and is {value}"
        for key, value in current.items()
        if recorded.get(key) not in (None, value)
    ]
    changed_plugins = PLUGINS.changed(recorded.get("plugins", ()))
    causes += [f"the plug-in {name} has other code" for name in changed_plugins]
    return causes or [
        "versions, machine, data and teacher are those that were recorded; on a GPU, two runs "
        "with the same settings differ"
    ]
