"""Activator: a normalised gated linear unit in the place of attention.

    u = LN(GELU(W1 x)),   v = LN(W2 x),   unit(x) = W3 (u * v)
    x <- x + unit(LN(x)),   x <- x + MLP(LN(x))

In the authors' code both LN of the unit are one layer, and so are both of the block.  There the unit works on
each token alone, so the classifier is a bag of patches: no token ever hears of another, and the order of the
patches does not matter.  `axis="token"`, which is ours, applies the unit across tokens instead.

Paper: "Activator: GLU Activations as The Core Functions of a Vision Transformer" (2024); block, defaults and
training follow the authors' code.
"""

import itertools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.papers.vision._patch_checks import (
    classifiers,
    flops,
    pictures,
    shuffled_patches,
    times_faster,
    trained,
)
from workingpapers.surgery import replace_modules
from workingpapers.tasks import Budget, examples, initialise, vit

AXES = ("feature", "token")


def _tokens(batch: int, generator: torch.Generator) -> Tensor:
    return torch.randn(batch, 5, 6, generator=generator)


@paper(
    "activator_glu",
    arguments=(6,),
    example=_tokens,
    variants=[{"axis": "token", "tokens": 5}, {"shared_norm": False, "hidden_dim": 9}],
)
class GatingUnit(nn.Module):
    """Return W3 (LN(GELU(W1 x)) * LN(W2 x)) for tokens (B, T, dim), same shape out.

    Args:
        dim: width of a token.
        hidden_dim: width of the gate; 2 * dim by default, as in the authors' code.
        axis: "feature", each token alone, or "token", across the `tokens` tokens of each feature.
        tokens: how many tokens there are; needed by axis="token".
        shared_norm: one LayerNorm for both branches, as in the authors' code, or one for each.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int | None = None,
        axis: str = "feature",
        tokens: int | None = None,
        shared_norm: bool = True,
    ) -> None:
        super().__init__()
        if axis not in AXES:
            raise unknown("axis", axis, AXES)
        if axis == "token" and tokens is None:
            raise WorkingPapersError("a unit across tokens is built for a number of them; give `tokens`")
        self.axis, self.shared_norm = axis, shared_norm
        self.length = dim if axis == "feature" else int(tokens or 0)
        hidden_dim = 2 * dim if hidden_dim is None else hidden_dim
        self.proj1 = nn.Linear(self.length, hidden_dim)
        self.proj2 = nn.Linear(self.length, hidden_dim)
        self.proj3 = nn.Linear(hidden_dim, self.length)
        self.gelu = nn.GELU()
        self.norm = nn.LayerNorm(hidden_dim)
        self.norm2 = None if shared_norm else nn.LayerNorm(hidden_dim)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Return the gated tokens; `attn_mask` is there for models that hand one to their attention."""
        if attn_mask is not None:
            raise WorkingPapersError("a gating unit has no attention that a mask could change; got one")
        across = self.axis == "token"
        x = x.mT if across else x
        if x.shape[-1] != self.length:
            what = "tokens" if across else "features"
            raise WorkingPapersError(
                f"this unit takes {what} in a number of {self.length}; got {x.shape[-1]}"
            )
        u = self.norm(self.gelu(self.proj1(x)))
        v = (self.norm if self.norm2 is None else self.norm2)(self.proj2(x))
        out: Tensor = self.proj3(u * v)
        return out.mT if across else out

    def extra_repr(self) -> str:
        return f"axis={self.axis!r}, shared_norm={self.shared_norm}"


@paper(
    "activator_glu",
    part="block",
    kind="layer",
    arguments=(6,),
    example=_tokens,
    variants=[{"mlp": False, "axis": "token", "tokens": 5}],
)
class ActivatorBlock(nn.Module):
    """The unit and a perceptron, each behind one and the same LayerNorm and with a shortcut, (B, T, dim) -> same.

    Args:
        dim, hidden_dim: width of a token, and of both hidden layers (2 * dim by default).
        dropout: after each layer of the perceptron; 0.5 in the authors' code.
        mlp: False leaves the perceptron out (the paper's "GEGLU only").
        axis, tokens: as of `GatingUnit`.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int | None = None,
        dropout: float = 0.5,
        mlp: bool = True,
        axis: str = "feature",
        tokens: int | None = None,
    ) -> None:
        super().__init__()
        hidden_dim = 2 * dim if hidden_dim is None else hidden_dim
        self.norm = nn.LayerNorm(dim)
        self.unit = GatingUnit(dim, hidden_dim, axis, tokens)
        expand, contract = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        layers = (expand, nn.GELU(), nn.Dropout(dropout), contract, nn.Dropout(dropout))
        self.mlp = nn.Sequential(*layers) if mlp else None
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens after the one or two branches."""
        x = x + self.unit(self.norm(x))
        return x if self.mlp is None else x + self.mlp(self.norm(x))

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}, mlp={self.mlp is not None}"


