"""Ranges and start points of search spaces as text, such as ``at.lr=0.001:0.1:log``; no Ray."""

import math
import re
from contextlib import suppress
from typing import Any, NamedTuple

import yaml

from kdtune.errors import UserError

_PATTERN = re.compile(r"([\w-]+)\.(\w+)=(.*)", re.DOTALL)


class Range(NamedTuple):
    """A range of one setting of a method, in place of the one in its space.

    Attributes:
        bounds: lowest and highest value; None if there are choices.
        log: True for a logarithmic scale.
        choices: the values; a single one is fixed. Empty if there are bounds.
    """

    method: str
    setting: str
    bounds: tuple[float, float] | None
    log: bool
    choices: tuple[Any, ...]


def is_range(text: str) -> bool:
    """Return True for a range, and False for the name of a file.

    >>> is_range("at.lr=0.1:1"), is_range("spaces/at.py"), is_range("at.py")
    (True, False, False)
    """
    return _PATTERN.fullmatch(text) is not None


def parse_range(text: str) -> Range:
    """Return the range that a text says; a `UserError` says how to write one.

    >>> parse_range("at.beta=1:1000:log")
    Range(method='at', setting='beta', bounds=(1, 1000), log=True, choices=())
    >>> parse_range("kd.batch_size=16,32").choices
    (16, 32)
    """
    method, setting, values = _split(text, "METHOD.SETTING=LOW:HIGH, LOW:HIGH:log, or A,B,C")
    if ":" not in values:
        choices = tuple(_parse_value(word) for word in values.split(","))
        if None in choices:
            raise UserError(f"The range {text} is invalid: a value is empty.")
        return Range(method, setting, None, False, choices)
    low, high, *rest = values.split(":")
    first, last = _parse_value(low), _parse_value(high)
    if not (_is_number(first) and _is_number(last)) or rest not in ([], ["log"]):
        raise UserError(f"The range {text} is invalid: write it as LOW:HIGH, or LOW:HIGH:log.")
    if not first < last:
        raise UserError(f"The range {text} is invalid: {low} is not below {high}.")
    if rest and first <= 0:
        raise UserError(f"The range {text} is invalid: a logarithmic scale must start above 0.")
    return Range(method, setting, (first, last), bool(rest), ())


def parse_point(text: str) -> tuple[str, dict[str, Any]]:
    """Return the method and the settings of a start point.

    >>> parse_point("at.lr=0.05,beta_strength=3")
    ('at', {'lr': 0.05, 'beta_strength': 3})
    """
    how = "METHOD.SETTING=VALUE,SETTING=VALUE"
    method, setting, values = _split(text, how)
    pairs = [pair.partition("=") for pair in f"{setting}={values}".split(",")]
    if not all(key and separator and value for key, separator, value in pairs):
        raise UserError(f"{text} is not a point: write it as {how}.")
    return method, {key.strip(): _parse_value(value) for key, _, value in pairs}


def _split(text: str, how: str) -> tuple[str, str, str]:
    if (match := _PATTERN.fullmatch(text)) is None:
        raise UserError(f"{text} is not {how}.")
    return match[1], match[2], match[3]


def _parse_value(text: str) -> Any:
    """Return a number, also one such as ``1e-3``, or else what the text is in YAML."""
    for number_type in (int, float):
        with suppress(ValueError):
            return number_type(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"'{text}' is not a value: brackets or quotes do not match.") from None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
