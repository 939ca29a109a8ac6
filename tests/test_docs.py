"""README and pages are true: trees, links, commands, tables, and what the code says of itself."""

import ast
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from small_runs import write_digits

from kdtune.cli.commands import cli
from kdtune.config.sweep import SweepConfig
from kdtune.errors import UserError
from kdtune.log.folder import SweepFolder
from kdtune.reports.text.leaderboard import leaderboard_text

ROOT = Path(__file__).parent.parent
STUDIES = [file.parent for file in sorted(ROOT.glob("results/reference/*/sweep.yaml"))]
WHERE = yaml.safe_load((Path(__file__).parent / "where_is.yaml").read_text())
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = [
    README,
    *((ROOT / page).read_text() for page in re.findall(r"^- .*\((docs/.*\.md)\):", README, re.M)),
]
"""In the order in which the README names them, which is that in which their commands run."""

SMALL = {
    "teacher": "--epochs 1 --image-size 8",
    "sweep": "--epochs 1 --trials 1 --no-baselines",
    "resume": "--trials 1",
    "confirm": "--top 1 --seeds 3",
}
"""Added to a command's own flags, of which the last one counts, except for lists."""

ONLY_CHECKED = {"own-space", "two-hours", "more", "live"}
"""Sweeps that no later command names; sweeps of their kinds run in tests/tuning."""


def shortened(line):
    """Return the arguments of a command that runs in a short time."""
    words = [*line.split()[1:], *SMALL.get(line.split()[1], "").split()]
    if "--max-latency" in words:  # milliseconds, of whatever machine runs this
        words[words.index("--max-latency") + 1] = "10000"
    if words[0] == "sweep" and "--models" in words:
        words[words.index("--models") + 1] = "ResNet18"
    elif words[0] == "sweep":
        words += ["--models", "ResNet18"]
    return words + ["--dry-run"] * (words[0] == "sweep" and not ONLY_CHECKED.isdisjoint(words))


def blocks(language, *pages):
    return [
        block.replace("\\\n", " ")
        for page in pages
        for block in re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
    ]


def lines_of(language):
    """Return the lines of all blocks in a language, without repetitions."""
    lines = (line for block in blocks(language, *PAGES) for line in block.splitlines() if line)
    return list(dict.fromkeys(" ".join(line.split()) for line in lines))


def page(name):
    return (DOCS / f"{name}.md").read_text()


@cache
def anchors(file):
    """Return the anchors that GitHub gives the headings of a page."""
    text = re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {word.replace(" ", "-") for word in words}


def test_the_tree_is_the_one_that_the_code_makes():
    written = runpy.run_path(str(DOCS / "structure.py"))
    assert written["page"]() == page("structure")


def test_every_page_is_named_in_the_readme():
    assert {*PAGES[1:]} == {file.read_text() for file in DOCS.glob("*.md")}


