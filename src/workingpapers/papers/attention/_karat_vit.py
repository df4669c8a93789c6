"""The vision transformers that KArAt is put into: ViT-Tiny, Small and Base with a class token."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from workingpapers.catalog import paper
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.papers.attention._karat_mixer import KArAt, ScoreOperator, SoftmaxAttention
from workingpapers.tasks import examples
from workingpapers.tasks.transformers import Block

ATTENTIONS = ("blockwise", "universal", "softmax")


@paper("karat", part="vit", kind="model", example=examples.images(3, 16, 4))
class KArAtViT(nn.Module):
    """Classify images (B, in_channels, img_size, img_size) -> logits (B, num_classes), read at a class token.

    Args:
        img_size, patch_size, in_channels, num_classes: what comes in and out; patches tile the square image.
        dim, depth, heads: width, number of blocks, and heads of each; ViT-Tiny by default.
        attention: "blockwise" (functions of its own in each block), "universal" (one set for all blocks), or
            "softmax", the plain vision transformer.
        options: rank, size, basis, base and project of `KArAt`.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"img_size": 16, "patch_size": 4, "num_classes": 4, "dim": 24, "depth": 2},
        "vit_tiny": {},
        "vit_tiny_32": {"img_size": 32, "patch_size": 4, "num_classes": 10},
        "vit_small": {"dim": 384, "heads": 6},
        "vit_base": {"dim": 768, "heads": 12, "size": 1},
    }

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        num_classes: int = 1000,
        dim: int = 192,
        depth: int = 12,
        heads: int = 3,
        attention: str = "blockwise",
        **options: Any,
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise WorkingPapersError(
                f"patches of {patch_size}x{patch_size} do not tile a {img_size}x{img_size} image"
            )
        self.img_size, self.attention = img_size, attention
        tokens = (img_size // patch_size) ** 2 + 1
        self.embed = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.empty(dim))
        self.positions = nn.Parameter(torch.empty(tokens, dim))
        mixer = _mixer(attention, heads, tokens, options)
        self.blocks = nn.ModuleList(Block(dim, heads, nn.GELU, mixer) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights as is usual for vision transformers; the functions of the scores keep theirs."""
        for weight in (self.class_token, self.positions):
            nn.init.trunc_normal_(weight, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the images."""
        if x.ndim != 4 or x.shape[-2:] != (self.img_size, self.img_size):
            raise WorkingPapersError(
                f"the model takes images (B, C, {self.img_size}, {self.img_size}); got {tuple(x.shape)}"
            )
        patches = self.embed(x).flatten(2).mT
        x = torch.cat([self.class_token.expand(len(x), 1, -1), patches], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits

    def extra_repr(self) -> str:
        return f"img_size={self.img_size}, attention={self.attention!r}"


def _mixer(
    attention: str, heads: int, tokens: int, options: dict[str, Any]
) -> Callable[[int, int], nn.Module]:
    """Return a factory (dim, heads) -> module that mixes the tokens."""
    if attention not in ATTENTIONS:
        raise unknown("attention", attention, ATTENTIONS)
    if attention == "softmax":
        if options:
            raise WorkingPapersError(f"softmax attention has no options; got {', '.join(options)}")
        return SoftmaxAttention
    if attention == "blockwise":
        return partial(KArAt, tokens=tokens, **options)
    shared: ScoreOperator = KArAt(heads, heads, tokens, **options).phi
    return partial(KArAt, tokens=tokens, operator=shared, **options)
