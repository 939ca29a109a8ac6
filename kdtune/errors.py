"""Errors whose text is written for users, and helpers that shorten other errors."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in the user's input; the text is one sentence that says what to do.

    The command line prints the sentence and ends with exit code 2.
    """


class BadImagesError(UserError):
    """Images that cannot be read.

    Args:
        failures: (file, reason) of each image.
    """

    def __init__(self, failures: Sequence[tuple[str, str]]):
        self.failures = list(failures)
        file, reason = self.failures[0]
        subject = "An image" if len(self.failures) == 1 else f"{len(self.failures):,} images"
        prefix = "" if len(self.failures) == 1 else "the first is "
        super().__init__(
            f"{subject} cannot be read: {prefix}{file} ({reason}). Fix or remove the listed "
            "files, or skip them with --skip-bad-images."
        )


class RunError(RuntimeError):
    """A failure that is not the user's mistake; the command line ends with exit code 1."""


class DiskFullError(RunError):
    """A disk without free space; the text names the file."""


class DivergedError(RunError):
    """A training loss that is no longer finite; the text says when."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its class name if the text is empty.

    >>> first_line(KeyError()), first_line(ValueError("the reason\\nmore of it"))
    ('KeyError', 'the reason')
    """
    return _lines(error)[0]


def last_line(error: Exception) -> str:
    """Return the last line of an error's text, or its class name if the text is empty.

    >>> last_line(ValueError("a traceback\\nthe reason"))
    'the reason'
    """
    return _lines(error)[-1].strip()


def _lines(error: Exception) -> list[str]:
    return (str(error).strip() or type(error).__name__).splitlines()


def typed_first_line(error: Exception) -> str:
    """Return the first line of an error's text after the name of its class.

    >>> typed_first_line(KeyError()), typed_first_line(ValueError("the reason\\nmore of it"))
    ('KeyError', 'ValueError: the reason')
    """
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name


def did_you_mean(unknown: str, known: Iterable[str]) -> str:
    """Suggest the known name that is most like an unknown one, or list all known names.

    Args:
        unknown: the name as the user wrote it.
        known: all names that exist.

    >>> did_you_mean("aplha", ["alpha", "beta"])
    "did you mean 'alpha'?"
    >>> did_you_mean("zzz", ["alpha", "beta"])
    'known are alpha, beta'
    """
    names = list(known)
    matches = get_close_matches(unknown, names, n=1)
    return f"did you mean '{matches[0]}'?" if matches else f"known are {', '.join(names)}"
