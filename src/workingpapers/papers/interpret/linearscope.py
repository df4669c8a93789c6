"""LinearScope: the affine map that a network is for one input, replayed forwards and backwards.

    y = A(x) x + r(x),     row_c = A^T e_c (pixel-wise votes for an output),     column_p = A e_p (impulse response)

The model runs once and its nonlinear decisions are noted: gains of activations, choices of pooling, gates,
statistics of normalisation.  With these held fast it is affine, and A works as an operator on whole images
(`_frozen.py`).

Paper: "A Tour of Convolutional Networks Guided by Linear Interpreters" (2019), arXiv 1908.05168, Sections 2-5.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, any_of, at_least, at_most
from workingpapers.experiments.evidence import Finding
from workingpapers.papers.interpret._linear_system import LinearInterpreter, linear_interpreter
from workingpapers.papers.interpret._rcan_mini import halved, photograph, trained_rcan
from workingpapers.tasks import Budget, fit, initialise


def adjoint_error(system: LinearInterpreter, pairs: int = 20, seed: int = 0) -> float:
    """Return the largest |<A v, u> - <v, A^T u>| / (|A v| |u|) over random pairs."""
    generator, worst = torch.Generator().manual_seed(seed), 0.0
    for _ in range(pairs):
        v, u = (torch.randn(t.shape, generator=generator).to(t) for t in (system.x, system.y))
        image, back = system.forward(v).double(), system.adjoint(u).double()
        gap = (image * u).sum() - (v * back).sum()
        worst = max(worst, float(gap.abs() / (image.norm() * u.norm()).clamp(min=1e-30)))
    return worst


def bias_dependence(model: nn.Module, x: Tensor, y: Tensor, batch: int = 100) -> dict[str, float]:
    """Return a classifier's accuracies on `x` (N, ...), `y` (N,): "both", from "A x" alone, and from "r" alone."""
    right = dict.fromkeys(("both", "linear", "bias"), 0)
    for piece, labels in zip(x.split(batch), y.split(batch), strict=True):
        system = linear_interpreter(model, piece)
        if system.y.ndim != 2:
            raise WorkingPapersError(f"a classifier gives (N, classes); this one {tuple(system.y.shape)}")
        for name, scores in (("both", system.y), ("linear", system.linear_part()), ("bias", system.r)):
            right[name] += int((scores.argmax(1) == labels).sum())
    return {name: count / len(x) for name, count in right.items()}


def anisotropy(pictures: Tensor) -> Tensor:
    """Return how elongated pictures (N, C, H, W) are: the ratio of the eigenvalues of the second moments of |p|.

    The moments are about the centre of mass; 1 is round.
    """
    mass = pictures.double().abs().sum(1)
    mass = mass / mass.sum((1, 2), keepdim=True).clamp(min=1e-300)
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in mass.shape[1:])
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).to(mass.device)
    apart = grid - torch.einsum("nhw,hwi->ni", mass, grid)[:, None, None]
    values = torch.linalg.eigvalsh(torch.einsum("nhw,nhwi,nhwj->nij", mass, apart, apart))
    ratio: Tensor = values[:, 1] / values[:, 0].clamp(min=1e-12)
    return ratio


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model, torch.randn(6, 2, 6, 6, generator=generator)


def _rescaled(model: Any, x: Tensor) -> tuple[Any, ...]:
    """Double a channel before its ReLU, and halve what reads it."""
    with torch.no_grad():
        model[1].weight[1] *= 2
        model[1].bias[1] *= 2
        model[5].weight[:, 9:18] /= 2
    return model, x


