"""Commands in a process of their own, one after the other, which says what it has imported."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PROGRAM = """
import contextlib, io, json, os, sys
from kdtune.cli.commands import main

answers = sys.stdout
for line in sys.stdin:
    folder, *words = json.loads(line)
    os.chdir(folder)
    sys.argv = ["kdtune", *words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    slow = sorted({"torch", "ray", "pandas", "optuna"} & set(sys.modules))
    print(json.dumps([code, out.getvalue(), err.getvalue(), slow]), file=answers, flush=True)
"""


@contextmanager
def command_process() -> Iterator[Callable]:
    """Yield a function that runs a line in a folder: exit code, stdout, stderr, slow packages."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(folder, line):
            print(json.dumps([str(folder), *line.split()]), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield run
