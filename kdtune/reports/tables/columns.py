"""Columns of all tables: name, format, meaning and heading of each."""

from kdtune.log.events import ENDED_STATES
from kdtune.reports.tables.schema import ANY, FLAG, TEXT, Column, Table
from kdtune.reports.tables.statistics import MIN_SEEDS, SIGNIFICANCE_LEVEL, Verdict

MIN_PROMOTED_TRIALS, MIN_IMPORTANCE_TRIALS, MIN_GOOD_TRIALS = 10, 30, 5
"""Numbers of trials, at least, to judge a rung, to compute importances, and for a good range."""

# fmt: off
MODEL = Column("model", TEXT, "student", "model")
METHOD = Column("method", TEXT, "distillation method or baseline", "method")
TRIAL_ID = Column("trial_id", TEXT, "trial")
REASON = Column("reason", TEXT, "why it ended", "in words")
RESTARTS = Column("restarts", "d", "number of restarts in another process")
EPOCHS_TRAINED = Column("epochs", "d", "number of epochs trained")
BEST_VALIDATION = Column("best_validation_accuracy", "g", "best so far, by the metric of the "
                         "sweep; the search maximises it")
BEST_EPOCH = Column("best_epoch", "d", "first epoch with that accuracy")
BALANCED_VALIDATION = Column("validation_balanced_accuracy", "g", "mean recall of the classes, "
                             "share of 1, of the best epoch")
DEVICE_SECONDS = Column("device_seconds", ".2f", "seconds of all its epochs")
DEVICE = Column("device", TEXT, "device of the (latest) epoch")
THREADS = Column("threads", "d", "CPU threads of the (latest) epoch")
CONFIGURATION = Column("configuration", TEXT, "complete settings, as JSON")
HYPERPARAMETER = Column("hyperparameter", TEXT, "searched setting", "setting")
PARAMETERS = Column("parameters", ",d", "number of parameters of the student", "parameters")
MACS = Column("macs", ",d", "multiply-adds of a forward pass", "multiply-adds for one image")
LATENCY_MS = Column("latency_ms", ".2f", "median of forward passes", "milliseconds for one image")
LATENCY_DEVICE = Column("latency_device", TEXT, "device that the latency was measured on")
TEST_IMAGES = Column("test_images", ",d", "number of test images")

TRIALS = Table(
    "One row per trial, in the order of their proposals.",
    TRIAL_ID, METHOD, MODEL,
    Column("number", "d", "number of the trial in its cell, from 0"),
    Column("origin", TEXT, "`start` (a known good point), `sampler` or `repeat`"),
    Column("candidate", TEXT, "of a repeat: the first trial with its settings, else empty"),
    Column("state", TEXT, "`finished`, `stopped`, `diverged`, `crashed` or `running`", "state"),
    REASON, RESTARTS, EPOCHS_TRAINED, BEST_VALIDATION, BALANCED_VALIDATION, BEST_EPOCH,
    Column("last_validation_accuracy", "g", "share of 1, of the latest epoch"),
    DEVICE_SECONDS, DEVICE, THREADS,
    Column("mean_validation_accuracy", "g", "score of its settings: mean of "
           "best_validation_accuracy over it and its repeats, of those that finished if any did; "
           "empty for repeats and trials that failed or run"),
    Column("expected_validation_accuracy", "g", "accuracy that the model of the cell expects of "
           "a new run of its settings; empty for repeats, and without a model"),
    Column("rank_in_cell", "d", "place of its settings, from 1: by the model, then by "
           "mean_validation_accuracy; empty for repeats and trials that failed or run"),
)
HYPERPARAMETERS = Column("<hyperparameter>", ANY, "searched value, and weight that follows from "
                         "a strength; empty where a space lacks it")

