"""Point-wise attention: each weight is a function of its own score, divided by the number of keys.

    A = L^-alpha h(Q K^T / sqrt(d)),    output = A V,    alpha = 1 and h = relu by default

No row is normalised, so the keys can be split into parts whose outputs are simply added.

Paper: "Replacing softmax with ReLU in Vision Transformers" (2023), Section 3; defaults as in its main
experiments (Section 4): relu, alpha = 1, layer norm on queries and keys, no gate.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.papers.attention._converted import replace_attention
from workingpapers.papers.attention._costs import RowReductions, median_seconds
from workingpapers.papers.attention._masks import keys_seen, seen, with_causal
from workingpapers.surgery import note_changes
from workingpapers.tasks import Budget, fit, initialise, vit

POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu2": lambda s: F.relu(s).square(),
    "gelu": F.gelu,
    "softplus": F.softplus,
    "identity": lambda s: s,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
}
SCALINGS = ("position", "length")


def attention_weights(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    h: str = "relu",
    alpha: float = 1.0,
    length: float | Tensor | None = None,
) -> Tensor:
    """Return A, (..., Lq, Lk), for queries (..., Lq, d) and keys (..., Lk, d); see `pointwise_attention`."""
    check_form(h, alpha)
    mask = with_causal(attn_mask, query, key, is_causal)
    visible = seen(mask)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is None or visible is None:
        weights = POINTWISE[h](scores)
    else:  # hidden scores never enter h: they may be infinite
        scores = scores if mask.dtype == torch.bool else scores + mask.masked_fill(~visible, 0.0)
        weights = POINTWISE[h](scores.masked_fill(~visible, 0.0)).masked_fill(~visible, 0.0)
    exact = torch.promote_types(query.dtype, torch.float32)
    count = keys_seen(mask, key) if length is None else length
    count = torch.as_tensor(count, dtype=exact, device=query.device).clamp_min(1)
    return weights / (count**alpha).to(query.dtype)


def pointwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    h: str = "relu",
    alpha: float = 1.0,
    length: float | Tensor | None = None,
    block: int | None = None,
) -> Tensor:
    """Attend point-wise; signature and shapes of F.scaled_dot_product_attention, (..., Lq, dv) out.

    Args:
        attn_mask: bool, True where a query sees a key, or added to the scores, -inf where it does not; may come
            with `is_causal`.
        h: relu, relu2 (squared), gelu, softplus, identity, relu6 or sigmoid.
        alpha: exponent of the length, from 0 to 2.
        length: L, a number or a tensor that broadcasts to (..., Lq, 1); default: how many keys the query sees
            (all that the mask leaves; i + 1 for the i-th query under `is_causal`).  A query that sees none gets 0.
        block: go through the keys in blocks of this many and add up, so that no (Lq, Lk) scores are held.
    """
    if block is not None and block < 1:
        raise WorkingPapersError(f"a block holds at least one key; got block={block}")
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(groups, dim=-3) for t in (key, value))
    mask = with_causal(attn_mask, query, key, is_causal)
    length = keys_seen(mask, key) if length is None else length
    weigh = partial(attention_weights, scale=scale, h=h, alpha=alpha, length=length)
    if block is None:
        return F.dropout(weigh(query, key, mask), dropout_p) @ value
    out = query.new_zeros(*query.shape[:-1], value.shape[-1])
    for start in range(0, key.shape[-2], block):
        part = slice(start, start + block)
        columns = mask if mask is None or mask.shape[-1] == 1 else mask[..., part]
        out = out + F.dropout(weigh(query, key[..., part, :], columns), dropout_p) @ value[..., part, :]
    return out


def check_form(h: str, alpha: float, scaling: str = "position") -> None:
    """Raise one sentence where the paper's family has no such function, exponent or way to count keys."""
    if scaling not in SCALINGS:
        raise unknown("scaling", scaling, SCALINGS)
    if h not in POINTWISE:
        raise unknown("point-wise function h", h, POINTWISE)
    if not 0 <= alpha <= 2:
        raise WorkingPapersError(f"alpha, the exponent of the length, lies between 0 and 2; got {alpha}")


