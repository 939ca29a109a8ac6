"""Columns of all tables: name, heading, format and meaning of each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdtune.log.events import ENDED_STATES
from kdtune.reports.tables.statistics import MIN_SEEDS, Verdict

TEXT, FLAG, ANY = "text", "flag", "any"
"""Formats of columns without numbers; a column with the format `ANY` mixes types."""

MIN_PROMOTED_TRIALS = 10
"""Trials that were promoted at a rung, at least, before it is judged."""

MIN_IMPORTANCE_TRIALS = 30
"""Trials with a score at the first rung, at least, before importances are computed."""

MIN_GOOD_TRIALS = 5
"""Trials that make a good range, at least."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: name in DataFrames, CSV and Parquet.
        heading: heading where it is shown; empty if it is not shown.
        format: format specification of a number, or `TEXT`, `FLAG` or `ANY`.
        meaning: meaning, for the reference.
        half_width: column with the half width of the value's 95 % interval.
    """

    name: str
    heading: str
    format: str
    meaning: str
    half_width: str = ""

    @property
    def dtype(self) -> str:
        """The pandas type of the values."""
        types = {TEXT: "str", FLAG: "boolean", ANY: "object"}
        return types.get(self.format, "Int64" if self.format.endswith("d") else "float64")

    def to_texts(self, table: pd.DataFrame) -> list[str]:
        """Return the values as text, with their half widths where they are known."""
        widths = table[self.half_width] if self.half_width else [None] * len(table)
        return [
            self._to_text(value) if pd.isna(width) else f"{self._to_text(value)} ± {width:.2f}"
            for value, width in zip(table[self.name], widths, strict=True)
        ]

    def _to_text(self, value: Any) -> str:
        if pd.isna(value):
            return ""
        if self.format == FLAG:
            return "yes" if value else "no"
        return str(value) if self.format in (TEXT, ANY) else format(value, self.format)


class Table:
    """The columns of a table, in their order.

    Args:
        row: what a row is, for the reference.
        columns: all columns.
    """

    def __init__(self, row: str, *columns: Column):
        self.row, self.columns = row, columns
        self.names = [column.name for column in columns]

    def make_frame(self, rows: Iterable[Any] | Mapping[str, Any] = ()) -> pd.DataFrame:
        """Return rows (dictionaries or tuples), or arrays by column, as a typed DataFrame."""
        data = rows if isinstance(rows, Mapping) else list(rows)
        return self.cast(pd.DataFrame(data, columns=self.names))

    def cast(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return a table whose columns have their types; it may have further columns."""
        return table.astype({column.name: column.dtype for column in self.columns})

    def to_texts(self, table: pd.DataFrame, *names: str) -> dict[str, list[str]]:
        """Return columns as text, by heading.

        Args:
            table: the values.
            names: names of the columns; those that the table lacks are left out.
        """
        columns = {column.name: column for column in self.columns if column.name in table}
        return {
            columns[name].heading: columns[name].to_texts(table)
            for name in names
            if name in columns
        }


# fmt: off
MODEL = Column("model", "model", TEXT, "student")
METHOD = Column("method", "method", TEXT, "distillation method or baseline")
TRIAL_ID = Column("trial_id", "", TEXT, "trial")
REASON = Column("reason", "in words", TEXT, "why it ended")
RESTARTS = Column("restarts", "", "d", "number of restarts in another process")
EPOCHS_TRAINED = Column("epochs", "", "d", "number of epochs trained")
BEST_VALIDATION = Column("best_validation_accuracy", "", "g",
                         "share of 1, best until the (latest) epoch; the search maximises it")
BEST_EPOCH = Column("best_epoch", "", "d", "first epoch with that accuracy")
DEVICE_SECONDS = Column("device_seconds", "", ".2f", "seconds of all its epochs")
DEVICE = Column("device", "", TEXT, "device of the (latest) epoch")
THREADS = Column("threads", "", "d", "CPU threads of the (latest) epoch")
CONFIGURATION = Column("configuration", "", TEXT, "complete settings, as JSON")
HYPERPARAMETER = Column("hyperparameter", "setting", TEXT, "searched setting")
PARAMETERS = Column("parameters", "parameters", ",d", "number of parameters of the student")
MACS = Column("macs", "multiply-adds for one image", ",d", "multiply-adds of a forward pass")
LATENCY_MS = Column("latency_ms", "milliseconds for one image", ".2f", "median of forward passes")
LATENCY_DEVICE = Column("latency_device", "", TEXT, "device that the latency was measured on")
TEST_IMAGES = Column("test_images", "", ",d", "number of test images")

