"""BlockFFN: a mixture of many small experts whose router keeps neighbouring tokens on the same ones.

    a = relu(x W_r),   y = sum over e of RMSNorm(a)_e W_down,e silu(W_up,e x)
    L = L_LM + lambda_al BCE(sigmoid(s l_t), sigmoid(s l_t+1)) + lambda_cs mean of 1 - prod over t of (1 - p_te)

with l the router's logits, s = 100, p = a / sum of a, products over the tokens of a chunk, means over all else.
TLS is the share of experts off for a token, CLS_m that off for all of m consecutive tokens: what verifying m
drafted tokens at once need not read.

Paper: "BlockFFN: Towards End-Side Acceleration-Friendly Mixture-of-Experts with Chunk-Level Activation Sparsity"
(2025), Sections 3.1 to 3.3; losses and the adaptive weight are read from the authors' code.
"""

import copy
from collections.abc import Callable
from functools import partial
from statistics import median
from timeit import timeit
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.engines.experts import Dense, Experts, as_experts, feed_forwards, with_layers
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least, at_most
from workingpapers.papers.sparsity._expert_layers import MoE, Router, TrainingWatch, gates_of, moe_decoder
from workingpapers.papers.sparsity._locality import (
    ChunkWeight,
    chunk_loss,
    chunk_sparsity,
    locality_loss,
    token_sparsity,
)
from workingpapers.papers.sparsity._moe_runs import Size, held_out, trained
from workingpapers.papers.sparsity._small_decoders import decoder
from workingpapers.papers.sparsity._topk_moe import Balance, TopKMoE
from workingpapers.surgery import note_changes
from workingpapers.tasks import Budget, initialise

__all__ = ["BlockFFN", "ChunkWeight", "Locality", "chunk_loss", "convert", "locality_loss", "sparsity"]


def _example(batch: int, generator: torch.Generator) -> Tensor:
    return torch.randn(batch, 3, 6, generator=generator)


