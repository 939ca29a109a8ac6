"""What RKD and PKT have in common: how the embeddings of a batch lie to each other."""

from abc import abstractmethod

from torch import Tensor

from kdtune.methods.kd import add_kd_term
from kdtune.methods.method import FeatureMaps, LossTerms, Method, TensorsByName


class EmbeddingMethod(Method):
    """classification + alpha·KD + beta·(how far the relations of embeddings are apart).

    An embedding is the mean over the positions of the last stage: what the classifier sees.
    Relations are those of the images of a batch, so they are computed there, from one embedding an
    image; their number of channels may differ.
    """

    term_name: str
    """Name of the method's own part."""

    @abstractmethod
    def embedding_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """How far relations are apart, for embeddings [B, C_student], [B, C_teacher]; a scalar."""

    def targets(self, logits: Tensor, features: FeatureMaps) -> TensorsByName:
        """``logits`` [B, K], and ``embedding`` [B, C_teacher]."""
        return {"logits": logits.float(), "embedding": self._embed(features)}

    def _embed(self, features: FeatureMaps) -> Tensor:
        return features[-1].float().mean((2, 3))

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        """The terms ``kd`` and `term`."""
        loss = self.embedding_loss(self._embed(features), targets["embedding"])
        return add_kd_term(self.config, logits, targets, **{self.term_name: loss})
