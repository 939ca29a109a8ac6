"""All that is made from a sweep's logs: tables, and the best settings and network of each cell."""

from kdtune.errors import DiskFullError, RunError
from kdtune.export.best import best_of_cells, write_best
from kdtune.log.folder import Snapshot, SweepFolder
from kdtune.reports.tables.all_tables import every_table, tables_of
from kdtune.reports.text.render import to_csv
from kdtune.storage.files import replacing, write_text
from kdtune.storage.remote import Storage
from kdtune.tuning.trials.best_networks import write_networks

PARQUET = ("trials", "epochs")
"""Tables that are also written as Parquet."""


def write_outputs(folder: SweepFolder, command: str, storage: Storage | None = None) -> None:
    """Make all that follows from the logs.

    Args:
        folder: of the sweep.
        command: what makes it again, for people.
        storage: of checkpoints; None if they are in the folder.

    Raises:
        RunError: the disk is full.
    """
    known = Snapshot(folder.path)
    tables = tables_of(known)
    best = best_of_cells(tables)
    try:
        for name, table in every_table(known, tables).items():
            if name in PARQUET:
                with replacing(folder.table(name, ".parquet")) as temporary:
                    table.to_parquet(temporary)
            write_text(folder.table(name, ".csv"), to_csv(table))
        write_best(folder, best)
        write_networks(folder, best, storage)
    except DiskFullError as error:
        raise RunError(f"{error} Nothing is lost: make room, then: {command}") from None