TRIALS = Table(
    "One row per trial, in the order of their proposals.",
    TRIAL_ID, METHOD, MODEL,
    Column("number", "", "d", "number of the trial in its cell, from 0"),
    Column("origin", "", TEXT, "`start` (a known good point) or `sampler`"),
    Column("state", "status", TEXT, "`finished`, `stopped`, `diverged`, `crashed` or `running`"),
    REASON, RESTARTS, EPOCHS_TRAINED, BEST_VALIDATION, BEST_EPOCH,
    Column("last_validation_accuracy", "", "g", "share of 1, of the latest epoch"),
    DEVICE_SECONDS, DEVICE, THREADS,
)
HYPERPARAMETERS = Column("<hyperparameter>", "", ANY, "searched value; empty where a space lacks "
    "it. A setting with the name of another column is only in the configuration")

EPOCHS = Table(
    "One row per epoch of a trial, in the order of their reports.",
    TRIAL_ID, METHOD, MODEL,
    Column("epoch", "", "d", "number of the epoch, from 1"),
    Column("lr", "", "g", "learning rate"),
    Column("train_loss", "", "g", "mean of the method's loss over the training images"),
    Column("train_accuracy", "", "g", "share of 1"),
    Column("validation_loss", "", "g", "mean cross-entropy"),
    Column("validation_accuracy", "", "g", "share of 1"),
    BEST_VALIDATION,
    Column("seconds", "", ".2f", "seconds of training and validation"),
    DEVICE, THREADS,
    Column("session_seconds", "", ".3f", "seconds since the driver opened the log"),
)
LOSS_PARTS = (Column("loss_<part>", "", "g", "mean of a part of the training loss"),
              Column("loss_<part>_weighted", "", "g", "the part times its weight"))

RUNS = Table(
    "One row per confirm run, in the order of their proposals.",
    Column("run_id", "", TEXT, "confirm run"), METHOD, MODEL,
    Column("trial_id", "", TEXT, "trial of the search that has the same configuration"),
    Column("seed", "", "d", "number of the seed, from 1, the same in every cell"),
    Column("status", "", TEXT, "`ok`, `diverged`, `crashed` or `running`"),
    Column("chosen", "", FLAG, "true if its configuration was chosen for the cell"),
    EPOCHS_TRAINED, BEST_VALIDATION, BEST_EPOCH,
    Column("test_accuracy", "", "g", "share of 1; empty if it was not tested"),
    DEVICE_SECONDS, RESTARTS, REASON, DEVICE, THREADS, CONFIGURATION,
)

MODELS = Table("One row per student that was measured, without hooks and teacher.",
               MODEL, PARAMETERS, MACS, LATENCY_MS, LATENCY_DEVICE)

LEADERBOARD = Table(
    "One row per cell, sorted by model, then test accuracy, then best score of the search.",
    MODEL, METHOD,
    Column("status", "status", TEXT,
           "`ok`; `unstable`: a seed of the chosen configuration diverged; `incomplete`: fewer "
           f"than {MIN_SEEDS} seeds are ok; `not_confirmed`; `failed`: no trial is successful, or "
           "no run was and every configuration diverged; `running`: no trial is successful yet"),
    Column("rank", "rank", "d", "1 + number of methods with a better verdict on this model; "
           "undecided methods share a rank. Empty where nothing is compared"),
    Column("test_accuracy_percent", "test %", ".2f",
           "mean over the seeds of the chosen trial", half_width="test_half_width_points"),
    Column("test_half_width_points", "", ".2f", "half width of its 95 % interval for new seeds "
           f"and test images; empty with fewer than {MIN_SEEDS} seeds"),
    Column("test_low_percent", "", ".2f", "lower end of the interval, at least 0"),
    Column("test_high_percent", "", ".2f", "upper end of the interval, at most 100"),
    Column("test_seed_sd_points", "", ".2f", "standard deviation over the seeds (ddof 1)"),
    Column("seeds_ok", "seeds", "d", "finished seeds of the chosen configuration"),
    Column("seeds_diverged", "", "d", "diverged seeds of the chosen configuration"),
    TEST_IMAGES,
    Column("validation_images", "", ",d", "number of validation images"),
    Column("gain_over_student_points", "over student", "+.2f", "difference to method `student`",
           half_width="gain_over_student_half_width_points"),
    Column("gain_over_student_half_width_points", "", ".2f",
           "half width of its 95 % interval, which also covers search luck"),
    Column("validation_accuracy_percent", "validation %", ".2f",
           "mean over the seeds of the chosen configuration"),
    Column("validation_seed_sd_points", "", ".2f", "standard deviation over these seeds (ddof 1)"),
    Column("search_best_percent", "best validation %", ".2f",
           "best of the trials that finished or were stopped; others cannot be repeated"),
    Column("optimism_gap_points", "optimism", ".2f",
           "search_best_percent minus the mean of the confirm runs of the same trial"),
    Column("validation_minus_test_points", "", ".2f",
           "validation_accuracy_percent − test_accuracy_percent"),
    Column("search_luck_points", "search luck, points", ".2f", "how much a repeated search would "
           "move its result; see `kdtune.reports.tables.statistics.search_luck`"),
    Column("late_gain_points", "late gain, points", ".2f", "best of all trials minus best of the "
           "first half, in the order of proposals; a diverged trial has the accuracy of guessing"),
    Column("search_still_improving", "still improving", FLAG, "true if late_gain_points is above "
           "the larger of min_difference and 0.75 · validation_seed_sd_points"),
    Column("trials_started", "trials", "d", "number of trials, also of running ones"),
    *(Column(f"trials_{state}", state, "d", f"{state} trials") for state in ENDED_STATES),
    Column("search_epochs", "epochs", "d", "sum over all trials"),
    Column("search_device_seconds", "device s", ".2f", "sum over all trials"),
    Column("confirm_epochs", "", "d", "sum over all confirm runs"),
    Column("confirm_device_seconds", "", ".2f", "sum over all confirm runs"),
    PARAMETERS, MACS, LATENCY_MS, LATENCY_DEVICE,
    Column("trial_id", "", TEXT, "chosen trial, or the earliest of the best trials of the search"),
    CONFIGURATION,
)
LEADERBOARD_VIEW = Table(
    "A leaderboard as it is shown.",
    Column("sweep", "sweep", TEXT, "folder of the sweep"), *LEADERBOARD.columns,
    Column("device_hours", "device h", ".2f", "device hours of search and confirmation"),
    Column("settings", "settings", TEXT, "searched values of the trial"),
)

