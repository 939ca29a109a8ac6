"""What goes wrong, in words for the person who can mend it."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what the user gave; its text is one sentence that says what to do.

    The command line prints the sentence and ends with exit code 2.
    """


class BadImagesError(UserError):
    """Images cannot be read.

    Attributes:
        bad: each of them, as (file, reason).
    """

    def __init__(self, failures: Sequence[tuple[str, str]]):
        self.failures = list(failures)
        file, reason = self.failures[0]
        subject = "An image" if len(self.failures) == 1 else f"{len(self.failures):,} images"
        prefix = "" if len(self.failures) == 1 else "the first is "
        super().__init__(
            f"{subject} cannot be read: {prefix}{file} ({reason}). Mend or remove what is listed, or "
            "leave it out with --skip-bad-images."
        )


class RunError(RuntimeError):
    """What was asked for could not be done, through no mistake in the asking; exit code 1."""


class DiskFullError(RunError):
    """There is no room left on a disk; its text says where."""


class DivergedError(RunError):
    """The loss of a run became infinite or not a number; its text says when."""


def last_line(error: Exception) -> str:
    """What an error of a library comes down to; its name if it says nothing.

    >>> last_line(KeyError()), last_line(ValueError("a traceback\\nthe reason"))
    ('KeyError', 'the reason')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def did_you_mean(unknown: str, known: Iterable[str]) -> str:
    """Say which known word was probably meant, or list them all.

    >>> did_you_mean("aplha", ["alpha", "beta"])
    "did you mean 'alpha'?"
    >>> did_you_mean("zzz", ["alpha", "beta"])
    'known are alpha, beta'
    """
    names = list(known)
    matches = get_close_matches(unknown, names, n=1)
    return f"did you mean '{matches[0]}'?" if matches else f"known are {', '.join(names)}"
