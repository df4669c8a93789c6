"""What sparsify measures: quality before and after, what is skipped, and how fast one token at a time is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.engines.activity.batches import Batch, batches_of, device_of
from workingpapers.engines.skipping import realised
from workingpapers.engines.skipping.calibration import evaluating
from workingpapers.experiments.statistics import mean_interval
from workingpapers.kernels.timing import seconds_by_turns

STEPS = 32  # tokens decoded of each text, for quality
Spread = tuple[float, float, float]
Quality = tuple[str, float, float, Spread]  # what is measured, before, after, the share by which it rises


@dataclass(frozen=True)
class Layer:
    """A module that skips: the share of its activations that it leaves out, and of its weights that it reads."""

    name: str
    sparsity: float
    read: float


def output_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return what a model gives for a batch as one tensor."""
    found = model(*batch.arguments, **batch.named)
    return getattr(found, "logits", found)  # type: ignore[no-any-return]


def tokens_of_batch(batch: Batch) -> Tensor | None:
    """Return the tokens (N, T) of a batch of text, None of anything else."""
    found = batch.named.get("input_ids") if batch.named else batch.arguments[0]
    return found if isinstance(found, Tensor) and found.ndim == 2 and not found.is_floating_point() else None


def quality(dense: nn.Module, sparse: nn.Module, data: Any, target: float) -> Quality:
    """Return perplexities of the next token for text, of what follows where only decoding differs, else errors."""
    found = _next_tokens(dense, sparse, data)
    if found is None:
        return _errors(dense, sparse, data)
    if found[1] == found[2] and target > 0:
        return _following(dense, sparse, data) or found
    return found


def _perplexities(what: str, one: list[Tensor], other: list[Tensor]) -> Quality:
    """Return perplexities from the mean losses of texts, and the interval of their rise over the texts."""
    before, after = torch.cat(one).double(), torch.cat(other).double()
    interval = mean_interval((after - before).tolist()) if len(before) > 1 else None
    mean = float((after - before).mean())
    low, high = (interval.low, interval.high) if interval else (mean, mean)
    rise = (math.expm1(mean), math.expm1(low), math.expm1(high))
    return what, math.exp(float(before.mean())), math.exp(float(after.mean())), rise


def _next_tokens(dense: nn.Module, sparse: nn.Module, data: Any) -> Quality | None:
    losses: tuple[list[Tensor], list[Tensor]] = ([], [])
    with evaluating(dense), evaluating(sparse):
        for part in batches_of(data, 8):
            batch = part.to(device_of(dense))
            tokens, mask = tokens_of_batch(batch), batch.mask
            if tokens is None or tokens.shape[1] < 2:
                return None
            wanted = tokens[:, 1:] if mask is None else tokens[:, 1:].masked_fill(~mask[:, 1:], -100)
            count = (wanted != -100).sum(1).clamp_min(1)
            for model, found in zip((dense, sparse), losses, strict=True):
                logits = output_of(model, batch)
                if logits.ndim != 3:
                    return None
                each = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), wanted, reduction="none")
                found.append((each.sum(1) / count).cpu())
    return _perplexities("perplexity", *losses)


def _following(dense: nn.Module, sparse: nn.Module, data: Any) -> Quality | None:
    """Return perplexities of what follows the first half of texts, token by token; None without a cache."""
    losses: tuple[list[Tensor], list[Tensor]] = ([], [])
    for model, found in zip((dense, sparse), losses, strict=True):
        with evaluating(model):
            for part in batches_of(data, 8):
                tokens = tokens_of_batch(part.to(device_of(model)))
                if tokens is None or tokens.shape[1] < 4:
                    return None
                half, each = tokens.shape[1] // 2, []
                output: Any = model(tokens[:, :half])
                for place in range(half, min(tokens.shape[1], half + STEPS)):
                    each.append(
                        F.cross_entropy(output.logits[:, -1].float(), tokens[:, place], reduction="none")
                    )
                    past = getattr(output, "past_key_values", None)
                    if past is None:
                        return None
                    output = model(tokens[:, place : place + 1], past_key_values=past, use_cache=True)
                found.append(torch.stack(each).mean(0).cpu())
    return _perplexities("perplexity of what follows", *losses)


def _errors(dense: nn.Module, sparse: nn.Module, data: Any) -> Quality:
    errors = []
    with evaluating(dense), evaluating(sparse):
        for part in batches_of(data, 8):
            batch = part.to(device_of(dense))
            one, other = output_of(dense, batch).double(), output_of(sparse, batch).double()
            errors.append(float((other - one).norm() / one.norm().clamp_min(1e-30)))
    mean = sum(errors) / len(errors)
    interval = mean_interval(errors) if len(errors) > 1 else None
    return (
        "relative error",
        0.0,
        mean,
        (mean, interval.low, interval.high) if interval else (mean, mean, mean),
    )


def skipped(sparse: nn.Module, data: Any) -> tuple[tuple[Layer, ...], float]:
    """Return what each module skips on data, and the speed if time went with the entries of linear layers read."""
    with evaluating(sparse), realised(sparse) as counts:
        for part in batches_of(data, 8):
            batch = part.to(device_of(sparse))
            output_of(sparse, batch)
            output_of(sparse, _last(batch))
    layers = tuple(
        Layer(name, 1 - c["active"] / c["all"], c["read"] / c["weights"] if c["weights"] else 1.0)
        for name, c in counts.items()
        if c["all"]
    )
    whole = _entries(sparse)
    saved = sum((1 - layer.read) * _entries(sparse.get_submodule(layer.name)) for layer in layers)
    return layers, float(whole / max(1.0, whole - saved))


def _entries(module: nn.Module) -> int:
    """Return how many entries the weights of the linear layers in a module have."""
    linear: list[Any] = [
        m for m in module.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"
    ]
    return sum(m.weight.numel() for m in linear)


def _last(batch: Batch) -> Batch:
    """Return a batch's last token alone, as decoding sees it; the batch itself where it is no text."""
    tokens = tokens_of_batch(batch)
    if tokens is None:
        return batch
    step = tokens[:, -1:]
    return (
        Batch((), {"input_ids": step}, None, batch.size)
        if batch.named
        else Batch((step,), {}, None, batch.size)
    )


def decoding_speed(dense: nn.Module, sparse: nn.Module, data: Any, rounds: int) -> Spread:
    """Return the dense model's time for one token over the sparse one's behind a prompt: median, 5 and 95 %."""
    batch = next(iter(batches_of(data, 1)))[:1].to(device_of(dense))
    step = _last(batch)
    with evaluating(dense), evaluating(sparse):
        runs: list[Callable[[], Any]] = []
        for model in (dense, sparse):
            output_of(model, batch)
            runs.append(lambda model=model: output_of(model, step))  # type: ignore[misc]
        whole, skipping = seconds_by_turns(runs, max(2, rounds), warm=3)
    ratios = [a / b for a, b in zip(whole, skipping, strict=True)]
    cuts = quantiles(ratios, n=20, method="inclusive")
    return median(ratios), cuts[0], cuts[-1]
