"""SNNK: a dense layer with its activation as a product of features of the input and features of the weights.

    f(w . x + b)  ~  psi(w, b) . phi(x),   phi: d -> m random features that do not know the weights

With psi learned directly a layer has m numbers an output instead of d; two layers in a row merge; and of a
network that is merged wholly, y = W phi(x), the best W is the solution of a ridge regression.

Paper: "Scalable Neural Network Kernels" (2023), Sections 3 and 4; the features of relu, the adapter and its
zero start follow the authors' code.
"""

import copy
import itertools
from functools import partial

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_least, at_most, between
from workingpapers.papers.layers._adapters import compare_adapters
from workingpapers.papers.layers._features import Features, error_slope, exactly, in_dtype_of, irls, ridge
from workingpapers.surgery import note_changes, replace_modules
from workingpapers.surgery.choose import Modules
from workingpapers.tasks import Budget, initialise


@paper("snnk", replaces="Linear", variants=[{"kind": "sin", "learn": "weights"}, {"kind": "exp"}])
class SNNKLinear(nn.Module):
    """Stand in for a linear layer and its activation, (..., in_features) -> (..., out_features).

    Args:
        in_features, out_features, bias: of the layer that it stands for.
        num_features: m.
        kind: "relu" for the arc-cosine kernel in place of a rectifier; "sin", "cos", "exp" or "gaussian"
            (exp(-z^2 / 2)) for an unbiased estimate of that function of w . x + b.
        learn: "direct" learns psi itself, started at that of random weights; "weights" learns w and b.
        orthogonal: draw the random directions orthogonal, in_features at a time.
        a: A of the features, at most 0; only for the kinds other than "relu".
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        num_features: int = 64,
        kind: str = "relu",
        learn: str = "direct",
        orthogonal: bool = False,
        a: float = 0.0,
    ) -> None:
        super().__init__()
        if learn not in ("direct", "weights"):
            raise unknown("way to learn (learn=)", learn, ("direct", "weights"))
        self.learn, self.out_features = learn, out_features
        start = nn.Linear(in_features, out_features, bias)
        self.features = Features(in_features, num_features, kind, bias, orthogonal, a)
        if learn == "weights":
            self.weight, self.bias = start.weight, start.bias
        else:
            self.direct = nn.Parameter(self.features.weights(start.weight, start.bias).detach())

    def psi(self) -> Tensor:
        """Return the features (out_features, m) of the weights."""
        if self.learn == "direct":
            return exactly(self.direct)
        return self.features.weights(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return in_dtype_of(x, F.linear(self.features(exactly(x)), self.psi()))

    def extra_repr(self) -> str:
        return f"out_features={self.out_features}, learn={self.learn!r}"


class Bundle(nn.Module):
    """Two SNNK layers in one: psi_2 . phi_2(psi_1 phi_1(x)) without what stands between them.

    What phi_2 asks of z = psi_1 phi_1(x) are its products with random directions, here one matrix, and its
    length, that of R phi_1(x) where psi_1 = Q R.
    """

    def __init__(self, first: SNNKLinear, second: SNNKLinear) -> None:
        super().__init__()
        if first.out_features != second.features.d:
            sizes = f"{first.out_features} outputs and {second.features.d} inputs"
            raise WorkingPapersError(f"the second layer takes what the first gives; got {sizes}")
        self.first, self.second = copy.deepcopy(first.features), copy.deepcopy(second.features)
        with torch.no_grad():
            psi, g = first.psi(), exactly(second.features.directions)
            self.mixing = nn.Parameter((g[:, : second.features.d] @ psi).to(first.features.directions.dtype))
            self.psi = nn.Parameter(second.psi().to(self.mixing.dtype).clone())
            root = None if second.features.kind == "relu" else torch.linalg.qr(psi)[1].to(self.mixing.dtype)
        self.root = None if root is None else nn.Parameter(root)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the two layers give, (..., in_features) -> (..., out_features)."""
        phi = self.first(exactly(x))
        offset = exactly(self.second.directions)[:, self.second.d] if self.second.augmented else None
        projected = F.linear(phi, exactly(self.mixing), offset)
        squared = projected[..., :1]
        if self.root is not None:
            squared = F.linear(phi, exactly(self.root)).square().sum(-1, keepdim=True)
        return in_dtype_of(x, F.linear(self.second.activated(projected, squared), exactly(self.psi)))


