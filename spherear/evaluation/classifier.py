"""A small digits classifier: the offline judge, and the feature network where Inception is out of place.

Knows: digits of any size.  Does not know: where they come from.

    python -m spherear.evaluation.classifier

trains it on the `digits` training split and writes the weights and the log that stand beside this file.
"""

import sys
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spherear.models.config import require
from spherear.models.files import read_tensors, write_tensors, write_text
from spherear.models.pretrained import load_weights

SIZE = 16  # pixels the network works at
SIZES = (8, 16, 32)  # pixels it is shown
WEIGHTS = "digits_classifier.safetensors"
LOG = "digits_classifier.log"


class DigitsClassifier(nn.Module):
    """Images (n, 3, s, s) in [-1, 1], s >= 8 -> logits (n, 10); `features` are the 64 numbers before."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.embed = nn.Linear(64 * (SIZE // 4) ** 2, 64)
        self.classify = nn.Linear(64, 10)

    def features(self, images: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n 64"]:
        """What the last layer sees."""
        require(
            images.ndim == 4 and images.shape[1] == 3 and min(images.shape[2:]) >= 8,
            f"images have shape {tuple(images.shape)}; expected (n, 3, s, s) with s at least 8",
        )
        grey = images.float().mean(dim=1, keepdim=True)  # (n, 1, s, s)
        native = F.interpolate(grey, (8, 8), mode="area")  # about what it was before it was resized
        x = F.interpolate(native, (SIZE, SIZE), mode="bilinear", align_corners=False)
        return F.relu(self.embed(self.convolutions(x)))

    def forward(self, images: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n 10"]:
        return self.classify(self.features(images))


def load_digits_classifier(path: Path | None = None) -> DigitsClassifier:
    """The classifier with the weights that ship with the library (or those at `path`), in eval mode."""
    source = path or Path(str(files("spherear.evaluation") / WEIGHTS))
    model = DigitsClassifier()
    weights, _ = read_tensors(source)
    load_weights(model, weights, str(source))
    return model.eval()


def augment(images: Float[Tensor, "n 3 s s"], generator: torch.Generator) -> Float[Tensor, "n 3 s s"]:
    """Turn by up to 10 degrees, scale by up to 10 %, shift by up to half a native pixel, add noise."""
    u = 2 * torch.rand(4, len(images), generator=generator) - 1
    angle, scale = 0.17 * u[0], 1 + 0.1 * u[1]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack((cos, -sin, u[2] / 8, sin, cos, u[3] / 8), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    noise = torch.randn(moved.shape, generator=generator)
    return (moved + 0.05 * noise).clamp(-1, 1)


def train_classifier(
    versions: list[Tensor], labels: Int[Tensor, " n"], seed: int = 0, epochs: int = 60
) -> tuple[DigitsClassifier, list[float]]:
    """Train on augmented images -> (classifier in eval mode, mean loss of every epoch).

    versions: the same images, (n, 3, s, s), at one or more sizes s; each batch takes one of them by chance.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses = []
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator).split(64)
        total = torch.zeros(())
        for rows in order:
            images = versions[int(torch.randint(len(versions), (), generator=generator))][rows]
            loss = F.cross_entropy(model(augment(images, generator)), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() / len(order)
        schedule.step()
        losses.append(float(total))
    return model.eval(), losses


@torch.no_grad()
def accuracy(model: DigitsClassifier, images: Float[Tensor, "n 3 s s"], labels: Int[Tensor, " n"]) -> float:
    """The share of images recognised."""
    return float((model(images).argmax(dim=1) == labels).double().mean())


def main(out: Path = Path(__file__).parent, seed: int = 0, epochs: int = 60) -> None:
    """Train the digits classifier on the training split; write weights and log.

    Args:
        out: Folder to write to; by default where the library reads them.
        seed: Of weights, order and augmentation.
        epochs: Passes over the training split.
    """
    from spherear.training.data import load_data

    train = [load_data("digits", size) for size in SIZES]
    everything = torch.arange(len(train[0]))
    versions = [data.batch(everything)[0] for data in train]
    model, losses = train_classifier(versions, train[0].batch(everything)[1], seed, epochs)
    test = load_data("digits:test", SIZE)
    score = accuracy(model, *test.batch(torch.arange(len(test))))
    log = (
        f"command: python -m spherear.evaluation.classifier --seed {seed} --epochs {epochs}\n"
        f"torch {torch.__version__}, {len(everything)} training images\n"
        + "".join(f"epoch {i + 1}: loss {losses[i]:.4f}\n" for i in range(0, epochs, max(1, epochs // 8)))
        + f"held-out accuracy: {score:.4f} of {len(test)} images\n"
    )
    write_tensors(out / WEIGHTS, model.state_dict(), {"seed": str(seed)})
    write_text(out / LOG, log)
    print(log, end="")


if __name__ == "__main__":
    import tyro

    sys.exit(tyro.cli(main))
