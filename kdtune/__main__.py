"""``python -m kdtune`` is ``kdtune``."""

from kdtune.cli.commands import main

if __name__ == "__main__":
    main()
