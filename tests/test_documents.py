"""The two documents that kdtune was asked to fulfil, from top to bottom.

Every example of `documents/*.md` runs, in order and in one namespace, with other module names, one
epoch, a small folder and a teacher that torchvision made; their functions, defaults and output
files are compared with ours.
"""

import ast
import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torchvision
from small_runs import write_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from kdtune.at import train_at
from kdtune.config.train import TrainConfig
from kdtune.fitnets import train_fitnets
from kdtune.methods.at import at_loss, attention_map
from kdtune.methods.fitnets import feature_loss
from kdtune.models import MODELS

HERE = Path(__file__).parent / "documents"
MODULES = {"attention-transfer": "kdtune.at", "fitnets": "kdtune.fitnets"}
OTHER_NAMES = {
    "from AT.main_new import": "from kdtune.at import",
    "from FitNets.main import": "from kdtune.fitnets import",
    "from model import": "from kdtune import",
    "from shared_utils import": "from kdtune import",
    "epochs=50": "epochs=1",
}
DEFINITIONS = ("DEFAULT_CONFIG", "def ", "# Extract", "if student_features", "# TensorBoard")
"""How blocks begin that are no examples; they are compared below."""


def blocks(document):
    text = (HERE / f"{document}.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def definition(document, start):
    return next(block for block in blocks(document) if block.startswith(start))


@pytest.fixture(scope="module", params=MODULES)
def document(request):
    return request.param


@pytest.fixture(scope="module")
def examples(document, tmp_path_factory):
    """Run the examples in a folder of their own, as a notebook would; give what they left."""
    place = tmp_path_factory.mktemp(document)
    torch.set_num_threads(1)
    write_digits(place / "data", 6)
    (place / "path" / "to").mkdir(parents=True)
    theirs = torchvision.models.resnet18(num_classes=10)
    torch.save(theirs.state_dict(), place / "path" / "to" / "teacher.pth")
    namespace: dict = {"printed": [], "histories": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "path", sys.path[:])
        train = train_at if document == "attention-transfer" else train_fitnets
        train({"data_dir": "data", "epochs": 1, "experiment_name": "model"})
        for block in blocks(document):
            if block.startswith(DEFINITIONS):
                continue
            for theirs, ours in OTHER_NAMES.items():
                block = block.replace(theirs, ours)
            exec(block, namespace)
            if "train_" in block:
                namespace["histories"].append(namespace["results"]["training_history"])
    return place, namespace


def test_every_example_runs(examples):
    _, left = examples
    assert len(left["histories"]) == 5
    assert set(left["results"]) == {
        "model", "teacher_model", "best_accuracy", "training_history", "test_results", "config",
        "experiment_name",
    }  # fmt: skip
    assert 0 <= left["test_results"]["accuracy"] <= 1
    assert left["checkpoint"]["config"]["experiment_name"] == "model"
    if "attention_map" in left:
        assert left["attention_map"].shape == (1, 32, 32)
    else:
        assert left["feature_map"].shape == (1, 32, 32, 32)


def test_the_teacher_taught(examples, document):
    term = "loss_at" if document == "attention-transfer" else "loss_feature"
    taught = [term in history[-1] for history in examples[1]["histories"]]
    assert taught == [False, True, False, True, False]  # quick start, with teacher, 1, 2, 3


def test_every_function_has_the_parameters_of_the_document(document):
    text = (HERE / f"{document}.md").read_text()
    module = import_module(MODULES[document])
    headings = re.findall(r"#### `(\w+)\((.*?)\)`", text)
    assert len(headings) in (8, 9)
    for name, parameters in headings:
        theirs = ast.parse(f"def f({parameters}): pass").body[0].args
        ours = inspect.signature(getattr(module, name)).parameters
        names = [a.arg for a in (*theirs.args, *filter(None, [theirs.kwarg]))]
        assert [key for key in ours if key not in ("on_epoch", "layers")] == names, name
        for parameter, value in zip(
            reversed(theirs.args), reversed(theirs.defaults), strict=False
        ):
            assert ours[parameter.arg].default == ast.literal_eval(value), name
        assert inspect.getdoc(getattr(module, name))


def test_every_default_is_the_documents(document):
    namespace: dict = {}
    exec(definition(document, "DEFAULT_CONFIG"), namespace)
    ours = import_module(MODULES[document]).DEFAULT_CONFIG
    theirs = TrainConfig.for_method(ours["method"], namespace["DEFAULT_CONFIG"]).model_dump()
    assert {key: ours[key] for key in theirs} == theirs  # augment False is "none" here


def test_every_model_of_the_document_exists(document):
    text = (HERE / f"{document}.md").read_text()
    section = text.split("### Supported Models")[1].split("All models")[0]
    assert set(re.findall(r"- \*\*(\w+)\*\*", section)) <= set(MODELS)


def test_the_output_has_the_structure_of_the_document(examples, document):
    place, _ = examples
    text = (HERE / f"{document}.md").read_text()
    structure = text.split("## Output Structure")[1].split("```")[1]
    names = re.findall(r"── (\S+)", structure)
    assert len(names) == 8
    for name in names:
        if name == "...":
            continue
        pattern = name.rstrip("/").replace("experiment_name", "model").replace("_X", "_*")
        if "epoch" not in pattern:  # every save_freq epochs: see the next test
            assert list(place.rglob(pattern)), name


def test_tensorboard_has_the_metrics_of_the_document(document, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), "teacher.pth")
    module = import_module(MODULES[document])
    train = train_at if document == "attention-transfer" else train_fitnets
    train(
        {
            "data_dir": str(folder), "teacher_model": "teacher.pth", "image_size": 16, "epochs": 2,
            "save_freq": 2, "experiment_name": "x",
        }
    )  # fmt: skip
    assert list(tmp_path.rglob("x_epoch_2.pth"))
    events = EventAccumulator(str(tmp_path / "logs" / "x")).Reload()
    term = "at" if document == "attention-transfer" else "feature"
    expected = {
        "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "lr",
        "loss_classification", "loss_kd", "loss_kd_weighted", f"loss_{term}",
        f"loss_{term}_weighted",
    }  # fmt: skip
    assert expected <= set(events.Tags()["scalars"])
    assert all(len(events.Scalars(tag)) == 2 for tag in expected)
    assert len(events.Images("attention_maps")) == 1
    assert module.DEFAULT_CONFIG["save_freq"] == 10


def test_attention_is_the_documents():
    namespace: dict = {"F": F}
    exec(definition("attention-transfer", "def at"), namespace)
    x, y = torch.randn(3, 5, 4, 4), torch.randn(3, 7, 4, 4)
    assert torch.allclose(attention_map(x), namespace["at"](x))
    ours = at_loss(attention_map(x), attention_map(y))
    assert torch.allclose(ours, namespace["at_loss"](x, y))


def test_feature_matching_is_the_documents_where_that_is_defined():
    student, teacher = torch.randn(3, 5, 8, 8), torch.randn(3, 5, 4, 4)
    namespace: dict = {"F": F, "student_features": student, "teacher_features": teacher}
    exec(definition("fitnets", "if student_features"), namespace)
    pooled = F.adaptive_avg_pool2d(student, (4, 4))
    assert torch.allclose(feature_loss(pooled, teacher), namespace["feature_loss"])