COMPARISON = Table(
    "One row per pair of methods and model, and one for several models together.",
    Column("method_a", "", TEXT, "method A"), Column("method_b", "", TEXT, "method B"),
    Column("model", "model", TEXT, "student; `all` is the mean over the models"),
    Column("models", "", "d", "number of models that are averaged"),
    Column("seeds", "", "d", "seeds that both methods finished on all these models"),
    TEST_IMAGES,
    Column("difference_points", "difference, points", "+.2f", "A minus B",
           half_width="half_width_points"),
    Column("half_width_points", "", ".2f",
           "half width of its 95 % interval for new seeds, new test images and a repeated search"),
    Column("low_points", "", ".2f", "lower end of the interval"),
    Column("high_points", "", ".2f", "upper end of the interval"),
    Column("half_width_without_search_points", "", ".2f", "half width without search luck"),
    Column("p_value", "", ".3f", "two-sided p-value"),
    Column("p_value_holm", "p (Holm)", ".3f", "adjusted over the models of the pair"),
    Column("df", "", ".1f", "Hillis' degrees of freedom"),
    Column("se_seeds_points", "", ".2f", "standard error from seeds"),
    Column("se_images_points", "", ".2f", "standard error from test images"),
    Column("se_search_points", "", ".2f", "standard error from search luck"),
    Column("seeds_won_a", "", "d", "number of seeds in which A is better"),
    Column("seed_correlation", "", ".2f", "correlation of the accuracies of A and B over seeds"),
    Column("limited_by", "limited by", TEXT, "largest part of the variance: `seeds`, `images` or "
           "`search`"),
    Column("more_seeds", "", "d", "further seeds that would settle it, if any would"),
    Column("test_images_needed", "", ",d", "test images that would settle it, if any would"),
    Column("min_difference_points", "", "g", "smallest difference that matters"),
    Column("verdict", "verdict", TEXT, ", ".join(f"`{verdict}`" for verdict in Verdict)),
    Column("sentence", "in words", TEXT, "the verdict in words"),
)

SEARCH_CURVE = Table(
    "One row per ended trial of a cell, in the order of their ends.",
    METHOD, MODEL,
    Column("trials", "", "d", "n, number of trials that have ended"),
    Column("epochs", "", "d", "epochs of the cell until then, also of running trials"),
    Column("best_percent", "", ".2f", "best validation accuracy until then of trials that did not "
           "fail in the end"),
    Column("expected_best_percent", "", ".2f",
           "mean best of n of the cell's B ended trials, drawn at random: "
           "Σ_{j=n..B} v_j · C(j − 1, n − 1) / C(B, n), with v ascending. A search of n trials "
           "would find this if proposals did not learn from one another (random search)"),
    Column("expected_epochs", "", ".1f", "n · mean epochs of a trial"),
)

