"""Knowledge distillation from logits (Hinton et al. 2015): the baseline of every comparison."""

from abc import abstractmethod

from torch import Tensor
from torch.nn import functional as F

from kdtune.config.train import TrainConfig
from kdtune.methods.method import FeatureMaps, LossTerms, Method, TensorsByName, check_same_shape


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute T²·KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the batch.

    Hinton et al. 2015, section 2. It is summed over classes, not averaged, and T² keeps the scale
    of the gradient independent of T.

    Args:
        student: logits [B, K].
        teacher: logits [B, K].
        temperature: T, above 0.
    """
    check_same_shape("Logits", student, teacher)
    student_log, teacher_log = (
        F.log_softmax(logits.float() / temperature, dim=1) for logits in (student, teacher)
    )
    divergence = F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def add_kd_term(
    config: TrainConfig, logits: Tensor, targets: TensorsByName, **method_term: Tensor
) -> LossTerms:
    """Return the terms alpha·KD and beta·(the method's own term).

    Args:
        config: has alpha, beta and temperature.
        logits: the student's, [B, K].
        targets: the teacher's targets, with ``logits`` [B, K].
        **method_term: the method's own term, a scalar, by its name.
    """
    kd = kd_loss(logits, targets["logits"], config.temperature)
    own = {name: (config.beta, term) for name, term in method_term.items()}
    return {"kd": (config.alpha, kd), **own}


class LogitMethod(Method):
    """A method whose only targets are the teacher's logits."""

    def targets(self, logits: Tensor, features: FeatureMaps) -> TensorsByName:
        """Return ``logits`` [B, K]."""
        return {"logits": logits.float()}


class FeatureMethod(Method):
    """classification + alpha·KD + beta·(the method's own loss, which compares features)."""

    term_name: str
    """Name of the method's own loss in logs and tables."""

    @abstractmethod
    def _own_loss(self, features: FeatureMaps, targets: TensorsByName) -> Tensor:
        """Compare the student's stages, [B, C, H, W] each, with `targets`; return a scalar."""

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        own_term = {self.term_name: self._own_loss(features, targets)}
        return add_kd_term(self.config, logits, targets, **own_term)


class KnowledgeDistillation(LogitMethod):
    """classification + alpha·KD."""

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        return add_kd_term(self.config, logits, targets)
