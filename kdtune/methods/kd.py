"""Knowledge distillation from logits (Hinton et al. 2015): the baseline of every comparison."""

from torch import Tensor
from torch.nn import functional as F

from kdtune.config.train import TrainConfig
from kdtune.methods.method import FeatureMaps, LossTerms, Method, TensorsByName, require_same_shape


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute T²·KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the batch.

    Hinton et al. 2015, section 2. It is summed over classes, not averaged, and T² keeps the scale
    of the gradient independent of T.

    Args:
        student: logits [B, K].
        teacher: logits [B, K].
        temperature: T, above 0.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape("Logits", student, teacher)
    divergence = F.kl_div(
        F.log_softmax(student.float() / temperature, dim=1),
        F.log_softmax(teacher.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
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
    return {
        "kd": (config.alpha, kd),
        **{name: (config.beta, term) for name, term in method_term.items()},
    }


class LogitMethod(Method):
    """A method whose only targets are the teacher's logits."""

    def targets(self, logits: Tensor, features: FeatureMaps) -> TensorsByName:
        """Return ``logits`` [B, K]."""
        return {"logits": logits.float()}


class KnowledgeDistillation(LogitMethod):
    """classification + alpha·KD."""

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        """Return the term ``kd``."""
        return add_kd_term(self.config, logits, targets)
