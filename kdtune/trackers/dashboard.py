"""A sweep's log in a browser, also while the sweep runs: optuna-dashboard, an Optuna study a cell.

The studies are in this process's memory and follow from the log alone. Pages only show: what they
offer to change is refused. Runs of a confirmation are no part of a search and are not shown.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from socketserver import ThreadingMixIn
from threading import Lock
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from kdtune.config.sweep import SweepConfig
from kdtune.errors import UserError
from kdtune.log.distributions import parse_distributions
from kdtune.log.events import (
    Cell,
    EpochFinished,
    Event,
    SweepOpening,
    TrialEnded,
    TrialProposed,
    TrialState,
)
from kdtune.log.folder import SweepFolder
from kdtune.runtime.console import printable_path
from kdtune.runtime.optional_imports import import_optional

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces studies in memory

HOST = "127.0.0.1"
"""This machine alone: whoever reaches a page can read it."""

OPTUNA_STATES = {
    TrialState.FINISHED: OptunaState.COMPLETE,
    TrialState.STOPPED: OptunaState.PRUNED,
    TrialState.DIVERGED: OptunaState.FAIL,
    TrialState.CRASHED: OptunaState.FAIL,
}
"""What Optuna calls the ends of trials."""

METRIC_NAMES_KEY = "study:metric_names"
"""Where `optuna.Study.set_metric_names`, which is experimental, keeps them."""


class SweepStudies:
    """The studies of a sweep; a fold over its log.

    Args:
        folder: the sweep's.
        storage: for the studies.

    Raises:
        UserError: this is no sweep's folder, or its log is damaged.
    """

    def __init__(self, folder: SweepFolder, storage: InMemoryStorage):
        self.folder, self.storage = folder, storage
        self.name = printable_path(folder.path.resolve().name)
        self._new_events: Iterator[list[Event]] = folder.follow_events()
        self._study_ids: dict[Cell, int] = {}
        self._optuna_trial_ids: dict[str, int] = {}
        self._device_seconds: dict[str, float] = {}
        self.update()
        if not self._study_ids:
            raise UserError(f"{folder.log_path} is damaged: it does not begin with the settings.")

    def update(self) -> None:
        """Take what the log has got since.

        Raises:
            UserError: the log is damaged; then nothing more is taken.
        """
        for event in next(self._new_events, ()):
            try:
                self._fold(event)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                self._new_events = iter(())
                raise UserError(f"{self.folder.log_path} is damaged: {error!r}.") from error

    def _fold(self, event: Event) -> None:
        match event:
            case SweepOpening():
                for cell in SweepConfig.parse(event.config).cells():
                    if cell not in self._study_ids:
                        self._add_study(cell)
            case TrialProposed():
                self._add_trial(event)
            case EpochFinished():
                self._device_seconds[event.trial_id] += event.seconds
                self.storage.set_trial_intermediate_value(
                    self._optuna_trial_ids[event.trial_id], event.epoch, event.validation_accuracy
                )
            case TrialEnded():
                self._finish_trial(event)

    def _add_study(self, cell: Cell) -> None:
        study_id = self.storage.create_new_study(
            [StudyDirection.MAXIMIZE], f"{self.name}: {'-'.join(cell)}"
        )
        self.storage.set_study_system_attr(
            study_id, METRIC_NAMES_KEY, ["best validation accuracy"]
        )
        self._study_ids[cell] = study_id

    def _add_trial(self, event: TrialProposed) -> None:
        trial = FrozenTrial(
            number=event.number,
            state=OptunaState.RUNNING,
            value=None,
            datetime_start=datetime.fromtimestamp(event.time),
            datetime_complete=None,
            params=event.params,
            distributions=parse_distributions(event.distributions),
            user_attrs={"trial_id": event.trial_id, "origin": event.origin},
            system_attrs={},
            intermediate_values={},
            trial_id=-1,  # the storage gives one
        )
        study_id = self._study_ids[event.cell]
        self._optuna_trial_ids[event.trial_id] = self.storage.create_new_trial(study_id, trial)
        self._device_seconds[event.trial_id] = 0.0

    def _finish_trial(self, event: TrialEnded) -> None:
        optuna_trial_id = self._optuna_trial_ids[event.trial_id]
        attributes = {"state": str(event.state), "reason": event.reason, "epochs": event.epochs}
        attributes["device_seconds"] = round(self._device_seconds[event.trial_id], 3)
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(optuna_trial_id, key, value)
        state, accuracy = OPTUNA_STATES[event.state], event.best_validation_accuracy
        values = None if state is OptunaState.FAIL or accuracy is None else [accuracy]
        self.storage.set_trial_state_values(optuna_trial_id, state, values)
        # Not when this process learned of it.
        self.storage.get_trial(optuna_trial_id).datetime_complete = datetime.fromtimestamp(
            event.time
        )


class Dashboard:
    """The pages of several sweeps; each request takes what their logs have got since.

    Args:
        folders: of the sweeps.

    Raises:
        UserError: optuna-dashboard is not installed; a folder is no sweep's; two have one name.
    """

    def __init__(self, folders: Sequence[Path]):
        self._app = import_optional("optuna_dashboard", "dashboard").wsgi(
            storage := InMemoryStorage()
        )
        names = [folder.resolve().name for folder in folders]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"Two folders are called {printable_path(name)}; show one at a time."
                )
        self._sweeps = [SweepStudies(SweepFolder(folder), storage) for folder in folders]
        self._lock = Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Answer a request, as WSGI has it."""
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start_response("405 Method Not Allowed", [("Allow", "GET, HEAD")])
            return [b"The log is the sweep: nothing can be changed here."]
        if environ.get("HTTP_HOST", HOST).rsplit(":", 1)[0] not in (HOST, "localhost"):
            # A page from elsewhere whose name leads here could read them.
            start_response("403 Forbidden", [])
            return [b"Only this machine can see the pages, by its own name."]
        with self._lock:
            for sweep in self._sweeps:
                try:
                    sweep.update()
                except (UserError, OSError) as error:  # what was shown stays
                    print(f"{error} Nothing more of it is shown.", file=sys.stderr)
        return self._app(environ, start_response)

    def serve(self, port: int, say: Callable[[str], object]) -> None:
        """Answer this machine's requests until Ctrl-C.

        Args:
            port: to listen on; 0 for any that is free.
            say: is given the address once there is an answer.

        Raises:
            UserError: the port cannot be had.
        """
        try:
            server = make_server(HOST, port, self, _ThreadingServer, _SilentRequestHandler)
        except OSError as error:
            raise UserError(
                f"Port {port} cannot be had: {str(error.strerror).lower()}; give another --port."
            ) from None
        with server, suppress(KeyboardInterrupt):
            say(f"http://{HOST}:{server.server_port}/")
            server.serve_forever()


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a browser keeps connections open


class _SilentRequestHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