EPOCHS = Table(
    "One row per epoch of a trial, in the order of their reports.",
    TRIAL_ID, METHOD, MODEL,
    Column("epoch", "d", "number of the epoch, from 1"),
    Column("lr", "g", "learning rate"),
    Column("train_loss", "g", "mean of the method's loss over the training images"),
    Column("train_accuracy", "g", "share of 1"),
    Column("validation_loss", "g", "mean cross-entropy"),
    Column("validation_accuracy", "g", "share of 1"),
    Column("validation_balanced_accuracy", "g", "mean recall of the classes, share of 1"),
    Column("validation_top_class_share", "g", "share of the images that get the most frequent "
           "answer; 1 if all get the same"),
    BEST_VALIDATION,
    Column("seconds", ".2f", "seconds of training and validation"),
    DEVICE, THREADS,
    Column("session_seconds", ".3f", "seconds since the driver opened the log"),
)
LOSS_PART = Column("loss_<part>", "g", "mean of a part of the training loss")
WEIGHTED_LOSS_PART = Column("loss_<part>_weighted", "g", "the part times its weight")

RUNS = Table(
    "One row per confirm run, in the order of their proposals.",
    Column("run_id", TEXT, "confirm run"), METHOD, MODEL,
    Column("trial_id", TEXT, "trial of the search that has the same configuration"),
    Column("seed", "d", "number of the seed, from 1, the same in every cell"),
    Column("state", TEXT, "`finished`, `diverged`, `crashed` or `running`"),
    Column("chosen", FLAG, "true if its configuration was chosen for the cell"),
    EPOCHS_TRAINED, BEST_VALIDATION, BALANCED_VALIDATION, BEST_EPOCH,
    Column("test_accuracy", "g", "share of 1 by the metric; empty if it was not tested"),
    Column("test_balanced_accuracy", "g", "mean recall of the classes, share of 1"),
    DEVICE_SECONDS, RESTARTS, REASON, DEVICE, THREADS, CONFIGURATION,
)

MODELS = Table("One row per student that was measured, without hooks and teacher.",
               MODEL, PARAMETERS, MACS, LATENCY_MS, LATENCY_DEVICE)

