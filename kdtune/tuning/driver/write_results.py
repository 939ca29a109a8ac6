"""Files made from the logs of a sweep: tables (`trials.csv`, ...), best settings and weights."""

from collections.abc import Callable

from kdtune.export.selected_runs import select_best_runs, write_best_configs
from kdtune.log.folder import SweepFolder, SweepSnapshot
from kdtune.reports.tables.all_tables import collect_tables, load_sweep_tables
from kdtune.reports.text.render import to_csv
from kdtune.storage.files import atomic_write, write_text
from kdtune.storage.remote import Storage
from kdtune.tuning.trials.best_weights import write_best_weights


def write_results(
    folder: SweepFolder, checkpoint_storage: Storage | None, warn: Callable[[str], None]
) -> None:
    """Write tables, best settings and best weights into a sweep's folder.

    Args:
        folder: the sweep's folder.
        checkpoint_storage: storage of the checkpoints; None if they are in the folder.
        warn: takes a line about each cell whose weights are lost.

    Raises:
        DiskFullError: there is no room for a file; no file is damaged.
    """
    snapshot = SweepSnapshot(folder.path)
    tables = load_sweep_tables(snapshot)
    selected = select_best_runs(tables)
    for name, table in collect_tables(snapshot, tables).items():
        if name in ("trials", "epochs"):
            with atomic_write(folder.path / f"{name}.parquet") as temporary:
                table.to_parquet(temporary)
        write_text(folder.path / f"{name}.csv", to_csv(table))
    write_best_configs(folder, selected)
    write_best_weights(folder, selected, checkpoint_storage, warn)