def _two_layers(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    seed = int(torch.randint(1000, (), generator=generator))
    net = initialise(lambda: nn.Sequential(SNNKLinear(4, 6), SNNKLinear(6, 5, kind="gaussian")), seed)
    return net, torch.randn(3, 4, generator=generator)


@paper("snnk", part="bundle", kind="transform", example=_two_layers, preserves=1e-4)
def bundle(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in which SNNK layers that follow one another in a sequence are merged by twos."""
    changed, sentences = copy.deepcopy(model), []
    for name, sequence in list(changed.named_modules()):
        if not isinstance(sequence, nn.Sequential):
            continue
        i = 0
        while i + 1 < len(sequence):
            one, two = sequence[i], sequence[i + 1]
            if isinstance(one, SNNKLinear) and isinstance(two, SNNKLinear):
                sequence[i] = Bundle(one, two).train(one.training)
                del sequence[i + 1]
                sentences.append(f"Layers {i} and {i + 1} of {name or 'the model'} are one now.")
            i += 1
    found: nn.Module = note_changes(changed, sentences)
    return found


def solve(
    features: Features,
    x: Tensor,
    y: Tensor,
    num_classes: int = 0,
    penalty: float = 1.0,
    loss: str = "squared",
) -> nn.Sequential:
    """Return the fully merged network x (N, ...) -> W phi(x) whose W is optimal, without gradient steps.

    Args:
        features: phi; the inputs are flattened.
        x, y: training inputs, and labels (N,) or, with `num_classes` 0, targets (N, K).
        num_classes: how many classes there are.
        penalty: of the squared weights.
        loss: "squared" (ridge regression) or, for classes, "cross-entropy" (iterated least squares).
    """
    if loss not in ("squared", "cross-entropy"):
        raise unknown("loss", loss, ("squared", "cross-entropy"))
    phi = features(x.flatten(1))
    if loss == "cross-entropy":
        weight = irls(phi, y, num_classes, penalty)
        offset = weight.new_zeros(num_classes)
    else:
        weight, offset = ridge(phi, F.one_hot(y, num_classes) if num_classes else y, penalty)
    readout = nn.Linear(features.m, len(weight), device="meta").to_empty(device=x.device)
    with torch.no_grad():
        readout.weight.copy_(weight)
        readout.bias.copy_(offset)
    return nn.Sequential(nn.Flatten(), features, readout)


@paper(
    "snnk",
    part="adapter",
    kind="layer",
    arguments=(6,),
    example=lambda batch, generator: torch.randn(batch, 3, 6, generator=generator),
)
class SNNKAdapter(nn.Module):
    """Add an SNNK layer to its input, (..., dim) -> same shape; psi starts at 0, so at first nothing is added.

    Args:
        dim: width.
        num_features: m; the adapter has dim * m numbers to learn.
        kind: as for `SNNKLinear`.
    """

    def __init__(self, dim: int, num_features: int = 16, kind: str = "relu") -> None:
        super().__init__()
        self.features = Features(dim, num_features, kind, bias=False)
        self.psi = nn.Parameter(torch.zeros(dim, num_features))

    def forward(self, x: Tensor) -> Tensor:
        return x + in_dtype_of(x, F.linear(self.features(exactly(x)), exactly(self.psi)))


def _host(generator: torch.Generator) -> tuple[nn.Module, Tensor, list[str]]:
    net = initialise(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), 0)
    return net, torch.randn(3, 4, generator=generator), ["0"]


@paper("snnk", part="adapt", kind="transform", example=_host, preserves=0.0)
def adapt(
    model: nn.Module, modules: Modules, num_features: int = 16, kind: str = "relu", seed: int = 0
) -> nn.Module:
    """Return a copy of `model`, frozen, with an adapter to learn behind each of the chosen modules.

    `modules` are chosen as in `workingpapers.surgery`: linear layers or layer norms; `seed` draws the features.
    """
    count = itertools.count(seed)

    def build(old: nn.Module) -> nn.Module | None:
        if isinstance(old, nn.Sequential) and len(old) and isinstance(old[-1], SNNKAdapter):
            return None  # it has one
        width = (
            old.out_features if isinstance(old, nn.Linear) else getattr(old, "normalized_shape", (None,))[-1]
        )
        if width is None:
            name = type(old).__name__
            raise WorkingPapersError(f"adapters stand behind linear layers and layer norms; got {name}")
        adapter = initialise(partial(SNNKAdapter, int(width), num_features, kind), next(count))
        return nn.Sequential(old, adapter)

    adapted = replace_modules(model, modules, build).requires_grad_(False)
    for module in adapted.modules():
        if isinstance(module, SNNKAdapter):
            module.psi.requires_grad_(True)
    return adapted


@claim(
    "snnk",
    "Random features that separate input from parameters approximate feedforward layers pointwise.",
    holds=all_of(*(between(-0.6, -0.4, of=f"slope_{kind}") for kind in ("sin", "cos", "exp", "relu"))),
)
def estimates(budget: Budget, seed: int) -> Evidence:
    """Slope of the logarithm of the error against that of the number of features, 16 to 4096, for 16 inputs.

    200 pairs of weights and inputs in the unit ball; for relu the truth is the arc-cosine kernel.
    """
    sizes, draws = [2**k for k in range(4, 13)], budget.pick(quick=8, full=100)
    kinds = ("sin", "cos", "exp", "relu")
    slopes = {f"slope_{kind}": error_slope(kind, 16, sizes, 200, draws, seed) for kind in kinds}
    return Evidence(**slopes)


@claim(
    "snnk",
    "Adapters built this way need far fewer trainable parameters at competitive accuracy.",
    figure="up to 5x reduction in trainable parameters",
    holds=all_of(
        at_most(0.25, of="share_of_parameters", by="every"),
        at_least(-0.015, of="over_bottleneck"),
        at_least(0.0, of="over_head_alone"),
    ),
)
def adapters(budget: Budget, seed: int) -> Evidence:
    """Accuracy on MNIST of a vision transformer trained on Fashion-MNIST, frozen but for adapters and head.

    Adapters stand behind attention and perceptron of both blocks: SNNK ones with 8 features against the usual
    ones of width 16, at width 64; the same new head and Adam at 1e-2 for all.
    """
    learned, accuracy = compare_adapters(partial(adapt, num_features=8, seed=seed), 16, budget, seed)
    return Evidence(
        share_of_parameters=learned["ours"] / learned["bottleneck"],
        over_bottleneck=accuracy["ours"] - accuracy["bottleneck"],
        over_head_alone=accuracy["ours"] - accuracy["head_alone"],
        accuracy=accuracy["ours"],
    )


@claim(
    "snnk",
    "Bundled layers merge, and a fully bundled network has explicit optimal weights, bypassing backpropagation.",
    holds=all_of(at_most(1e-4, of="merging_error", by="every"), at_least(0.01, of="over_logistic")),
)
def bundled(budget: Budget, seed: int) -> Evidence:
    """Accuracy on digits of the ridge solution on 1,024 features of relu over logistic regression (C = 1).

    The penalty is 1 for both; `merging_error` is the largest difference that merging two random layers makes
    to their outputs on the test images, over the largest output.
    """
    split = images("digits", seed=seed)
    x, x_test = split.x_train.flatten(1), split.x_test.flatten(1)
    features = initialise(partial(Features, 64, budget.pick(quick=1024, full=8192)), seed)
    with torch.no_grad():
        guesses = solve(features, x, split.y_train, 10)(x_test).argmax(1)
        layers = initialise(lambda: nn.Sequential(SNNKLinear(64, 128), SNNKLinear(128, 10)), seed)
        apart, merged = layers(x_test), bundle(layers)(x_test)
    logistic = LogisticRegression(max_iter=2000).fit(x.numpy(), split.y_train.numpy())
    accuracy = float((guesses == split.y_test).float().mean())
    return Evidence(
        accuracy=accuracy,
        over_logistic=accuracy - float(logistic.score(x_test.numpy(), split.y_test.numpy())),
        merging_error=float((merged - apart).abs().max() / apart.abs().max()),
    )
