"""Versions and machine, for logs and exported configurations."""

import os
import platform
from importlib.metadata import version
from typing import Any

from kdtune.runtime.device import gpu_software


def describe_environment() -> dict[str, Any]:
    """Return ``python``, ``platform``, ``processor``, ``cpus``, and the version of each package.

    What `gpu_software` finds is added. It does not touch a GPU.
    """
    packages = ("kdtune", "torch", "torchvision", "ray", "optuna", "numpy", "pillow")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        **{name: version(name) for name in packages},
        **gpu_software(),
    }