LEADERBOARD = Table(
    "One row per cell, sorted by model, then test accuracy, then best score of the search.",
    MODEL, METHOD,
    Column("status", TEXT, "`ok`; `unstable`: a seed of the chosen configuration diverged; "
           f"`incomplete`: fewer than {MIN_SEEDS} seeds finished; `not_confirmed`; `failed`: no "
           "trial succeeded or all runs diverged; `running`: no trial succeeded yet", "status"),
    Column("rank", "d", "1 + number of better methods on the model; undecided ones tie", "rank"),
    Column("test_accuracy_percent", ".2f", "mean over the seeds of the chosen trial", "test %",
           "test_half_width_points"),
    Column("test_half_width_points", ".2f", "half of the width of its 95 % interval for new "
           f"seeds and test images; empty with fewer than {MIN_SEEDS} seeds"),
    Column("test_low_percent", ".2f", "lower end of the interval, which is asymmetric near 0"),
    Column("test_high_percent", ".2f", "upper end of the interval, asymmetric near 100"),
    Column("test_balanced_accuracy_percent", ".2f", "mean recall of the classes, mean over the "
           "same seeds", "test balanced %"),
    Column("test_seed_sd_points", ".2f", "standard deviation over the seeds (ddof 1)"),
    Column("seeds_finished", "d", "finished seeds of the chosen configuration", "seeds"),
    Column("seeds_diverged", "d", "diverged seeds of the chosen configuration"),
    TEST_IMAGES, Column("validation_images", ",d", "number of validation images"),
    Column("gain_over_student_points", "+.2f", "difference to method `student`", "over student",
           "gain_over_student_half_width_points"),
    Column("gain_over_student_half_width_points", ".2f", "95 % half width, also for search luck"),
    Column("validation_accuracy_percent", ".2f", "mean over the same seeds", "validation %"),
    Column("validation_balanced_accuracy_percent", ".2f", "mean recall of the classes, mean over "
           "the same seeds; of the best trial if not confirmed", "validation balanced %"),
    Column("validation_seed_sd_points", ".2f", "standard deviation over these seeds (ddof 1)"),
    Column("search_best_percent", ".2f", "best settings of the search, mean over their runs",
           "best validation %"),
    Column("optimism_gap_points", ".2f", "search_best_percent − mean when retrained", "optimism"),
    Column("validation_minus_test_points", ".2f", "validation accuracy − test accuracy"),
    Column("search_luck_points", ".2f", "standard deviation of what repeated searches find",
           "search luck, points"),
    Column("left_to_gain_points", ".2f", "by how much the best of the space exceeds what the "
           "search found, at most (90 %), by the model of the cell; empty without one",
           "left to gain, points"),
    Column("search_noise_sd_points", ".2f", "standard deviation over seeds in the search, by the "
           "model of the cell or pooled over repeated settings; empty without both",
           "seed noise, points"),
    Column("trials_started", "d", "number of trials, repeats and running ones too", "trials"),
    Column("trials_repeated", "d", "number of repeats among them", "repeats"),
    *(Column(f"trials_{state}", "d", f"{state} trials", state) for state in ENDED_STATES),
    Column("search_epochs", "d", "sum over all trials", "epochs"),
    Column("search_device_seconds", ".2f", "sum over all trials", "device s"),
    Column("confirm_epochs", "d", "sum over all confirm runs"),
    Column("confirm_device_seconds", ".2f", "sum over all confirm runs"),
    PARAMETERS, MACS, LATENCY_MS, LATENCY_DEVICE,
    Column("trial_id", TEXT, "chosen trial, or the first one with the best settings"),
    CONFIGURATION,
)
LEADERBOARD_VIEW = Table(
    "A leaderboard as it is shown.",
    Column("sweep", TEXT, "folder of the sweep", "sweep"), *LEADERBOARD.columns,
    Column("device_hours", ".2f", "device hours of search and confirmation", "device h"),
    Column("settings", TEXT, "searched values of the trial, weights for strengths", "settings"),
)

COMPARISON = Table(
    "One row per pair of methods and model, and one for several models together.",
    Column("method_a", TEXT, "method A"), Column("method_b", TEXT, "method B"),
    Column("model", TEXT, "student; `all` is the mean over the models", "model"),
    Column("models", "d", "number of models that are averaged"),
    Column("seeds", "d", "seeds that both methods finished on all these models"),
    Column("look", "d", "which look at the test images this is, from 1", "look"),
    Column("looks", "d", "number of looks so far and planned"),
    Column("level", ".3f", "rate of false alarms that this look may have: with the others it is "
           f"{SIGNIFICANCE_LEVEL:g}", "level"),
    TEST_IMAGES,
    Column("difference_points", "+.2f", "A minus B", "difference, points", "half_width_points"),
    Column("half_width_points", ".2f", "95 % half width: new seeds, new images, a new search; "
           "the 95 % hold for all looks together"),
    Column("low_points", ".2f", "lower end of the interval"),
    Column("high_points", ".2f", "upper end of the interval"),
    Column("half_width_without_search_points", ".2f", "half width without search luck"),
    Column("p_value", ".3f", "two-sided p-value, to be compared with the level"),
    Column("p_value_holm", ".3f", "adjusted over the models of the pair", "p (Holm)"),
    Column("df", ".1f", "degrees of freedom"),
    Column("se_seeds_points", ".2f", "standard error from seeds"),
    Column("se_images_points", ".2f", "standard error from test images"),
    Column("se_search_points", ".2f", "standard error from search luck"),
    Column("seeds_won_a", "d", "number of seeds in which A is better"),
    Column("seed_correlation", ".2f", "correlation of the accuracies of A and B over seeds"),
    Column("limited_by", TEXT, "largest variance: `seeds`, `images` or `search`", "limited by"),
    Column("next_step", TEXT, "the cheapest of `seeds`, `trials` and `images` that would settle "
           "it alone, or else what limits it; empty if it is decided", "next step"),
    Column("next_step_settles", FLAG, "true if the next step would probably settle it"),
    Column("more_seeds", "d", "further seeds that would settle it, or those of the next step"),
    Column("trials_needed", "d", "trials of each cell that would settle it, or those of the next "
           "step; they take a new sweep"),
    Column("test_images_needed", ",d", "test images that would settle it, or those of the next "
           "step"),
    Column("min_difference_points", "g", "smallest difference that matters"),
    Column("verdict", TEXT, ", ".join(f"`{verdict}`" for verdict in Verdict), "verdict"),
    Column("sentence", TEXT, "the verdict in words", "in words"),
)

