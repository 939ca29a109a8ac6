"""``python -m kdtune`` is ``kdtune``."""

from kdtune.cli import main

main()
