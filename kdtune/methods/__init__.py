"""What a student learns from a teacher. To add a method, write one file and one entry here; users
add theirs in plug-ins.

A method sees a batch, and what was kept of the teacher for its images. CRD, which contrasts an
image with a memory of thousands that changes as the student learns, is therefore not among them.

Shape letters: B images, C channels, H×W positions of a map, K classes, T temperature.
"""

from kdtune.config.train import TrainConfig
from kdtune.methods.at import AttentionTransfer, PaperAttentionTransfer
from kdtune.methods.dist import DIST
from kdtune.methods.dkd import DecoupledKnowledgeDistillation
from kdtune.methods.fitnets import FitNets
from kdtune.methods.kd import KnowledgeDistillation
from kdtune.methods.method import Method, StageShapes
from kdtune.methods.pkt import ProbabilisticKnowledgeTransfer
from kdtune.methods.rkd import RelationalKnowledgeDistillation
from kdtune.methods.sp import SimilarityPreserving
from kdtune.methods.student import StudentOnly
from kdtune.methods.vid import VariationalInformationDistillation
from kdtune.plugins import Registry

METHODS: Registry[type[Method]] = Registry(
    "method",
    "METHODS",
    {
        "student": StudentOnly,
        "kd": KnowledgeDistillation,
        "dkd": DecoupledKnowledgeDistillation,
        "dist": DIST,
        "at": AttentionTransfer,
        "at_paper": PaperAttentionTransfer,
        "fitnets": FitNets,
        "vid": VariationalInformationDistillation,
        "sp": SimilarityPreserving,
        "rkd": RelationalKnowledgeDistillation,
        "pkt": ProbabilisticKnowledgeTransfer,
    },
    "a subclass of kdtune.methods.method.Method",
    lambda value: isinstance(value, type) and issubclass(value, Method),
)


def require_method(name: str) -> None:
    """Raise a `UserError` that names the nearest known one if there is no method `name`."""
    METHODS.require(name)


def build_method(config: TrainConfig, student: StageShapes, teacher: StageShapes | None) -> Method:
    """Build the method that `config` names, for the feature maps that it will compare.

    Args:
        config: the run's settings.
        student: (C, H, W) of the student's stages.
        teacher: (C, H, W) of the teacher's stages, or None without a teacher.

    Raises:
        UserError: there is no such method, or the maps cannot be compared.
    """
    require_method(config.method)
    with METHODS.blame_provider(config.method):
        return METHODS[config.method](config, student, teacher)
