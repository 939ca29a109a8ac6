"""Distillation methods, one file a paper; the built-in ones are listed in `kdtune.config.methods`.

To add a method, write its file here, its search space in search_spaces/, and its entry in
`kdtune.config.methods.BUILTIN_METHODS`; a plug-in adds one without any of these.

Shape letters: B images, C channels, H×W positions of a map, K classes, T temperature.
"""

from pkgutil import resolve_name

from kdtune.config.methods import BUILTIN_METHODS
from kdtune.config.train import TrainConfig
from kdtune.methods.method import Method, StageShapes
from kdtune.plugins import Registry

METHODS: Registry[type[Method]] = Registry(
    "method",
    "METHODS",
    {name: resolve_name(f"{__name__}.{m.class_path}") for name, m in BUILTIN_METHODS.items()},
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
