"""Base class of RKD and PKT, which compare relations between embeddings of a batch."""

from abc import abstractmethod

from torch import Tensor

from kdtune.methods.kd import add_kd_term
from kdtune.methods.method import FeatureMaps, LossTerms, Method, TensorsByName


class EmbeddingMethod(Method):
    """classification + alpha·KD + beta·(the difference of relations between embeddings).

    An embedding is the mean of the last stage over its positions, the input of the classifier.
    Student and teacher may have different numbers of channels.
    """

    term_name: str
    """Name of the method's own term."""

    @abstractmethod
    def embedding_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the relations of embeddings.

        Args:
            student: embeddings [B, C_student].
            teacher: embeddings [B, C_teacher].

        Returns:
            A scalar.
        """

    def targets(self, logits: Tensor, features: FeatureMaps) -> TensorsByName:
        """Return ``logits`` [B, K] and ``embedding`` [B, C_teacher]."""
        return {"logits": logits.float(), "embedding": self._embed(features)}

    def _embed(self, features: FeatureMaps) -> Tensor:
        return features[-1].float().mean((2, 3))

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        """Return the terms ``kd`` and `term_name`."""
        loss = self.embedding_loss(self._embed(features), targets["embedding"])
        return add_kd_term(self.config, logits, targets, **{self.term_name: loss})
