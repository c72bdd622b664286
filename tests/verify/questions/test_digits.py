"""The committed network: that it reads, that it recognises digits, and that damage is seen."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from verify.questions.digits import Images, load_images, load_model, train
from verify.questions.digits.model import COUNT, IMAGES, WEIGHTS, accuracy, network, save

LOADERS = pytest.mark.parametrize(
    ("load", "original"), [(load_model, WEIGHTS), (load_images, IMAGES)], ids=["model", "images"]
)


def test_accuracy_on_the_committed_images() -> None:
    images = load_images()
    assert len(images.labels) == COUNT
    assert accuracy(load_model(), images) >= train.REQUIRED


def test_accuracy_of_an_untrained_network_is_low() -> None:
    torch.manual_seed(0)
    assert accuracy(network(), load_images()) < 0.5


def test_images_are_signed_and_fill_the_box() -> None:
    pixels, labels = load_images()
    assert pixels.shape == (COUNT, 1, 8, 8)
    assert pixels.dtype == torch.float32
    assert (pixels.min().item(), pixels.max().item()) == (-1.0, 1.0)
    assert labels.dtype == torch.int64
    assert sorted(set(labels.tolist())) == list(range(10))


def test_model_is_ready_for_rules() -> None:
    model = load_model()
    assert not any(module.training for module in model.modules())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(module.bias is not None for module in model if isinstance(module, nn.Conv2d | nn.Linear))


def test_every_layer_is_small_enough_for_an_explicit_matrix() -> None:
    x = load_images().pixels[:1]
    for layer in load_model():
        assert x.numel() <= 16 * 8 * 8
        x = layer(x)


def test_files_stay_small() -> None:
    assert WEIGHTS.stat().st_size + IMAGES.stat().st_size < 300_000


def test_images_are_those_scikit_learn_holds_back() -> None:
    pytest.importorskip("sklearn", reason="needs the extra `models`")
    training, test, _ = train.split()
    committed = load_images()
    assert torch.equal(test.pixels, committed.pixels)
    assert torch.equal(test.labels, committed.labels)
    seen = {image.numpy().tobytes() for image in training.pixels}
    assert not any(image.numpy().tobytes() in seen for image in committed.pixels)


@pytest.mark.parametrize("original", [WEIGHTS, IMAGES], ids=["model", "images"])
def test_what_is_saved_again_is_the_same_file(original: Path, tmp_path: Path) -> None:
    save(load_file(original), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == original.read_bytes()


@pytest.mark.parametrize("load", [load_model, load_images], ids=["model", "images"])
def test_missing_file(load: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing\. .*verify\.questions\.digits\.train"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 5, 100, -1], ids=["empty", "five bytes", "header cut", "last byte gone"])
@LOADERS
def test_truncated_file(load: Callable[[Path], object], original: Path, keep: int, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(original.read_bytes()[:keep])
    with pytest.raises(ValueError, match="damaged is not a readable safetensors file"):
        load(damaged)


@LOADERS
def test_one_changed_bit(load: Callable[[Path], object], original: Path, tmp_path: Path) -> None:
    content = bytearray(original.read_bytes())
    content[-1] ^= 1
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match="it was damaged"):
        load(damaged)


@LOADERS
def test_file_without_a_digest(load: Callable[[Path], object], original: Path, tmp_path: Path) -> None:
    save_file(load_file(original), tmp_path / "foreign")
    with pytest.raises(ValueError, match="states the digest None"):
        load(tmp_path / "foreign")


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("0.weight", torch.zeros(8, 1, 3, 5)),
        ("0.weight", torch.zeros(8, 9)),
        ("0.weight", torch.zeros(8, 1, 3, 3, dtype=torch.float64)),
        ("extra", torch.zeros(1)),
    ],
    ids=["shape", "dimensions", "dtype", "name"],
)
def test_weights_of_another_network(name: str, changed: torch.Tensor, tmp_path: Path) -> None:
    save(load_file(WEIGHTS) | {name: changed}, tmp_path / "other")
    with pytest.raises(ValueError, match=r"other holds \{.*, expected \{.*'0.weight': 'torch.float32 \(8, 1, 3, 3\)'"):
        load_model(tmp_path / "other")


def test_fewer_images(tmp_path: Path) -> None:
    save({name: tensor[1:] for name, tensor in load_file(IMAGES).items()}, tmp_path / "fewer")
    with pytest.raises(ValueError, match=r"fewer holds \{.*\(359,\).*, expected \{.*\(360,\)"):
        load_images(tmp_path / "fewer")


def test_training_below_the_mark_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = load_images()
    monkeypatch.setattr(train, "split", lambda: (images, images, torch.zeros(COUNT, 1, 8, 8, dtype=torch.uint8)))
    monkeypatch.setattr(train, "train", lambda _: network())
    monkeypatch.setattr(train, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(train, "IMAGES", tmp_path / "images")
    assert train.main() == 1
    assert not list(tmp_path.iterdir())
    assert "below the required 97%: nothing written" in capsys.readouterr().err


def test_training_writes_files_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_images()
    ink = load_file(IMAGES)["ink"]
    monkeypatch.setattr(train, "split", lambda: (images, images, ink))
    monkeypatch.setattr(train, "train", lambda _: load_model())
    monkeypatch.setattr(train, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(train, "IMAGES", tmp_path / "images")
    assert train.main() == 0
    assert (tmp_path / "weights").read_bytes() == WEIGHTS.read_bytes()
    assert (tmp_path / "images").read_bytes() == IMAGES.read_bytes()


def test_training_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "EPOCHS", 1)
    few = Images(*(tensor[:128] for tensor in load_images()))
    first, second = (train.train(few).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_shifted_images_move_by_at_most_one_pixel() -> None:
    torch.manual_seed(0)
    pixels = torch.full((64, 1, 8, 8), -1.0)
    pixels[:, 0, 4, 4] = 1.0
    places = (train.shifted(pixels) == 1.0).nonzero()
    assert len(places) == 64
    assert {tuple(place) for place in places[:, 2:].tolist()} == {(i, j) for i in (3, 4, 5) for j in (3, 4, 5)}
