"""Recycled attention: attend to all tokens now and then, and in between to those that mattered most at that time.

    I = top-K of the attention of the last full step t0        (mean over the query heads of a key-value head)
    o_t = softmax(q_t k_j : j in I or t0 < j <= t) v           for t0 < t < t0 + S

The whole cache is kept; a step between reads K + (t - t0) of its tokens.  QC: a full step also where the query has
turned away from that of the last full step, by their cosine.  It goes through the attention interface of
transformers, so `generate` is as before.

Paper: "Recycled Attention: Efficient inference for long-context language models" (2024); the share of recent
tokens, and the mean over heads where the paper may take another, are ours.
"""

import statistics
import timeit
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.experiments import Evidence, all_of, at_least
from workingpapers.papers.language._decode_policies import (
    HeavyHitters,
    Oracle,
    Policy,
    Recycled,
    Streaming,
)
from workingpapers.papers.language._policy_attention import (
    hugging_face,
    policies,
    policy_attention,
    with_policy,
)
from workingpapers.papers.language._recall import Recall, recall_accuracy, recall_model
from workingpapers.surgery import note_changes
from workingpapers.tasks import Budget, fit, initialise


def _example(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    hf = hugging_face()
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(vocab_size=11, num_key_value_heads=1, use_cache=False, **sizes)
    )
    for p in model.parameters():
        nn.init.uniform_(p, -0.5, 0.5, generator=generator)
    return model, torch.randint(11, (2, 9), generator=generator)


@paper("recycled_attention", example=_example, preserves=1e-6)
def recycled_attention(
    model: nn.Module,
    budget: float = 0.125,
    stride: int = 10,
    recent: float = 0.25,
    threshold: float | None = None,
    min_stride: int = 1,
    continued: bool = False,
) -> nn.Module:
    """Return a copy of a decoder of transformers that recycles attention when it decodes; prompts are read in full.

    Args:
        model: a decoder that uses the attention interface: GPT-2, Llama, Mistral, Qwen2 and others.
        budget: K, how many tokens of the cache are read between full steps: a count, or a share of the tokens there
            were at the full step.  The paper has 4096 of 32768, which is the default.
        stride: S, a full step at the latest after so many steps.
        recent: share of K that goes to the newest tokens.
        threshold: for QC: a full step where the mean cosine of a layer's queries with those of its last full step
            is below, in any sequence of the batch; the paper's example is 0.8.
        min_stride: for QC: the least number of steps from one full step to the next.
        continued: for further training: in training mode, each position of a sequence sees only what it would see
            in decoding from its first token on, with full steps at multiples of the stride.

    Raises:
        WorkingPapersError: where transformers is missing, or the model has no such layers.
    """
    policy = Recycled(budget, stride, recent, threshold, min_stride)
    policy.continued = continued
    changed = with_policy(model, policy)
    said = f"{len(policies(changed))} attention layers recycle the attention of a full step for {stride - 1} steps."
    if stride == 1:
        said = f"{len(policies(changed))} attention layers run by a policy that attends to all in each step."
    result: nn.Module = note_changes(changed, [said])
    return result


@dataclass(frozen=True)
class Reading:
    """What decoding has read so far.

    Attributes:
        steps: decoding steps, over all layers.
        full: the share of them that attended to all.
        read: tokens read over tokens there.
        mass: mean share of the true attention that the tokens read have; nan where it was not watched.
    """

    steps: int
    full: float
    read: float
    mass: float


def reading(model: nn.Module) -> Reading:
    """Return what a model's policies have read since they were made.

    Set `watch` of each of `policies(model)` to have the mass too, at the cost of full attention.
    """
    own = policies(model)
    steps = [step for policy in own for step in policy.read]
    mass = [m for policy in own for m in policy.mass]
    count = max(len(steps), 1)
    return Reading(
        len(steps),
        sum(a == b for a, b in steps) / count,
        sum(a for a, _ in steps) / max(sum(b for _, b in steps), 1),
        sum(mass) / len(mass) if mass else float("nan"),
    )


BASELINES = {"streaming": Streaming, "heavy_hitters": HeavyHitters, "oracle": Oracle}


