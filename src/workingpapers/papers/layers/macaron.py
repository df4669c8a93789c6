"""Macaron Net: attention between two feed-forward blocks that each take half a step.

    x <- x + FFN1(x) / 2;   x <- x + MHA(x);   x <- x + FFN2(x) / 2

A residual layer is a step of Euler's method for x_i' = F(x_i, all x) + G(x_i), the movement of particles
under attention F and a perceptron G.  The Transformer splits it in the manner of Lie and Trotter, F then G;
half a step of G before and after F is the splitting of Strang and Marchuk, whose error is an order smaller.

Paper: "Understanding and Improving Transformer From a Multi-Particle Dynamic System Point of View" (2019),
Sections 3 and 4; layer and widths checked against the authors' code (each FFN has half the usual inner width).
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.linalg import expm
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import text
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_most, between
from workingpapers.papers.layers import _splitting
from workingpapers.papers.layers._half_steps import (
    FeedForward,
    MacaronBlock,
    half_step_block,
    halves,
    layout_of,
)
from workingpapers.papers.layers._splitting import Array, Field, measured
from workingpapers.surgery import replace_modules
from workingpapers.surgery.choose import Modules
from workingpapers.tasks import Budget, LanguageModelling, char_gpt, fit, initialise
from workingpapers.tasks.transformers import CharGPT

LENGTHS = tuple(2.0**-k for k in range(2, 8))


@paper(
    "macaron",
    replaces="TransformerEncoderLayer",
    arguments=(16, 4, 32, 0.1),
    options={"batch_first": True},
    variants=[{"norm_first": True}, {"factor": 1.0}],
    example=lambda batch, g: torch.randn(batch, 5, 16, generator=g),
)
class MacaronLayer(nn.Module):
    """A layer (T, B, D) -> (T, B, D) in place of nn.TransformerEncoderLayer, with the same call.

    Args:
        d_model, nhead, dropout, activation, layer_norm_eps, batch_first: as for nn.TransformerEncoderLayer.
        dim_feedforward: inner width of the layer that it replaces; each of the two blocks gets half of it.
        norm_first: normalise before each sub-layer instead of after each residual sum (the paper's way).
        factor: step of the feed-forward blocks; 0.5 in the paper, 1 for its ablation.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Callable[[Tensor], Tensor] = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        factor: float = 0.5,
    ) -> None:
        super().__init__()
        if dim_feedforward % 2:
            raise WorkingPapersError(
                f"the two feed-forward blocks share dim_feedforward evenly; {dim_feedforward} is odd"
            )
        half = dim_feedforward // 2
        self.norm_first, self.factor = norm_first, factor
        self.self_attn = nn.MultiheadAttention(d_model, nhead, dropout, batch_first=batch_first)
        self.ffn1, self.ffn2 = (
            FeedForward(nn.Linear(d_model, half), nn.Linear(half, d_model), activation, dropout)
            for _ in range(2)
        )
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d_model, layer_norm_eps) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Return the moved particles; masks as for nn.TransformerEncoderLayer."""

        def attend(x: Tensor) -> Tensor:
            mixed, _ = self.self_attn(
                x, x, x, src_key_padding_mask, need_weights=False, attn_mask=src_mask, is_causal=is_causal
            )
            out: Tensor = self.dropout(mixed)
            return out

        x = self._residual(src, self.norm1, lambda x: self.factor * self.ffn1(x))
        x = self._residual(x, self.norm2, attend)
        return self._residual(x, self.norm3, lambda x: self.factor * self.ffn2(x))

    def _residual(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        out: Tensor = x + branch(norm(x)) if self.norm_first else norm(x + branch(x))
        return out

    def extra_repr(self) -> str:
        return f"factor={self.factor}, norm_first={self.norm_first}, batch_first={self.self_attn.batch_first}"


def _from_encoder(old: nn.TransformerEncoderLayer, factor: float) -> MacaronLayer:
    attention, eps = old.self_attn, float(old.norm1.eps)
    activation, rate = old.activation, float(old.dropout.p)
    new = MacaronLayer(
        attention.embed_dim, attention.num_heads, 2, rate, activation, eps, attention.batch_first,
        old.norm_first, factor,
    )  # fmt: skip
    new.self_attn = attention
    (up1, down1), (up2, down2) = halves(old.linear1, old.linear2, factor)
    new.ffn1, new.ffn2 = (
        FeedForward(up, down, activation, rate) for up, down in ((up1, down1), (up2, down2))
    )
    new.norm1, new.norm2, new.norm3 = copy.deepcopy(old.norm2), old.norm1, old.norm2
    return new


def _convertible(model: nn.Module) -> Modules:
    inside = [f"{n}." for n, m in model.named_modules() if isinstance(m, MacaronBlock)]

    def chosen(name: str, module: nn.Module) -> bool:
        known = isinstance(module, nn.TransformerEncoderLayer) or layout_of(module) is not None
        return known and not isinstance(module, MacaronBlock) and not any(map(name.startswith, inside))

    return chosen


def _example(g: torch.Generator) -> tuple[nn.Module, Tensor]:
    return initialise(lambda: char_gpt(11, 16, 2, 2, 8), 0), torch.randint(11, (3, 8), generator=g)


@paper("macaron", part="convert", kind="transform", example=_example)
def convert(model: nn.Module, modules: Modules | None = None, factor: float = 0.5) -> nn.Module:
    """Return a copy of `model` whose Transformer layers have the macaron form, with about as many weights.

    The hidden units of each feed-forward block are shared out to the two new ones, whose steps add up to the
    old one where the particles stand still (see `halves`).

    Args:
        modules: the layers (see `surgery.choose`); default every nn.TransformerEncoderLayer and every block
            of the form of GPT-2, ours or Hugging Face's.  A model converted already is copied.
        factor: step of the feed-forward blocks.

    Raises:
        WorkingPapersError: where there is no such layer, or a layer's feed-forward part has no known form.
    """
    if modules is None and any(isinstance(m, MacaronBlock | MacaronLayer) for m in model.modules()):
        return copy.deepcopy(model)

    def build(old: nn.Module) -> nn.Module:
        if isinstance(old, nn.TransformerEncoderLayer):
            return _from_encoder(old, factor)
        return half_step_block(old, factor)

    return replace_modules(model, modules or _convertible(model), build)


def macaron_gpt(vocab: int, dim: int, depth: int, heads: int, context: int, factor: float = 0.5) -> CharGPT:
    """Build `char_gpt` with macaron layers whose feed-forward blocks start from weights of their own."""
    model = convert(char_gpt(vocab, dim, depth, heads, context), factor=factor)
    assert isinstance(model, CharGPT)
    for block in model.modules():
        if isinstance(block, MacaronBlock):
            last: Any = block.block.get_submodule("contract")
            for up, down in ((block.first.up, block.first.down), (block.block.expand, last[0])):
                up.reset_parameters()  # type: ignore[operator, union-attr]
                down.reset_parameters()
                nn.init.zeros_(down.bias)
                down.weight.data.mul_((2 * depth) ** -0.5)  # as char_gpt starts its branches
    return model


def _study_example(g: torch.Generator) -> tuple[Field, Field, Array]:
    return _splitting.particle_fields(np.random.default_rng(0), 3, 2)


@paper("macaron", part="splitting", kind="study", example=_study_example)
def splitting_study(f: Field, g: Field, x: Array, lengths: tuple[float, ...] = LENGTHS) -> Finding:
    """Measure by which power of the step length the two splittings of x' = f(x) + g(x) err, up to time 1.

    `global` is the error at time 1, `local` that of one step; the reference solves the whole equation.
    """

    def exact(time: float) -> Array:
        return _splitting.flow(lambda y: f(y) + g(y), x, time, "DOP853", 1e-12)

    return measured(f, g, x, exact, lengths)


@claim(
    "macaron",
    "The standard layer corresponds to a Lie-Trotter splitting; the Strang-Marchuk splitting has a much lower "
    "local truncation error.",
    holds=all_of(
        *(
            between(low, high, of=f"{name}_{kind}", by="every")
            for kind in ("matrices", "particles")
            for name, low, high in (("lie_trotter", 0.85, 1.15), ("strang", 1.8, 2.2))
        ),
        at_most(0.1, of="local_ratio", by="every"),
    ),
)
def splitting_order(budget: Budget, seed: int) -> Evidence:
    """Order of the global error for 6x6 matrices and for 8 particles under attention and a perceptron.

    Steps 2^-2 to 2^-7 up to time 1.  `local_ratio` is the larger of the two ratios of the error of one step of
    2^-7, Strang over Lie-Trotter.
    """
    rng = np.random.default_rng(seed)
    a, b, x = _splitting.linear_fields(rng)
    matrices = measured(
        lambda y: a @ y, lambda y: b @ y, x, lambda t: np.asarray(expm(t * (a + b)) @ x), LENGTHS
    ).numbers
    particles = splitting_study(*_splitting.particle_fields(rng)).numbers
    return Evidence(
        **{
            f"{name}_{kind}": found[f"{name}_global_order"]
            for kind, found in (("matrices", matrices), ("particles", particles))
            for name in ("lie_trotter", "strang")
        },
        local_ratio=max(matrices["local_ratio"], particles["local_ratio"]),
    )


@claim(
    "macaron",
    "The feed-forward/attention/feed-forward layer outperforms the Transformer in supervised and "
    "unsupervised tasks.",
    figure="IWSLT14 35.4 vs 34.4 BLEU, WMT14 base 28.9 vs 27.3 (from memory)",
    holds=at_most(0.01, of="loss_over_standard"),
)
def language_model(budget: Budget, seed: int) -> Evidence:
    """Validation loss of a 4-layer character GPT on tinyshakespeare with macaron layers, over the standard one.

    As many weights within 2 %.  `whole_steps_over_standard` is the same with two whole steps (factor 1).
    """
    corpus, dim = text("tinyshakespeare"), budget.pick(quick=48, full=128)
    context, steps = budget.pick(quick=32, full=64), budget.pick(quick=350, full=1500)
    size = (len(corpus.vocabulary), dim, 4, 4, context)
    loss = {}
    for name, build in {
        "standard": lambda: char_gpt(*size),
        "macaron": lambda: macaron_gpt(*size),
        "whole": lambda: macaron_gpt(*size, factor=1.0),
    }.items():
        model: nn.Module = initialise(build, seed)  # type: ignore[arg-type]
        problem = LanguageModelling(corpus, context, budget.pick(quick=20_000, full=100_000))
        trained = fit(
            model, problem, steps=steps, batch=16, lr=3e-3, schedule="warmup_cosine", seed=seed, every=steps
        )
        loss[name] = trained.metrics["loss"]
    return Evidence(
        loss_over_standard=loss["macaron"] - loss["standard"],
        whole_steps_over_standard=loss["whole"] - loss["standard"],
        standard=loss["standard"],
    )