@paper(
    "linearscope",
    example=_example,
    invariances={
        "positive rescaling of units": _rescaled,
        "training mode": lambda model, x: (model.train(), x),
    },
)
def linearscope(model: nn.Module, x: Tensor, singular: int = 3, seed: int = 0) -> Finding:
    """Read a network as affine maps of its inputs: is the replay exact, what do biases decide, which images matter?

    Args:
        model: from images or vectors (N, ...) to outputs (N, ...): affine layers, activations, pooling, gates,
            normalisation, PixelShuffle, as modules or functions.
        x: inputs (N, ...), for which the network is run once each.
        singular: how many singular triplets of the first input's system.
        seed: decides the probes and the start of the search for singular vectors.

    The numbers: `replay_error`, the largest |A x + r - model(x)|; `adjoint_error`; `bias_share`, the length of r
    over that of A x and r added, for all outputs; the `singular_` values; for a classifier (N, classes)
    `same_without_bias` and `same_by_bias`, the shares of inputs that A x and r alone put into the network's class.
    `details` has the interpreter, the singular images, and for a classifier the votes for the class given and the
    bias by layer for the first input.
    """
    system = linear_interpreter(model, x)
    linear = system.linear_part()
    parts = float(linear.norm()), float(system.r.norm())
    numbers = {
        "replay_error": float((linear + system.r - system.y).abs().max()),
        "adjoint_error": adjoint_error(system, seed=seed),
        "bias_share": parts[1] / max(sum(parts), 1e-30),
    }
    one = linear_interpreter(model, x[:1])
    triplets = one.singular(min(singular, min(one.y.numel(), one.x.numel()) - 1), seed)
    numbers |= {f"singular_{i + 1}": float(s) for i, s in enumerate(triplets[1])}
    details: dict[str, Any] = {"interpreter": system, "singular": triplets}
    reading = f"Biases and other constants carry {numbers['bias_share']:.0%} of the outputs"
    pictures = {f"singular image {i + 1}": v for i, v in enumerate(triplets[2])}
    if system.y.ndim == 2:
        guess = system.y.argmax(1)
        numbers["same_without_bias"] = float((linear.argmax(1) == guess).double().mean())
        numbers["same_by_bias"] = float((system.r.argmax(1) == guess).double().mean())
        details["votes"] = system.adjoint(F.one_hot(guess, system.y.shape[1]).to(system.y)) * x
        details["bias_by_layer"] = {n: float(v[0]) for n, v in one.contributions(int(guess[0])).items()}
        pictures = {"votes": details["votes"][0], **pictures}
        reading += f", and without them {numbers['same_without_bias']:.0%} of the inputs keep their class"
    return Finding(numbers, reading + ".", lambda: draw({"input": x[0], **pictures}), details)


