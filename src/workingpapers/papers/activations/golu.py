"""GoLU: an input gated by the Gompertz function, the distribution function of the Gumbel law.

    golu(x) = alpha * x * exp(-beta * exp(-gamma * x))

The gate is steeper on the right than GELU's and Swish's, which makes units vary less.

Paper: "Gompertz Linear Units: Leveraging Asymmetry for Enhanced Learning Dynamics" (2025), Sections 2 and 3.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import images, text
from workingpapers.data.split import Split
from workingpapers.experiments import Evidence, all_of, at_least, at_most, below
from workingpapers.kernels import pointwise
from workingpapers.papers.activations._common import astronaut, noise_drop
from workingpapers.tasks import Budget, char_gpt, fit, residual_cnn

BASELINES: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "relu": nn.ReLU,
}


@pointwise
def golu(
    x: Tensor, alpha: float | Tensor = 1.0, beta: float | Tensor = 1.0, gamma: float | Tensor = 1.0
) -> Tensor:
    """Gate `x` (any shape, floating) by the Gompertz function; same shape out."""
    decay = torch.exp((-gamma * x).clamp(max=80))  # beyond, the gate is 0 in every dtype, and 0 * inf is not
    return alpha * x * torch.exp(-beta * decay)


@paper("golu", smooth=True, monotone=False, zero_at_zero=True)
class GoLU(nn.Module):
    """Apply `golu` to a tensor of any shape.

    Args:
        alpha: height of the gate; 1 in the paper.
        beta: shift of the gate along the input; 1 in the paper.
        gamma: steepness of the gate; 1 in the paper.
        trainable: learn the three, starting from these values; the paper keeps them fixed.
    """

    def __init__(
        self, alpha: float = 1.0, beta: float = 1.0, gamma: float = 1.0, trainable: bool = False
    ) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            setattr(self, name, nn.Parameter(torch.tensor(float(value))) if trainable else float(value))

    def forward(self, x: Tensor) -> Tensor:
        return golu(x, self.alpha, self.beta, self.gamma)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={float(getattr(self, name))}" for name in ("alpha", "beta", "gamma"))


def gaussian_variance(activation: nn.Module, points: int = 400_001) -> float:
    """Return Var[activation(z)] for standard normal z, by quadrature on [-12, 12] in float64."""
    z = torch.linspace(-12, 12, points, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / (2 * torch.pi) ** 0.5
    y = activation(z)
    mean = torch.trapezoid(y * density, z)
    return float(torch.trapezoid((y - mean) ** 2 * density, z))


def variance_report(stem: nn.Module, x: Tensor, activations: Mapping[str, nn.Module]) -> dict[str, float]:
    """Return the variance of every activation's output behind the same `stem` on the same batch `x`."""
    with torch.no_grad():
        z = stem(x)
        return {name: float(activation(z).var()) for name, activation in activations.items()}


@claim(
    "golu",
    "Its units vary less than those of other gated activations.",
    seeds=5,
    holds=all_of(at_most(1e-3, of="gaussian_error", by="every"), below(1.0, of="image_ratio", by="every")),
)
def variance_ratio(budget: Budget, seed: int) -> Evidence:
    """Variance against the smallest of GELU, Swish and Mish behind conv-BatchNorm on a photograph.

    `gaussian_error` is the largest distance from the variances that the closed integrals have for standard
    normal input: 0.2526 for GoLU, 0.3456 GELU, 0.3131 Swish, 0.3945 Mish.
    """
    expected = {"golu": 0.2526, "gelu": 0.3456, "silu": 0.3131, "mish": 0.3945}
    gated = {"golu": GoLU(), "gelu": nn.GELU(), "silu": nn.SiLU(), "mish": nn.Mish()}
    error = max(abs(gaussian_variance(gated[name]) - value) for name, value in expected.items())
    torch.manual_seed(seed)
    stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32))
    found = variance_report(stem, astronaut(), gated)
    return Evidence(
        gaussian_error=error, image_ratio=found["golu"] / min(found[n] for n in ("gelu", "silu", "mish"))
    )


def _cifar(budget: Budget, seed: int) -> Split:
    return images(
        "cifar10",
        train=budget.pick(quick=4000, full=20000),
        test=budget.pick(quick=2000, full=5000),
        size=16,
        seed=seed,
    )


def _trained(
    activation: Callable[[], nn.Module], split: Split, budget: Budget, seed: int
) -> tuple[nn.Module, float]:
    torch.manual_seed(seed)
    model = residual_cnn(3, 10, activation=activation)
    result = fit(model, split, epochs=budget.pick(quick=4, full=30), lr=2e-3, seed=seed)
    return model, result.metrics["accuracy"]


@claim(
    "golu",
    "Accuracy and perplexity are at least those of the best baseline.",
    seeds=5,
    figure="ResNet-18 on ImageNet 70.76 vs 69.74 (ReLU), 70.66 (GELU); babyGPT perplexity 4.444 vs 4.462 (GELU)",
    holds=all_of(
        at_most(0.02, of="loss_over_gelu"),
        at_most(0.02, of="loss_over_relu"),
        at_least(-0.015, of="accuracy_over_relu"),
        at_least(0.36, of="accuracy"),
    ),
)
def accuracy_and_perplexity(budget: Budget, seed: int) -> Evidence:
    """Validation loss of a character GPT on tinyshakespeare, accuracy of a residual CNN on CIFAR-10."""
    corpus, losses = text("tinyshakespeare"), {}
    for name, activation in {"golu": GoLU, "gelu": nn.GELU, "relu": nn.ReLU}.items():
        torch.manual_seed(seed)
        model = char_gpt(len(corpus.vocabulary), dim=64, depth=2, heads=4, context=64, activation=activation)
        losses[name] = fit(
            model, corpus, steps=budget.pick(quick=400, full=5000), batch=16, lr=3e-3, seed=seed
        ).metrics["loss"]
    split = _cifar(budget, seed)
    accuracy = {
        name: _trained(act, split, budget, seed)[1] for name, act in (("golu", GoLU), ("relu", nn.ReLU))
    }
    return Evidence(
        loss_over_gelu=losses["golu"] - losses["gelu"],
        loss_over_relu=losses["golu"] - losses["relu"],
        accuracy_over_relu=accuracy["golu"] - accuracy["relu"],
        accuracy=accuracy["golu"],
    )


@claim(
    "golu",
    "The loss is flatter around the trained weights: noise on them costs less accuracy.",
    seeds=5,
    holds=at_most(1.1, of="drop_ratio"),
)
def flatter_loss(budget: Budget, seed: int) -> Evidence:
    """Accuracy lost under relative weight noise of 5 % and 10 %, over the best of GELU, Swish, Mish and ReLU."""
    split = _cifar(budget, seed)
    drops = {
        name: noise_drop(_trained(act, split, budget, seed)[0], split, sigmas=(0.05, 0.1), seed=seed)
        for name, act in {"golu": GoLU, **BASELINES}.items()
    }
    best = min(drops[name] for name in BASELINES)
    return Evidence(drop_ratio=drops["golu"] / max(best, 1e-3), drop=drops["golu"])
