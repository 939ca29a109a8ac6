"""Errors whose text is written for users, and helpers that shorten other errors."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in the user's input, as one sentence that says what to do; exit code 2."""


class BadImagesError(UserError):
    """Images that cannot be read, given as pairs of file and reason."""

    def __init__(self, failures: Sequence[tuple[str, str]]):
        self.failures = list(failures)
        (file, reason), count = self.failures[0], len(self.failures)
        many = f"{count:,} images cannot be read: the first is "
        super().__init__(
            f"{'An image cannot be read: ' if count == 1 else many}{file} ({reason}). Fix or "
            "remove the listed files, or skip them with --skip-bad-images."
        )


class RunError(RuntimeError):
    """A failure that is not the user's mistake; exit code 1."""


class DiskFullError(RunError):
    """A disk without free space; the text names the file."""


class GpuLostError(RunError):
    """A GPU that its process cannot use any more; the text says which, and after what error."""


class DivergedError(RunError):
    """A training loss that is no longer finite; the text says when."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its class name if the text is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def last_line(error: Exception) -> str:
    """Return the last line of an error's text, or its class name if the text is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def typed_first_line(error: Exception) -> str:
    """Return the first line of an error's text after the name of its class.

    >>> typed_first_line(KeyError()), typed_first_line(ValueError("the reason\\nmore of it"))
    ('KeyError', 'ValueError: the reason')
    """
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name


def did_you_mean(
    unknown: str, known: Iterable[str], aliases: Mapping[str, str] | None = None
) -> str:
    """Suggest the known name that is most like an unknown one, or list all known names.

    Args:
        unknown: the name as the user wrote it.
        known: all names that exist.
        aliases: names that others have for some of them.

    >>> did_you_mean("aplha", ["alpha", "beta"]), did_you_mean("zzz", ["alpha", "beta"])
    ("did you mean 'alpha'?", 'known are alpha, beta')
    """
    names, aliases = list(known), aliases or {}
    meant = {**aliases, **{name: name for name in names}}
    by_lower_case = {name.lower(): meant[name] for name in meant}
    for match in get_close_matches(unknown.lower(), by_lower_case, n=1):
        return f"did you mean '{by_lower_case[match]}'?"
    return f"known are {', '.join(names)}"
