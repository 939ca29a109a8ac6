"""Distillation methods, one file a paper; the built-in ones are listed in `kdtune.config.methods`.

To add a method, write its file here, its search space in search_spaces/, and its entry in
`kdtune.config.methods.BUILTIN_METHODS`; a plug-in adds one without any of these. A method sees a
batch, and what is cached of the teacher for its images. CRD, which contrasts an image with a
memory of thousands that changes as the student learns, is therefore not among them.

Shape letters: B images, C channels, H×W positions of a map, K classes, T temperature.
"""

from importlib import import_module

from kdtune.config.methods import BUILTIN_METHODS
from kdtune.config.train import TrainConfig
from kdtune.methods.method import Method, StageShapes
from kdtune.plugins import Registry


def _import_class(class_path: str) -> type[Method]:
    module, class_name = class_path.split(":")
    method: type[Method] = getattr(import_module(f"kdtune.methods.{module}"), class_name)
    return method


METHODS: Registry[type[Method]] = Registry(
    "method",
    "METHODS",
    {name: _import_class(info.class_path) for name, info in BUILTIN_METHODS.items()},
    "a subclass of kdtune.methods.method.Method",
    lambda value: isinstance(value, type) and issubclass(value, Method),
)


def build_method(config: TrainConfig, student: StageShapes, teacher: StageShapes | None) -> Method:
    """Build the method of a run; a `UserError` says why if it is unknown or cannot compare maps.

    Args:
        config: the run's settings.
        student: (C, H, W) of the student's stages.
        teacher: (C, H, W) of the teacher's stages, or None without a teacher.
    """
    method_class = METHODS.require(config.method)
    with METHODS.blame_provider(config.method):
        return method_class(config, student, teacher)
