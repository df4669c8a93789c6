"""LAuReL: the residual sum x + f(x) with learned weights, a low-rank linear term, and earlier activations.

    x_{i+1} = alpha f(x_i) + g(x_i, x_{i-1}, ..., x_0)
    RW:        g = beta x_i;     alpha, beta learned and bounded
    LR:        g = x_i + B A x_i
    PA:        g = x_i + sum_{j<k} gamma_j h(x_{i-j}),  h = B A, or the identity
    RW+LR:     alpha f + beta (x_i + B A x_i)
    RW+LR+PA:  alpha f + beta (x_i + sum_{j<k} gamma_j B_j A_j x_{i-j})

Paper: "LAuReL: Learned Augmented Residual Layer" (2024), Section 2, equations (2) to (6), Tables 4 and 5.
"""

import copy
import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, any_of, at_least, at_most
from workingpapers.papers.layers._against_deeper import image_accuracies, language_losses, step_times
from workingpapers.papers.layers._laurel_blocks import LaurelBlock, Stream, known, taken_apart
from workingpapers.surgery import replace_modules
from workingpapers.surgery.choose import Modules
from workingpapers.tasks import Budget, char_gpt, initialise, residual_cnn

PARTS = ("rw", "lr", "pa")
WEIGHTS = ("softmax", "sigmoid", "one", "free")


