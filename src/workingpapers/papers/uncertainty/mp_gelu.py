"""MP-GELU: Bayesian layers that pass means and variances on, gated by the statistics of their input.

    r = mu / sqrt(v),  p = Phi(r)
    mask:   E y = p mu,   Var y = p v + p (1 - p) mu^2,   Cov(y_i, y_j) = p_i p_j Cov(x_i, x_j)
    scale:  E y = p mu,   Var y = p^2 v,                  Cov(y_i, y_j) = p_i p_j Cov(x_i, x_j)

Reconstructed: the paper's own equation could not be found.  Both are readings of its abstract, "analytical
computation of moments by applying nonlinearity to the input statistics": x times a random mask of
probability p, as GELU was first explained, and x times p itself.

Paper: "MP-GELU Bayesian Neural Networks: Moment Propagation by GELU Nonlinearity" (2022), abstract.
"""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_most
from workingpapers.papers.uncertainty._bayesian_runs import activation_times, monte_carlo, regression
from workingpapers.papers.uncertainty._moments import MODES, Moments, divergence, expected_nll, moments
from workingpapers.surgery import note_changes
from workingpapers.tasks import Budget, examples, initialise
from workingpapers.tasks.examples import Example

Pair = Tensor | tuple[Tensor, Tensor]
NOISES = ("learned", "heteroscedastic")


def _pair(batch: int, g: torch.Generator) -> tuple[tuple[Tensor, Tensor]]:
    return ((torch.randn(batch, 6, generator=g), torch.rand(batch, 6, generator=g)),)


@paper("mp_gelu", variants=[{"mode": mode} for mode in ("scale", "relu", "gelu_taylor")], example=_pair)
class MPGELU(nn.Module):
    """Moments through the nonlinearity: (mean, variance), each (..., D), -> the same of its output.

    Variances may be covariances (..., D, D); a tensor alone is a certain input.

    Args:
        mode: "mask" or "scale", the two readings; "relu", exact for Gaussian inputs, or "gelu_taylor", of
            second order, to compare with.
    """

    def __init__(self, mode: str = "mask") -> None:
        super().__init__()
        if mode not in MODES:
            raise unknown("mode of MP-GELU", mode, MODES)
        self.mode = mode

    def forward(self, x: Pair) -> Moments:
        return MODES[self.mode](moments(x))

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}"


@paper("mp_gelu", part="linear", kind="layer", arguments=(6, 4), example=_pair)
class BayesLinear(nn.Module):
    """A linear layer of independent Gaussian weights: (mean, variance) (..., in) -> the same (..., out).

    Variances: s^2 (mu^2 + v) + m^2 v + s_b^2; covariances: m S m^T, and s^2 (mu^2 + v) + s_b^2 on the diagonal.

    Args:
        in_features, out_features, bias: as for nn.Linear.
        std: initial standard deviation of the weights' posterior.
        prior_std: of the weights' prior; None fits it to the posterior (empirical Bayes).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        std: float = 1e-2,
        prior_std: float | None = 1.0,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.std, self.prior_std = (
            in_features,
            out_features,
            std,
            prior_std,
        )
        shell = nn.Linear(in_features, out_features, bias)
        self.weight, self.bias = shell.weight, shell.bias
        self.weight_log_std = nn.Parameter(torch.full_like(shell.weight, math.log(std)))
        self.bias_log_std = nn.Parameter(torch.full((out_features,), math.log(std))) if bias else None

    def forward(self, x: Pair) -> Moments:
        x = moments(x)
        mean = F.linear(x.mean, self.weight, self.bias)
        own = F.linear(x.mean.square() + x.diagonal, (2 * self.weight_log_std).exp())
        if self.bias_log_std is not None:
            own = own + (2 * self.bias_log_std).exp()
        if x.full:
            return Moments(mean, self.weight @ x.var @ self.weight.T + torch.diag_embed(own))
        return Moments(mean, own + F.linear(x.var, self.weight.square()))

    def divergence(self) -> Tensor:
        """Return the divergence of the posterior from the prior N(0, prior_std^2), in nats."""
        pairs = [(self.weight, self.weight_log_std)]
        if self.bias is not None and self.bias_log_std is not None:
            pairs.append((self.bias, self.bias_log_std))
        m, log_s = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
        return divergence(m, log_s, self.prior_std)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, std={self.std}, "
            f"prior_std={self.prior_std}"
        )


def _squared_error(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Return the mean of E (y - f)^2 = (y - mean)^2 + variance."""
    mean, var = outputs
    return ((targets - mean).square() + var).mean()


