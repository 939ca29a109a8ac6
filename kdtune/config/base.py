"""Settings that are checked when they are built, and sentences about those that are not valid."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from kdtune.errors import UserError, did_you_mean

ALIASES = {"learning_rate": "lr", "num_epochs": "epochs", "max_epochs": "epochs"}
"""Names that other tools have for our settings, where the spelling differs much."""


class BaseConfig(BaseModel):
    """Settings that cannot change, without other names than its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Self:
        """Build settings from a plain mapping; a `UserError` names the key that is not valid."""
        for key in settings:
            if not isinstance(key, str):
                known = did_you_mean("", cls.model_fields)
                raise UserError(f"{key!r} is not the name of a setting; {known}")
        try:
            return cls(**settings)
        except ValidationError as error:
            raise UserError(cls._describe_error(error.errors()[0])) from None

    @classmethod
    def _describe_error(cls, error: ErrorDetails) -> str:
        key, message = ".".join(map(str, error["loc"])), error["msg"].removeprefix("Value error, ")
        match error["type"]:
            case "extra_forbidden":
                suggestion = did_you_mean(key, cls.model_fields, ALIASES)
                return f"There is no setting '{key}'; {suggestion}"
            case "missing":
                return f"The setting '{key}' is missing."
            case "string_pattern_mismatch":
                return (
                    f"The setting {key} cannot be {error['input']!r}: use letters, digits and ._-"
                )
        if not key:
            return message
        reason = message.replace("Input should be", "it must be", 1)
        if len(text := repr(error["input"])) > 80:  # such as a network in place of its path
            text = f"a {type(error['input']).__name__}"
        if error["type"] == "string_type" and isinstance(error["input"], bool | int | float):
            reason += ", in YAML in quotes"
        return f"The setting {key} cannot be {text}: {reason}."
