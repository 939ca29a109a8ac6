"""Durations and sizes as people read and write them."""

import re

GB = 1e9
"""Bytes."""

_UNITS = {"d": 86400, "h": 3600, "min": 60, "m": 60, "s": 1}
_PART = r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)\s*"


def parse_duration(text: str) -> float:
    """Seconds of a duration as people write it.

    Raises:
        ValueError: it is none.

    >>> parse_duration("2h"), parse_duration("1h30m"), parse_duration("1.5 min")
    (7200.0, 5400.0, 90.0)
    """
    if not re.fullmatch(f"({_PART})+", text.strip()):
        raise ValueError("write it as 2h, 1h30m, 90m or 45s")
    return sum(float(count) * _UNITS[unit] for count, unit in re.findall(_PART, text))


def duration(seconds: float) -> str:
    """A duration for people, its two largest units.

    >>> duration(7200), duration(5430), duration(45)
    ('2 h', '1 h 30 min', '45 s')
    """
    words, rest = [], round(seconds)
    for unit in ("d", "h", "min", "s"):
        count, rest = divmod(rest, _UNITS[unit])
        words += [f"{count} {unit}"] if count else []
    return " ".join(words[:2]) or "0 s"


def amount(size: float) -> str:
    """A size in bytes, for people.

    >>> amount(1_250_000), amount(20e9)
    ('1.2 MB', '20.0 GB')
    """
    return f"{size / GB:.1f} GB" if size >= GB else f"{1000 * size / GB:.1f} MB"
