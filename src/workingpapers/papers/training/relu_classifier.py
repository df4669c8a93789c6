"""ReLU as classification function: class scores are rectified, and the largest of them is the answer.

    f(o) = max(0, o),   o = h W + b,   class = argmax f(o)

It is compared with softmax by training the same networks with either.  Of rectified scores three losses are
usual: their shares as probabilities (what the authors' Keras code does), softmax of them, and squared error.

Paper: "Deep Learning using Rectified Linear Units (ReLU)" (2018), Section 2; networks, loss and folds follow the
authors' code, except that each fold trains a fresh network.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_least, between
from workingpapers.surgery import replace_modules
from workingpapers.tasks import Budget, fit, initialise, mlp

EPS = 1e-7
LOSSES = ("nll", "ce", "square")
HEADS = ("softmax", "relu")
TIES = ("raw", "first")


def _example(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    targets = torch.randint(5, (12,), generator=generator)
    return 2 * torch.randn(12, 5, generator=generator), targets, F.one_hot(targets, 5).float()


@paper(
    "relu_classifier",
    trains="loss",
    example=_example,
    variants=[{"loss": "ce"}, {"loss": "square"}, {"loss": "ce", "negative_slope": 0.01}],
)
class ReLULoss:
    """The loss of rectified class scores: (outputs (N, C), labels (N,)) -> their mean loss.

    Args:
        loss: "nll", -log(f_y / sum f + 1e-7), as in the authors' code; "ce", cross-entropy with f as logits;
            "square", the squared distance of f from the one-hot label.
        negative_slope: slope of the scores below 0, for comparison; "nll" takes only 0.

    The outputs are the scores o, or f(o): rectifying twice changes nothing.  With "nll" a sample whose true
    class has a score of 0 or less has no gradient at all.
    """

    def __init__(self, loss: str = "nll", negative_slope: float = 0.0) -> None:
        if loss not in LOSSES:
            raise unknown("loss of rectified scores", loss, LOSSES)
        if loss == "nll" and negative_slope:
            raise WorkingPapersError('the loss "nll" takes scores of at least 0; give loss="ce" with a slope')
        self.loss, self.negative_slope = loss, negative_slope

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss."""
        f = F.leaky_relu(outputs, self.negative_slope)
        if self.loss == "ce":
            return F.cross_entropy(f, labels)
        if self.loss == "square":
            return (f - F.one_hot(labels, f.shape[1])).square().sum(1).mean()
        share = f / f.sum(1, keepdim=True).clamp(min=EPS)  # all zeros stay zeros
        return -torch.log(share.gather(1, labels[:, None]) + EPS).mean()