def _example(batch: int, g: torch.Generator) -> Example:
    plain = examples.vectors(6, 2)(batch, g)
    return Example(plain.inputs, plain.targets, _squared_error)  # type: ignore[arg-type]


@paper(
    "mp_gelu",
    part="mlp",
    kind="model",
    example=_example,
    known_failures={
        "gradients reach parameters": "the noise enters the loss and the prediction, not the function's moments"
    },
)
class MPMLP(nn.Module):
    """A Bayesian perceptron, (B, sizes[0]) -> mean and variance (B, sizes[-1]) of its function.

    Args:
        sizes: widths from input to output.
        mode: of the nonlinearity, see `MPGELU`.
        full_cov: pass covariances on instead of variances alone.
        noise: "learned", one level for each output, or "heteroscedastic", whose logarithm is an output too.
        std, prior_std: as for `BayesLinear`.
    """

    presets: ClassVar[dict[str, Any]] = {"tiny": {"sizes": (6, 32, 2)}, "uci": {"sizes": (13, 50, 1)}}

    def __init__(
        self,
        sizes: Sequence[int],
        mode: str = "mask",
        full_cov: bool = False,
        noise: str = "learned",
        std: float = 1e-2,
        prior_std: float | None = 1.0,
    ) -> None:
        super().__init__()
        if noise not in NOISES:
            raise unknown("noise", noise, NOISES)
        if len(sizes) < 2:
            raise WorkingPapersError(f"a network has at least an input and an output size; got {list(sizes)}")
        self.full_cov, self.noise, self.outputs = full_cov, noise, sizes[-1]
        widths = [*sizes[:-1], sizes[-1] * (2 if noise == "heteroscedastic" else 1)]
        layers: list[nn.Module] = []
        for width_in, width in pairwise(widths):
            layers += [BayesLinear(width_in, width, True, std, prior_std), MPGELU(mode)]
        self.layers = nn.Sequential(*layers[:-1])
        learned = noise == "learned"
        self.log_noise = nn.Parameter(torch.zeros(sizes[-1])) if learned else None

    def moments(self, x: Tensor) -> Moments:
        """Return the moments of all outputs, the logarithms of the noise's variance among them."""
        out: Moments = self.layers(moments(x, self.full_cov))
        return out

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the function."""
        out = self.moments(x)
        return out.mean[..., : self.outputs], out.diagonal[..., : self.outputs]

    def likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the expected negative log likelihood of every target (B, sizes[-1]), in closed form."""
        out, d = self.moments(x), self.outputs
        f, zero = (out.mean[..., :d], out.diagonal[..., :d]), torch.zeros_like(y)
        if self.log_noise is not None:
            return expected_nll(y, f, (self.log_noise, zero), zero)
        cov = out.var.diagonal(offset=d, dim1=-2, dim2=-1) if out.full else zero
        return expected_nll(y, f, (out.mean[..., d:], out.diagonal[..., d:]), cov)

    def loss(self, x: Tensor, y: Tensor, samples: int) -> Tensor:
        """Return the negative evidence bound per sample of a training set of `samples`, from a batch of it."""
        layers = [m for m in self.layers if isinstance(m, BayesLinear)]
        prior = torch.stack([layer.divergence() for layer in layers]).sum()
        return self.likelihood(x, y).sum(-1).mean() + prior / samples

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the targets, the noise's E exp(l) included."""
        out, d = self.moments(x), self.outputs
        level = out.mean[..., d:] + 0.5 * out.diagonal[..., d:] if self.log_noise is None else self.log_noise
        return out.mean[..., :d], out.diagonal[..., :d] + level.exp()

    def extra_repr(self) -> str:
        return f"full_cov={self.full_cov}, noise={self.noise!r}"


def _convert_example(g: torch.Generator) -> tuple[nn.Module, Tensor]:
    model = initialise(lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2)), 0)
    return model, torch.randn(3, 6, generator=g)