@paper(
    "blockffn",
    arguments=(6, 5, 4),
    example=_example,
    variants=[{"gated": True, "evaluation": "union"}],
)
class BlockFFN(MoE):
    """Experts weighted by normalised ReLU gates, those of gate 0 not computed: (..., dim) -> (..., dim).

    Args:
        dim: width in and out.
        num_experts: how many experts; 48 in the smallest model.
        width: hidden units of an expert.
        gated: experts with a gate branch; the paper's have none.
        activation: factory of the experts' activation.
        eps: added to the gates' mean square.
        evaluation: "grouped", "union" (for chunks of a few tokens) or "dense", see `engines.experts`.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int = 48,
        width: int = 64,
        gated: bool = False,
        activation: Callable[[], nn.Module] = nn.SiLU,
        eps: float = 1e-5,
        evaluation: str = "grouped",
    ) -> None:
        super().__init__()
        self.eps = eps
        self.router = Router(dim, num_experts)
        self.gain = nn.Parameter(torch.ones(num_experts))
        self.experts = Experts(num_experts, dim, width, activation, gated, evaluation=evaluation)

    def gates(self, logits: Tensor) -> Tensor:
        """Return gain * a / sqrt(mean of a^2 + eps) with a = relu(logits)."""
        a = logits.relu()
        return self.gain.to(a.dtype) * a * torch.rsqrt(a.square().mean(-1, keepdim=True) + self.eps)

    def extra_repr(self) -> str:
        """Name the options."""
        return f"eps={self.eps}"


class Locality:
    """Gives the losses that make routing local, means over a model's BlockFFN layers and the last passes.

    In every step of training add `loss()` to the loss after the forward pass.

    Args:
        model: has BlockFFN layers, seen with inputs (B, T, dim).
        locality: weight of the activation locality loss.
        weight: weight of the chunk sparsification loss, a number or adaptive.
        chunk: tokens of its chunks.
        steepness: of the sigmoids.
    """

    def __init__(
        self,
        model: nn.Module,
        locality: float = 1e-3,
        weight: float | ChunkWeight = 0.1,
        chunk: int = 64,
        steepness: float = 100.0,
    ) -> None:
        if locality < 0:
            raise WorkingPapersError(f"the weight of the locality loss is at least 0; got {locality}")
        self.watch, self.locality, self.chunk, self.steepness = (
            TrainingWatch(model, BlockFFN),
            locality,
            chunk,
            steepness,
        )
        self.weight = weight if isinstance(weight, ChunkWeight) else ChunkWeight(weight, most=1.0)
        self.last: dict[str, float] = {}

    def loss(self) -> Tensor:
        """Return the weighted losses of the passes since it was last asked; `last` keeps both unweighted."""
        logits = [one for kept in self.watch.logits.values() for one in kept]
        self.watch.clear()
        if not logits:
            return torch.zeros(())
        local = torch.stack([locality_loss(one, self.steepness) for one in logits]).mean()
        chunks = torch.stack([chunk_loss(one, self.chunk) for one in logits]).mean()
        self.last = {"locality": float(local.detach()), "chunk": float(chunks.detach())}
        return self.locality * local + self.weight.step(self.last["chunk"]) * chunks

    def close(self) -> None:
        """Take the hooks off the model."""
        self.watch.close()


def _decoder(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    model = decoder(7, 6, 8, 1, 12, nn.SiLU)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    return model, torch.randint(7, (3, 6), generator=generator)


@paper("blockffn", part="convert", kind="transform", example=_decoder, preserves=None)
def convert(model: nn.Module, num_experts: int = 4, way: str = "split", seed: int = 0) -> nn.Module:
    """Return a copy of a decoder whose dense feed-forward layers became BlockFFN layers, to be trained on.

    Args:
        model: a Hugging Face decoder (Llama, Mistral, Qwen2, GPT-2, OPT) or one of this package.
        num_experts: how many experts a layer becomes.
        way: "split" gives each the next share of the hidden units, "copy" the whole layer.
        seed: of the routers' weights.
    """

    def build(dense: Dense) -> nn.Module:
        layer = BlockFFN(dense.up.shape[1], num_experts, 1, dense.gate is not None)
        layer.experts = as_experts(dense, num_experts, way)
        return layer.to(dense.up)

    if not feed_forwards(model) and any(isinstance(m, BlockFFN) for m in model.modules()):
        return note_changes(copy.deepcopy(model), [])  # type: ignore[no-any-return]
    return initialise(partial(with_layers, model, build), seed)


def _routed(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    model = moe_decoder(7, 8, 8, 2, partial(BlockFFN, 8, 6, 4))
    for p in model.parameters():
        nn.init.normal_(p, std=0.4, generator=generator)
    return model, torch.randint(7, (4, 8), generator=generator)


@paper("blockffn", part="sparsity", kind="analysis", example=_routed)
def sparsity(model: nn.Module, tokens: Tensor, chunks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)) -> Finding:
    """Measure token- and chunk-level sparsity of a decoder with layers of experts on tokens (rows, T).

    The numbers: `tls`, and `cls m` for each of `chunks` that fits into T; means over layers, TLS also by layer.
    `details["curve"]` has (m, CLS).
    """
    gates = gates_of(model, tokens)
    layers = {f"tls {name}": token_sparsity(g) for name, g in gates.items()}
    fitting = [m for m in chunks if m <= tokens.shape[1]]
    curve = [(m, sum(chunk_sparsity(g, m) for g in gates.values()) / len(gates)) for m in fitting]
    tls = sum(layers.values()) / len(layers)
    return Finding(
        {"tls": tls, **{f"cls {m}": share for m, share in curve}, **layers},
        f"A token leaves {tls:.1%} of the experts off, "
        + ", ".join(f"{m} tokens together {share:.1%}" for m, share in curve[1:][-1:] or curve)
        + ".",
        partial(_draw, curve),
        {"curve": curve},
    )


def _draw(curve: list[tuple[int, float]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(*zip(*curve, strict=True), "o-")
    axis.set(xlabel="tokens of a chunk", ylabel="share of experts off", xscale="log", ylim=(0, 1))
    return figure


@claim(
    "blockffn",
    "The differentiable router and its locality losses reach high sparsity per token and per chunk, with better "
    "quality than other expert mixtures.",
    figure="over 80% token-level and 70% 8-token chunk-level sparsity",
    seeds=5,
    holds=all_of(
        at_least(0.8, of="tls"),
        at_least(0.6, of="cls"),
        at_most(0.02, of="over_topk"),
        at_least(0.1, of="cls_over_topk"),
    ),
)
def local_and_good(budget: Budget, seed: int) -> Evidence:
    """Character decoders with 32 experts of 16 units: sparsity of a token and of 8, test loss over top-k's.

    The top-k mixture uses as many experts a token as BlockFFN's does on average.
    """
    size = budget.pick(quick=Size(48, 512, 32, 16, 400), full=Size(128, 512, 64, 32, 700, 50_000))
    rows = held_out(size)

    def attach(model: nn.Module) -> Callable[[], Tensor]:
        weight = ChunkWeight(0.3, stable=size.steps // 2, every=size.steps // 20)
        return Locality(model, 1e-3, weight, chunk=8).loss

    model, loss = trained(size, seed, partial(BlockFFN, size.dim, 32, 16), attach)
    own = sparsity(model, rows, (8,)).numbers
    k = min(32, max(1, round(32 * (1 - own["tls"]))))
    layer = partial(TopKMoE, size.dim, 32, k, 16, gated=False, normalise=True)
    model, other = trained(size, seed, layer, lambda m: Balance(m).loss)
    usual = sparsity(model, rows, (8,)).numbers
    return Evidence(
        tls=own["tls"],
        cls=own["cls 8"],
        over_topk=loss - other,
        cls_over_topk=own["cls 8"] - usual["cls 8"],
        active=float(k),
    )


def routed_chunk(num: int, tokens: int, tls: float, cls: float, generator: torch.Generator) -> Tensor:
    """Draw gates (tokens, num) of a chunk with given shares of experts off for a token and for all of them."""
    union = round(num * (1 - cls))
    used = round(num * (1 - tls))
    if not 1 <= used <= union <= used * tokens:
        raise WorkingPapersError(
            f"{tokens} tokens of {used} experts each have no union of {union}; got tls={tls} and cls={cls}"
        )
    chosen = torch.randperm(num, generator=generator)[:union]
    places = (torch.arange(tokens * used) % union).view(tokens, used)  # so that each of the union is used
    gates = torch.zeros(tokens, num).scatter(1, chosen[places], 1.0)
    return gates * (0.1 + torch.rand(gates.shape, generator=generator))


def dense_products(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return silu(x up^T) down, of weights with a row a hidden unit."""
    return F.silu(x @ up.T) @ down


