"""Small classifiers: the offline judges, and feature networks for images that do not suit Inception.

    python -m spherear.evaluation.classifier --data digits
    python -m spherear.evaluation.classifier --data shapes
    python -m spherear.evaluation.classifier --data mnist

train them on the training splits and write the weights and logs stored beside this file.
"""

import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spherear.evaluation.judge_inputs import JUDGE_INPUTS, JudgeInput
from spherear.models.config import one_of, require
from spherear.models.files import write_text
from spherear.models.layers import seeded
from spherear.models.pretrained import load_weights
from spherear.models.tensor_files import read_tensors, write_tensors

LIMIT = 10_000  # training images used at most
FEATURES = 64
THUMBNAIL_WEIGHT = 10.0  # mean squared errors are about a tenth of a nat


@runtime_checkable
class JudgeNetwork(Protocol):
    """What judges images: features of images in [-1, 1], and the logits of the classes from these features."""

    def features(self, images: Tensor) -> Tensor:
        """(n, 3, s, s) -> (n, f)."""

    if TYPE_CHECKING:  # Python 3.12 looks for it without `__getattr__`, by which a module finds its parts

        @property
        def classify(self) -> Callable[[Tensor], Tensor]:
            """(n, f) -> (n, classes)."""


class Classifier(nn.Module):
    """Images (n, 3, s, s) in [-1, 1], s at least `view.native` -> logits (n, classes); `features` are (n, 64)."""

    def __init__(self, view: JudgeInput, classes: int = 10) -> None:
        super().__init__()
        self.view, width = view, view.width
        self.convolutions = nn.Sequential(
            nn.Conv2d(view.channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.BatchNorm2d(4 * width), nn.ReLU(),
            *(nn.MaxPool2d(2) for _ in range(view.pools - 2)), nn.Flatten(),
        )  # fmt: skip
        self.embed = nn.Linear(4 * width * (view.size // 2**view.pools) ** 2, FEATURES)
        self.norm = nn.BatchNorm1d(FEATURES) if view.thumbnail else nn.Identity()
        self.classify = nn.Linear(FEATURES, classes)

    def features(self, images: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n 64"]:
        """Input of the last layer. Smaller images, or other than 3 channels: ValueError."""
        view = self.view
        require(
            images.ndim == 4 and images.shape[1] == 3 and min(images.shape[2:]) >= view.native,
            f"images have shape {tuple(images.shape)}; expected (n, 3, s, s) with s at least {view.native}",
        )
        x = images.float()
        if view.channels == 1:
            x = x.mean(dim=1, keepdim=True)  # (n, 1, s, s)
        x = F.interpolate(x, (view.native, view.native), mode="area")  # approximately undo the data set's resizing
        x = F.interpolate(x, (view.size, view.size), mode="bilinear", align_corners=False)
        return F.relu(self.norm(self.embed(self.convolutions(x))))

    def forward(self, images: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n classes"]:
        return self.classify(self.features(images))


def load_classifier(data: str = "digits", path: Path | None = None) -> Classifier:
    """The classifier of a data set with the shipped weights (or those at `path`), in eval mode.

    A data set without a classifier: ValueError that lists those with one.
    """
    one_of("data", data, JUDGE_INPUTS)
    source = path or Path(str(files("spherear.evaluation") / f"{data}_classifier.safetensors"))
    model = Classifier(JUDGE_INPUTS[data])
    weights, _ = read_tensors(source)
    load_weights(model, weights, str(source))
    return model.eval()


def augment(images: Float[Tensor, "n 3 s s"], generator: torch.Generator) -> Float[Tensor, "n 3 s s"]:
    """Rotate by up to 10 degrees, scale by up to 10 %, shift by up to half a native pixel, add noise."""
    u = 2 * torch.rand(4, len(images), generator=generator) - 1
    angle, scale = 0.17 * u[0], 1 + 0.1 * u[1]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack((cos, -sin, u[2] / 8, sin, cos, u[3] / 8), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    noise = torch.randn(moved.shape, generator=generator)
    return (moved + 0.05 * noise).clamp(-1, 1)


def train_classifier(
    view: JudgeInput,
    versions: list[Tensor],
    labels: Int[Tensor, " n"],
    seed: int = 0,
    epochs: int = 60,
    classes: int = 10,
) -> tuple[Classifier, list[float]]:
    """Train on augmented images -> (classifier in eval mode, mean loss per epoch).

    The loss is the cross-entropy, plus the squared error of a thumbnail predicted linearly from the features, if the
    judge has one.
    versions: the same images, (n, 3, s, s), at one or more sizes s; each batch takes one of them at random.
    """
    generator = torch.Generator().manual_seed(seed)
    model = seeded(seed, Classifier, view, classes)
    thumbnail = seeded(seed, nn.Linear, FEATURES, 3 * view.thumbnail**2) if view.thumbnail else None
    trained = [*model.parameters(), *(thumbnail.parameters() if thumbnail else ())]
    optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses = []
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator).split(64)
        total = torch.zeros(())
        for rows in order:
            images = versions[int(torch.randint(len(versions), (), generator=generator))][rows]
            shown = augment(images, generator)
            features = model.features(shown)
            loss = F.cross_entropy(model.classify(features), labels[rows], label_smoothing=0.05)
            if thumbnail:
                small = F.interpolate(shown, (view.thumbnail, view.thumbnail), mode="area").flatten(1)
                loss = loss + THUMBNAIL_WEIGHT * F.mse_loss(thumbnail(features), small)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() / len(order)
        schedule.step()
        losses.append(float(total))
    return model.eval(), losses


@torch.no_grad()
def accuracy(model: JudgeNetwork, images: Float[Tensor, "n 3 s s"], labels: Int[Tensor, " n"]) -> float:
    """Share of images classified correctly."""
    return float((model.classify(model.features(images)).argmax(dim=1) == labels).double().mean())


def main(data: str = "digits", out: Path = Path(__file__).parent, seed: int = 0, epochs: int = 60) -> None:
    """Train a data set's classifier on its training split; write weights and log.

    Args:
        data: digits, mnist or shapes.
        out: Output folder; by default the one that the library reads.
        seed: Seed of weights, order and augmentation.
        epochs: Passes over the training images.
    """
    from spherear.training.data.catalog import load_data

    one_of("data", data, JUDGE_INPUTS)
    view = JUDGE_INPUTS[data]
    train = [load_data(data, size) for size in view.shown]
    indices = torch.arange(min(LIMIT, len(train[0])))
    versions = [source.batch(indices)[0] for source in train]
    model, losses = train_classifier(view, versions, train[0].batch(indices)[1], seed, epochs)
    test = load_data(f"{data}:test", view.size)
    held_out = torch.arange(min(2000, len(test)))
    score = accuracy(model, *test.batch(held_out))
    log = (
        f"command: python -m spherear.evaluation.classifier --data {data} --seed {seed} --epochs {epochs}\n"
        f"torch {torch.__version__}, {len(indices)} training images\n"
        + "".join(f"epoch {i + 1}: loss {losses[i]:.4f}\n" for i in range(0, epochs, max(1, epochs // 8)))
        + f"held-out accuracy: {score:.4f} of {len(held_out)} images\n"
    )
    write_tensors(out / f"{data}_classifier.safetensors", model.state_dict(), {"seed": str(seed)})
    write_text(out / f"{data}_classifier.log", log)
    print(log, end="")


if __name__ == "__main__":
    import tyro

    sys.exit(tyro.cli(main))
