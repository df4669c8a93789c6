"""R-Sparse: every linear layer reads its strong input channels, and the weak ones through a low rank.

    y = W (x m) + U_r S_r V_r^T (x (1 - m)) + b,   m_i = [|x_i| c_i > t],   c_i the norm of column i of W

Of a budget of (1 - s) of the weights the share alpha goes to channels and the rest to the rank; each layer's
alpha is found by an evolutionary search on the calibration text.

Paper: "R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference" (2025), Section 3.  The
settings of the search are the specification's: the authors ship only what it found.
"""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.engines.activity.batches import batches_of
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_most
from workingpapers.kernels.rows import weighted_rows
from workingpapers.kernels.timing import median_seconds
from workingpapers.papers.sparsity._cett import keeping
from workingpapers.papers.sparsity._rank_aware import Factors, budgeted, factorise, inner_layers, rank_aware
from workingpapers.papers.sparsity._sparse_examples import tiny_decoder
from workingpapers.papers.sparsity._trained_decoders import trained_decoder
from workingpapers.papers.sparsity.sparsing_law import next_token_loss
from workingpapers.surgery import note_changes, replace_modules
from workingpapers.tasks import Budget

POPULATION, GENERATIONS, SPREAD = 16, 5, 0.1
Alphas = Mapping[str, float]