@paper("relu_attention_vit", causal="option", step=True)
class PointwiseAttention(nn.Module):
    """Self-attention with several heads and point-wise weights, (B, T, D) -> (B, T, D).

    Args:
        dim, heads: width D, and over how many heads it is shared evenly.
        h, alpha: the weights are L^-alpha h(scores); see `pointwise_attention`.
        causal: hide later tokens.
        scaling: "position" divides by the number of keys that the query sees, i + 1 for the i-th token of a
            causal mixer; "length" by the number of all real tokens, also under `causal`.
        qk_norm: layer norm on the queries and keys of every head.
        gate: multiply the mixed values by silu(G x) before the output projection, as in the gated attention
            unit (the paper's Section 4 does not name the function).
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        h: str = "relu",
        alpha: float = 1.0,
        causal: bool = False,
        scaling: str = "position",
        qk_norm: bool = True,
        gate: bool = False,
    ) -> None:
        super().__init__()
        check_form(h, alpha, scaling)
        if heads < 1 or dim % heads:
            raise WorkingPapersError(f"the heads share the width evenly; {dim} is no multiple of {heads}")
        self.heads, self.h, self.alpha, self.causal, self.scaling = heads, h, alpha, causal, scaling
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.gate = nn.Linear(dim, dim) if gate else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix the tokens; `mask` (B, T) bool is True for real ones."""
        q, k, v = self._project(x)
        real = None if mask is None else mask[:, None, None, :]
        length = keys_seen(real, k) if self.scaling == "length" else None
        return self._finish(x, self.attend(q, k, v, real, length))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, length: Any) -> Tensor:
        """Return the mixed values (B, H, T, d) of queries, keys and values (B, H, T, d)."""
        form: dict[str, Any] = {"h": self.h, "alpha": self.alpha, "length": length}
        return pointwise_attention(q, k, v, mask, is_causal=self.causal, **form)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Take one token (B, D) and the state, keys and values so far or None; return its output and the state."""
        if not self.causal or self.scaling != "position":
            raise WorkingPapersError(
                "step() needs causal=True and scaling='position': the length is not known yet"
            )
        q, k, v = self._project(x[:, None])
        if state is not None:
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(state, (k, v), strict=True))
        mixed = pointwise_attention(q, k, v, h=self.h, alpha=self.alpha)
        return self._finish(x[:, None], mixed)[:, 0], (k, v)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, d)
        return self.q_norm(q), self.k_norm(k), v

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        joined = mixed.transpose(1, 2).flatten(2)  # (B, T, D)
        out: Tensor = self.out(joined if self.gate is None else joined * F.silu(self.gate(x)))
        return out

    def extra_repr(self) -> str:
        names = ("heads", "h", "alpha", "causal", "scaling")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _encoder(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2), torch.randn(3, 7, 16, generator=generator)


@paper("relu_attention_vit", part="convert", kind="transform", example=_encoder)
def convert(model: nn.Module, h: str = "relu", alpha: float = 1.0, scaling: str = "position") -> nn.Module:
    """Return a copy of `model` whose softmax attention is point-wise, with the same weights; it needs fine-tuning.

    Converted are nn.MultiheadAttention (torch's transformers, torchvision's ViT), modules with a linear `qkv`
    and a linear `proj` or `out` (timm, `workingpapers.tasks`), and Hugging Face models, through the
    attention interface of transformers.  `scaling="length"` leaves attn_mask out of the count of keys, so
    that a causal model divides by the constant length.
    """
    check_form(h, alpha, scaling)
    weigh = partial(attention_weights, h=h, alpha=alpha)
    name = f"workingpapers_{h}_{alpha:g}_{scaling}"
    changed, found = replace_attention(copy.deepcopy(model), weigh, scaling == "length", name)
    noted: nn.Module = note_changes(
        changed, [f"The attention {place} weighs by L^-{alpha:g} {h}(scores) now." for place in found]
    )
    return noted


class SoftmaxAttention(PointwiseAttention):
    """The same mixer with softmax weights, which the claims compare with."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, length: Any) -> Tensor:
        """Return softmax attention."""
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal)