@pytest.mark.parametrize(
    "file",
    [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
    + [ROOT / "benchmarks" / "README.md", *sorted((ROOT / "results").glob("**/README.md"))],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_links_lead_somewhere(file):
    for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_the_reference_is_what_its_program_makes():
    made = runpy.run_path(str(DOCS / "reference.py"))["page"]()
    assert made == page("reference"), "run: python docs/reference.py"


def test_the_changelog_tells_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^make ([\w-]+)", README + contributing, flags=re.MULTILINE))
    assert {"demo", "quick", "check", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_the_table_of_methods_is_generated(tmp_path):
    copy = shutil.copy(ROOT / "docs/methods.md", tmp_path)
    runpy.run_path(str(DOCS / "reference.py"))["write_methods"](Path(copy))
    assert Path(copy).read_text() == page("methods")


def test_every_command_of_kdtune_is_shown():
    assert all(f"kdtune {name}" in "".join(PAGES) for name in cli.commands)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_reference_study_says_what_its_log_says(study, monkeypatch):
    """The whole leaderboard, and wherever else the answer is given."""
    monkeypatch.chdir(ROOT)  # the advice names the folder as the command did
    said = leaderboard_text([study.relative_to(ROOT)], "markdown")
    assert said in (study.parent / "README.md").read_text()
    if study.name == "fashion-mnist":
        [answer] = re.findall(r"over 2 students: .*; (\w+ minus \w+ is .*?) points", said)
        assert answer in README and answer in page("methods")


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_reference_study_is_the_sweep_that_make_repeats(study):
    settings = SweepFolder(study).load_config()
    assert settings == SweepConfig.parse(yaml.safe_load((study / "sweep.yaml").read_text()))
    assert settings.trials >= 20 and settings.until_decided and settings.seeds >= 5
    assert study.name in (ROOT / "Makefile").read_text()


def test_one_command_makes_tables_and_page_of_the_studies(tmp_path):
    """From the logs alone, here of one of them."""
    copy = tmp_path / "results" / "reference" / "fashion-mnist"
    shutil.copytree(ROOT / "results" / "reference" / "fashion-mnist", copy)
    shutil.copy(ROOT / "Makefile", tmp_path)
    command = ["make", "reference-report", f"ENV={sys.prefix}"]
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "AT or FitNets on average over 2 students: " in said.stdout
    assert "Which student, and how sure is that?" in (copy.parent / "report.html").read_text()


def interrupted(*server):
    """Stop a command that serves pages as Ctrl-C does."""
    raise KeyboardInterrupt


@pytest.mark.slow
def test_the_commands_run_as_they_stand(ray_session, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "flowers", 7)
    (tmp_path / "sweep.yaml").write_text(blocks("yaml", page("guide"))[0])
    monkeypatch.setattr("socketserver.BaseServer.serve_forever", interrupted)
    looked, notebook = blocks("python", page("notebook"))
    [space] = blocks("python", page("methods"))
    (tmp_path / "my_at.py").write_text(space)
    shutil.copy(next((tmp_path / "flowers").rglob("*.png")), tmp_path / "photo.jpg")
    for line in lines_of("sh"):
        if not line.startswith("kdtune "):
            continue
        words = shortened(line)
        cli.main(words, standalone_mode=False)  # raises what would end the command
        said = capsys.readouterr().out
        if words[0] == "train":
            assert "(the same)" in said
        if words[0] == "leaderboard":
            assert "ResNet18" in said
    best = tmp_path / "results" / "flowers" / "best"
    assert len(list(best.glob("*.yaml"))) == len(list(best.glob("*.pth"))) == 2

    exec(looked, {})
    small = notebook.replace("epochs=30", "epochs=1").replace("image_size=128", "image_size=8")
    assert small != notebook
    exec(small, {})


@pytest.mark.slow
def test_the_demo_ends_with_the_student_to_ship_and_a_row_for_every_cell(
    ray_session, tmp_path, monkeypatch, capsys
):
    """On a part of its images and trials: how good its students are is not looked at."""
    monkeypatch.chdir(tmp_path)
    main, few = cli.main, "--epochs 1 --train-images 100"
    more = {"teacher": few.split(), "sweep": f"{few} --trials 1 --seeds 3".split()}
    monkeypatch.setattr(cli, "main", lambda w, **about: main([*w, *more[w[0]]], **about))
    main(["demo"], standalone_mode=False)
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines() if line.split()[:1] == ["MultiBranchNet"]]
    assert {row[2] for row in rows} == {"at", "fitnets", "kd", "student"}
    assert re.search(r"^Ship .* on MultiBranchNet: .* on test", out, flags=re.MULTILINE)
    assert "$ kdtune teacher --data digits" in err
    assert "$ kdtune sweep --data digits" in err
    with pytest.raises(UserError, match="results/demo already exists"):
        main(["demo"], standalone_mode=False)


@pytest.mark.parametrize("asked", WHERE, ids=lambda asked: asked["definition"])
def test_the_answers_to_a_newcomers_questions_are_where_they_are_said_to_be(asked):
    definition: ast.AST = ast.parse((ROOT / asked["file"]).read_text())
    for name in asked["definition"].split("."):
        inside = {getattr(node, "name", None): node for node in ast.iter_child_nodes(definition)}
        definition = inside[name]