SEARCH_CURVE = Table(
    "One row per ended trial of a cell, in the order of their ends.",
    METHOD, MODEL,
    Column("trials", "d", "n, number of trials that have ended, repeats too"),
    Column("epochs", "d", "epochs of the cell until then, also of running trials"),
    Column("best_percent", ".2f", "best until then, of trials that did not fail in the end and "
           "are not repeats"),
    Column("expected_best_percent", ".2f", "mean best of n of the B ended settings, at random: "
           "Σ_{j=n..B} v_j · C(j − 1, n − 1) / C(B, n), with v ascending; empty for n > B"),
    Column("expected_epochs", ".1f", "n · mean epochs of a trial that is not a repeat"),
)

RUNGS = Table(
    "One row per cell and pair of successive measured epochs, without failed trials and repeats.",
    METHOD, MODEL,
    Column("rung_epoch", "d", "first epoch of the pair", "after epoch"),
    Column("next_epoch", "d", "second epoch of the pair", "next epoch"),
    Column("trials_reached", "d", "trials that reached the first epoch", "trials that got there"),
    Column("trials_promoted", "d", "trials that also reached the second epoch", "promoted"),
    Column("correlation_promoted", ".2f", "r, Pearson correlation of the normal scores at both "
           f"epochs, of promoted trials; empty with fewer than {MIN_PROMOTED_TRIALS}"),
    Column("correlation_all", ".2f", "r if all were promoted: r·u / sqrt(1 − r² + r²·u²), u: "
           "standard deviation at the first epoch, all / promoted", "rank correlation"),
    Column("winner_rank_at_rung", "d", "place of the best trial at the first epoch, from 1",
           "worst place of a later winner"),
)

SETTINGS = Table(
    "One row per cell and searched setting.",
    METHOD, MODEL, HYPERPARAMETER,
    Column("importance", ".2f", "share of 1, PED-ANOVA (Watanabe et al. 2023): better half at "
           f"the first rung or not; empty with fewer than {MIN_IMPORTANCE_TRIALS} trials there"),
    Column("good_low", ".3g", "10 % quantile of the best fifth of the tried settings, at least "
           f"{MIN_GOOD_TRIALS} (of logarithms on a log scale); empty for choices"),
    Column("good_high", ".3g", "90 % quantile of these"),
    Column("best", ANY, "value in the best settings; empty if they lack the setting"),
)

LOSS_SCALES = Table(
    "One row per cell and term whose scale was measured, for the strengths of a search.",
    METHOD, MODEL,
    Column("weight", TEXT, "`alpha` or `beta`, the weight of the term", "weight"),
    Column("scale", ".3g", "term / classification loss of the untrained student at weight 1, "
           "median over the trials", "scale"),
    Column("weight_at_one", ".3g", "weight at strength 1", "weight at strength 1"),
    Column("weight_low", ".3g", "weight at the lower end of the range of the strength; empty if "
           "it is not searched", "at the lower end"),
    Column("weight_high", ".3g", "weight at the upper end", "at the upper end"),
)

