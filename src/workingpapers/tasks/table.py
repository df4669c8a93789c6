"""The tasks by name: what each measures, what may be varied, and how to run it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workingpapers.data.tables import BUNDLED, UCI
from workingpapers.errors import unknown
from workingpapers.tasks import setups
from workingpapers.tasks.budget import Budget
from workingpapers.tasks.randomness import initialise
from workingpapers.tasks.training import Point, Training, points


@dataclass(frozen=True)
class Task:
    """A small real task: a data set, a model with variables, and the metric that counts.

    metric: name of the number in each point that decides; goal: "max" or "min".  variables: what may be
    varied, with defaults; None stands for what the budget says.
    """

    name: str
    summary: str
    data: str
    metric: str
    goal: str
    variables: Mapping[str, Any]
    setup: Callable[[str, Budget, int, Mapping[str, Any]], setups.Setup]

    def run(
        self, budget: Budget, seed: int = 0, device: str | torch.device = "cpu", **variables: Any
    ) -> Iterator[Point]:
        """Train once and give the points of the learning curve, of which the last is the result.

        A point is {"step", "loss", the metric, ..., "train_loss"}.
        Runs with the same seed share the data, its order, and the initial weights as far as shapes allow.
        A diverged run ends with a point of NaN.  Unknown variables raise with the nearest names.
        """
        for name in variables:
            if name not in self.variables:
                raise unknown(f"variable of the task {self.name!r}", name, self.variables)
        values = {**self.variables, **variables}
        setup = self.setup(self.data, budget, seed, values)
        how = Training(
            epochs=setup.epochs,
            steps=setup.steps,
            seed=seed,
            device=device,
            **{name: values[name] for name in ("lr", "optimizer", "batch", "schedule", "weight_decay")},
        )
        return points(initialise(setup.build, seed), setup.problem, how)


def _training(lr: float = 1e-3, batch: int = 64, weight_decay: float = 0.0) -> dict[str, Any]:
    """Return the variables of training, which every task has."""
    return {
        "lr": lr,
        "optimizer": "adam",
        "batch": batch,
        "schedule": "cosine",
        "weight_decay": weight_decay,
    }


_MLP = {"activation": nn.ReLU, "norm": None, "dropout": 0.0}


def _image_tasks() -> Iterator[Task]:
    for name in ("digits", "mnist", "fashion_mnist"):
        yield Task(
            f"{name}-mlp",
            f"classify {name} images with a perceptron",
            *(name, "accuracy", "max"),
            {**_MLP, "width": None, "depth": 2, "epochs": None, **_training()},
            setups.image_mlp,
        )
    for name in ("digits", "mnist", "fashion_mnist", "cifar10"):
        yield Task(
            f"{name}-cnn",
            f"classify {name} images with a plain convolutional network",
            *(name, "accuracy", "max"),
            {
                "activation": nn.ReLU,
                "width": None,
                "depth": 3 if name == "cifar10" else 2,
                "epochs": None,
                **_training(2e-3),
            },
            setups.image_cnn,
        )
    yield Task(
        "cifar10-resnet",
        "classify cifar10 images with a residual network",
        *("cifar10", "accuracy", "max"),
        {
            "activation": nn.ReLU,
            "norm": True,
            "width": None,
            "depth": None,
            "epochs": None,
            **_training(3e-3),
        },
        setups.image_resnet,
    )


def _table_tasks() -> Iterator[Task]:
    for name in UCI + BUNDLED:
        classes = name in ("breast_cancer", "wine", "iris")
        yield Task(
            f"{name}-mlp",
            f"{'classify' if classes else 'predict'} {name} rows with a perceptron; the seed picks the split too",
            *(name, *(("accuracy", "max") if classes else ("rmse", "min"))),
            {**_MLP, "width": 50, "depth": 2, "split": None, "steps": None, **_training(3e-3)},
            setups.table_mlp,
        )
    yield Task(
        "sine-mlp",
        "fit a sine wave on [-1, 1] with a perceptron",
        *("sine", "rmse", "min"),
        {
            "activation": nn.Tanh,
            "width": 50,
            "depth": 2,
            "frequency": 2.0,
            "steps": None,
            **_training(1e-2),
        },
        setups.sine_mlp,
    )


def _sequence_tasks() -> Iterator[Task]:
    for name, unit, metric in (("tinyshakespeare", "character", "loss"), ("wikitext2", "word", "perplexity")):
        yield Task(
            f"{name}-gpt",
            f"predict the next {unit} of {name} with a small GPT",
            *(name, metric, "min"),
            {
                "activation": nn.GELU,
                "mixer": None,
                "width": None,
                "depth": None,
                "heads": 4,
                "context": None,
                "steps": None,
                **_training(2e-3, batch=16),
                "schedule": "warmup_cosine",
            },
            setups.language_gpt,
        )
    yield Task(
        "etth1-mlp",
        "forecast an electricity transformer's load and temperature with a perceptron",
        *("etth1", "mse", "min"),
        {
            "activation": nn.ReLU,
            "width": 128,
            "depth": 1,
            "length": None,
            "horizon": None,
            "steps": None,
            **_training(),
        },
        setups.series_mlp,
    )


def _graph_tasks() -> Iterator[Task]:
    for name in ("cora", "citeseer"):
        yield Task(
            f"{name}-gcn",
            f"classify {name} papers with a graph convolutional network",
            *(name, "accuracy", "max"),
            {
                "activation": nn.ReLU,
                "width": 16,
                "depth": 2,
                "dropout": 0.5,
                "steps": None,
                **_training(1e-2, weight_decay=5e-4),
                "schedule": "constant",
            },
            setups.graph_gcn,
        )


TASKS: dict[str, Task] = {
    task.name: task
    for tasks in (_image_tasks(), _table_tasks(), _sequence_tasks(), _graph_tasks())
    for task in tasks
}


def task(name: str) -> Task:
    """Return the task called `name`, such as "digits-mlp", or raise with the nearest names."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]