@paper(
    "laurel",
    part="residual",
    kind="layer",
    arguments=(6,),
    options={"r": 2},
    variants=[
        {"variant": "lr+pa"},
        {"variant": "rw", "weights": "one", "per_channel": True},
        {"variant": "pa", "r": 0},
    ],
    example=lambda b, g: tuple(torch.randn(b, 5, 6, generator=g) for _ in range(2)),
)
class LaurelResidual(nn.Module):
    """The sum that takes the place of x + f(x): x and f(x) (..., D) -> (..., D), at first the plain sum.

    Args:
        dim: D.
        variant: "rw", "lr", "pa" or some of them joined by "+".
        r: rank; 0 makes h the identity in "pa".
        k: activations that "pa" reads, the current one among them.
        weights: how alpha and beta are bounded: "softmax" (they sum to 2), "sigmoid" (each below 2), "one"
            (alpha below 2 from one number, beta = 2 - alpha), or "free".
        init: of A: "xavier" (the paper's for images), or "orthogonal" columns (the paper's for language).
        per_channel: give every channel its own alpha and beta.
        channels_first: D is axis 1, as in convolutional networks, instead of the last.

    Parameters: 2 for rw (1 for "one"), 2rD for lr, 2rD + k for pa, 2rkD + k for lr+pa.
    """

    def __init__(
        self,
        dim: int,
        variant: str = "rw+lr",
        r: int = 16,
        k: int = 3,
        weights: str = "softmax",
        init: str = "xavier",
        per_channel: bool = False,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        self.parts = frozenset(variant.split("+"))
        for part in self.parts - set(PARTS):
            raise unknown("part of LAuReL", part, PARTS)
        if weights not in WEIGHTS:
            raise unknown("bound on LAuReL's weights", weights, WEIGHTS)
        if init not in ("xavier", "orthogonal"):
            raise unknown("initialisation of LAuReL's A", init, ("xavier", "orthogonal"))
        if r < 0 or k < 1 or (r == 0 and "lr" in self.parts):
            raise WorkingPapersError(
                f"the rank is at least 1 (0 only for pa alone) and k at least 1; got r={r}, k={k}"
            )
        self.dim, self.variant, self.r, self.k = dim, variant, r, k
        self.weights, self.init, self.per_channel, self.channels_first = (
            weights,
            init,
            per_channel,
            channels_first,
        )
        if "rw" in self.parts:
            start = torch.ones if weights == "free" else torch.zeros
            self.mix = nn.Parameter(start(1 if weights == "one" else 2, dim if per_channel else 1))
        if r and self.parts & {"lr", "pa"}:
            pairs = k if self.parts >= {"lr", "pa"} else 1
            self.a, self.b = (nn.Parameter(torch.zeros(pairs, *shape)) for shape in ((r, dim), (dim, r)))
            self._start(self.a.data)
        if "pa" in self.parts:
            # B = 0 keeps the plain sum; were gamma 0 as well, neither would ever get a gradient
            self.gamma = nn.Parameter(torch.full((k,), 1.0 if r else 0.0))

    def _start(self, a: Tensor) -> None:
        for matrix in a:
            if self.init == "xavier":
                nn.init.xavier_uniform_(matrix)
            else:
                i = torch.arange(self.dim)
                matrix[i % self.r, i] = (self.r * self.dim) ** -0.5

    def alpha_beta(self) -> tuple[Tensor, Tensor]:
        """Return the two weights, each (1,) or (D,)."""
        if self.weights == "softmax":
            alpha, beta = 2 * self.mix.softmax(0)
        elif self.weights == "one":
            alpha = 2 * self.mix[0].sigmoid()
            beta = 2 - alpha
        else:
            alpha, beta = self.mix if self.weights == "free" else 2 * self.mix.sigmoid()
        return alpha, beta

    def low_rank(self, x: Tensor, j: int) -> Tensor:
        """Return B_j A_j x along the channels; a pair of 1x1 convolutions for images."""
        a, b = self.a[j], self.b[j]
        if not self.channels_first:
            return F.linear(F.linear(x, a), b)
        return (b @ (a @ x.flatten(2))).view_as(x)

    def forward(self, x: Tensor, fx: Tensor, history: Sequence[Tensor] = ()) -> Tensor:
        """Return the sum; `history` holds x_{i-1}, x_{i-2}, ..., of which as many are read as there are."""
        g = x
        if "pa" in self.parts:
            for j, earlier in enumerate([x, *history][: self.k]):
                h = self.low_rank(earlier, j % len(self.a)) if self.r else earlier
                g = g + self.gamma[j] * h
        elif "lr" in self.parts:
            g = g + self.low_rank(x, 0)
        if "rw" not in self.parts:
            return fx + g
        alpha, beta = (self._spread(w, x) for w in self.alpha_beta())
        return alpha * fx + beta * g

    def _spread(self, weight: Tensor, x: Tensor) -> Tensor:
        return weight.view(-1, *[1] * (x.ndim - 2)) if self.channels_first and len(weight) > 1 else weight

    def extra_repr(self) -> str:
        names = ("dim", "variant", "r", "k", "weights", "init", "per_channel", "channels_first")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _example(g: torch.Generator) -> tuple[nn.Module, Tensor, str, int]:
    return (
        initialise(lambda: residual_cnn(2, 3, (4, 6), 2), 0),
        torch.randn(2, 2, 8, 8, generator=g),
        "rw+lr+pa",
        2,
    )


@paper("laurel", kind="transform", example=_example, preserves=1e-5)
def convert(
    model: nn.Module,
    variant: str = "rw+lr",
    r: int = 16,
    k: int = 3,
    blocks: Modules | None = None,
    weights: str = "softmax",
    init: str | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of `model` whose residual sums are `LaurelResidual`s, one a block, at first plain sums.

    Args:
        variant, r, k, weights, init: as for `LaurelResidual`; A starts by "xavier" in blocks with convolutions
            and with orthogonal columns in others, as in the paper.
        blocks: modules that give x + f(x), of the shape of x, run in the order in which the model lists them
            (see `surgery.choose`).  Default: the blocks of ResNets (ours, torchvision's), of our GPT and ViT,
            of torchvision's ViT, of Hugging Face's GPT-2, Llama and Mistral, and nn.TransformerEncoderLayer
            that normalise first.
        seed: of A.

    Raises:
        WorkingPapersError: where there is no such block, or one's width cannot be told.
    """
    inside = [f"{n}." for n, m in model.named_modules() if isinstance(m, LaurelBlock)]
    if blocks is None and inside:
        return copy.deepcopy(model)
    stream = Stream()

    def build(block: nn.Module) -> LaurelBlock:
        form = taken_apart(block)
        start = init or ("xavier" if form.image else "orthogonal")
        residual = initialise(
            lambda: LaurelResidual(form.dim, variant, r, k, weights, start, channels_first=form.image),
            seed + stream.length,
        )
        first = next(block.parameters(), torch.empty(0))
        return LaurelBlock(form, residual.to(first.dtype), stream)

    return replace_modules(model, blocks or (lambda _, m: known(m)), build)


@claim(
    "laurel",
    "A few extra parameters in the residual sum bring much of the gain of a whole extra layer.",
    figure="ResNet-50 ImageNet: 60% of an extra layer's gain for 0.003% more parameters; matches it with 2.6x "
    "fewer parameters",
    holds=all_of(
        any_of(at_least(0.0, of="gain_above_fifth"), at_least(0.005, of="gain")),
        at_most(0.4, of="parameter_share", by="every"),
        *(at_most(0.01, of=f"{name}_loss_rise") for name in ("rw", "rw_lr", "rw_lr_pa")),
        *(at_most(0.005, of=f"{name}_accuracy_drop") for name in ("rw", "rw_lr", "rw_lr_pa")),
    ),
    calibrated="After seed 1000 all networks got a warm-up, without which the deeper one lost; not the rule.",
)
def much_of_a_layer(budget: Budget, seed: int) -> Evidence:
    """Loss on tinyshakespeare that RW+LR (r = 8) saves a 4-layer GPT, against a fifth layer; accuracy of a ResNet.

    `gain_above_fifth` is the gain of RW+LR less a fifth of the layer's; the others are against the baseline.
    """
    names = {"rw": "rw", "rw_lr": "rw+lr", "rw_lr_pa": "rw+lr+pa"}
    variants = {name: partial(convert, variant=variant, r=8) for name, variant in names.items()}
    loss, size = language_losses(budget, seed, variants, deeper=True)
    accuracy = image_accuracies(budget, seed, variants)
    gain, layer = loss["baseline"] - loss["rw_lr"], loss["baseline"] - loss["deeper"]
    return Evidence(
        gain=gain,
        layer_gain=layer,
        gain_above_fifth=gain - 0.2 * layer,
        parameter_share=(size["rw_lr"] - size["baseline"]) / (size["deeper"] - size["baseline"]),
        **{f"{name}_loss_rise": loss[name] - loss["baseline"] for name in names},
        **{f"{name}_accuracy_drop": accuracy["baseline"] - accuracy[name] for name in (*names, "deeper")},
    )


@claim(
    "laurel",
    "It can replace the ordinary residual in place for vision and language models, improving quality at small "
    "footprint, with a best rank for the low-rank term.",
    holds=all_of(
        at_most(1.2, of="step_time"), at_most(1e-5, of="moved", by="every"), at_least(0.0, of="gain")
    ),
    calibrated="After seed 1000 all networks got a warm-up, without which the deeper one lost; not the rule.",
)
def in_place(budget: Budget, seed: int) -> Evidence:
    """Time of a training step with RW+LR (r = 16), and the loss saved at ranks 1, 4, 16 and 32, in the mean.

    Times are of a 4-layer GPT, D = 96, over the plain one's (`layer_step_time`: with a fifth layer); `moved` is
    by how much converting moves the outputs of a GPT and of a ResNet.  `gain_of_r` is what each rank saves.
    """
    tokens = torch.randint(65, (16, 65), generator=torch.Generator().manual_seed(seed))
    gpt, deeper = (initialise(lambda d=d: char_gpt(65, 96, d, 4, 64), seed) for d in (4, 5))  # type: ignore[misc]
    timed = {"baseline": gpt, "laurel": convert(gpt), "deeper": deeper}
    seconds = step_times(
        timed,
        lambda m: F.cross_entropy(m(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()),
        budget.pick(quick=15, full=50),
    )
    resnet, x = (
        initialise(lambda: residual_cnn(1, 10, blocks_per_stage=2), seed).eval(),
        torch.randn(4, 1, 14, 14),
    )
    with torch.no_grad():
        moved = [
            float((convert(m, "rw+lr+pa")(z) - m(z)).abs().max())
            for m, z in ((gpt, tokens[:, 1:]), (resnet, x))
        ]
    ranks = {f"gain_of_{r}": partial(convert, r=r) for r in (1, 4, 16, 32)}
    losses, _ = language_losses(budget, seed, ranks, deeper=False)
    gains = {name: losses["baseline"] - losses[name] for name in ranks}
    return Evidence(
        step_time=seconds["laurel"] / seconds["baseline"],
        layer_step_time=seconds["deeper"] / seconds["baseline"],
        moved=max(moved),
        gain=statistics.fmean(gains.values()),
        **gains,
    )
