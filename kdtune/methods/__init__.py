"""What a student learns from a teacher. To add a method, write one file and one entry here; users
add theirs in plug-ins.

A method sees a batch, and what was kept of the teacher for its images. CRD, which contrasts an
image with a memory of thousands that changes as the student learns, is therefore not among them.

Shape letters: B images, C channels, H×W positions of a map, K classes, T temperature.
"""

from kdtune.config.train import TrainConfig
from kdtune.methods.at import AttentionTransfer, PaperAttentionTransfer
from kdtune.methods.dist import StrongerTeacher
from kdtune.methods.dkd import DecoupledDistillation
from kdtune.methods.fitnets import FitNets
from kdtune.methods.kd import KnowledgeDistillation
from kdtune.methods.method import Method, Shapes
from kdtune.methods.pkt import ProbabilisticKnowledge
from kdtune.methods.rkd import RelationalKnowledge
from kdtune.methods.sp import SimilarityPreserving
from kdtune.methods.student import Student
from kdtune.methods.vid import VariationalInformation
from kdtune.plugins import Registry

METHODS: Registry[type[Method]] = Registry(
    "method",
    "METHODS",
    {
        "student": Student,
        "kd": KnowledgeDistillation,
        "dkd": DecoupledDistillation,
        "dist": StrongerTeacher,
        "at": AttentionTransfer,
        "at_paper": PaperAttentionTransfer,
        "fitnets": FitNets,
        "vid": VariationalInformation,
        "sp": SimilarityPreserving,
        "rkd": RelationalKnowledge,
        "pkt": ProbabilisticKnowledge,
    },
    "a subclass of kdtune.methods.method.Method",
    lambda value: isinstance(value, type) and issubclass(value, Method),
)


def check_method(name: str) -> None:
    """Raise a `UserError` that names the nearest known one if there is no method `name`."""
    METHODS.check(name)


def build_method(config: TrainConfig, student: Shapes, teacher: Shapes | None) -> Method:
    """Build the method that `config` names, for the feature maps that it will compare.

    Args:
        config: the run's settings.
        student: (C, H, W) of the student's stages.
        teacher: (C, H, W) of the teacher's stages, or None without a teacher.

    Raises:
        UserError: there is no such method, or the maps cannot be compared.
    """
    check_method(config.method)
    with METHODS.blamed(config.method):
        return METHODS[config.method](config, student, teacher)