def draw(pictures: dict[str, Tensor]) -> Any:
    """Draw images (C, H, W), averaged over channels, or vectors, side by side."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(pictures), figsize=(2.5 * len(pictures), 2.5), squeeze=False, layout="constrained"
    )
    for axis, (name, picture) in zip(axes[0], pictures.items(), strict=True):
        values = picture.detach().cpu().float()
        values = values.mean(0) if values.ndim == 3 else values.reshape(1, -1)
        size = float(values.abs().max()) or 1.0
        axis.imshow(
            values.numpy(),
            vmin=-size,
            vmax=size,
            cmap="RdBu_r",
            aspect="equal" if len(values) > 1 else "auto",
        )
        axis.set(title=name, xticks=[], yticks=[])
    return figure


def _classifier(budget: Budget, seed: int) -> tuple[nn.Module, Split]:
    """Return a CNN of four convolutions with BatchNorm and max-pooling after an epoch on Fashion-MNIST."""
    train = budget.pick(quick=6000, full=60_000)
    split = images("fashion_mnist", train=train, test=1000, seed=seed)

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for i, (before, width) in enumerate(((1, 12), (12, 24), (24, 24), (24, 32))):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if i < 3 else []
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 9, 10))

    model = initialise(build, seed)
    fit(model, split, epochs=1, seed=seed)
    return model, split


@claim(
    "linearscope",
    "A hooking layer replays the network as a linear system for the given input, so that class scores read as "
    "pixel-wise votes plus bias.",
    seeds=3,
    holds=all_of(at_most(1e-4, of="replay_error", by="every"), at_most(1e-5, of="adjoint_error", by="every")),
)
def exact_replay(budget: Budget, seed: int) -> Evidence:
    """A CNN on 100 images of Fashion-MNIST and a small RCAN on 100 patches of the camera, the worse of the two."""
    model, split = _classifier(budget, seed)
    places = torch.Generator().manual_seed(seed)
    crops = _crops(halved(photograph("camera")), torch.randint(16, 240, (100, 2), generator=places))
    rcan = trained_rcan(budget.pick(quick=300, full=20_000), seed).model
    systems = [linear_interpreter(model, split.x_test[:100]), linear_interpreter(rcan, crops)]
    scores = systems[0].votes(3).flatten(1).sum(1) + systems[0].r[:, 3]
    gaps = [float((s.linear_part() + s.r - s.y).abs().max()) for s in systems]
    gaps.append(float((scores - systems[0].y[:, 3]).abs().max()))
    return Evidence(replay_error=max(gaps), adjoint_error=max(adjoint_error(s, 20, seed) for s in systems))


@claim(
    "linearscope",
    "Popular image classifiers depend heavily on their bias parameters.",
    seeds=5,
    holds=any_of(at_least(0.1, of="lost_without_bias"), at_least(0.3, of="by_bias_alone")),
)
def heavy_bias(budget: Budget, seed: int) -> Evidence:
    """A CNN on 1,000 test images of Fashion-MNIST: accuracy from A x alone, from r alone, and from both."""
    model, split = _classifier(budget, seed)
    found = bias_dependence(model, split.x_test, split.y_test)
    return Evidence(
        lost_without_bias=found["both"] - found["linear"], by_bias_alone=found["bias"], accuracy=found["both"]
    )


def _crops(picture: Tensor, centres: Tensor, half: int = 16) -> Tensor:
    """Return patches (N, 1, 2 half, 2 half) of a picture (1, 1, H, W) about the centres (N, 2)."""
    pieces = [picture[0, :, r - half : r + half, c - half : c + half] for r, c in centres.tolist()]
    return torch.stack(pieces)


def edges_and_flats(picture: Tensor, count: int, seed: int, margin: int = 16) -> tuple[Tensor, Tensor]:
    """Return `count` places (count, 2) each in the steepest and in the flattest tenth of a picture (1, 1, H, W)."""
    rows, columns = torch.gradient(F.avg_pool2d(picture, 3, 1, 1)[0, 0])
    slope = (rows**2 + columns**2).sqrt()[margin:-margin, margin:-margin]
    order = slope.flatten().argsort()
    generator, tenth = torch.Generator().manual_seed(seed), len(order) // 10
    found = []
    for part in (order[-tenth:], order[:tenth]):
        chosen = part[torch.randperm(tenth, generator=generator)[:count]]
        found.append(torch.stack([chosen // slope.shape[1], chosen % slope.shape[1]], 1) + margin)
    return found[0], found[1]


def columns_at(model: nn.Module, picture: Tensor, places: Sequence[Any] | Tensor) -> Tensor:
    """Return the impulse response at each place (row, column) of a picture, for the patch about it."""
    system = linear_interpreter(model, _crops(picture, torch.as_tensor(places)))
    return system.column((0, 16, 16))


@claim(
    "linearscope",
    "Super-resolution and image-translation networks use wavelet-like bases resembling human vision; translation "
    "nets also copy and move content or create templates.",
    seeds=5,
    holds=at_least(1.3, of="edge_over_flat"),
)
def filters_follow_edges(budget: Budget, seed: int) -> Evidence:
    """Columns of a small RCAN at 150 steep and 150 flat pixels of the camera: medians of their anisotropy.

    Super-resolution alone is measured, no image translation; `psnr_over_bicubic` says whether it was learnt.
    """
    found = trained_rcan(budget.pick(quick=1200, full=20_000), seed)
    picture = halved(photograph("camera"))
    edge, flat = (
        float(anisotropy(columns_at(found.model, picture, places)).median())
        for places in edges_and_flats(picture, 150, seed)
    )
    return Evidence(
        edge_over_flat=edge / flat, edge=edge, flat=flat, psnr_over_bicubic=found.psnr - found.bicubic
    )


__all__ = ["LinearInterpreter", "anisotropy", "bias_dependence", "linear_interpreter", "linearscope"]
