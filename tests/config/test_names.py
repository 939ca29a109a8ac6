"""Names that are known without torch are those of the networks and data sets."""

from kdtune.config.names import DATASET_NAMES, MODEL_LIBRARIES, MODEL_NAMES
from kdtune.data.datasets import NAMED_DATASETS
from kdtune.models import MODELS
from kdtune.models.library import LIBRARIES


def test_names_are_those_of_what_can_be_built():
    assert list(MODEL_NAMES) == list(MODELS)
    assert list(DATASET_NAMES) == list(NAMED_DATASETS)
    assert list(MODEL_LIBRARIES) == list(LIBRARIES)