@paper("activator_glu", part="model", kind="model", example=examples.images(3, 16, 4))
class Activator(nn.Module):
    """Classify images (B, in_channels, img_size, img_size) -> logits (B, num_classes).

    A strided convolution makes the patches, their mean is read out; there is no position embedding.

    Args:
        img_size, patch_size, in_channels, num_classes: what comes in and out.
        dim, hidden_dim, depth, dropout, mlp, axis: of the blocks, see `ActivatorBlock`.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"img_size": 16, "num_classes": 4, "dim": 16, "hidden_dim": 32, "depth": 2, "dropout": 0.0},
        "cifar10": {},
        "cifar10_geglu_only": {"mlp": False},
    }

    def __init__(
        self,
        img_size: int = 32,
        patch_size: int = 4,
        in_channels: int = 3,
        num_classes: int = 10,
        dim: int = 256,
        hidden_dim: int = 512,
        depth: int = 4,
        dropout: float = 0.5,
        mlp: bool = True,
        axis: str = "feature",
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise WorkingPapersError(
                f"patches of {patch_size}x{patch_size} do not tile a {img_size}x{img_size} image"
            )
        self.img_size, tokens = img_size, (img_size // patch_size) ** 2
        self.embed = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        blocks = (ActivatorBlock(dim, hidden_dim, dropout, mlp, axis, tokens) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        tokens = self.blocks(self.embed(x).flatten(2).mT)  # (B, T, D)
        logits: Tensor = self.head(tokens.mean(1))
        return logits

    def extra_repr(self) -> str:
        return f"img_size={self.img_size}"


def _small_vit(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    return vit(1, 8, 4, 3, dim=8), torch.randn(4, 1, 8, 8, generator=generator)


@paper(
    "activator_glu",
    part="convert",
    kind="transform",
    example=_small_vit,
    variants=[{"axis": "token", "tokens": 4}],
)
def convert(
    model: nn.Module,
    hidden_dim: int | None = None,
    axis: str = "feature",
    tokens: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of a vision transformer with a fresh `GatingUnit` in the place of each self-attention.

    Attention is what has one linear layer `qkv` from D to 3 D features, as in timm and in `tasks.vit`.  The
    new weights follow from `seed`; the model is to be trained.  A copy without attention changes nothing more.

    Raises:
        WorkingPapersError: where the model has neither attention nor units.
    """
    numbers = itertools.count(1000 * seed)

    def chosen(name: str, module: nn.Module) -> bool:
        qkv = getattr(module, "qkv", None)
        attends = isinstance(qkv, nn.Linear) and qkv.out_features == 3 * qkv.in_features
        return attends or isinstance(module, GatingUnit)

    def build(old: nn.Module) -> nn.Module | None:
        dim = getattr(getattr(old, "qkv", None), "in_features", None)
        if dim is None:  # a unit already
            return None
        return initialise(lambda: GatingUnit(dim, hidden_dim, axis, tokens), next(numbers))

    return replace_modules(model, chosen, build)


@claim(
    "activator_glu",
    "Gated units in place of attention stay competitive with baseline architectures at lower cost, also without "
    "the second non-gated network.",
    seeds=5,
    holds=all_of(
        at_least(-0.03, of="cifar10_over_vit"),
        at_least(-0.03, of="fashion_mnist_over_vit"),
        at_least(1.15, of="speed_over_vit"),
        at_most(0.6, of="geglu_only_flops_over_vit", by="every"),
    ),
)
def competitive(budget: Budget, seed: int) -> Evidence:
    """Accuracy over a transformer's of the same width and depth; speed and cost for 256 tokens of 256 features."""
    found: dict[str, float] = {}
    for name, channels, arms in (("cifar10", 3, None), ("fashion_mnist", 1, ("block_a", "vit"))):
        split, builds = (
            pictures(name, budget, seed),
            classifiers(Activator, channels, *budget.pick(quick=(64, 2), full=(256, 4))),
        )
        for arm in arms or builds:
            found[f"{name}_{arm}"] = trained(builds[arm], split, budget, seed)[1]
        found[f"{name}_over_vit"] = found[f"{name}_block_a"] - found[f"{name}_vit"]
    x = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(seed))
    block_a, block_b = ActivatorBlock(256), ActivatorBlock(256, mlp=False)
    block = vit(3, 16, 4, 10, 256, 1).blocks[0]
    return Evidence(
        **found,
        flops_over_vit=flops(block_a, x) / flops(block, x),
        geglu_only_flops_over_vit=flops(block_b, x) / flops(block, x),
        speed_over_vit=times_faster(block_a, block, x),
    )


@claim(
    "activator_glu",
    "The design is offered as an alternative to softmax attention as the core function of a transformer.",
    seeds=5,
    holds=all_of(
        at_most(0.001, of="block_a_changed", by="every"),
        at_least(0.05, of="across_drop"),
        at_least(0.05, of="vit_drop"),
    ),
)
def bag_of_patches(budget: Budget, seed: int) -> Evidence:
    """What shuffling the patches of Fashion-MNIST test images does: predictions changed, and accuracy lost.

    An honest check: attention mixes tokens, the published unit does not, the unit across tokens does.
    """
    split = pictures("fashion_mnist", budget, seed)
    x, found = shuffled_patches(split.x_test, 4, torch.Generator().manual_seed(seed)), {}
    builds = classifiers(Activator, 1, *budget.pick(quick=(64, 2), full=(256, 4)))
    for name in ("block_a", "across", "vit"):
        model, accuracy = trained(builds[name], split, budget, seed)
        with torch.no_grad():
            before, after = model(split.x_test).argmax(1), model(x).argmax(1)
        found[f"{name}_changed"] = float((before != after).double().mean())
        found[f"{name}_drop"] = accuracy - float((after == split.y_test).double().mean())
    return Evidence(**found)
