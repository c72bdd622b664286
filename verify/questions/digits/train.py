"""Train the digits network and write the two files beside this one: `python -m verify.questions.digits.train`.

Needs the extra `models` (scikit-learn has the images). Fixed split, fixed seed, one thread: the same machine and torch
version write the same bytes. Another machine rounds differently and ends with slightly different weights, which is why
the files are kept and not made anew by everybody.
"""

import sys

import torch
from torch import nn

from verify.questions.digits.model import COUNT, IMAGES, INK, WEIGHTS, Images, accuracy, network, normalise, save

SEED = 0
EPOCHS = 60
BATCH = 64
REQUIRED = 0.97


def split() -> tuple[Images, Images, torch.Tensor]:
    """Training images, test images, and the test images as they are stored (uint8)."""
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415  an extra
        from sklearn.model_selection import train_test_split  # noqa: PLC0415  an extra
    except ImportError as error:
        message = "training needs scikit-learn, which is not installed: pip install 'lrp-rules[models]'"
        raise ImportError(message) from error
    digits = load_digits()
    train, test = train_test_split(
        range(len(digits.target)), test_size=COUNT, random_state=SEED, stratify=digits.target
    )
    ink = torch.from_numpy(digits.images).unsqueeze(1)
    if not (ink.min() == 0 and ink.max() == INK and torch.equal(ink, ink.round())):
        message = f"pixels from {ink.min()} to {ink.max()}, expected whole numbers from 0 to {INK}"
        raise ValueError(message)
    ink = ink.to(torch.uint8)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    return Images(normalise(ink[train]), labels[train]), Images(normalise(ink[test]), labels[test]), ink[test]


def shifted(pixels: torch.Tensor) -> torch.Tensor:
    """Each image moved by up to one pixel each way: 1437 images alone are learnt by heart. What moves in is paper."""
    padded = nn.functional.pad(pixels, (1, 1, 1, 1), value=-1.0)
    rows, columns = torch.randint(3, (2, len(pixels), 1, 1))
    span = torch.arange(pixels.shape[-1])
    return padded[torch.arange(len(pixels))[:, None, None], 0, rows + span[:, None], columns + span].unsqueeze(1)


def train(images: Images) -> nn.Sequential:
    """A network fitted to the images, from a fixed seed."""
    torch.manual_seed(SEED)
    model = network()
    steps = -(-len(images.labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images.labels)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(shifted(images.pixels[batch])), images.labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> int:
    """Train, print the accuracy, write the files; 1 and nothing written where the accuracy is too low."""
    training, test, ink = split()
    model = train(training)
    reached = accuracy(model, test)
    print(f"{len(training.labels)} training images, accuracy {accuracy(model, training):.2%}")
    print(f"{len(test.labels)} test images, accuracy {reached:.2%}")
    if not (reached >= REQUIRED):
        print(f"below the required {REQUIRED:.0%}: nothing written", file=sys.stderr)
        return 1
    save(model.state_dict(), WEIGHTS)
    save({"ink": ink, "labels": test.labels.to(torch.uint8)}, IMAGES)
    for path in (WEIGHTS, IMAGES):
        print(f"wrote {path} ({path.stat().st_size} bytes)")
    return 0


if __name__ == "__main__":
    # Both hold for the whole process, so they are set only where the process is ours.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    sys.exit(main())
