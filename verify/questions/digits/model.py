"""The network, its images, and the two files they are kept in."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights.safetensors"
IMAGES = HERE / "images.safetensors"

#: Pixels of the digits are whole numbers from 0 (paper) to 16 (ink).
INK = 16

#: Test images: a fifth of what scikit-learn has.
COUNT = 360


class Images(NamedTuple):
    """Normalised images and what they show."""

    pixels: Tensor
    """float32, (360, 1, 8, 8), in [-1, 1]: the box that ZBox(-1, 1) needs."""
    labels: Tensor
    """int64, (360,), the digit 0 to 9."""


def network() -> nn.Sequential:
    """The architecture with fresh parameters.

    Every layer has a bias, both kinds of pooling occur, and no layer has more than 16 x 8 x 8 = 1024 inputs, so that
    the explicit matrix of each fits in memory.

    >>> network()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def normalise(ink: Tensor) -> Tensor:
    """Pixels 0..16 to [-1, 1] as float32. Exact: every value is a multiple of 1/8.

    >>> normalise(torch.tensor([0, 8, 16], dtype=torch.uint8))
    tensor([-1.,  0.,  1.])
    """
    return ink.to(torch.float32) / (INK / 2) - 1


def load_model(path: Path = WEIGHTS) -> nn.Sequential:
    """The trained network, float32, on the CPU, in eval mode.

    Raises FileNotFoundError where `path` is missing and ValueError where it is not a file this network was saved to.
    """
    model = network()
    model.load_state_dict(_read(path, model.state_dict()))
    return model.eval()


def load_images(path: Path = IMAGES) -> Images:
    """The test images, none of which took part in training, in a fixed order.

    Raises as `load_model` does.
    """
    ink, labels = torch.empty(COUNT, 1, 8, 8, dtype=torch.uint8), torch.empty(COUNT, dtype=torch.uint8)
    tensors = _read(path, {"ink": ink, "labels": labels})
    return Images(normalise(tensors["ink"]), tensors["labels"].to(torch.int64))


def accuracy(model: nn.Module, images: Images) -> float:
    """The share of images whose largest output is the label."""
    with torch.no_grad():
        hits: Tensor = model(images.pixels).argmax(dim=1) == images.labels
    return hits.double().mean().item()


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors together with a digest of their bytes: safetensors alone does not see a changed number."""
    content = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(content, path, metadata={"sha256": _digest(content)})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, which must have the names, dtypes and shapes of `expected`."""
    advice = "Restore it from version control or write it with `python -m verify.questions.digits.train`."
    if not path.is_file():
        message = f"{path} is missing. {advice}"
        raise FileNotFoundError(message)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  the file is no mapping
            stated = (file.metadata() or {}).get("sha256")
    except SafetensorError as error:
        message = f"{path} is not a readable safetensors file ({error}). {advice}"
        raise ValueError(message) from error
    given, wanted = _layout(tensors), _layout(expected)
    if given != wanted:
        message = f"{path} holds {given}, expected {wanted}. {advice}"
        raise ValueError(message)
    if stated != _digest(tensors):
        message = f"{path} states the digest {stated}, its content has {_digest(tensors)}: it was damaged. {advice}"
        raise ValueError(message)
    return tensors


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{tensor.dtype} {tuple(tensor.shape)}" for name, tensor in tensors.items()}
