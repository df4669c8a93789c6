"""GoLU: an input gated by the Gompertz function, the distribution function of the Gumbel law.

    golu(x) = alpha * x * exp(-beta * exp(-gamma * x))

The gate is steeper on the right than GELU's and Swish's, which makes units vary less.

Paper: "Gompertz Linear Units: Leveraging Asymmetry for Enhanced Learning Dynamics" (2025), Sections 2 and 3.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import text
from workingpapers.experiments import Evidence, all_of, at_least, at_most, below
from workingpapers.kernels import pointwise
from workingpapers.papers.activations._common import cifar, noise_drop, photograph, trained_cnn
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, LanguageModelling, char_gpt, fit, initialise

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
        values = ", ".join(f"{name}={float(getattr(self, name))}" for name in ("alpha", "beta", "gamma"))
        return f"{values}, trainable=True" if isinstance(self.alpha, nn.Parameter) else values


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


def latent_variances(
    model: nn.Module, x: Tensor, kinds: type[nn.Module] | tuple[type[nn.Module], ...]
) -> dict[str, float]:
    """Return the variance of what every module of the given `kinds` puts out when `model` sees the batch `x`."""
    return {name: float(output.var()) for name, output in collect(model, x, kinds).items()}


def weight_spread(model: nn.Module) -> float:
    """Return the standard deviation of the Gaussian that fits all weights of `model` best (matrices, kernels)."""
    return float(
        torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim > 1]).std(correction=0)
    )


@claim(
    "golu",
    "The asymmetric gate lowers variance in the latent space more than GELU and Swish do.",
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
    stem = initialise(lambda: nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)), seed)
    found = variance_report(stem, photograph(), gated)
    return Evidence(
        gaussian_error=error, image_ratio=found["golu"] / min(found[n] for n in ("gelu", "silu", "mish"))
    )


@claim(
    "golu",
    "It outperforms leading activations on image, language, detection, segmentation and diffusion tasks.",
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
        model = initialise(partial(char_gpt, len(corpus.vocabulary), activation=activation), seed)
        steps = budget.pick(quick=400, full=5000)
        trained = fit(
            model, LanguageModelling(corpus, 64), steps=steps, batch=16, lr=3e-3, seed=seed, every=steps
        )
        losses[name] = trained.metrics["loss"]
    split, epochs = cifar(budget, seed), budget.pick(quick=4, full=30)
    accuracy = {
        name: trained_cnn(activation, split, epochs=epochs, seed=seed)[1].metrics["accuracy"]
        for name, activation in {"golu": GoLU, "relu": nn.ReLU}.items()
    }
    return Evidence(
        loss_over_gelu=losses["golu"] - losses["gelu"],
        loss_over_relu=losses["golu"] - losses["relu"],
        accuracy_over_relu=accuracy["golu"] - accuracy["relu"],
        accuracy=accuracy["golu"],
    )


@claim(
    "golu",
    "Gradient flow stays robust and the loss surface is smoother, so weight noise does less harm.",
    seeds=5,
    holds=at_most(1.1, of="drop_ratio"),
)
def flatter_loss(budget: Budget, seed: int) -> Evidence:
    """Accuracy lost under relative weight noise of 5 % and 10 %, over the best of GELU, Swish, Mish and ReLU."""
    split, epochs = cifar(budget, seed), budget.pick(quick=3, full=30)
    drops = {
        name: noise_drop(
            trained_cnn(activation, split, epochs=epochs, seed=seed)[0],
            split,
            sigmas=(0.05, 0.1),
            draws=budget.pick(quick=6, full=20),
            seed=seed,
        )
        for name, activation in {"golu": GoLU, **BASELINES}.items()
    }
    best = min(drops[name] for name in BASELINES)
    return Evidence(drop_ratio=drops["golu"] / max(best, 1e-3), drop=drops["golu"], best=best)