@claim(
    "relu_attention_vit",
    "Dividing by sequence length removes most of the accuracy loss of ReLU attention, which then scales with "
    "compute nearly as well as softmax.",
    holds=all_of(
        at_least(-0.02, of="over_softmax"),
        at_least(0.01, of="over_undivided"),
        at_least(0.0, of="best_divided"),
    ),
)
def dividing_by_length(budget: Budget, seed: int) -> Evidence:
    """Accuracy of small vision transformers with relu on Fashion-MNIST (49 patches), against softmax and alpha = 0.

    `best_divided` is the best of alpha 0.5, 1 and 1.5 over alpha = 0; a diverged run has accuracy 0.
    """
    train, test = budget.pick(quick=(4000, 2000), full=(60000, 10000))
    split = images("fashion_mnist", train=train, test=test, seed=seed)
    dim, depth, heads = budget.pick(quick=(32, 2, 2), full=(64, 4, 4))
    epochs, lr = budget.pick(quick=(5, 3e-3), full=(20, 1e-3))

    def accuracy(kind: type[PointwiseAttention], **form: Any) -> float:
        mixer = partial(kind, **form)
        model = initialise(lambda: vit(1, 28, 4, 10, dim, depth, heads, mixer=mixer), seed)
        how: dict[str, Any] = {"optimizer": "adamw", "schedule": "warmup_cosine"}
        result = fit(model, split, epochs=epochs, lr=lr, seed=seed, **how)
        return 0.0 if result.diverged else result.metrics["accuracy"]

    softmax = accuracy(SoftmaxAttention)
    relu = {alpha: accuracy(PointwiseAttention, alpha=alpha) for alpha in (0.0, 0.5, 1.0, 1.5)}
    found = {"softmax": softmax, **{f"relu_{alpha:g}": value for alpha, value in relu.items()}}
    if budget.name == "full":
        found |= {h: accuracy(PointwiseAttention, h=h) for h in ("relu2", "identity")}
    return Evidence(
        over_softmax=relu[1.0] - softmax,
        over_undivided=relu[1.0] - relu[0.0],
        best_divided=max(relu[0.5], relu[1.0], relu[1.5]) - relu[0.0],
        **found,
    )


@claim(
    "relu_attention_vit",
    "Because each weight is computed point-wise, with no sum over keys, the work can be split along the sequence "
    "with less communication.",
    holds=all_of(
        at_most(1e-5, of="difference", by="every"),
        at_most(0, of="row_reductions", by="every"),
        at_most(1.2, of="time_over_full"),
    ),
)
def split_over_keys(budget: Budget, seed: int) -> Evidence:
    """One attention over 1,024 keys at once and in eight blocks: largest difference, time, and gathers over rows.

    `row_reductions` counts the operators that gather over all keys of a row before its weights are known
    (`softmax_row_reductions`: those of softmax, its maximum and its sum).
    """
    generator = torch.Generator().manual_seed(seed)
    length = budget.pick(quick=1024, full=4096)
    q, k, v = torch.randn(3, 2, 4, length, 32, generator=generator)
    full, blocks = (partial(pointwise_attention, q, k, v, block=b) for b in (None, length // 8))
    seconds = median_seconds([full, blocks])
    with RowReductions() as ours:
        split = blocks()
    with RowReductions() as softmax:
        torch.softmax(q @ k.mT, dim=-1) @ v
    return Evidence(
        difference=float((split - full()).abs().max()),
        time_over_full=seconds[1] / seconds[0],
        row_reductions=ours.count,
        softmax_row_reductions=softmax.count,
    )
