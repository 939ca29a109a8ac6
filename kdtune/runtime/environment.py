"""Versions and machine, as logs and exported configurations keep them; nothing is decided here."""

import os
import platform
from importlib.metadata import version
from typing import Any

REPORTED_PACKAGES = ("kdtune", "torch", "torchvision", "ray", "optuna", "numpy", "pillow")


def describe_environment() -> dict[str, Any]:
    """Of this process: ``python``, ``platform``, ``processor``, ``cpus``, a version a package."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        **{name: version(name) for name in REPORTED_PACKAGES},
    }
