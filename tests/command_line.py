"""Commands as processes, which say what they import."""

REPORT_IMPORTS = "import atexit, sys; from kdtune.cli.commands import main; atexit.register(\
    lambda: print({'torch', 'ray', 'pandas', 'optuna'} & set(sys.modules), file=sys.stderr)\
); main()"
"""Runs the command line, whose last line on stderr is then the slow packages that it loaded."""