@claim(
    "recycled_attention",
    "Reusing the last full step's top positions does far better than local-window baselines at comparable speed.",
    figure="2x performance improvement at comparable speedup",
    seeds=5,
    calibrated="the rule is as it was; the quick sizes were chosen with looks at seed 1000.",
    holds=all_of(
        at_least(1.5, of="over_streaming"),
        at_least(0.0, of="over_heavy_hitters"),
        at_least(0.8, of="mass_ratio"),
    ),
)
def recall(budget: Budget, seed: int) -> Evidence:
    """Accuracy of a trained decoder on the second and third value of a key, at K = n / 8 and S = 10.

    Over StreamingLLM's (a ratio) and over H2O's (a difference); `mass_ratio` is the attention captured over what
    the best K tokens of each step have.
    """
    keys, values, context, asked = budget.pick(quick=(8, 8, 64, 8), full=(30, 8, 480, 8))
    problem = Recall(keys, values, context, asked)
    dim, layers, steps = budget.pick(quick=(64, 2, 800), full=(128, 4, 5000))
    model = initialise(lambda: recall_model(problem.vocabulary, dim, layers, 1000), seed)
    fit(model, problem, steps=steps, batch=16, lr=3e-3, schedule="warmup_cosine", seed=seed, every=steps)
    count = budget.pick(quick=200, full=1000)
    own = recall_accuracy(model, Recycled(0.125, 10, 0.25, None, 1), problem, count, seed)
    other = {
        name: recall_accuracy(model, make(0.125), problem, count, seed) for name, make in BASELINES.items()
    }
    full = recall_accuracy(model, Policy(1.0), problem, count, seed)
    return Evidence(
        over_streaming=own["accuracy"] / max(other["streaming"]["accuracy"], 1e-9),
        over_heavy_hitters=own["accuracy"] - other["heavy_hitters"]["accuracy"],
        mass_ratio=own["mass"] / other["oracle"]["mass"],
        accuracy=own["accuracy"],
        full=full["accuracy"],
        oracle=other["oracle"]["accuracy"],
    )


class AttentionLayer(nn.Module):
    """Stands for a decoder's attention layer: a policy, and what transformers looks for."""

    def __init__(self, policy: Policy, groups: int) -> None:
        super().__init__()
        self.policy, self.num_key_value_groups, self.is_causal = policy, groups, True


@torch.no_grad()
def decode_seconds(
    policy: Policy, cache: tuple[Tensor, Tensor], queries: Tensor, steps: int
) -> tuple[float, float]:
    """Return the median seconds of full attention to a cache (B, G, n, D), and the mean ones under a policy.

    Queries are (steps + 1, B, H, 1, D); the cache holds the tokens of all steps, the last `steps` decoded.
    """
    keys, values = cache
    layer = AttentionLayer(policy, queries.shape[2] // keys.shape[1]).eval()
    plain = AttentionLayer(Policy(1.0), layer.num_key_value_groups).eval()
    n, scaling = keys.shape[2] - steps, queries.shape[-1] ** -0.5
    times: dict[nn.Module, list[float]] = {plain: [], layer: []}
    for module in times:
        policy_attention(module, queries[0], keys[:, :, :n], values[:, :, :n], None, scaling)
    for t in range(1, steps + 1):
        k, v = keys[:, :, : n + t].contiguous(), values[:, :, : n + t].contiguous()
        for module, taken in times.items():
            start = timeit.default_timer()
            policy_attention(module, queries[t], k, v, None, scaling)
            taken.append(timeit.default_timer() - start)
    return statistics.median(times[plain]), statistics.fmean(times[layer])


def operations_ratio(read: list[tuple[int, int]]) -> float:
    """Return the multiply-adds of full attention over those of the steps in `read`, (tokens read, tokens there)."""
    return sum(n for _, n in read) / sum(k for k, _ in read)


@claim(
    "recycled_attention",
    "Partial steps reduce data movement and attention computation while decoding.",
    seeds=5,
    holds=all_of(at_least(4.0, of="operations", by="every"), at_least(1.5, of="time")),
)
def cheaper_attention(budget: Budget, seed: int) -> Evidence:
    """Attention of a layer of Llama's shape (32 heads, 8 of keys and values) to 4096 tokens, K = n / 8, S = 10.

    Full over recycled: multiply-adds of the products with keys and values, and time on this CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    steps, n = budget.pick(quick=(40, 4096), full=(200, 32768))
    cache = tuple(torch.randn(1, 8, n + steps, 64, generator=generator) for _ in range(2))
    queries = torch.randn(steps + 1, 1, 32, 1, 64, generator=generator)
    policy = Recycled(0.125, 10, 0.25, None, 1)
    full, own = decode_seconds(policy, (cache[0], cache[1]), queries, steps)
    return Evidence(operations=operations_ratio(policy.read), time=full / own)