SHIP = Table(
    "One row per cell with a successful trial, in the order of validation, then of the sweep.",
    Column("validation_rank", "d", "place by validation_accuracy_percent among the cells whose "
           "status is `ok` and that are within the limits; by search_best_percent if none is `ok`",
           "place"),
    Column("in_ship_set", TEXT, "`best` on validation; `no`: p_value_holm is below the level; "
           "`yes`: not so; `unknown`: not compared; empty: no candidate", "ship"),
    METHOD, MODEL,
    *LEADERBOARD.select("status", "validation_accuracy_percent", "search_best_percent",
                        "test_accuracy_percent", "test_half_width_points", "test_low_percent",
                        "test_high_percent"),
    Column("behind_best_points", ".2f", "test accuracy of the best − its own, on the same seeds",
           "behind best, points"),
    Column("behind_best_high_points", ".2f", "its one-sided 95 % upper bound for new seeds and "
           "test images, simultaneous over the candidates (Bonferroni)", "at most, points"),
    Column("p_value_holm", ".3f", "one-sided p-value of being behind by no more than "
           "min_difference_points, adjusted over the candidates"),
    Column("independent_images", ",d", "test images of the comparison; groups if they have any"),
    Column("limited_by", TEXT, "largest variance: `seeds` or `images`", "limited by"),
    *COMPARISON.select("min_difference_points"),
    PARAMETERS, MACS, LATENCY_MS, LATENCY_DEVICE,
)

BAD_IMAGES = Table(
    "One row per image that is left out because it cannot be read.",
    Column("split", TEXT, "`train`, `validation` or `test`", "split"),
    Column("file", TEXT, "path of the image", "file"),
    Column("reason", TEXT, "why it cannot be read", "reason"),
)

PLAN = Table(
    "One row per quantity: the plan and the sweep so far.",
    Column("what", TEXT, "`wall seconds`, `device seconds` of epochs, `epochs` or `trials`"),
    Column("planned", ",.0f", "planned value", "planned"),
    Column("actual", ",.0f", "value so far", "actual"),
    Column("actual_over_planned", ".2f", "ratio; empty if the sweep changed", "actual / planned"),
)

FAILURES = Table(
    "One row per frequent reason of failure.",
    Column("state", TEXT, "`diverged` or `crashed`", "state"),
    Column("reason", TEXT, "reason of the first trial or run that failed so", "in words"),
    Column("trials", "d", "number of trials that failed so", "trials"),
    Column("runs", "d", "number of confirm runs that failed so", "confirming runs"),
)

DIVERGED_SETTINGS = Table(
    "One row per setting that differs most between diverged and successful trials.",
    METHOD, HYPERPARAMETER,
    Column("diverged_median", ".3g", "median of the diverged trials", "median of diverged"),
    Column("other_median", ".3g", "median of the successful trials", "median of the others"),
    Column("distance", ".2f", "difference in standard deviations (of logarithms on a log scale)"),
)

TABLES = {
    "trials": Table(TRIALS.row, *TRIALS.columns, HYPERPARAMETERS, CONFIGURATION),
    "epochs": Table(EPOCHS.row, *EPOCHS.columns, LOSS_PART, WEIGHTED_LOSS_PART),
    "leaderboard": LEADERBOARD, "comparison": COMPARISON, "search_curve": SEARCH_CURVE,
    "rungs": RUNGS, "settings": SETTINGS, "loss_scales": LOSS_SCALES, "runs": RUNS,
    "models": MODELS, "ship": SHIP, "bad_images": BAD_IMAGES, "plan": PLAN,
}
"""The tables of `kdtune.reports.tables.all_tables.collect_tables`, by name."""

TEXT_HEADINGS = {column.heading
                 for table in (LEADERBOARD_VIEW, COMPARISON, SHIP, SETTINGS, LOSS_SCALES,
                               BAD_IMAGES, FAILURES)
                 for column in table.columns if column.heading and column.format == TEXT}
"""Headings over columns of text."""
