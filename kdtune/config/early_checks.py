"""Checks of a sweep that load neither torch nor Ray, so that mistakes are reported at once."""

from collections.abc import Mapping
from pathlib import Path

from kdtune.config.names import require_data, require_model_name
from kdtune.config.sweep import SweepConfig
from kdtune.config.train import METHOD_DEFAULTS
from kdtune.errors import UserError, did_you_mean


def check_names_and_files(sweep: SweepConfig) -> None:
    """Check methods, models, settings, data and teacher of a sweep whose plug-ins are loaded.

    Raises:
        UserError: a name is unknown, a setting is out of range, or a file is missing.
    """
    for method, model in sweep.cells():
        METHOD_DEFAULTS.require(method)
        require_model_name(model)
    sweep.check_settings()
    for setting in ("cpus_per_trial", "gpus_per_trial"):
        if isinstance(per_model := getattr(sweep, setting), Mapping):
            for model in per_model.keys() - set(sweep.models):
                raise UserError(
                    f"{setting} names '{model}', which is no student of this sweep; "
                    f"{did_you_mean(model, sweep.models)}"
                )
    require_data(sweep.data)
    if sweep.teacher is not None and not Path(sweep.teacher).expanduser().is_file():
        raise UserError(f"There is no file {sweep.teacher}.")
