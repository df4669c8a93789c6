"""KArAt: each row of attention scores goes through learned functions of one variable instead of softmax.

    a = q_i K^T / sqrt(d_h) in R^N,    s_k = sum_p phi_kp(a_p), k = 1..r,    A_i = W s in R^N,    output_i = A_i V
    phi(x) = sum_{m=1..G} a_m cos(m x) + b_m sin(m x)        (Fourier-KArAt)
    phi(x) = (a_0 + ... + a_m x^m) / (1 + |b_1 x + ... + b_n x^n|)        (rational)

The rows of A are neither positive nor sum to one, and A has rank r at most.  With r = None the N x N functions
stand alone, without W.  The mixer stands in `_karat_mixer.py`, the vision transformers that the paper puts it into
in `_karat_vit.py`, its analyses in `_karat_analyses.py`.

Paper: "Kolmogorov-Arnold Attention: Is Learnable Attention Better For Vision Transformers?" (2025), Section 4;
reconstructed: functions, W and the rational form are those of the authors' project page, the scale at the start is
from memory of the preprint; the denominators of rational functions are shared by the functions of a token here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from workingpapers.catalog import claim
from workingpapers.data import Split, images
from workingpapers.experiments import Evidence, at_least, at_most
from workingpapers.papers.attention._karat_analyses import attention_maps, layer_weights, loss_slice, spectrum
from workingpapers.papers.attention._karat_mixer import (
    BASES,
    KArAt,
    ScoreOperator,
    SoftmaxAttention,
    onto_l1_ball,
    onto_simplex,
    universal,
)
from workingpapers.papers.attention._karat_vit import KArAtViT
from workingpapers.tasks import Budget, fit, initialise, vit

__all__ = [
    "BASES",
    "KArAt",
    "KArAtViT",
    "ScoreOperator",
    "SoftmaxAttention",
    "attention_maps",
    "layer_weights",
    "loss_slice",
    "onto_l1_ball",
    "onto_simplex",
    "spectrum",
    "universal",
]


def _images(budget: Budget, seed: int) -> Split:
    train, test = budget.pick(quick=(1000, 1000), full=(10000, 2000))
    return images("cifar10", train=train, test=test, size=budget.pick(quick=16, full=32), seed=seed)


def _trained(mixer: Callable[..., Any], split: Split, budget: Budget, seed: int) -> tuple[nn.Module, float]:
    dim, depth = budget.pick(quick=(48, 2), full=(96, 4))
    side = split.x_train.shape[-1]
    model = initialise(
        lambda: vit(3, side, budget.pick(quick=2, full=4), 10, dim, depth, 3, mixer=mixer), seed
    )
    how: dict[str, Any] = {"optimizer": "adamw", "schedule": "warmup_cosine", "lr": 1e-3, "seed": seed}
    result = fit(model, split, epochs=budget.pick(quick=3, full=10), **how)
    return model, 0.0 if result.diverged else result.metrics["accuracy"]


@claim(
    "karat",
    "Learnable Fourier attention outperforms or matches plain vision transformers on small and large image sets.",
    seeds=3,
    holds=at_least(-0.01, of="over_softmax"),
)
def image_accuracy(budget: Budget, seed: int) -> Evidence:
    """CIFAR-10 accuracy of the better of blockwise and universal Fourier-KArAt (r = 12, G = 3), less softmax's."""
    split = _images(budget, seed)
    softmax = _trained(SoftmaxAttention, split, budget, seed)[1]
    blockwise = _trained(partial(KArAt, tokens=64), split, budget, seed)[1]
    operator = initialise(lambda: ScoreOperator(3, 64, 12, 3, "fourier", "none"), seed)
    shared = _trained(universal(operator), split, budget, seed)[1]
    best = max(blockwise, shared)
    return Evidence(over_softmax=best - softmax, softmax=softmax, blockwise=blockwise, universal=shared)


@claim(
    "karat",
    "Spectral behaviour, loss landscapes and attention maps of learnable attention differ from the vanilla model's "
    "and are compared.",
    seeds=3,
    holds=at_most(1.05, of="rank_ratio"),
)
def attention_spectrum(budget: Budget, seed: int) -> Evidence:
    """Singular values that hold 90 % of the last layer's attention on 100 images, over as many of softmax's.

    Only reported: how the loss on these images curves along filter-normalised directions, and the share of the
    last layer's weight that is negative.
    """
    split, ranks, others = _images(budget, seed), {}, {}
    seen, labels = split.x_test[:100], split.y_test[:100]
    mixers: dict[str, Any] = {"karat": partial(KArAt, tokens=64), "softmax": SoftmaxAttention}
    for name, mixer in mixers.items():
        model = _trained(mixer, split, budget, seed)[0]
        ranks[name] = spectrum(layer_weights(model, seen)).numbers["effective_rank"]
        others[f"{name}_curvature"] = loss_slice(model, seen, labels, points=3, radius=0.5).numbers[
            "curvature"
        ]
        others[f"{name}_negative"] = attention_maps(model, seen).numbers["negative"]
    return Evidence(rank_ratio=ranks["karat"] / ranks["softmax"], **ranks, **others)
