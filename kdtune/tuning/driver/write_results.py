"""Files that are made from the logs: tables, best settings and weights of each cell."""

from kdtune.errors import DiskFullError, RunError
from kdtune.export.selected_runs import select_best_runs, write_best_configs
from kdtune.log.folder import SweepFolder, SweepSnapshot
from kdtune.reports.tables.all_tables import collect_tables, load_sweep_tables
from kdtune.reports.text.render import to_csv
from kdtune.storage.files import atomic_write, write_text
from kdtune.storage.remote import Storage
from kdtune.tuning.trials.best_weights import write_best_weights

PARQUET_TABLES = ("trials", "epochs")
"""Tables that are also written as Parquet."""


def write_results(
    folder: SweepFolder, resume_command: str, storage: Storage | None = None
) -> None:
    """Write all that is made from the logs.

    Args:
        folder: the sweep's folder.
        resume_command: writes them again; part of the error message.
        storage: holds the checkpoints; None if they are in the folder.

    Raises:
        RunError: the disk is full.
    """
    snapshot = SweepSnapshot(folder.path)
    tables = load_sweep_tables(snapshot)
    selected = select_best_runs(tables)
    try:
        for name, table in collect_tables(snapshot, tables).items():
            if name in PARQUET_TABLES:
                with atomic_write(folder.path / f"{name}.parquet") as temporary:
                    table.to_parquet(temporary)
            write_text(folder.path / f"{name}.csv", to_csv(table))
        write_best_configs(folder, selected)
        write_best_weights(folder, selected, storage)
    except DiskFullError as error:
        raise RunError(f"{error} Nothing is lost: make room, then: {resume_command}") from None
