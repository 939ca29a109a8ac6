"""Runs the command line: ``python -m kdtune``."""

from kdtune.cli.commands import main

if __name__ == "__main__":
    main()