@paper("relu_classifier", part="head", kind="layer", replaces="Linear")
class ReLUHead(nn.Linear):
    """A linear layer whose outputs are rectified class scores, (..., in_features) -> (..., out_features).

    Args:
        in_features, out_features, bias: as of nn.Linear; the outputs are one for each class.
        negative_slope: slope below 0; 0 in the paper.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, negative_slope: float = 0.0
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.negative_slope = negative_slope

    def forward(self, input: Tensor) -> Tensor:
        """Return f(o)."""
        return F.leaky_relu(super().forward(input), self.negative_slope)

    def predict(self, input: Tensor, tie: str = "raw") -> Tensor:
        """Return the predicted classes of the features `input`; see `predict` of this module."""
        return predict(super().forward(input), tie)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, negative_slope={self.negative_slope}"


def predict(scores: Tensor, tie: str = "raw") -> Tensor:
    """Return argmax f(o) of raw scores o (..., C).

    Where all of f(o) are 0, `tie` "raw" takes the largest o and "first" the first class.
    """
    if tie not in TIES:
        raise unknown("way to break ties", tie, TIES)
    return (scores if tie == "raw" else scores.relu()).argmax(-1)


def _small(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    model = mlp([6, 8, 4], dropout=0.1)
    return model, torch.randn(5, 6, generator=generator)


@paper("relu_classifier", part="swap_head", kind="transform", example=_small)
def swap_head(model: nn.Module, name: str | None = None) -> nn.Module:
    """Return a copy of a classifier whose last linear layer, or the one called `name`, is a `ReLUHead`.

    The weights stay.  Raises a WorkingPapersError where there is no such layer.
    """
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linear or (name is not None and name not in linear):
        raise WorkingPapersError(
            f"the head of {type(model).__name__} is to be a linear layer; its linear layers are {linear}, "
            f"and {'one' if name is None else repr(name)} was asked for"
        )

    def build(old: nn.Module) -> nn.Module:
        assert isinstance(old, nn.Linear)
        head = ReLUHead(old.in_features, old.out_features, old.bias is not None)
        head.weight, head.bias = old.weight, old.bias
        return head

    return replace_modules(model, [name or linear[-1]], build)


@dataclass(frozen=True)
class Outcome:
    """What training a classifier came to.

    Attributes:
        accuracy, f1: on the test part; F1 is the mean over classes.
        confusion: counts (classes, classes), true by predicted.
        best_epoch: the first epoch with the best test accuracy, from 1.
        dead: in each epoch, the share of training samples whose true class had a score of 0 or less.
    """

    accuracy: float
    f1: float
    confusion: "np.ndarray[Any, Any]"
    best_epoch: int
    dead: list[float]


def train(
    build: Callable[[], nn.Module],
    split: Split,
    head: str = "relu",
    *,
    loss: str = "nll",
    negative_slope: float = 0.0,
    epochs: int = 10,
    batch: int = 256,
    seed: int = 0,
) -> Outcome:
    """Train a classifier that gives raw scores by Adam (1e-3) with either classification function.

    Args:
        build: makes the model; its outputs are the scores o (N, C), without an activation.
        split: the data; measured is its test part, ties broken by the raw scores.
        head: "softmax" (cross-entropy of o) or "relu" (`ReLULoss`, with `loss` and `negative_slope`).
        epochs, batch, seed: as of `tasks.fit`.
    """
    if head not in HEADS:
        raise unknown("classification function", head, HEADS)
    criterion = F.cross_entropy if head == "softmax" else ReLULoss(loss, negative_slope)
    steps: list[float] = []

    def counting(outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.requires_grad:  # in training, not in measuring
            steps.append(float((outputs.detach().gather(1, labels[:, None]) <= 0).float().mean()))
        return criterion(outputs, labels)

    model = initialise(build, seed)
    done = fit(model, split, epochs=epochs, batch=batch, seed=seed, loss=counting)
    accuracies = [point["accuracy"] for point in done.curve]
    with torch.no_grad():
        found = torch.cat([predict(model(x)) for x in split.x_test.split(500)])
    known = split.y_test.numpy()
    return Outcome(
        float((found == split.y_test).double().mean()),
        float(f1_score(known, found.numpy(), average="macro", zero_division=0.0)),
        confusion_matrix(known, found.numpy(), labels=range(split.num_classes)),
        1 + int(np.nanargmax(accuracies)) if not done.diverged else 0,
        [float(np.mean(part)) for part in np.array_split(steps, len(accuracies))],
    )


def cross_validate(
    build: Callable[[], nn.Module], split: Split, head: str = "relu", *, folds: int = 10, **options: Any
) -> list[Outcome]:
    """Return the outcome on each of some stratified folds of the training part; options as of `train`."""
    seed = options.get("seed", 0)
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(split.x_train, split.y_train)
    outcomes = []
    for inside, outside in parts:
        x, y = split.x_train, split.y_train
        fold = replace(split, x_train=x[inside], y_train=y[inside], x_test=x[outside], y_test=y[outside])
        outcomes.append(train(build, fold, head, **options))
    return outcomes


def ffn(features: int = 784, classes: int = 10, hidden: int = 512, dropout: float = 0.2) -> nn.Module:
    """Build the feed-forward network: two hidden layers, each with ReLU and dropout."""
    return mlp([features, hidden, hidden, classes], dropout=dropout).apply(_start_as_keras)


def vgg_like(channels: int = 1, size: int = 28, classes: int = 10) -> nn.Module:
    """Build the convolutional network of the authors' code, (B, channels, size, size) -> (B, classes)."""
    side = ((size - 4) // 2 - 4) // 2
    if side < 1:
        raise WorkingPapersError(f"the network takes images of at least 16x16; got {size}x{size}")
    layers: list[nn.Module] = []
    for width_in, width in ((channels, 32), (32, 64)):
        layers += [nn.Conv2d(width_in, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU()]
        layers += [nn.MaxPool2d(2), nn.Dropout(0.25)]
    layers += [nn.Flatten(), nn.Linear(64 * side * side, 256), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(256, classes)).apply(_start_as_keras)


def _start_as_keras(module: nn.Module) -> None:
    """Draw weights by Glorot's uniform law and set biases to 0: how many classes start dead depends on it."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@claim(
    "relu_classifier",
    "ReLU can serve as the classification function in place of softmax, with accuracy close to it but slower "
    "convergence on CNNs.",
    figure="MNIST feed-forward about 97.8 vs 98.0 (recalled)",
    seeds=5,
    holds=all_of(
        between(-0.01, 0.06, of="ffn_softmax_over_relu"),
        at_least(-0.005, of="cnn_softmax_over_relu"),
        at_least(0.90, of="ffn_relu"),
    ),
)
def near_softmax(budget: Budget, seed: int) -> Evidence:
    """Accuracy on MNIST with softmax and with ReLU, loss "nll": feed-forward network, and a convolutional one.

    `ffn_relu_ce` is that of ReLU with the loss "ce", for information.
    """
    found: dict[str, float] = {}
    epochs, batch = budget.pick(quick=(4, 64), full=(20, 256))  # few images make few steps
    for name, build, size in (("ffn", ffn, 5000), ("cnn", vgg_like, 800)):
        train_size, test_size = budget.pick(quick=(size, 1000), full=(60000, 10000))
        split = images("mnist", train=train_size, test=test_size, seed=seed)
        run = partial(train, build, split, epochs=epochs, batch=batch, seed=seed)
        found |= {f"{name}_{head}": run(head).accuracy for head in HEADS}
        if name == "ffn":
            found["ffn_relu_ce"] = run("relu", loss="ce").accuracy
    over = {f"{n}_softmax_over_relu": found[f"{n}_softmax"] - found[f"{n}_relu"] for n in ("ffn", "cnn")}
    return Evidence(**over, **found)


@claim(
    "relu_classifier",
    "The deficit comes from class units that stop responding and so get no gradient.",
    seeds=5,
    holds=all_of(at_least(0.01, of="dead"), at_least(0.0, of="leaky_over_relu")),
)
def dead_classes(budget: Budget, seed: int) -> Evidence:
    """Share of MNIST training samples whose true class has a score of 0 or less in the first epoch.

    And the accuracy that a slope of 0.01 below 0 brings; both by cross-entropy of the scores, as "nll" has no
    form with a slope.
    """
    size = budget.pick(quick=5000, full=60000)
    split = images("mnist", train=size, test=budget.pick(quick=5000, full=10000), seed=seed)
    run = partial(train, ffn, split, loss="ce", epochs=budget.pick(quick=4, full=20), batch=64, seed=seed)
    relu, leaky = run(), run(negative_slope=0.01)
    return Evidence(
        dead=relu.dead[0],
        leaky_over_relu=leaky.accuracy - relu.accuracy,
        dead_at_end=relu.dead[-1],
        relu=relu.accuracy,
    )