RUNGS = Table(
    "One row per cell and pair of successive measured epochs, without failed trials.",
    METHOD, MODEL,
    Column("rung_epoch", "after epoch", "d", "first epoch of the pair"),
    Column("next_epoch", "next epoch", "d", "second epoch of the pair"),
    Column("trials_reached", "trials that got there", "d", "trials that reached the first epoch"),
    Column("trials_promoted", "promoted", "d", "trials that also reached the second epoch"),
    Column("correlation_promoted", "", ".2f",
           "r, Pearson correlation of the normal scores of the best validation accuracies at both "
           f"epochs, of the promoted trials; empty with fewer than {MIN_PROMOTED_TRIALS}"),
    Column("correlation_all", "rank correlation", ".2f",
           "r if all trials were promoted: r·u / sqrt(1 − r² + r²·u²), where u is the standard "
           "deviation of the scores at the first epoch of all over that of the promoted"),
    Column("winner_rank_at_rung", "worst place of a later winner", "d",
           "place at the first epoch, from 1, of the trial that is the cell's best"),
)

SETTINGS = Table(
    "One row per cell and searched setting.",
    METHOD, MODEL, HYPERPARAMETER,
    Column("importance", "", ".2f",
           "share of 1: PED-ANOVA (Watanabe et al. 2023) of being among the better half at the "
           f"first rung. Empty with fewer than {MIN_IMPORTANCE_TRIALS} trials that reached it or "
           "diverged, or where no half is better"),
    Column("good_low", "", ".3g",
           "10 % quantile (of the logarithms if the space has a log scale) of the best fifth of "
           f"the successful trials, at least {MIN_GOOD_TRIALS}; empty with fewer and for choices"),
    Column("good_high", "", ".3g", "90 % quantile of these"),
    Column("best", "", ANY, "value of the best trial; empty if the trial lacks the setting"),
)

STUDENTS = Table(
    "One row per cell: its accuracy and what its student costs.",
    MODEL, METHOD,
    Column("split", "", TEXT, "`test`, or `validation` (scores of the search) if none is tested"),
    Column("accuracy_percent", "", ".2f", "accuracy on these images"),
    Column("low_percent", "", ".2f", "lower end of its 95 % interval, if there is one"),
    Column("high_percent", "", ".2f", "upper end of its 95 % interval"),
    PARAMETERS, MACS, LATENCY_MS,
    *(Column(f"front_{cost}", "", FLAG,
             f"true if the cell is on the Pareto front of accuracy and {cost}")
      for cost in ("parameters", "macs", "latency")),
)

BAD_IMAGES = Table(
    "One row per image that is left out because it cannot be read.",
    Column("split", "split", TEXT, "`train`, `validation` or `test`"),
    Column("file", "file", TEXT, "path of the image"),
    Column("reason", "reason", TEXT, "why it cannot be read"),
)

PLAN = Table(
    "One row per quantity: the plan and the sweep so far.",
    Column("what", "", TEXT, "`wall seconds`, `device seconds` of epochs, `epochs` or `trials`"),
    Column("planned", "planned", ",.0f", "planned value"),
    Column("actual", "actual", ",.0f", "value so far"),
    Column("actual_over_planned", "actual / planned", ".2f",
           "ratio; empty if the sweep was changed after the plan"),
)

ERRORS = Table(
    "One row per frequent reason of failure.",
    Column("state", "status", TEXT, "`diverged` or `crashed`"),
    Column("reason", "in words", TEXT, "reason of the first trial or run that failed so"),
    Column("trials", "trials", "d", "number of trials that failed so"),
    Column("runs", "confirming runs", "d", "number of confirm runs that failed so"),
)

DIVERGED_SETTINGS = Table(
    "One row per setting that differs most between diverged and successful trials.",
    METHOD, HYPERPARAMETER,
    Column("diverged_median", "median of diverged", ".3g", "median of the diverged trials"),
    Column("other_median", "median of the others", ".3g", "median of the successful trials"),
    Column("distance", "", ".2f", "difference of the two in standard deviations of all trials (of "
           "the logarithms where the space has a log scale)"),
)

TABLES = {
    "trials": Table(TRIALS.row, *TRIALS.columns, HYPERPARAMETERS, CONFIGURATION),
    "epochs": Table(EPOCHS.row, *EPOCHS.columns, *LOSS_PARTS),
    "leaderboard": LEADERBOARD, "comparison": COMPARISON, "search_curve": SEARCH_CURVE,
    "rungs": RUNGS, "settings": SETTINGS, "confirm": RUNS, "models": MODELS, "students": STUDENTS,
    "bad_images": BAD_IMAGES, "plan": PLAN,
}
"""The tables of `kdtune.reports.tables.all_tables.collect_tables`, by name."""

TEXT_HEADINGS = {
    column.heading
    for table in (LEADERBOARD_VIEW, COMPARISON, SETTINGS, BAD_IMAGES, ERRORS)
    for column in table.columns
    if column.heading and column.format == TEXT
}
"""Headings over columns of text."""
