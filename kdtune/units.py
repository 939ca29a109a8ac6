"""Durations, counts and sizes, as text for people and as numbers."""

import re

BYTES_PER_GB = 1e9

_SECONDS_PER_UNIT = {"d": 86400, "h": 3600, "min": 60, "m": 60, "s": 1}
_COUNT_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9}
_DURATION_PATTERN = r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)\s*"


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as ``1h30m``; a `ValueError` says how to write one.

    >>> parse_duration("2h"), parse_duration("1h30m"), parse_duration("1.5 min")
    (7200.0, 5400.0, 90.0)
    """
    if not re.fullmatch(f"({_DURATION_PATTERN})+", text.strip()):
        raise ValueError("write it as 2h, 1h30m, 90m or 45s")
    parts = re.findall(_DURATION_PATTERN, text)
    return sum(float(count) * _SECONDS_PER_UNIT[unit] for count, unit in parts)


def format_duration(seconds: float) -> str:
    """Return a duration as text, in its two largest units.

    >>> format_duration(7200), format_duration(5430), format_duration(45)
    ('2 h', '1 h 30 min', '45 s')
    """
    parts, remaining = [], round(seconds)
    for unit in ("d", "h", "min", "s"):
        count, remaining = divmod(remaining, _SECONDS_PER_UNIT[unit])
        parts += [f"{count} {unit}"] if count else []
    return " ".join(parts[:2]) or "0 s"


def parse_count(text: str) -> int:
    """Return the number of a text such as ``1.5M``; a `ValueError` says how to write one.

    >>> parse_count("1.5M"), parse_count("200k"), parse_count("204,346")
    (1500000, 200000, 204346)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMB]?)", text.strip().replace(",", ""))
    if match is None:
        raise ValueError("write it as 1500000, 1.5M or 200k")
    return round(float(match[1]) * _COUNT_UNITS[match[2]])


def format_bytes(num_bytes: float) -> str:
    """Return a size in bytes as text, in MB or GB.

    >>> format_bytes(1_250_000), format_bytes(20e9)
    ('1.2 MB', '20.0 GB')
    """
    gigabytes = num_bytes / BYTES_PER_GB
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{1000 * gigabytes:.1f} MB"
