"""ResMLP: an image classifier of linear layers across patches and perceptrons across channels.

    Z = X + s * (A Aff(X))                      A mixes the N patches, the same for all channels
    Y = Z + s' * (C gelu(B Aff(Z)))             B: d -> 4 d and C: 4 d -> d mix the channels of a patch

Aff(x) = a x + b per channel takes the place of normalisation, the small factors s per channel (LayerScale)
keep deep networks trainable.

Paper: "ResMLP: Feedforward networks for image classification with data-efficient training" (2021), Sections 2
and 3; bias of A, initial values and the scales by depth follow the authors' code, where s has no offset.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_least
from workingpapers.papers.vision._augment import ShiftAndFlip
from workingpapers.papers.vision._distillation import SelfDistillation as SelfDistillation
from workingpapers.papers.vision._distillation import distillation_loss as distillation_loss
from workingpapers.papers.vision._residual_mlp import Affine, Block, initial_weights, layer_scale
from workingpapers.papers.vision._sequence_mlp import ResMLPSeq2Seq
from workingpapers.tasks import Budget, Example, examples, fit, initialise, vit


class AcrossPatches(nn.Sequential):
    """Layers over the N patches of each channel, (B, N, D) -> (B, N, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers to the transposed tokens."""
        mixed: Tensor = super().forward(x.mT)
        return mixed.mT


class OnGrid(nn.Sequential):
    """Convolutions over the square grid of patches, (B, N, D) -> (B, N, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers to the tokens as an image."""
        side = math.isqrt(x.shape[1])
        mixed: Tensor = super().forward(x.mT.unflatten(2, (side, side)))
        return mixed.flatten(2).mT


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "affine": Affine,
    "layernorm": nn.LayerNorm,
    "none": lambda dim: nn.Identity(),
}

# the paper's ablations of the cross-patch layer: (patches, dim) -> module, or None for no communication
MIXINGS: dict[str, Callable[[int, int], nn.Module] | None] = {
    "linear": lambda n, dim: AcrossPatches(nn.Linear(n, n)),
    "mlp": lambda n, dim: AcrossPatches(nn.Linear(n, 4 * n), nn.GELU(), nn.Linear(4 * n, n)),
    "conv": lambda n, dim: OnGrid(nn.Conv2d(dim, dim, 3, padding=1)),
    "depthwise": lambda n, dim: OnGrid(nn.Conv2d(dim, dim, 3, padding=1, groups=dim)),
    "separable": lambda n, dim: OnGrid(nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.Conv2d(dim, dim, 1)),
    "none": None,
}


POOLS = ("average", "class_mlp")


class ClassMLP(nn.Module):
    """Pools (B, N, D) to (B, D): in two blocks a class vector gathers from the frozen patches (Section 2)."""

    def __init__(self, dim: int, patches: int, scale: float, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.token = nn.Parameter(0.02 * torch.randn(dim))
        gather = (AcrossPatches(nn.Linear(patches + 1, 1)) for _ in range(2))
        self.blocks = nn.ModuleList(Block(dim, mix, scale, norm) for mix in gather)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class vector after both blocks."""
        token = self.token.expand(len(x), 1, -1)
        for block in self.blocks:
            assert isinstance(block, Block)
            gathered = block.mix(block.norm1(torch.cat([token, x], dim=1)))
            token = token + block.scale1 * gathered
            token = token + block.scale2 * block.mlp(block.norm2(token))
        return token[:, 0]


@paper("resmlp", example=examples.images(3, 16, 4))
class ResMLP(nn.Module):
    """Classify images (B, in_channels, img_size, img_size) -> logits (B, num_classes).

    To learn from a teacher train with `distillation_loss`, without labels by `SelfDistillation`.

    Args:
        img_size, patch_size, in_channels, num_classes: what comes in and out; patches tile the square image.
        dim, depth: width of a patch's vector, and number of blocks.
        scale: initial factor of every branch; default by depth, see `layer_scale`.
        norm: "affine" (the paper's), "layernorm" or "none".
        mixing: how patches communicate: "linear" (the paper's), or of its ablations "mlp", "conv", "depthwise",
            "separable" (3x3), "none".
        pool: "average" over patches, or "class_mlp".
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"img_size": 16, "patch_size": 4, "num_classes": 4, "dim": 16, "depth": 2},
        "s12": {"dim": 384, "depth": 12},
        "s24": {"dim": 384, "depth": 24},
        "s36": {"dim": 384, "depth": 36},
        "b24": {"dim": 768, "depth": 24, "patch_size": 8, "scale": 1e-6},
    }

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        num_classes: int = 1000,
        dim: int = 384,
        depth: int = 12,
        scale: float | None = None,
        norm: str = "affine",
        mixing: str = "linear",
        pool: str = "average",
    ) -> None:
        super().__init__()
        for what, name, known in (("norm", norm, NORMS), ("mixing", mixing, MIXINGS), ("pool", pool, POOLS)):
            if name not in known:
                raise unknown(what, name, known)
        if img_size % patch_size:
            raise WorkingPapersError(
                f"patches of {patch_size}x{patch_size} do not tile a {img_size}x{img_size} image"
            )
        self.img_size, self.in_channels, self.pool = img_size, in_channels, pool
        n, scale = (img_size // patch_size) ** 2, layer_scale(depth) if scale is None else scale
        self.options = f"scale={scale}, norm={norm!r}, mixing={mixing!r}, pool={pool!r}"
        mix, make_norm = MIXINGS[mixing], NORMS[norm]
        self.embed = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.blocks = nn.Sequential(
            *(Block(dim, mix and mix(n, dim), scale, make_norm) for _ in range(depth))
        )
        self.norm = make_norm(dim)
        self.class_mlp = ClassMLP(dim, n, scale, make_norm) if pool == "class_mlp" else None
        self.head = nn.Linear(dim, num_classes)
        self.apply(initial_weights)

    def features(self, x: Tensor) -> Tensor:
        """Return the pooled vector (B, dim) before the classifier, as self-supervised training uses it."""
        if x.shape[1:] != (self.in_channels, self.img_size, self.img_size):
            wanted = (self.in_channels, self.img_size, self.img_size)
            raise WorkingPapersError(
                f"this ResMLP mixes the patches of images {wanted}; got images of shape {tuple(x.shape[1:])}"
            )
        tokens = self.blocks(self.embed(x).flatten(2).mT)  # (B, N, D)
        if self.class_mlp is None:
            return self.norm(tokens).mean(1)  # type: ignore[no-any-return]
        return self.norm(self.class_mlp(tokens))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def extra_repr(self) -> str:
        return self.options


def _sentences(batch: int, generator: torch.Generator) -> Example:
    made = examples.tokens(11, 8)(batch, generator)
    source = torch.randint(11, (batch, 6), generator=generator)
    return Example((source, *made.inputs), made.targets, made.loss)


paper("resmlp", part="seq2seq", kind="model", example=_sentences)(ResMLPSeq2Seq)


def patch_filters(model: ResMLP) -> Tensor:
    """Return A of every block as images (depth, N, side, side): from where patch i gathers, for each i."""
    weights = [p for name, p in model.named_parameters() if name.endswith("mix.0.weight")]
    stacked = torch.stack([weight.detach() for weight in weights if weight.shape[-1] == weight.shape[0]])
    side = math.isqrt(stacked.shape[-1])
    return stacked.reshape(*stacked.shape[:2], side, side)


def sparsity(filters: Tensor, threshold: float = 0.05) -> float:
    """Return the share of entries of A below `threshold` of its largest, in absolute value."""
    return float((filters.abs() < threshold * filters.abs().max()).double().mean())


def locality(filters: Tensor, radius: float = 2.0) -> float:
    """Return the energy of A within `radius` patches of each patch, as a share, over that of a uniform spread.

    filters: (N, side, side), one block's; 1 means no locality.
    """
    side = filters.shape[-1]
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
    near = torch.cdist(places, places) <= radius
    energy = filters.flatten(1).double().square()
    share = (energy * near).sum(1) / energy.sum(1)
    return float(share.mean() / near.double().mean())


def _trained(budget: Budget, seed: int, build: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
    """Train a model on Fashion-MNIST with random shifts and flips; return it and its accuracy, 0 if it diverged."""
    train, test = budget.pick(quick=(4000, 2000), full=(60000, 10000))
    split = images("fashion_mnist", train=train, test=test, seed=seed)
    model = initialise(build, seed)
    how: dict[str, Any] = {"optimizer": "adamw", "schedule": "warmup_cosine", "weight_decay": 0.05}
    epochs, lr = budget.pick(quick=(8, 1e-2), full=(40, 2e-3))  # a narrow network takes a larger rate
    result = fit(ShiftAndFlip(model), split, epochs=epochs, lr=lr, seed=seed, **how)
    return model, 0.0 if result.diverged else result.metrics["accuracy"]


def _small(budget: Budget, **options: Any) -> ResMLP:
    dim, depth = budget.pick(quick=(32, 2), full=(64, 4))
    return ResMLP(28, 4, 1, 10, dim, **{"depth": depth, **options})


@claim(
    "resmlp",
    "With strong augmentation, and optionally distillation, a purely feed-forward design reaches good accuracy for "
    "its cost on ImageNet.",
    holds=all_of(at_least(-0.015, of="over_vit"), at_least(0.03, of="over_no_mixing")),
)
def near_a_transformer(budget: Budget, seed: int) -> Evidence:
    """Accuracy on Fashion-MNIST (49 patches) over a transformer of the same width and depth, and over no mixing."""
    dim, depth, heads = budget.pick(quick=(32, 2, 2), full=(64, 4, 4))
    accuracy = {
        "resmlp": _trained(budget, seed, lambda: _small(budget))[1],
        "vit": _trained(budget, seed, lambda: vit(1, 28, 4, 10, dim, depth, heads))[1],
        "no_mixing": _trained(budget, seed, lambda: _small(budget, mixing="none"))[1],
    }
    over = {f"over_{name}": accuracy["resmlp"] - accuracy[name] for name in ("vit", "no_mixing")}
    return Evidence(**over, **accuracy)


@claim(
    "resmlp",
    "The learned patch-mixing matrices are sparse and come to look like local convolution filters.",
    holds=at_least(1.5, of="locality"),
)
def local_filters(budget: Budget, seed: int) -> Evidence:
    """Energy of A within two patches over a uniform spread, the larger of the first two blocks, after training.

    `small_share` is the share of entries below 5 % of the largest; at the full budget `scales_gain` is what
    affine and LayerScale bring to the accuracy of 24 blocks.
    """
    model, _ = _trained(budget, seed, lambda: _small(budget))
    assert isinstance(model, ResMLP)
    filters = patch_filters(model)[:2]
    figures = {"locality": max(map(locality, filters)), "small_share": max(map(sparsity, filters))}
    if budget.name == "full":
        scaled = _trained(budget, seed, lambda: _small(budget, depth=24))[1]
        bare = _trained(budget, seed, lambda: _small(budget, depth=24, scale=1.0, norm="none"))[1]
        figures["scales_gain"] = scaled - bare
    return Evidence(**figures)
