"""Data sets by name, from files as torchvision keeps them."""

import bz2
import hashlib
import inspect
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from click.testing import CliRunner
from harmful import Harmful
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from kdtune.cli.commands import cli
from kdtune.config.data import DataSource
from kdtune.config.sweep import SweepConfig
from kdtune.data.datasets import NAMED_DATASETS
from kdtune.data.decoded import DecodedDataset
from kdtune.data.folders import find_images
from kdtune.errors import UserError
from kdtune.models.checkpoints import load_model
from kdtune.training.rerun import train_from_file
from kdtune.tuning.driver.preflight import prepare_sweep


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **named):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(head + array.tobytes())


def write_fashion_mnist(root: Path, train: int = 100, test: int = 30) -> Path:
    """Write noise with the labels 0 to 9 in turn, as files of torchvision's FashionMNIST."""
    random = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        raw = root / "FashionMNIST" / "raw"
        pixels = random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        write_idx(raw / f"{name}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{name}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return root


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar10(root: Path, monkeypatch) -> Path:
    """Write two images per class and file in CIFAR-10's format, with MD5 sums for torchvision."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in names:
        pixels = random.integers(0, 256, (20, 3072)).astype(np.uint8)
        labels = [i % 10 for i in range(20)]
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    classes = [f"c{i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    sums = [[name, md5(folder / name)] for name in names]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", sums[5:])
    meta = {**datasets.CIFAR10.meta, "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return folder


def write_images(folder: Path, names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (6, 5), (len(name), 7, 9)).save(folder / name)


def counts(data):
    return [len(split) for split in (data.train, data.validation, data.test)]


def test_the_official_test_split_is_kept_and_validation_is_held_out_from_train(tmp_path):
    data = find_images(DataSource("fashion-mnist", str(write_fashion_mnist(tmp_path))))
    assert counts(data) == [80, 20, 30]  # 15 % of ten, rounded, of each class
    assert data.classes[0] == "T-shirt/top" and len(data.classes) == 10
    assert data.test.images[0].shape == (28, 28) and data.test.labels == [*range(10)] * 3
    raw = tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    assert data.test.images[0].tobytes() == raw.read_bytes()[16 : 16 + 784]


def test_arrays_are_decoded_like_files(tmp_path):
    data = find_images(DataSource("fashion-mnist", str(write_fashion_mnist(tmp_path))))
    decoded = DecodedDataset(data, 28, None, 1).pixels("train")
    assert decoded.shape == (80, 3, 28, 28)
    assert (decoded[3] == data.train.images[3]).all()


def test_the_default_folder_is_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDTUNE_CACHE", str(tmp_path))
    write_fashion_mnist(tmp_path / "datasets")
    assert counts(find_images("fashion-mnist")) == [80, 20, 30]


def test_cifar10_is_read_from_its_own_format(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    data = find_images(DataSource("cifar10", str(tmp_path)))
    assert counts(data) == [80, 20, 20] and data.classes[3] == "c3"
    assert data.train.images[0].shape == (32, 32, 3)


def test_a_pickle_with_another_md5_sum_is_not_opened(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, monkeypatch)
    (folder / "data_batch_1").write_bytes(pickle.dumps(Harmful(tmp_path / "ran")))
    with pytest.raises(UserError, match="is not in .* or is damaged there"):
        find_images(DataSource("cifar10", str(tmp_path)))
    assert not (tmp_path / "ran").exists()


def test_an_official_validation_split_stays_and_files_stay_files(tmp_path, monkeypatch):
    folder = tmp_path / "flowers-102"
    names = [f"image_{i:05d}.jpg" for i in range(1, 10)]
    write_images(folder / "jpg", names)
    savemat(folder / "imagelabels.mat", {"labels": [1, 2, 1, 2, 1, 2, 1, 2, 1]})
    savemat(folder / "setid.mat", {"trnid": [1, 2, 3, 4], "valid": [5, 6], "tstid": [7, 8, 9]})
    files = {
        key: (name, md5(folder / name))
        for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    data = find_images(DataSource("flowers102", str(tmp_path)))
    assert counts(data) == [4, 2, 3]
    assert data.validation.images == [folder / "jpg" / name for name in names[4:6]]
    assert data.validation.labels == [0, 1] and len(data.classes) == 102
    assert find_images(DataSource("flowers102", str(tmp_path))).fingerprint == data.fingerprint


def test_pets_stay_files(tmp_path):
    pets = tmp_path / "oxford-iiit-pet"
    names = [f"{breed}_{i}" for breed in ("Beagle", "Birman") for i in range(8)]
    write_images(pets / "images", [f"{name}.jpg" for name in names])
    (pets / "annotations").mkdir()
    lines = [f"{name} {1 + name.startswith('Birman')} 1 1\n" for name in names]
    for split, part in (("trainval", lines[:6] + lines[8:14]), ("test", lines[6:8] + lines[14:])):
        (pets / "annotations" / f"{split}.txt").write_text("".join(part))
    data = find_images(DataSource("oxford-iiit-pet", str(tmp_path)))
    assert counts(data) == [10, 2, 4] and data.classes == ("Beagle", "Birman")
    assert data.test.images[0] == pets / "images" / "Beagle_6.jpg"


def test_channels_first_become_last(tmp_path, monkeypatch):
    sums = {}
    for split, count in (("train", 14), ("test", 2)):
        pixels = np.zeros((32, 32, 3, count), np.uint8)
        pixels[0, 1, 2] = 5
        savemat(
            tmp_path / f"{split}_32x32.mat",
            {"X": pixels, "y": [[1 + i % 2] for i in range(count)]},
        )
        sums[split] = ["", f"{split}_32x32.mat", md5(tmp_path / f"{split}_32x32.mat")]
    monkeypatch.setattr(datasets.SVHN, "split_list", sums)
    data = find_images(DataSource("svhn", str(tmp_path)))
    assert counts(data) == [12, 2, 2] and data.test.images[0][0, 1].tolist() == [0, 0, 5]


@pytest.mark.parametrize("name", [name for name in NAMED_DATASETS if name != "digits"])
def test_a_failed_download_is_an_error_in_one_sentence(name, tmp_path, capfd):
    with pytest.raises(UserError) as caught:
        find_images(DataSource(name, str(tmp_path / "sets")))
    sentence = str(caught.value)
    assert sentence.startswith(f"The data set {name} is not in {tmp_path}/sets, or is damaged")
    assert "no route to host" in sentence and "--data-root" in sentence
    assert capfd.readouterr().out == ""
    assert not list(tmp_path.rglob("*.unfinished"))  # nothing came: there is nothing to remove


def write_imagenette(root, images):
    for split in ("train", "val"):
        for name in ("n01440764", "n02102040"):
            write_images(root / "imagenette2-320" / split / name, [f"{i}.jpeg" for i in images])


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError])
def test_an_interrupted_download_is_not_mistaken_for_a_smaller_set(tmp_path, monkeypatch, end):
    def cut(url, root, md5):
        write_imagenette(Path(root), range(7))
        raise end("no room")

    archives = "torchvision.datasets.imagenette.download_and_extract_archive"
    monkeypatch.setattr(archives, cut)
    with pytest.raises(UserError if end is OSError else end):
        find_images(DataSource("imagenette", str(tmp_path)))
    with pytest.raises(UserError, match="not finished: remove .*/.imagenette.unfinished, then"):
        find_images(DataSource("imagenette", str(tmp_path)))
    (tmp_path / ".imagenette.unfinished").unlink()
    assert counts(find_images(DataSource("imagenette", str(tmp_path)))) == [12, 2, 14]


def test_a_second_process_waits_for_a_running_download(tmp_path, monkeypatch):
    begun, wait = threading.Event(), threading.Event()

    def slowly(url, root, md5):
        write_imagenette(Path(root), range(7))
        begun.set()
        wait.wait(10)
        write_imagenette(Path(root), range(7, 14))

    archives = "torchvision.datasets.imagenette.download_and_extract_archive"
    monkeypatch.setattr(archives, slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(find_images, DataSource("imagenette", str(tmp_path)))
        assert begun.wait(10)
        second = pool.submit(find_images, DataSource("imagenette", str(tmp_path)))
        assert not wait_for([second], timeout=0.2).done
        wait.set()
        assert counts(first.result()) == counts(second.result()) == [24, 4, 28]
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_truncated_file_is_an_error_in_one_sentence(tmp_path):
    (tmp_path / "usps.bz2").write_bytes(bz2.compress(bytes(10_000))[:40])
    with pytest.raises(UserError, match="usps is not in .* or is damaged there"):
        find_images(DataSource("usps", str(tmp_path)))


@pytest.mark.parametrize("name", [name for name in NAMED_DATASETS if name != "digits"])
def test_torchvision_has_the_splits(name):
    dataset, splits = NAMED_DATASETS[name].args
    assert {"train", "test"} <= splits.keys() <= {"train", "validation", "test"}
    for options in splits.values():
        inspect.signature(dataset).bind("root", download=True, **options)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="There is no folder cifar11; .*digits, mnist, .*cifar10"):
        find_images("cifar11")


def test_a_folder_comes_before_a_name(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    Path("cifar10").symlink_to(folder)
    assert counts(find_images("cifar10")) == [140, 30, 30]


def test_a_subset_is_stratified():
    data = find_images(DataSource("digits", None, 100, 50, 30))
    assert counts(data) == [100, 50, 30]
    whole = find_images("digits")
    for part, all_of_it in ((data.train, whole.train), (data.test, whole.test)):
        shares = np.bincount(all_of_it.labels) / len(all_of_it) * len(part)
        assert (abs(np.bincount(part.labels) - shares) < 1).all()
    assert data.fingerprint != whole.fingerprint != ""
    assert data.fingerprint == find_images(DataSource("digits", None, 100, 50, 30)).fingerprint
    assert data.test_fingerprint != whole.test_fingerprint


def test_a_smaller_subset_is_part_of_a_larger_one(folder):
    smaller, larger = (
        find_images(DataSource(str(folder), train_images=n)).train for n in (20, 55)
    )
    assert set(smaller.images) < set(larger.images)
    assert np.bincount(smaller.labels).tolist() == [2] * 10
    assert larger.images == sorted(larger.images)


def test_a_subset_has_at_least_one_image_of_a_rare_class(tmp_path, folder):
    for source in folder.iterdir():
        (tmp_path / source.name).mkdir()
        for file in sorted(source.iterdir())[: 1 if source.name == "digit-3" else None]:
            (tmp_path / source.name / file.name).symlink_to(file)
    assert (
        np.bincount(find_images(DataSource(str(tmp_path), train_images=10)).train.labels).min()
        == 1
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"train_images": 141}, "train_images cannot be 141: there are 140 train images of 10 cl"),
        ({"test_images": 9}, "test_images cannot be 9: there are 30 test images of 10 classes"),
    ],
)
def test_a_subset_that_is_too_large_or_small_is_refused(folder, given, sentence):
    with pytest.raises(UserError, match=sentence):
        find_images(DataSource(str(folder), **given))


def test_every_command_takes_named_data_sets_and_subsets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_fashion_mnist(tmp_path / "sets")
    flags = "--data fashion-mnist --data-root sets --train-images 20 --test-images 10".split()
    small = "--model MultiBranchNet --image-size 8 --epochs 1 --out t.pth --quiet".split()
    run = CliRunner().invoke(cli, ["teacher", *flags, *small], catch_exceptions=False)
    assert run.exit_code == 0
    config = load_model("t.pth")["config"]
    assert (config["train_images"], config["validation_images"]) == (20, None)

    run = CliRunner().invoke(cli, ["evaluate", "t.pth", *flags], catch_exceptions=False)
    assert ["images", "10"] in [line.split() for line in run.output.splitlines()]

    kept = ("data_dir", "data_root", "train_images", "image_size", "epochs")
    lines = [f"{key}: {config[key]}\n" for key in kept]
    Path("run.yaml").write_text("method: kd\nteacher_model: t.pth\n" + "".join(lines))
    assert len(train_from_file(Path("run.yaml"))["training_history"]) == 1

    sweep = {"name": "s", "data": "fashion-mnist", "data_root": "sets", "train_images": 20}
    prepared = prepare_sweep(SweepConfig.parse({**sweep, "teacher": "t.pth", "epochs": 2}), ())
    opening = prepared.opening_event
    assert opening.data.train_images == opening.data.validation_images == 20
    assert opening.config["train_images"] == 20
    settings = prepared.configure_trial(("at", "ResNet18"), 0, {})
    monkeypatch.chdir("/")  # trials run elsewhere
    assert find_images(settings.data_source).fingerprint == opening.data.fingerprint
