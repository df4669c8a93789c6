"""Networks that compute several binary features at once, and their training in phases."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.papers.theory._features import Feature, bit_inputs, image_inputs, token_inputs
from workingpapers.tasks import cnn, initialise, mlp
from workingpapers.tasks.randomness import stream

Sample = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
MODELS = ("mlp", "cnn", "transformer")
Phase = tuple[Sequence[int], int | None]  # which features are trained, and for how many steps


class Decoder(nn.Module):
    """A causal transformer: tokens (B, T) of 0 and 1 -> logits (B, features) at the last `features` places."""

    def __init__(self, length: int, features: int, dim: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.features = features
        self.token, self.place = nn.Embedding(2, dim), nn.Parameter(0.02 * torch.randn(length, dim))
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.tail = Tail(features)
        self.read = nn.Linear(dim, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logit of each feature, read where the token before it stands."""
        length = tokens.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        h = self.blocks(self.token(tokens) + self.place[:length], mask=mask)
        logits: Tensor = self.read(self.tail(h))[..., 0]
        return logits


class Tail(nn.Module):
    """Keeps the last `count` places of a sequence (B, T, D)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, h: Tensor) -> Tensor:
        """Return (B, count, D)."""
        return h[:, -self.count :]


def feature_loss(logits: Tensor, values: Tensor, trained: Sequence[int]) -> Tensor:
    """Return the cross-entropy of logits and values (B, features) of the `trained` features, where present."""
    chosen, wanted = logits[:, list(trained)], values[:, list(trained)]
    there = ~wanted.isnan()
    if not bool(there.any()):
        return 0 * logits.sum()
    return F.binary_cross_entropy_with_logits(chosen[there], wanted[there])


@torch.no_grad()
def feature_accuracy(model: nn.Module, x: Tensor, values: Tensor) -> Tensor:
    """Return the accuracy (features,) on inputs that hold the feature."""
    right = (model(x) > 0) == (values > 0.5)
    there = ~values.isnan()
    share: Tensor = (right & there).double().sum(0) / there.sum(0)
    return share


def train_features(
    model: nn.Module,
    sample: Sample,
    phases: Sequence[Phase],
    accuracy: float = 0.99,
    most: int = 6000,
    lr: float = 1e-3,
    optimizer: str = "adam",
    batch: int = 128,
    seed: int = 0,
) -> Tensor:
    """Train in phases on fresh samples and return the accuracy (features,) on 2,000 held out.

    Args:
        model: inputs -> logits (B, features).
        sample: (count, generator) -> inputs and values (count, features).
        phases: which features are trained and for how many steps; None goes on until each of them has the
            `accuracy`, for at most `most` steps.
        optimizer: "adam" or "sgd" (momentum 0.9), begun afresh in each phase.
        seed: decides the samples.
    """
    if optimizer not in ("adam", "sgd"):
        raise unknown("optimizer", optimizer, ("adam", "sgd"))
    if not phases:
        raise WorkingPapersError("training needs at least one phase; got none")
    generator = torch.Generator().manual_seed(stream(seed, "samples"))
    held = sample(2000, torch.Generator().manual_seed(stream(seed, "held out")))
    for trained, steps in phases:
        descent = (
            torch.optim.Adam(model.parameters(), lr)
            if optimizer == "adam"
            else torch.optim.SGD(model.parameters(), lr, momentum=0.9)
        )
        for step in range(most if steps is None else steps):
            if steps is None and step % 25 == 0:
                reached = feature_accuracy(model.eval(), *held)
                if float(reached[list(trained)].min()) >= accuracy:
                    break
            x, values = sample(batch, generator)
            descent.zero_grad()
            feature_loss(model.train()(x), values, trained).backward()  # type: ignore[no-untyped-call]
            descent.step()
    return feature_accuracy(model.eval(), *held)


def trained_net(
    features: Sequence[Feature],
    phases: Sequence[Phase] | None = None,
    model: str = "mlp",
    width: int = 128,
    depth: int = 4,
    seed: int = 0,
    units: int = 32,
    optimizer: str = "adam",
) -> tuple[nn.Module, Sample, Tensor]:
    """Train a network on features; return it, what draws its inputs, and its accuracies (features,).

    "mlp" reads `bit_inputs`, "transformer" reads `token_inputs` and writes the features in their order, "cnn" reads
    `image_inputs` of 32 pixels, whose three features take the place of `features`.  Adam at 1e-3 (sgd at 1e-2).
    """
    if model not in MODELS:
        raise unknown("model", model, MODELS)
    count = 3 if model == "cnn" else len(features)
    sample: Sample
    net: nn.Module
    if model == "mlp":
        sample = partial(bit_inputs, features, units=units)
        net = initialise(lambda: mlp([units * count, *[width] * depth, count]), seed)
    elif model == "transformer":
        sample = partial(token_inputs, features)
        length = sum(f.bits for f in features) + count - 1
        net = initialise(lambda: Decoder(length, count, dim=width, depth=max(depth // 2, 1)), seed)
    else:
        sample = partial(image_inputs, size=32)
        net = initialise(lambda: cnn(3, count, (width // 8, width // 4, width // 2), size=32), seed)
    found = train_features(
        net,
        sample,
        phases or [(range(count), None)],
        lr=1e-3 if optimizer == "adam" else 1e-2,
        optimizer=optimizer,
        seed=seed,
    )
    return net, sample, found
