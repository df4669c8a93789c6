"""Entropic overload: GELU without normalisation leaves early attention heads near the highest entropy.

    E(head) = -(1/T) sum_i sum_{j <= i} A_ij log(A_ij + 1e-9)          at most  mean_i log(i + 1)

A head is overloaded in the top quarter of that range, collapsed in the bottom quarter.

Paper: "ReLU's Revival: On the Entropic Overload in Normalization-Free Large Language Models" (2024), Sections 3
and 4; which norms go and how slopes are learnt from the authors' code.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import text
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, Finding, all_of, any_of, at_least, at_most, below
from workingpapers.surgery import note_changes, replace_modules
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, LanguageModelling, char_gpt, fit, initialise
from workingpapers.tasks.transformers import Attention

TOP, BOTTOM = 0.75, 0.25


def head_entropies(weights: Tensor) -> Tensor:
    """Return the entropy (H,) of each head, the mean over examples and rows, for weights (B, H, T, T)."""
    return -(weights * torch.log(weights + 1e-9)).double().sum(-1).mean((0, 2))


def highest_entropy(length: int) -> float:
    """Return the entropy of uniform causal attention over `length` tokens: the mean of log 1 to log length."""
    return float(torch.arange(1, length + 1, dtype=torch.float64).log().mean())


def _of_attention(module: nn.Module, x: Tensor) -> Tensor:
    """Return the weights (B, H, T, T) of our tasks' attention for its input (B, T, D)."""
    attention: Any = module
    q, k, _ = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if attention.causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return torch.softmax(scores, -1)


@torch.no_grad()
def attention_weights(model: nn.Module, tokens: Tensor) -> list[Tensor]:
    """Return the attention weights (B, H, T, T) of each layer, in evaluation mode.

    For models with the attention of `tasks.transformers`, and those of Hugging Face, which give their own when
    they are loaded with attn_implementation="eager".

    Raises:
        WorkingPapersError: for other models.
    """
    if any(isinstance(module, Attention) for module in model.modules()):
        found = collect(model, tokens, Attention, side="input", keep=_of_attention, batch=len(tokens))
        return list(found.values())
    modes = {module: module.training for module in model.modules()}
    try:
        weights = getattr(model.eval()(tokens, output_attentions=True), "attentions", None)
    except TypeError:  # no Hugging Face model: it knows no such argument
        weights = None
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not weights or any(layer is None for layer in weights):
        raise WorkingPapersError(
            f"{type(model).__name__} gives no attention weights; load Hugging Face models with "
            "attn_implementation='eager'"
        )
    return list(weights)


