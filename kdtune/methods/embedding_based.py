"""Base class of RKD and PKT, which compare relations between embeddings of a batch."""

from collections.abc import Callable

from torch import Tensor

from kdtune.methods.kd import FeatureMethod
from kdtune.methods.method import FeatureMaps, TensorsByName


class EmbeddingMethod(FeatureMethod):
    """classification + alpha·KD + beta·(the difference of relations between embeddings).

    An embedding is the mean of the last stage over its positions, the input of the classifier.
    Student and teacher may have different numbers of channels.
    """

    embedding_loss: Callable[[Tensor, Tensor], Tensor]
    """Compares embeddings [B, C_student] and [B, C_teacher]; returns a scalar."""

    def _embed(self, features: FeatureMaps) -> Tensor:
        return features[-1].float().mean((2, 3))

    def targets(self, logits: Tensor, features: FeatureMaps) -> TensorsByName:
        """Return ``logits`` [B, K] and ``embedding`` [B, C_teacher]."""
        return {"logits": logits.float(), "embedding": self._embed(features)}

    def _own_loss(self, features: FeatureMaps, targets: TensorsByName) -> Tensor:
        return self.embedding_loss(self._embed(features), targets["embedding"])