@claim(
    "blockffn",
    "Kernels that join this sparsity with speculative decoding run faster than dense models on real end-side "
    "hardware.",
    figure="up to 3.67x speedup",
    seeds=5,
    holds=all_of(at_least(1.8, of="speedup"), at_most(1e-4, of="error", by="every")),
)
def union_products(budget: Budget, seed: int) -> Evidence:
    """Median time on this CPU of two dense products, 1024 - 4096 - 1024, over the union's of a chunk of 8 tokens.

    Routing is drawn with the paper's sparsity, 80 % for a token and 70 % for a chunk; outputs are compared.
    """
    generator = torch.Generator().manual_seed(seed)
    experts = initialise(partial(Experts, 64, 1024, 64, evaluation="union"), seed)
    up, down = experts.up.detach().flatten(0, 1), experts.down.detach().flatten(0, 1)
    times: dict[str, list[float]] = {"dense": [], "union": []}
    error = 0.0
    with torch.inference_mode():
        for _ in range(budget.pick(quick=60, full=400)):
            x = torch.randn(8, 1024, generator=generator)
            gates = routed_chunk(64, 8, 0.8, 0.7, generator)
            ways = {"dense": partial(dense_products, x, up, down), "union": partial(experts, x, gates)}
            for name, way in ways.items():  # in turns, so that a busy machine is fair to both
                times[name].append(timeit(way, number=1))
            error = max(error, float((experts(x, gates) - experts.dense(x, gates)).abs().max()))
    return Evidence(speedup=median(times["dense"]) / median(times["union"]), error=error)
