"""Ten confusions about sparse networks, each an experiment that returns a table."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from workingpapers.data import Split
from workingpapers.engines.masks import apply_masks, density, masks_of, shuffled
from workingpapers.errors import unknown
from workingpapers.papers.sparsity import _trainers, _transforms
from workingpapers.tasks import fit, initialise, mlp

Table = dict[str, float]
HIDDEN = (300, 100)
TRAINERS: dict[str, type[_trainers.SparseFit]] = {
    "static": _trainers.Static,
    "gradual": _trainers.Gradual,
    "set": _trainers.SET,
    "rigl": _trainers.RigL,
    "two_four_trained": _trainers.TwoFour,
}
AT_START = ("snip", "grasp", "synflow")


def network(split: Split, seed: int, hidden: tuple[int, ...] = HIDDEN) -> nn.Module:
    """Return the perceptron that the experiments train, 784-300-100-10 on Fashion-MNIST."""
    return initialise(lambda: mlp([split.x_train[0].numel(), *hidden, split.num_classes]), seed)


def start_masks(name: str, model: nn.Module, split: Split, share: float, seed: int) -> dict[str, Tensor]:
    """Return the masks that "snip", "grasp" or "synflow" chooses before training, from 512 examples."""
    chosen = torch.randperm(len(split.x_train), generator=torch.Generator().manual_seed(seed))[:512]
    x, y = split.x_train[chosen], split.y_train[chosen]
    if name == "synflow":
        return masks_of(_transforms.synflow(model, x, share))
    return masks_of({"snip": _transforms.snip, "grasp": _transforms.grasp}[name](model, x, y, share))


def ticket(model: nn.Module, split: Split, share: float, steps: int, seed: int, rounds: int = 3) -> nn.Module:
    """Return the lottery ticket of iterative magnitude pruning, rewound to a tenth of the steps."""
    return _transforms.imp(
        model,
        lambda m: fit(m, split, steps=steps, every=steps, seed=seed),
        share,
        rounds,
        lambda m: fit(m, split, steps=max(1, steps // 10), every=steps, seed=seed + 1),
    )


def accuracy(method: str, split: Split, share: float, steps: int, seed: int) -> float:
    """Return the test accuracy of a method after `steps` gradient steps at the density `share`.

    "dense" trains all weights; "magnitude" trains three quarters dense and fine-tunes the rest; "imp" takes its
    steps again in every round.
    """
    model = network(split, seed)
    if method in TRAINERS:
        trainer = TRAINERS[method](density=share, total=steps, seed=seed)
        trainer.fit(model, split.x_train, split.y_train, steps=steps)
        return evaluate(model, split)
    if method in AT_START:
        apply_masks(model, start_masks(method, model, split, share, seed))
    elif method == "magnitude":
        fit(model, split, steps=(3 * steps) // 4, every=steps, seed=seed)
        model, steps = _transforms.magnitude(model, share), steps - (3 * steps) // 4
    elif method == "imp":
        model = ticket(model, split, share, steps, seed)
    elif method != "dense":
        raise unknown("method", method, [*TRAINERS, *AT_START, "magnitude", "imp", "dense"])
    return fit(model, split, steps=steps, every=steps, seed=seed).metrics["accuracy"]


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> float:
    """Return the test accuracy."""
    model.eval()
    return float((model(split.x_test).argmax(1) == split.y_test).float().mean())


def retrained(masks: dict[str, Tensor], model: nn.Module, split: Split, steps: int, seed: int) -> float:
    """Return the accuracy after training `model`, in place, under masks."""
    return fit(apply_masks(model, masks), split, steps=steps, every=steps, seed=seed).metrics["accuracy"]


def _compare(*methods: str) -> Callable[[Split, float, int, int], Table]:
    return lambda split, share, steps, seed: {m: accuracy(m, split, share, steps, seed) for m in methods}


def _equal_parameters(split: Split, share: float, steps: int, seed: int) -> Table:
    inputs, hidden = split.x_train[0].numel(), HIDDEN
    wanted = share * (inputs * hidden[0] + hidden[0] * hidden[1] + hidden[1] * split.num_classes)
    width = max(1, round(wanted / (inputs + split.num_classes)))
    small = network(split, seed, (width,))
    found = fit(small, split, steps=steps, every=steps, seed=seed).metrics["accuracy"]
    return {"small dense": found, "large sparse": accuracy("static", split, share, steps, seed)}


def _structure(split: Split, share: float, steps: int, seed: int) -> Table:
    """At density 1/2, which is that of 2:4."""
    return {
        "unstructured": accuracy("gradual", split, 0.5, steps, seed),
        "2:4": accuracy("two_four_trained", split, 0.5, steps, seed),
    }


def _collapse(split: Split, share: float, steps: int, seed: int) -> Table:
    """Return the density of each method's sparsest layer: 0 is a collapse, which cuts the network."""
    model = network(split, seed)
    masks = {name: start_masks(name, model, split, share, seed) for name in AT_START}
    masks["magnitude"] = masks_of(_transforms.magnitude(model, share))
    return {name: min(float(m.double().mean()) for m in found.values()) for name, found in masks.items()}


def _sanity(split: Split, share: float, steps: int, seed: int) -> Table:
    masks = start_masks("snip", network(split, seed), split, share, seed)
    mixed = shuffled(masks, torch.Generator().manual_seed(seed))
    return {
        "masks": retrained(masks, network(split, seed), split, steps, seed),
        "shuffled": retrained(mixed, network(split, seed), split, steps, seed),
        "weights anew": retrained(masks, network(split, seed + 1), split, steps, seed),
    }


def _speed(split: Split, share: float, steps: int, seed: int) -> Table:
    """Return multiplications and seconds of the masked network over those of the dense one, forward."""
    dense = network(split, seed)
    sparse = _transforms.magnitude(dense, share)

    def seconds(model: nn.Module) -> float:
        taken = []
        with torch.no_grad():
            for _ in range(20):
                start = time.perf_counter()
                model(split.x_test[:500])
                taken.append(time.perf_counter() - start)
        return sorted(taken)[10]

    return {"FLOPs": density(sparse), "wall time": seconds(sparse) / seconds(dense)}


def _transfer(split: Split, share: float, steps: int, seed: int) -> Table:
    """Return accuracies with SNIP's masks for the task itself, and for the same images with unrelated labels."""
    generator = torch.Generator().manual_seed(seed)
    other = Split(
        split.x_train,
        split.y_train[torch.randperm(len(split.y_train), generator=generator)],
        split.x_test,
        split.y_test,
        split.num_classes,
        "other labels",
    )
    return {
        name: retrained(
            start_masks("snip", network(split, seed), source, share, seed),
            network(split, seed),
            split,
            steps,
            seed,
        )
        for name, source in (("own", split), ("transferred", other))
    }


QUESTIONS: dict[str, Callable[[Split, float, int, int], Table]] = {
    "dense or sparse at equal parameters": _equal_parameters,
    "unstructured or structured": _structure,
    "pruning or sparse training": _compare("gradual", "rigl"),
    "dense-to-sparse or sparse-to-sparse": _compare("gradual", "imp", "set", "rigl"),
    "static or dynamic": _compare("static", "set", "rigl"),
    "before or after training": _compare(*AT_START, "magnitude"),
    "layer collapse": _collapse,
    "sanity checks": _sanity,
    "FLOPs or wall time": _speed,
    "transfer": _transfer,
}