@paper("mp_gelu", part="convert", kind="transform", example=_convert_example)
def convert(
    model: nn.Module, mode: str = "mask", std: float = 1e-2, prior_std: float | None = 1.0
) -> nn.Module:
    """Return a Bayesian copy of an nn.Sequential of linear layers and activations: x -> (mean, variance).

    Each nn.Linear becomes a `BayesLinear` around its weights, each nn.ReLU or nn.GELU an `MPGELU` of the mode;
    nn.Flatten, nn.Identity and nn.Dropout (left out) may stand between.

    Raises:
        WorkingPapersError: for other modules.
    """
    if not isinstance(model, nn.Sequential):
        raise WorkingPapersError(f"only an nn.Sequential can be converted; got a {type(model).__name__}")
    layers: list[nn.Module] = []
    for name, old in model.named_children():
        if isinstance(old, nn.Linear):
            new = BayesLinear(old.in_features, old.out_features, old.bias is not None, std, prior_std)
            new = new.to(old.weight)
            new.load_state_dict(old.state_dict(), strict=False)
            layers.append(new)
        elif isinstance(old, nn.ReLU | nn.GELU):
            layers.append(MPGELU(mode))
        elif isinstance(old, BayesLinear | MPGELU) or (isinstance(old, nn.Flatten) and not layers):
            layers.append(copy.deepcopy(old))
        elif not isinstance(old, nn.Identity | nn.Dropout):
            raise WorkingPapersError(f"module {name!r} is a {type(old).__name__}, which passes no moments on")
    found = nn.Sequential(*layers).train(model.training)
    note_changes(found, [f"Its {len(layers)} layers pass means and variances on."])
    return found


@claim(
    "mp_gelu",
    "Moments pass in closed form, so inference runs faster than in ReLU Bayesian nets with higher accuracy and "
    "better uncertainty in regression.",
    holds=all_of(
        *(at_most(0.05, of=f"{name}_nll_rise") for name in ("diabetes", "concrete", "wave")),
        *(at_most(1.05, of=f"{name}_rmse_ratio") for name in ("diabetes", "concrete", "wave")),
        at_most(0.8, of="diagonal_time"),
        at_most(0.5, of="covariance_time"),
    ),
    calibrated="On seed 1000 kernels were fused (diagonal time 0.90), now they are not; not the rule.",
)
def against_relu(budget: Budget, seed: int) -> Evidence:
    """Test log likelihood and error of 50 units, mask against exact ReLU moments, and times of the activation.

    Diabetes, concrete (splits by seed) and y = sin 3x + x noise, each with heteroscedastic noise; times of 2^20
    variances, and of covariances of 256 units, over exact ReLU's (Mehler's series to order 6).
    """

    def build(inputs: int, mode: str) -> MPMLP:
        return MPMLP((inputs, 50, 1), mode, noise="heteroscedastic")

    found = regression(build, budget, seed, ("mask", "relu"))
    times = activation_times(("mask", "relu"), budget.pick(quick=7, full=50))
    return Evidence(
        **{f"{name}_nll_rise": both["mask"][0] - both["relu"][0] for name, both in found.items()},
        **{f"{name}_rmse_ratio": both["mask"][1] / both["relu"][1] for name, both in found.items()},
        **{f"{name}_time": seconds["mask"] / seconds["relu"] for name, seconds in times.items()},
    )


@claim(
    "mp_gelu",
    "First and second moments come analytically by applying the nonlinearity to input statistics.",
    holds=all_of(at_most(0.02, of="mean_error", by="every"), at_most(0.1, of="variance_error", by="every")),
)
def right_moments(budget: Budget, seed: int) -> Evidence:
    """Largest error of the propagated moments after 3 layers against 200,000 draws of weights and masks.

    Inputs are patients of the diabetes set.  The mean's error is in units of the layer's root mean square, the
    variance's of its mean variance; covariances are passed on (`diagonal_variance_error`: variances alone).
    """
    net = initialise(lambda: MPMLP((10, 12, 12, 4), std=0.1), seed)
    errors = {
        full: monte_carlo(net, full, budget.pick(quick=200_000, full=1_000_000), seed)
        for full in (True, False)
    }
    return Evidence(
        mean_error=errors[True][0], variance_error=errors[True][1], diagonal_variance_error=errors[False][1]
    )