@paper("r_sparse", example=tiny_decoder, options={"alpha": 0.9}, target="sparsity")
def r_sparse(
    model: nn.Module,
    calibration: Any,
    sparsity: float = 0.5,
    alpha: float | str | Alphas = "search",
    prefill: float = 0.0,
    scaled: bool = True,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of a decoder whose inner linear layers touch the share 1 - sparsity of their weights a token.

    Args:
        model: any model; the linear layers of its blocks change, its head does not.
        calibration: tokens (N, T), or batches as the model takes them; a few hundred tokens.
        sparsity: share of the weights left out; 0 changes no output by a bit where alpha is 1.
        alpha: share of the budget that goes to channels: for all layers, by layer's name, or "search".
        prefill: share of leading tokens, of calls with more than one, that is computed densely (0.5 in the paper's
            evaluation).
        scaled: score channels by |x_i| c_i; False takes |x_i| alone, as the authors' code does.
        seed: of the search.

    Raises:
        WorkingPapersError: where a share is out of range, there is no linear layer, or too little data.
    """
    for name, share in {"sparsity": sparsity, "prefill": prefill}.items():
        if not 0 <= share <= 1:
            raise WorkingPapersError(f"{name} lies between 0 and 1; got {share}")
    changed = copy.deepcopy(model)
    layers = inner_layers(changed)
    factors = factorise(changed, calibration, layers, scaled)
    alphas = _alphas(changed, calibration, factors, sparsity, alpha, seed)
    apply(changed, factors, sparsity, alphas, prefill)
    said = f"R-Sparse: {len(layers)} linear layers touch {1 - sparsity:.0%} of their weights for each token."
    return note_changes(changed, [said])  # type: ignore[no-any-return]


def _alphas(
    model: nn.Module,
    calibration: Any,
    factors: Mapping[str, Factors],
    sparsity: float,
    alpha: float | str | Alphas,
    seed: int,
) -> Alphas:
    if isinstance(alpha, str):
        if alpha != "search":
            raise unknown("way to choose alpha", alpha, ["search"])
        return search(model, _tokens(calibration), factors, sparsity, seed)
    if isinstance(alpha, Mapping):
        for name in alpha:
            if name not in factors:
                raise unknown("linear layer", name, factors)
    found = {name: alpha.get(name, 1.0) if isinstance(alpha, Mapping) else float(alpha) for name in factors}
    for name, share in found.items():
        if not 0 <= share <= 1:
            raise WorkingPapersError(f"alpha lies between 0 and 1; got {share} for {name!r}")
    return found


def _tokens(calibration: Any) -> Tensor:
    """Return the text that a search measures perplexity on."""
    first = next(iter(batches_of(calibration, 8)))
    found = first.named.get("input_ids") if first.named else first.arguments[0]
    if not isinstance(found, Tensor) or found.is_floating_point() or found.ndim != 2:
        raise WorkingPapersError(
            "the search for alpha needs text as tokens (N, T); give alpha as a number for others"
        )
    return found


def apply(
    model: nn.Module, factors: Mapping[str, Factors], sparsity: float, alphas: Alphas, prefill: float
) -> None:
    """Change the layers of a model in place."""
    for name, layer in inner_layers(model).items():
        threshold, rank = budgeted(factors[name], sparsity, alphas[name])
        rank_aware(layer, factors[name], threshold, rank, prefill)


def search(
    model: nn.Module, tokens: Tensor, factors: Mapping[str, Factors], sparsity: float, seed: int = 0
) -> dict[str, float]:
    """Return the alphas of the smallest loss on `tokens`: an evolution of 16 candidates over 5 generations.

    Each child crosses two of the better half over and moves half of the layers by a normal step of 0.1.
    """
    generator = torch.Generator().manual_seed(seed)
    work, count = copy.deepcopy(model), len(factors)

    def loss(candidate: Tensor) -> float:
        apply(work, factors, sparsity, dict(zip(factors, candidate.tolist(), strict=True)), 0.0)
        return next_token_loss(work, tokens)

    people = torch.rand(POPULATION, count, generator=generator)
    people[0], people[1] = 1.0, 0.9
    scored = sorted(((loss(p), p) for p in people), key=lambda pair: pair[0])
    for _ in range(GENERATIONS):
        parents = torch.stack([p for _, p in scored[: POPULATION // 2]])
        for _ in range(POPULATION // 2):
            one, other = parents[torch.randint(len(parents), (2,), generator=generator)]
            child = torch.where(torch.rand(count, generator=generator) < 0.5, one, other)
            moved = torch.rand(count, generator=generator) < 0.5
            child = (child + moved * SPREAD * torch.randn(count, generator=generator)).clamp(0, 1)
            scored.append((loss(child), child))
        scored = sorted(scored, key=lambda pair: pair[0])[:POPULATION]
    return dict(zip(factors, scored[0][1].tolist(), strict=True))


@claim(
    "r_sparse",
    "Without any training, combining channel selection with low rank keeps comparable performance over ten tasks "
    "on Llama and Mistral models.",
    figure="50% model-level sparsity, Llama-2/3 and Mistral, ten tasks",
    seeds=3,
    holds=all_of(
        at_most(0.03, of="rise", by="every"),
        at_most(2e-3, of="over_channels", by="every"),
        at_most(0.5, of="share_of_rank_alone", by="every"),
        at_most(0.2, of="share_of_chance", by="every"),
    ),
)
def half_of_the_weights(budget: Budget, seed: int) -> Evidence:
    """How the test loss of a gated decoder on tinyshakespeare rises when half of the weights are left out."""
    model, sample, test = trained_decoder(budget, seed, nn.SiLU)
    base, text = next_token_loss(model, test), sample[:64]
    rises = {
        name: next_token_loss(r_sparse(model, text, 0.5, alpha=alpha, seed=seed), test) - base
        for name, alpha in (("search", "search"), ("channels", 1.0), ("rank", 0.0), ("fixed", 0.9))
    }
    generator = torch.Generator().manual_seed(seed)
    with keeping(inner_layers(model), lambda name, x: torch.rand(x.shape, generator=generator) >= 0.5):
        chance = next_token_loss(model, test) - base
    relu = next_token_loss(replace_modules(model, nn.SiLU, lambda old: nn.ReLU()), test) - base
    return Evidence(
        rise=rises["search"] / base,
        over_channels=rises["search"] - rises["channels"],
        share_of_rank_alone=rises["search"] / rises["rank"],
        share_of_chance=rises["search"] / chance,
        fixed=rises["fixed"] / base,
        relu=relu / base,
    )


@claim(
    "r_sparse",
    "Custom kernels turn the sparsity into faster generation.",
    figure="43% end-to-end efficiency improvement at 50% sparsity",
    seeds=3,
    holds=all_of(at_most(0.8, of="time_at_70", by="every"), at_most(1e-4, of="error", by="every")),
)
@torch.no_grad()
def product_time(budget: Budget, seed: int) -> Evidence:
    """Time of a 4096 x 4096 product with one vector whose weak channels are left out, over the dense one's."""
    generator = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(4096, 4096, generator=generator), torch.randn(1, 4096, generator=generator)
    columns = weight.t().contiguous()
    ratios, errors = {}, []
    for sparsity in (0.5, 0.7):
        strong = torch.where(x.abs() < x.abs().flatten().kthvalue(int(sparsity * 4096) + 1).values, 0.0, x)
        exact = F.linear(strong, weight)
        errors.append(float((weighted_rows(strong, columns) - exact).abs().max() / exact.abs().max()))
        runs = [partial(F.linear, x, weight), partial(weighted_rows, strong, columns)]
        whole, skipped = median_seconds(runs, 200)
        ratios[sparsity] = skipped / whole
    return Evidence(time_at_50=ratios[0.5], time_at_70=ratios[0.7], error=max(errors))
