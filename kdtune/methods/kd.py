"""Knowledge distillation from logits (Hinton et al. 2015): the baseline of every comparison."""

from torch import Tensor
from torch.nn import functional as F

from kdtune.config import TrainConfig
from kdtune.methods.method import Maps, Method, Parts, match_shape, weighted_sum


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the batch.

    Hinton et al. 2015, section 2. Summed over classes, not averaged, and T² keeps the gradient's
    size independent of T.

    Args:
        student: logits [B, K].
        teacher: logits [B, K].
        temperature: T, above 0.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: the shapes differ.
    """
    match_shape("Logits", student, teacher)
    divergence = F.kl_div(
        F.log_softmax(student.float() / temperature, dim=1),
        F.log_softmax(teacher.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


def with_kd(
    config: TrainConfig, logits: Tensor, targets: Parts, labels: Tensor, **own: Tensor
) -> Parts:
    """classification + alpha·KD + beta·(the method's own term).

    Args:
        config: gives alpha, beta and temperature.
        logits: the student's, [B, K].
        targets: what is kept of the teacher, ``logits`` [B, K] among it.
        labels: class indices, [B].
        own: the method's own term, a scalar, by its name.

    Returns:
        See `Method.forward`; parts: ``classification``, ``kd``, and that of the own term.
    """
    kd = kd_loss(logits, targets["logits"], config.temperature)
    terms = {name: (config.beta, term) for name, term in own.items()}
    return weighted_sum(logits, labels, kd=(config.alpha, kd), **terms)


class OfLogits(Method):
    """A method that keeps of the teacher what it says of each class, and nothing else."""

    def targets(self, logits: Tensor, features: Maps) -> Parts:
        """``logits`` [B, K]."""
        return {"logits": logits.float()}


class KnowledgeDistillation(OfLogits):
    """classification + alpha·KD."""

    def forward(
        self, logits: Tensor, features: Maps, targets: Parts | None, labels: Tensor
    ) -> Parts:
        """See `Method.forward`; parts: ``classification``, ``kd``."""
        if targets is None:
            return weighted_sum(logits, labels)
        return with_kd(self.config, logits, targets, labels)