def _example(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    model = initialise(lambda: char_gpt(11, 16, 3, 2, 12), 0)
    return model, torch.randint(11, (5, 12), generator=generator)


@paper("entropic_overload", example=_example, invariances={"order": lambda model, x: (model, x.flip(0))})
def attention_entropy(model: nn.Module, tokens: Tensor, reference: str = "causal") -> Finding:
    """Measure the entropy of every attention head of a decoder on `tokens` (B, T).

    The numbers are each head's entropy in nats, "layer 0 head 0" and so on, and the shares of heads that are
    overloaded and collapsed, over all layers and over the first third, with the mean over those as a share of
    the highest.  `reference` says what the highest is: "causal", that of uniform attention, or "observed", that
    of the heads.  The figure is the map of layers and heads.

    Raises:
        WorkingPapersError: where the model gives no attention weights.
    """
    if reference not in ("causal", "observed"):
        raise unknown("reference of entropies", reference, ("causal", "observed"))
    table = torch.stack([head_entropies(weights) for weights in attention_weights(model, tokens)])  # (L, H)
    highest = highest_entropy(tokens.shape[1]) if reference == "causal" else float(table.max())
    share = table / max(highest, 1e-300)
    early = share[: max(len(share) // 3, 1)]
    numbers = {
        "overloaded": float((share >= TOP).double().mean()),
        "collapsed": float((share <= BOTTOM).double().mean()),
        "overloaded early": float((early >= TOP).double().mean()),
        "mean early": float(early.mean()),
        "mean": float(share.mean()),
        **{f"layer {i} head {j}": float(e) for i, row in enumerate(table) for j, e in enumerate(row)},
    }
    reading = (
        f"{numbers['overloaded']:.0%} of the heads are overloaded and {numbers['collapsed']:.0%} collapsed, in the "
        f"first third of the layers {numbers['overloaded early']:.0%} are overloaded."
    )
    return Finding(numbers, reading, partial(_map, table, highest), details={"entropies": table})


def _map(table: Tensor, highest: float) -> Any:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(1 + 0.5 * table.shape[1], 1 + 0.4 * table.shape[0]))
    drawn = axis.imshow(table, vmin=0, vmax=highest, cmap="cividis", aspect="auto")
    axis.set(xlabel="head", ylabel="layer")
    figure.colorbar(drawn, label="entropy in nats")
    return figure


def norms_of(model: nn.Module, keep_final: bool = True) -> list[str]:
    """Return the names of all layer and RMS norms, those outside the numbered blocks left out by `keep_final`."""
    names = [n for n, m in model.named_modules() if type(m).__name__.endswith(("LayerNorm", "RMSNorm"))]
    return [name for name in names if not keep_final or any(part.isdigit() for part in name.split("."))]


def activations_of(model: nn.Module) -> list[str]:
    """Return the names of the activations of the feed-forward layers."""
    known = ("GELU", "ReLU", "SiLU", "Mish", "Activation", "Tanh")
    leaves = ((n, m) for n, m in model.named_modules() if not any(m.children()))
    return [name for name, module in leaves if any(part in type(module).__name__ for part in known)]


@paper("entropic_overload", part="norm_free", kind="transform", example=_example)
def make_norm_free(
    model: nn.Module,
    activation: str = "relu",
    slope: float = 0.01,
    shared: bool = False,
    keep_final: bool = True,
) -> nn.Module:
    """Return a copy of a decoder without norms in its blocks, and with another feed-forward activation.

    Args:
        model: our `char_gpt`, or a GPT-2, Pythia or Llama of Hugging Face; norms and activations are modules.
        activation: "relu", "gelu", or "leaky_relu", whose slope is learnt.
        slope: of that at the start.
        shared: have one slope for all layers, not one for each.
        keep_final: leave norms outside the blocks, as the authors' code does.

    Weights are kept, and have to be trained anew.

    Raises:
        WorkingPapersError: where the model has no activation that is a module.
    """
    one = nn.PReLU(init=slope)
    builds: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU,
        "gelu": nn.GELU,
        "leaky_relu": (lambda: one) if shared else partial(nn.PReLU, init=slope),
    }
    if activation not in builds:
        raise unknown("activation of norm-free decoders", activation, builds)
    names = activations_of(model)
    if not names:
        raise WorkingPapersError(f"{type(model).__name__} has no feed-forward activation that is a module")
    changed = replace_modules(model, names, lambda old: builds[activation]().to(_dtype(model)))
    norms = norms_of(changed, keep_final)
    if not norms:
        return note_changes(changed, [])  # type: ignore[no-any-return]
    return replace_modules(changed, norms, lambda old: nn.Identity())


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


@paper("entropic_overload", part="features", kind="analysis", example=_example)
def feature_statistics(model: nn.Module, tokens: Tensor) -> Finding:
    """Measure what goes into and comes out of the feed-forward activations on `tokens` (B, T).

    For each layer the excess kurtosis of the inputs, which outliers raise, and the share of outputs that are 0;
    and how many ReLUs a token costs, which private inference pays for.
    """
    names = activations_of(model)
    numbers = {}
    inputs, outputs = collect(model, tokens, names, side="input"), collect(model, tokens, names)
    for name in inputs:
        z = inputs[name].double().flatten()
        centred = z - z.mean()
        numbers[f"{name} kurtosis"] = float(centred.pow(4).mean() / centred.square().mean().pow(2) - 3)
        numbers[f"{name} zeros"] = float((outputs[name] == 0).double().mean())
    relus = [y for name, y in outputs.items() if isinstance(model.get_submodule(name), nn.ReLU | nn.PReLU)]
    numbers["ReLUs a token"] = float(sum(y.shape[-1] for y in relus))
    worst = max(value for name, value in numbers.items() if name.endswith("kurtosis"))
    return Finding(
        numbers, f"The largest excess kurtosis of {len(inputs)} feed-forward layers is {worst:.3g}."
    )


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that clips the norm of all gradients to 1 before each step."""

    def step(self, closure: Any = None) -> Any:
        """Clip and step."""
        every = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(every, 1.0)
        return super().step(closure)


SETTINGS = {
    "SM+LN+G": ("gelu", True),
    "SM+LN+R": ("relu", True),
    "SM+G": ("gelu", False),
    "SM+R": ("relu", False),
}


def trained(setting: str, budget: Budget, seed: int) -> tuple[nn.Module, float]:
    """Train a character GPT in one of the `SETTINGS`, or as "SM+leaky", and return it and its loss in nats.

    Four layers of width 64 and 300 steps of 12 windows of 64 tokens; in the full budget 6, 128, 3,000, 24 and 128.
    """
    activation, normed = SETTINGS.get(setting, ("leaky_relu", False))
    corpus = text("tinyshakespeare")
    width, depth, context = budget.pick(quick=(64, 4, 64), full=(128, 6, 128))
    factory = nn.ReLU if activation == "relu" else nn.GELU
    build = partial(char_gpt, len(corpus.vocabulary), width, depth, 4, context, activation=factory)
    model: nn.Module = initialise(build, seed)
    if not normed:
        model = make_norm_free(model, activation, slope=0.25)
    steps, batch = budget.pick(quick=(300, 12), full=(3000, 24))
    problem = LanguageModelling(corpus, context, budget.pick(quick=20_000, full=100_000))
    how: dict[str, Any] = {"optimizer": ClippedAdamW, "schedule": "warmup_cosine", "every": steps}
    result = fit(model, problem, steps=steps, batch=batch, lr=3e-3, seed=seed, **how)
    return model, result.metrics["loss"]


def slopes_of(model: nn.Module) -> Iterator[float]:
    """Give the learnt slope of every activation that has one."""
    for module in model.modules():
        if isinstance(module, nn.PReLU):
            yield float(module.weight.detach().mean())


@claim(
    "entropic_overload",
    "Once LayerNorm is gone, ReLU models reach clearly lower perplexity than GELU models, reversing the usual "
    "preference.",
    seeds=3,
    figure="8.2% perplexity improvement",
    holds=all_of(at_most(0.99, of="perplexity_ratio"), below(0.0, of="turn")),
)
def relu_wins_without_norms(budget: Budget, seed: int) -> Evidence:
    """Perplexity of ReLU over GELU on tinyshakespeare without norms.

    `turn` is the difference of the losses, ReLU minus GELU, without norms minus the same with norms.
    """
    loss = {setting: trained(setting, budget, seed)[1] for setting in SETTINGS}
    without, with_norms = loss["SM+R"] - loss["SM+G"], loss["SM+LN+R"] - loss["SM+LN+G"]
    ratio = float(torch.tensor(without).exp())
    return Evidence(
        perplexity_ratio=ratio, turn=without - with_norms, with_norms=with_norms, loss=loss["SM+R"]
    )


@claim(
    "entropic_overload",
    "Without normalisation GELU leaves early-layer heads stuck at near-maximal entropy and underused, while ReLU, "
    "towards which learnable slopes drift, keeps them informative.",
    seeds=3,
    holds=all_of(
        any_of(at_least(0.1, of="overloaded"), at_least(0.03, of="entropy")), below(0.15, of="slope")
    ),
)
def gelu_overloads_early_heads(budget: Budget, seed: int) -> Evidence:
    """Share of overloaded heads and mean entropy in the first third of the layers, GELU minus ReLU, after training.

    `slope` is the mean size of the slopes that began at 0.25.
    """
    corpus = text("tinyshakespeare")
    numbers = {}
    for setting in ("SM+G", "SM+R"):
        model, _ = trained(setting, budget, seed)
        length = int(model.context)  # type: ignore[arg-type]
        numbers[setting] = attention_entropy(model, corpus.test[: 32 * length].view(32, length)).numbers
    slopes = [abs(s) for s in slopes_of(trained("SM+leaky", budget, seed)[0])]
    gelu, relu = numbers["SM+G"], numbers["SM+R"]
    return Evidence(
        overloaded=gelu["overloaded early"] - relu["overloaded early"],
        entropy=gelu["mean early"] - relu["mean early"],
        slope=sum(slopes) / len(slopes),
        gelu_entropy=gelu["mean early"],
    )
