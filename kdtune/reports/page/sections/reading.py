"""Section: how to read the page, with formulas, versions, commands and configurations."""

import json
import shlex
from collections.abc import Iterator

import yaml

from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, CodeBlock, Paragraph
from kdtune.reports.tables.notes import (
    FEW_SEEDS_NOTE,
    INTERVAL_NOTE,
    SHIP_SET_NOTE,
    describe_test_reads,
)
from kdtune.reports.tables.sentences import describe_detectable_difference, display_name

VERSIONS = (
    "kdtune", "python", "torch", "nvidia_driver", "cuda", "cudnn", "ray", "optuna", "platform",
)  # fmt: skip

FORMULAS = {
    "The variances": """\
x[i, s]   100 if image i is classified correctly with seed s, else 0; for a pair A minus B, mean
          over the models (metric balanced_accuracy: weighted so that classes count alike)
n, S      number of images and of seeds; with groups, x of a group is n / images * its sum
a_i, b_s  means of x over the seeds, and over the images;  m: the mean of x
MS_img    S * var(a_i)
MS_seed   n * var(b_s)
MS_res    sum((x - a_i - b_s + m)^2) / ((n - 1) * (S - 1))
v_img     max(MS_img - MS_res, 0) / (n * S)
v_seed    max(MS_seed, MS_res) / (n * S)
v_res     MS_res / (n * S)
v_pseudo  3 * (100 / (n + 3))^2
v_search  sum(luck^2) / models^2, over the cells of the pair; luck^2 is, by the model of the cell,
          the variance of the best of B settings redrawn plus that of what is left to gain;
          without a model, the former alone""",
    "The interval of a difference": """\
level     0.05; with several looks at the test images, that of the look
V         v_img + v_seed + v_pseudo + v_search
df        (S - 1) * V^2 / (v_seed^2 - v_res^2); infinite if v_seed equals v_res
±         t(1 - level / 2, df) * sqrt(V)""",
    "The interval of an accuracy (Wilson 1927), with N images; ± is half of its width": """\
V         v_img + v_seed
df        (S - 1) * V^2 / (v_seed^2 - v_res^2); infinite if v_seed equals v_res
N         (m * (100 - m) + n * v_pseudo) / (V + v_pseudo)
q         t(0.975, df)
root      q * sqrt(m * (100 - m) / N + (50 * q / N)^2)
low       (m + 50 * q^2 / N - root) / (1 + q^2 / N)
high      (m + 50 * q^2 / N + root) / (1 + q^2 / N)""",
}
"""Formulas by caption; a formula may use those before it."""


def reading_section(sweep: LoadedSweep) -> Iterator[Block]:
    """Yield what the intervals cover, and how to repeat the sweep."""
    leaderboard, opening = sweep.tables.leaderboard, sweep.opening_events[0]
    limits = "It does not cover another split, another teacher or other students."
    few_seeds = (sweep.tables.comparison["seeds"] == 3).any()
    few_seeds_note = f" {FEW_SEEDS_NOTE}" if few_seeds else ""
    yield Paragraph(f"{INTERVAL_NOTE} {limits}{few_seeds_note}")
    yield Paragraph(SHIP_SET_NOTE)
    yield Paragraph(
        "Settings are chosen on validation images alone. The best trial of a search is partly "
        "lucky; only retraining with fresh seeds gives a result."
    )
    if images := opening.data.test_images:
        tested = sweep.tested_cells["test_accuracy_percent"]
        accuracy = min(max(tested.mean() / 100, 0.01), 0.99) if len(tested) else 0.75
        seeds = int(sweep.main_pair["seeds"].max()) if len(sweep.main_pair) else 0
        models = leaderboard["model"].nunique() or 1
        text = describe_detectable_difference(images, max(seeds, 3), models, accuracy)
        yield Paragraph(f"Differences that these data can show: {text}.")
    if len(sweep.tested_cells):
        yield Paragraph(describe_test_reads(sweep.tables.runs))
    for caption, formulas in FORMULAS.items():
        yield CodeBlock(caption, formulas, collapsed=True)
    environment = opening.environment
    versions = ", ".join(f"{n} {environment[n]}" for n in VERSIONS if n in environment)
    yield Paragraph(f"Versions: {versions or 'not known'}.")
    commands = (
        f"kdtune sweep {shlex.quote(str(sweep.folder.config_path))} --name again",
        *map(sweep.command, ("resume", "confirm", "report", "dashboard")),
        f"tensorboard --logdir {shlex.quote(str(sweep.folder.tensorboard_folder))}",
    )
    caption = "Commands: repeat, resume, confirm, this page, dashboard, single trials"
    yield CodeBlock(caption, "\n".join(commands))
    for row in leaderboard.dropna(subset="configuration").itertuples():
        text = yaml.safe_dump(json.loads(row.configuration), sort_keys=False, allow_unicode=True)
        cell = f"{display_name(row.method)} on {row.model} ({row.trial_id})"
        yield CodeBlock(f"Configuration of {cell}, as YAML", text, collapsed=True)
