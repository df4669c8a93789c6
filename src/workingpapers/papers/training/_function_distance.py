"""What is kept of a network's training data, and the distance of another network's function estimated from it."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.papers.training._gated_chain import Link, Pair, Tensors, chain, tensors_of

METRICS = ("squared", "softmax")


@dataclass(frozen=True)
class Summary:
    """Weights of a network and a few moments of its data: all that the estimates need.

    Attributes:
        tensors: the network's parameters and buffers by name.
        links: the steps of its chain.
        mean: of the inputs, (1, ...).
        spread: their variances (1, ...), or their covariance matrix.
        rates: for each ReLU the share of the data for which a unit is on, (1, units, 1...), or of each place.
        metric: matrix (outputs, outputs) in half of d^T metric d, of which the distance is the mean.
    """

    tensors: dict[str, Tensor]
    links: list[Link]
    mean: Tensor
    spread: Tensor
    rates: list[Tensor]
    metric: Tensor

    @classmethod
    def from_data(
        cls,
        model: nn.Module,
        x: Tensor,
        *,
        full: bool = False,
        positions: bool = False,
        metric: str = "squared",
        outputs: slice | None = None,
        batch: int = 1000,
    ) -> "Summary":
        """Pass over the inputs `x` (N, ...) once and keep the moments.

        Args:
            model: a chain, see `chain`; its weights are copied.
            full: keep the whole covariance of the inputs, and of the layers when estimating.
            positions: a rate for each place of a map instead of one for each channel.
            metric: "squared" distance of the outputs, or "softmax", the Gauss-Newton form of the KL divergence with
                the mean over the data of diag(p) - p p^T.
            outputs: those that count, such as a task's head; all by default.
        """
        if metric not in METRICS:
            raise unknown("metric of outputs", metric, METRICS)
        links = chain(model)
        tensors = {name: t.detach().clone() for name, t in tensors_of(model).items()}
        sums: list[Tensor] = []
        forms: Any = 0.0
        with torch.no_grad():
            for piece in x.split(batch):
                h, place = piece, 0
                for link in links:
                    h = _step(link, tensors, h)
                    if link.kind == "relu":
                        on = (h > 0).to(h).sum(0, keepdim=True)
                        on = (
                            on if positions or h.ndim == 2 else on.mean(tuple(range(2, h.ndim)), keepdim=True)
                        )
                        sums = [*sums, on] if place == len(sums) else sums
                        sums[place] = on if sums[place] is on else sums[place] + on
                        place += 1
                forms = forms + _form(h, metric) * len(piece)
            mean = x.mean(0, keepdim=True)
            centred = x - mean
            spread = (
                centred.flatten(1).T @ centred.flatten(1) / len(x)
                if full
                else (centred**2).mean(0, keepdim=True)
            )
        form = forms / len(x)
        if outputs is not None:
            kept = torch.zeros(len(form)).to(form)
            kept[outputs] = 1
            form = form * kept * kept[:, None]
        return cls(tensors, links, mean, spread, [s / len(x) for s in sums], form)

    @property
    def full(self) -> bool:
        """Whether whole covariances are kept."""
        return self.spread.shape != self.mean.shape

    @cached_property
    def root(self) -> Tensor:
        """A matrix whose product with its transpose is the covariance of the inputs."""
        values, vectors = torch.linalg.eigh(self.spread.double())
        found: Tensor = (vectors * values.clamp(min=0).sqrt()).to(self.spread)
        return found

    @property
    def memory(self) -> int:
        """How many numbers are kept beside the weights and the metric of the outputs."""
        return self.mean.numel() + self.spread.numel() + sum(rate.numel() for rate in self.rates)


def _step(link: Link, tensors: Tensors, h: Tensor) -> Tensor:
    if link.kind == "affine":
        weight, bias = link.weights(tensors)
        return link.add(link.apply(weight, h), bias)
    if link.kind == "relu":
        return h.relu()
    shape: Any = link.shape
    found: Tensor = shape(h)
    return found


def _form(outputs: Tensor, metric: str) -> Tensor:
    """Return the mean over rows of the quadratic form of outputs (N, K)."""
    if outputs.ndim != 2:
        raise WorkingPapersError(f"outputs are (N, units); this network gives {tuple(outputs.shape)}")
    if metric == "squared":
        return torch.eye(outputs.shape[1]).to(outputs)
    p = outputs.softmax(1)
    return torch.diag(p.mean(0)) - p.T @ p / len(p)


def fsd(
    summary: Summary,
    model: nn.Module | Tensors,
    version: str = "deterministic",
    samples: int = 100,
    seed: int = 0,
) -> Tensor:
    """Estimate the mean over the old data of half the squared distance of outputs, old network to `model`.

    Args:
        summary: of the old network and its data.
        model: a network of the same build, or its tensors by name; the result is differentiable in them.
        version: "deterministic" propagates moments, "stochastic" draws inputs and gates.
        samples, seed: of the stochastic version.
    """
    one = tensors_of(model) if isinstance(model, nn.Module) else model
    if summary.tensors.keys() - one.keys():
        raise WorkingPapersError(
            f"the other network lacks {sorted(summary.tensors.keys() - one.keys())[0]!r}: it has another build"
        )
    if version == "deterministic":
        second = _propagated(summary, one)
    elif version == "stochastic":
        second = _drawn(summary, one, samples, seed)
    else:
        raise unknown("version of the estimate", version, ("deterministic", "stochastic"))
    return (summary.metric * second).sum() / 2


def _propagated(summary: Summary, one: Tensors) -> Tensor:
    still, none = torch.zeros_like(summary.mean), torch.zeros_like(summary.spread)
    pair = Pair(summary.mean, still, summary.spread, none, none, summary.full)
    rates = iter(summary.rates)
    for link in summary.links:
        if link.kind == "affine":
            pair = pair.affine(link, summary.tensors, one)
        else:
            pair = pair.gated(next(rates)) if link.kind == "relu" else pair.reshaped(link)
    return pair.second()


def _drawn(summary: Summary, one: Tensors, samples: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    zero, mean = summary.tensors, summary.mean
    noise = torch.randn(samples, *mean.shape[1:], generator=generator).to(mean)
    if summary.full:
        h = mean + (noise.flatten(1) @ summary.root.T).reshape(noise.shape)
    else:
        h = mean + noise * summary.spread.sqrt()
    d, rates = torch.zeros_like(h), iter(summary.rates)
    for link in summary.links:
        if link.kind == "affine":
            (w0, b0), (w1, b1) = link.weights(zero), link.weights(one)
            d = link.add(link.apply(w1, d) + link.apply(w1 - w0, h), b1 - b0)
            h = link.add(link.apply(w0, h), b0)
        elif link.kind == "relu":
            gates = (torch.rand(h.shape, generator=generator).to(h) < next(rates)).to(h)
            h, d = gates * h, gates * d
        else:
            shape: Any = link.shape
            h, d = shape(h), shape(d)
    return d.T @ d / samples


@torch.no_grad()
def true_fsd(zero: nn.Module, one: nn.Module, x: Tensor, metric: str = "squared", batch: int = 1000) -> float:
    """Return the distance itself: the mean over `x` (N, ...) of half of d^T metric d, each with its own form."""
    if metric not in METRICS:
        raise unknown("metric of outputs", metric, METRICS)
    networks = [copy.deepcopy(m).eval() for m in (zero, one)]
    total = 0.0
    for piece in x.split(batch):
        old, new = (m(piece).double() for m in networks)
        d = new - old
        if metric == "squared":
            total += float((d**2).sum()) / 2
        else:
            p = old.softmax(1)
            total += float((p * d**2).sum() - (p * d).sum(1).square().sum()) / 2
    return total / len(x)
