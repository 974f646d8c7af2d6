"""Judges of any data set: those that ship, trained on the data, modules of one's own, or networks of torchvision.

A judge gives features of images, and from them guesses the class. It never sees the images it compares with.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spherear.console import import_library, say
from spherear.evaluation.classifier import LIMIT, Classifier, JudgeNetwork, accuracy, train_classifier
from spherear.evaluation.judge import features_of
from spherear.evaluation.judge_inputs import JUDGE_INPUTS, JUDGES, JudgeInput, judge_input_for
from spherear.models.config import one_of, require
from spherear.models.files import read_json, user_path, write_json
from spherear.models.pretrained import load_weights
from spherear.models.tensor_files import read_tensors, write_tensors
from spherear.training.data.catalog import held_out_spec, load_data
from spherear.training.data.dataset import ImageData

AUTO, TORCHVISION = "auto", "torchvision:"
FACTS, WEIGHTS = "judge.json", "judge.safetensors"
EPOCHS, PROBE_STEPS = 60, 100
TESTED = 2000  # held-out images at most
NATIVE = 224  # pixels for networks of torchvision
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which they were trained on


@dataclass(frozen=True)
class Judge:
    """network: see `JudgeNetwork`.  title: what it is, with its accuracy on held-out images if that is known."""

    network: JudgeNetwork
    title: str
    facts: dict[str, Any] = field(default_factory=dict)


def find_judge(judge: str, data: str, image_size: int, folder: Path | None = None, seed: int = 0) -> Judge:
    """The judge that `judge` names, for the images of `data` at `image_size` pixels.

    A row of JUDGES; the folder of a trained one; torchvision:NAME, with a linear layer fitted to the data; auto: the
    one that ships for these data if it can see images so small, or one trained on them, kept in `folder` and read from
    there the next time.
    ValueError for an unknown name, for the judge of other classes or data, and for data without a held-out part.
    """
    name = data.partition(":")[0]
    if judge == AUTO and name in JUDGE_INPUTS and JUDGE_INPUTS[name].native <= image_size:
        judge = name
    if judge == AUTO:
        if folder is not None and (folder / FACTS).is_file():
            return read_judge(folder, data)
        return train_judge(data, image_size, folder, seed)
    if judge.startswith(TORCHVISION):
        return _probed(judge, data, image_size, seed)
    if (user_path(judge) / FACTS).is_file():
        return read_judge(user_path(judge), data)
    one_of("judge", judge, JUDGES)
    classes = load_data(data, image_size).num_classes
    network = JUDGES[judge](classes, image_size)
    if not all(callable(getattr(network, name, None)) for name in ("features", "classify")):
        raise TypeError(f"the judge {judge!r} is a {type(network).__name__}; expected `features` and `classify`")
    if isinstance(network, Classifier):
        known = network.classify.out_features
        require(known == classes, f"the judge of {judge} knows {known} classes; expected {classes}, as {data}")
    return Judge(network, f"the {judge} judge")


def train_judge(data: str, image_size: int, folder: Path | None = None, seed: int = 0, epochs: int = EPOCHS) -> Judge:
    """Train a small classifier on a data set; with `folder`, its weights and `judge.json` are written there.

    `judge.json` holds the accuracy on held-out images. ValueError for data without a held-out part or with one class.
    """
    require(epochs >= 1, f"epochs is {epochs}; expected at least 1")
    train, test = _parts(data, image_size)
    require(train.num_classes > 1, f"{data} has one class; expected more, for a judge to tell apart")
    rows = torch.arange(min(LIMIT, len(train)))
    images, labels = train.batch(rows)
    view = judge_input_for(image_size, grey=bool((images.amax(1) - images.amin(1)).max() < 0.05))
    say(f"training a judge on {len(rows)} images of {data}, {epochs} epochs")
    network, _ = train_classifier(view, [images], labels, seed, epochs, train.num_classes)
    held_out = torch.arange(min(TESTED, len(test)))
    facts = {
        "data": data, "classes": list(train.classes), "image_size": image_size, "view": asdict(view), "seed": seed,
        "epochs": epochs, "images": len(rows), "held_out": len(held_out),
        "accuracy": accuracy(network, *test.batch(held_out)),
    }  # fmt: skip
    if folder is not None:
        write_tensors(folder / WEIGHTS, network.state_dict(), {"data": data})
        write_json(folder / FACTS, facts)
    judge = Judge(network, _title(facts), facts)
    say(judge.title)
    return judge


def read_judge(folder: Path, data: str) -> Judge:
    """A judge that `train_judge` wrote. ValueError if it is damaged, or was trained on other data."""
    facts = read_json(folder / FACTS)
    require(facts.get("data") == data, f"the judge of {folder} was trained on {facts.get('data')!r}; expected {data!r}")
    try:
        view, classes = JudgeInput(**{**facts["view"], "shown": tuple(facts["view"]["shown"])}), len(facts["classes"])
        title = _title(facts)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / FACTS} lacks or changes {error}; expected what the training wrote") from error
    network = Classifier(view, classes)
    weights, _ = read_tensors(folder / WEIGHTS)
    load_weights(network, weights, str(folder / WEIGHTS))
    return Judge(network.eval(), title, facts)


def _title(facts: dict[str, Any]) -> str:
    return (
        f"a judge trained on {facts['data']}, which recognises {facts['accuracy']:.0%} of {facts['held_out']} "
        "held-out images"
    )


def _parts(data: str, image_size: int) -> tuple[ImageData, ImageData]:
    """The training part of a data set, and the held-out one. ValueError if there is none."""
    test = held_out_spec(data)
    require(
        bool(test),
        f"{data} has no held-out part to judge with; expected folder:PATH#train or tar:PATH#train, which leave every "
        "fifth picture out, or data with a split `test`",
    )
    return load_data(data, image_size), load_data(test, image_size)


class Probe(nn.Module):
    """A network of torchvision without its last layer, and a linear layer from its features to the classes."""

    def __init__(self, body: nn.Module, classify: nn.Linear) -> None:
        super().__init__()
        self.body, self.classify = body, classify
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)

    def features(self, images: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n f"]:
        """Input of the last layer, of images in [-1, 1]."""
        large = F.interpolate(images.float(), (NATIVE, NATIVE), mode="bilinear", align_corners=False, antialias=True)
        return self.body(((large + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("deviation")).flatten(1)

    def forward(self, images: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n classes"]:
        return self.classify(self.features(images))


def _probed(judge: str, data: str, image_size: int, seed: int) -> Judge:
    """torchvision:NAME with pretrained weights, and a last layer fitted to the training images."""
    models = import_library("torchvision", "eval", f"the judge {judge!r} needs it").models
    name = judge.removeprefix(TORCHVISION)
    one_of("network of torchvision", name, models.list_models())
    body = _headless(models.get_model(name, weights="DEFAULT").eval().requires_grad_(False))
    train, test = _parts(data, image_size)
    images, labels = train.batch(torch.arange(min(LIMIT, len(train))))
    probe = Probe(body, nn.Linear(1, 1))
    features = features_of(images, probe)
    probe.classify = fit_linear(features, labels, train.num_classes, seed)
    share = accuracy(probe, *test.batch(torch.arange(min(TESTED, len(test)))))
    facts = {"data": data, "network": name, "accuracy": share}
    found = Judge(probe.eval(), f"{name} of torchvision with a layer fitted to {data}, {share:.0%} held out", facts)
    say(found.title)
    return found


def _headless(network: nn.Module) -> nn.Module:
    """The network with its last linear layer replaced by the identity. ValueError without one."""
    linear = [path for path, part in network.named_modules() if isinstance(part, nn.Linear)]
    require(bool(linear), f"{type(network).__name__} has no linear layer; expected a classifier")
    network.set_submodule(linear[-1], nn.Identity())
    return network


def fit_linear(features: Float[Tensor, "n f"], labels: Int[Tensor, " n"], classes: int, seed: int) -> nn.Linear:
    """Multinomial logistic regression on standardised features, as one linear layer of the features themselves."""
    mean, deviation = features.mean(0), features.std(0).clamp(min=1e-6)
    layer = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=PROBE_STEPS, line_search_fn="strong_wolfe")
    inputs = (features - mean) / deviation

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(inputs), labels) + 1e-3 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        layer.weight.div_(deviation)
        layer.bias.sub_(layer.weight @ mean)
    return layer
