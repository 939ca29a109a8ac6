"""Ranges and start points as text: what is refused, and with which sentence."""

import pytest

from kdtune.config.ranges import is_range, parse_point, parse_range
from kdtune.errors import UserError


def test_a_range_has_bounds_a_scale_or_choices():
    assert parse_range("at.lr=1e-3:1e-1:log") == ("at", "lr", (0.001, 0.1), True, ())
    assert parse_range("my-kd.x=-1:1") == ("my-kd", "x", (-1, 1), False, ())
    assert parse_range("at.augment=none, standard,true").choices == ("none", "standard", True)
    assert parse_range("at.lr=0.1").choices == (0.1,)


@pytest.mark.parametrize("name", ["at.py", "./spaces/at.lr.py", "C:/at.py", "lr=0:1", "at.lr"])
def test_what_names_no_setting_of_a_method_is_a_file(name):
    assert not is_range(name)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("at.lr=1:1", "1 is not below 1"),
        ("at.lr=0:1:log", "a logarithmic scale must start above 0"),
        ("at.lr=0:1:ln", "write it as LOW:HIGH, or LOW:HIGH:log"),
        ("at.lr=0:nan", "write it as LOW:HIGH"),
        ("at.lr=true:2", "write it as LOW:HIGH"),
        ("at.lr=0:1:log:2", "write it as LOW:HIGH"),
        ("at.lr=1,,2", "a value is empty"),
        ("at.lr=", "a value is empty"),
        ("at.lr=[1", "brackets or quotes do not match"),
    ],
)
def test_a_bad_range_is_one_sentence(text, sentence):
    with pytest.raises(UserError, match=sentence.replace("[", r"\[")) as error:
        parse_range(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["at", "at.lr", "at.lr=", "at.lr=1,beta", "at.lr=1,=2", "lr=1"])
def test_a_bad_point_is_one_sentence(text):
    with pytest.raises(UserError, match="METHOD.SETTING=VALUE,SETTING=VALUE"):
        parse_point(text)
