"""Web pages of sweeps, also of running ones: optuna-dashboard with one study per cell."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from socketserver import ThreadingMixIn
from threading import Lock
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from kdtune.config.sweep import SweepConfig
from kdtune.errors import UserError
from kdtune.log.distributions import parse_distributions, quiet_optuna
from kdtune.log.events import Cell, SweepOpening, TrialState
from kdtune.log.folder import SweepFolder
from kdtune.log.trial_history import TrialHistory, TrialRecord
from kdtune.runtime.console import printable_path
from kdtune.runtime.optional_imports import import_optional

HOST = "127.0.0.1"  # only this machine: whoever reaches a page can read it

OPTUNA_STATES = {
    TrialState.RUNNING: OptunaState.RUNNING,
    TrialState.FINISHED: OptunaState.COMPLETE,
    TrialState.STOPPED: OptunaState.PRUNED,
    TrialState.DIVERGED: OptunaState.FAIL,
    TrialState.CRASHED: OptunaState.FAIL,
}


class _FollowedSweep:
    def __init__(self, path: Path):
        self.folder = SweepFolder(path)
        self.name = printable_path(path.resolve().name)
        self.trials: dict[Cell, list[FrozenTrial]] = {}
        self._new_events = self.folder.follow_events()
        self._history, self._cells = TrialHistory(), dict[Cell, None]()
        self.update()
        if not self.trials:
            path = self.folder.log_path
            raise UserError(f"{path} is damaged: it does not begin with the settings.")

    def update(self) -> bool:
        """Read the new events of the log until it is damaged; return True if there are any."""
        if not (events := next(self._new_events, [])):
            return False
        try:
            for event in events:
                self._history.fold(event)
                if isinstance(event, SweepOpening):
                    self._cells |= dict.fromkeys(SweepConfig.parse(event.config).cells())
            trials: dict[Cell, list[FrozenTrial]] = {cell: [] for cell in self._cells}
            for record in self._history.trials.values():
                trials[record.cell].append(_to_optuna(record))
        except (LookupError, TypeError, ValueError) as error:
            self._new_events = iter(())
            reason = f": {error}" if isinstance(error, UserError) else f" is damaged: {error!r}."
            raise UserError(f"{self.folder.log_path}{reason}") from error
        self.trials = trials
        return True


def _to_optuna(record: TrialRecord) -> FrozenTrial:
    proposed, ended = record.proposed, record.ended
    attributes: dict[str, str | float] = {
        "trial_id": proposed.trial_id,
        "origin": proposed.describe_origin(),
    }
    if ended is not None:
        attributes |= {"state": str(ended.state), "reason": ended.reason}
        attributes |= {"epochs": ended.epochs, "device_seconds": round(record.device_seconds, 3)}
    return FrozenTrial(
        number=proposed.number,
        state=OPTUNA_STATES[record.state],
        value=ended.best_validation_accuracy if ended and ended.is_successful else None,
        datetime_start=datetime.fromtimestamp(proposed.time),
        datetime_complete=datetime.fromtimestamp(ended.time) if ended else None,
        params=proposed.params,
        distributions=parse_distributions(proposed.distributions),
        user_attrs=attributes,
        system_attrs={},
        intermediate_values={e.epoch: e.validation_accuracy for e in record.epochs},
        trial_id=-1,  # the storage assigns one
    )


def _build_storage(sweeps: Iterable[_FollowedSweep]) -> InMemoryStorage:
    storage = InMemoryStorage()
    with quiet_optuna(), warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        for sweep in sweeps:
            for cell, trials in sweep.trials.items():
                name = f"{sweep.name}: {'-'.join(cell)}"
                study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
                study.set_metric_names(["best validation accuracy"])
                try:
                    study.add_trials(trials)
                except ValueError as error:  # a value outside its distribution
                    raise UserError(f"{sweep.folder.log_path} is damaged: {error}.") from error
    return storage


class Dashboard:
    """WSGI application with the pages of sweeps; a request reads the new events of their logs."""

    def __init__(self, folders: Sequence[Path]):
        self._create_app = import_optional("optuna_dashboard", "dashboard").wsgi
        names = [folder.resolve().name for folder in folders]
        if repeated := [printable_path(name) for name in names if names.count(name) > 1]:
            raise UserError(f"Two folders are called {repeated[0]}; show one at a time.")
        self._sweeps = [_FollowedSweep(folder) for folder in folders]
        self._app = self._create_app(_build_storage(self._sweeps))
        self._lock = Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start_response("405 Method Not Allowed", [("Allow", "GET, HEAD")])
            return [b"These pages are read-only: they show the log of a sweep."]
        if environ.get("HTTP_HOST", HOST).rsplit(":", 1)[0] not in (HOST, "localhost"):
            # Protects against DNS rebinding: a foreign page whose name resolves to this machine.
            start_response("403 Forbidden", [])
            return [b"Open this page as localhost or 127.0.0.1."]
        with self._lock:
            has_changed = False
            for sweep in self._sweeps:
                with _damage_reported():
                    has_changed |= sweep.update()
            if has_changed:
                with _damage_reported():
                    self._app = self._create_app(_build_storage(self._sweeps))
        return self._app(environ, start_response)

    def serve(self, port: int) -> None:
        """Print the address and answer requests until Ctrl-C; port 0 is any free one."""
        try:
            server = make_server(HOST, port, self, _ThreadingServer, _SilentRequestHandler)
        except OSError as error:
            reason = str(error.strerror).lower()
            raise UserError(f"Port {port} is not available: {reason}; use another one.") from None
        with server, suppress(KeyboardInterrupt):
            print(f"http://{HOST}:{server.server_port}/", flush=True)
            server.serve_forever()


@contextmanager
def _damage_reported() -> Iterator[None]:
    try:
        yield
    except (UserError, OSError) as error:
        print(f"{error} Nothing more of it is shown.", file=sys.stderr)


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # browsers keep connections open


class _SilentRequestHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass
