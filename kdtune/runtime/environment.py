"""Versions and machine, for logs and exported configurations."""

import os
import platform
from importlib.metadata import version
from typing import Any

REPORTED_PACKAGES = ("kdtune", "torch", "torchvision", "ray", "optuna", "numpy", "pillow")


def describe_environment() -> dict[str, Any]:
    """Return ``python``, ``platform``, ``processor``, ``cpus`` and the version of each package."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        **{name: version(name) for name in REPORTED_PACKAGES},
    }
