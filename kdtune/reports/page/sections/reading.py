"""The section on how to read the page: formulas, versions and caveats."""

import json
import shlex

import yaml

from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, CodeBlock, Paragraph
from kdtune.reports.tables.notes import INTERVAL_NOTE, describe_test_reads
from kdtune.reports.tables.sentences import describe_detectable_difference, display_name

VERSIONS = ("kdtune", "python", "torch", "ray", "optuna", "platform")


FORMULAS = """\
x[i, s]   100 if image i is classified rightly with seed s, else 0; for a pair A minus B
m         mean of x;  a_i = mean over seeds;  b_s = mean over images;  n images, S seeds
MS_img    S * var(a),  MS_seed = n * var(b)
MS_res    sum((x - a_i - b_s + m)^2) / ((n - 1) * (S - 1))
V         MS_seed / (n * S) + max(MS_img - MS_res, 0) / (n * S) + v_search
df        V^2 / ((MS_seed / (n * S))^2 / (S - 1))
±         t(0.975, df) * sqrt(V)
v_search  luck_A^2 + luck_B^2; luck is the standard deviation of the best of B trials drawn anew"""


def reading_section(sweep: LoadedSweep) -> list[Block]:
    """What the numbers cover, and how to have them again."""
    leaderboard, data = sweep.tables.leaderboard, sweep.opening_events[0].data
    blocks: list[Block] = [
        Paragraph(
            f"{INTERVAL_NOTE} It does not cover another split, another teacher or other students."
        ),
        Paragraph(
            "Settings are chosen on validation images alone. The winner of a search is the "
            "luckiest of many trials; only what was trained again with fresh seeds is a result."
        ),
    ]
    if data.test_images:
        tested = sweep.tested_cells["test_accuracy_percent"]
        accuracy = min(max(tested.mean() / 100, 0.01), 0.99) if len(tested) else 0.75
        seeds = int(sweep.main_pair["seeds"].max()) if len(sweep.main_pair) else 0
        models = leaderboard["model"].nunique() or 1
        difference_text = describe_detectable_difference(
            data.test_images, max(seeds, 3), models, accuracy
        )
        blocks.append(Paragraph(f"What this data can show: {difference_text}."))
    if len(sweep.tested_cells):
        blocks.append(Paragraph(describe_test_reads(sweep.tables.runs)))
    blocks.append(CodeBlock("The interval", FORMULAS, collapsed=True))
    environment = sweep.opening_events[0].environment
    versions = ", ".join(f"{n} {environment[n]}" for n in VERSIONS if n in environment)
    blocks.append(Paragraph(f"Versions: {versions or 'not known'}."))
    commands = [
        f"kdtune sweep {shlex.quote(str(sweep.folder.config_path))} --name again",
        sweep.command("resume"),
        sweep.command("confirm"),
        sweep.command("report"),
        sweep.command("dashboard"),
        f"tensorboard --logdir {shlex.quote(str(sweep.folder.tensorboard_folder))}",
    ]
    blocks.append(
        CodeBlock(
            "Commands: repeat, go on, confirm, this page, single trials", "\n".join(commands)
        )
    )
    for row in leaderboard.dropna(subset="configuration").itertuples():
        text = yaml.safe_dump(json.loads(row.configuration), sort_keys=False, allow_unicode=True)
        title = (
            f"Configuration of {display_name(row.method)} on {row.model} ({row.trial_id}), as YAML"
        )
        blocks.append(CodeBlock(title, text, collapsed=True))
    return blocks
