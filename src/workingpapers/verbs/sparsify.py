"""sparsify: a trained model that skips what is small, how much, at what cost in quality, and how much faster."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import component, make
from workingpapers.engines.activity.batches import Batch, batches_of, device_of
from workingpapers.engines.skipping import realised
from workingpapers.engines.skipping.calibration import evaluating
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.kernels.timing import median_seconds
from workingpapers.surgery import changes

# papers whose component takes (model, calibration data) and says in `target` which option is the share left out
METHODS: tuple[str, ...] = ("cats", "r_sparse", "coreinfer")
STEPS = 32  # tokens decoded of each text, for quality


@dataclass(frozen=True)
class Layer:
    """A module that skips: the share of its activations that it leaves out, and of its weights that it reads."""

    name: str
    sparsity: float
    read: float


@dataclass(frozen=True)
class Sparsified:
    """What `sparsify` did.

    Attributes:
        method: the paper's id.
        target: share asked for.
        layers: what each changed module skips on the evaluation data.
        measure: of quality, lower is better: "perplexity", "perplexity of what follows" (token by token behind
            half of each text, for methods that decode otherwise than they read), or outputs' "relative error".
        before: quality of the dense model.
        after: quality of the sparse one.
        predicted: speed over the dense model if time went with the entries of linear layers read for a token.
        speed: measured on this machine, one token at a time.
        changes: in sentences.
    """

    method: str
    target: float
    layers: tuple[Layer, ...]
    measure: str
    before: float
    after: float
    predicted: float
    speed: float
    changes: tuple[str, ...]

    @property
    def sparsity(self) -> float:
        """The mean share of activations left out."""
        return sum(layer.sparsity for layer in self.layers) / max(1, len(self.layers))

    def as_dict(self) -> dict[str, Any]:
        """Return all as plain values."""
        return {**asdict(self), "sparsity": self.sparsity}

    def __str__(self) -> str:
        lines = [
            f"{self.method} at {self.target:.0%}: {self.sparsity:.1%} of activations left out in "
            f"{len(self.layers)} modules",
            f"  {self.measure}  {self.before:.4g} before, {self.after:.4g} after",
            f"  one token at a time  {self.speed:.2f} x as fast here, {self.predicted:.2f} x by the weights read",
        ]
        return "\n".join(lines)


def sparsify(
    model: nn.Module,
    method: str = "cats",
    target: float = 0.5,
    calibration: Any = None,
    *,
    evaluation: Any = None,
    rounds: int = 20,
    **options: Any,
) -> tuple[nn.Module, Sparsified]:
    """Return a model that skips what is small, and what that does to quality and speed.

    >>> sparse, found = sparsify(decoder, "cats", 0.5, calibration=tokens)  # doctest: +SKIP
    >>> print(found)                                                        # doctest: +SKIP

    Args:
        model: a Hugging Face decoder, or any module with feed-forward layers; it stays as it is.
        method: a paper of `METHODS`.
        target: share left out, 0 to 1, in that paper's sense: of neurons (cats, coreinfer) or weights (r_sparse).
        calibration: tokens (N, T), or batches as the model takes them; thresholds are set by it.
        evaluation: data of the same form that quality is measured on; the calibration data by default.
        rounds: in which dense and sparse are timed in turns.
        options: of the paper's component.

    Raises:
        WorkingPapersError: where the method or an option is unknown, the target out of range, the data too few, or
            the model has no layer that the method can change; the model is untouched.
    """
    if not isinstance(model, nn.Module):
        raise WorkingPapersError(f"expected a torch module to sparsify; got {type(model).__name__}")
    if method not in METHODS:
        raise unknown("method of sparsify", method, METHODS)
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 <= target <= 1:
        raise WorkingPapersError(f"a target lies between 0 and 1; got {target!r}")
    if calibration is None:
        raise WorkingPapersError(
            "sparsify needs calibration data: tokens (N, T), or batches as the model takes them"
        )
    option = component(method).properties["target"]
    if option in options:
        raise WorkingPapersError(f"{option} of {method} is the target; give it as target={options[option]!r}")
    sparse = make(method, **{option: float(target)}, **options)(model, calibration)
    return sparse, _measured(
        model, sparse, method, target, calibration if evaluation is None else evaluation, rounds
    )


def _measured(
    dense: nn.Module, sparse: nn.Module, method: str, target: float, data: Any, rounds: int
) -> Sparsified:
    measure, before, after = _quality(dense, sparse, data)
    if measure == "perplexity" and before == after and target > 0:
        measure, before, after = _following(dense, sparse, data) or (measure, before, after)
    layers, predicted = _skipped(sparse, data)
    speed = _speed(dense, sparse, next(iter(batches_of(data, 1))), rounds)
    return Sparsified(
        method, float(target), layers, measure, before, after, predicted, speed, tuple(changes(sparse))
    )


def _output(model: nn.Module, batch: Batch) -> Tensor:
    found = model(*batch.arguments, **batch.named)
    return getattr(found, "logits", found)  # type: ignore[no-any-return]


def _tokens(batch: Batch) -> Tensor | None:
    """Return the tokens (N, T) of a batch of text."""
    found = batch.named.get("input_ids") if batch.named else batch.arguments[0]
    is_text = isinstance(found, Tensor) and found.ndim == 2 and not found.is_floating_point()
    return found if is_text else None


def _quality(dense: nn.Module, sparse: nn.Module, data: Any) -> tuple[str, float, float]:
    """Return perplexities of the next token for text, and else the relative error of the outputs."""
    sums = torch.zeros(4, dtype=torch.float64)
    text = True
    with evaluating(dense), evaluating(sparse):
        for part in batches_of(data, 8):
            batch = part.to(device_of(dense))
            one, other, tokens = _output(dense, batch), _output(sparse, batch), _tokens(batch)
            text = text and tokens is not None and one.ndim == 3 and tokens.shape[1] > 1
            if text and tokens is not None:
                mask = batch.mask
                wanted = tokens[:, 1:] if mask is None else tokens[:, 1:].masked_fill(~mask[:, 1:], -100)
                for place, output in enumerate((one, other)):
                    logits = output[:, :-1].flatten(0, 1).float()
                    sums[place] += F.cross_entropy(logits, wanted.flatten(), reduction="sum").double().cpu()
                sums[2] += int((wanted != -100).sum())
            sums[3] += (other - one).double().norm().cpu() / one.double().norm().clamp_min(1e-30).cpu()
    if text:
        return "perplexity", math.exp(sums[0] / sums[2]), math.exp(sums[1] / sums[2])
    return "relative error", 0.0, float(sums[3])


def _following(dense: nn.Module, sparse: nn.Module, data: Any) -> tuple[str, float, float] | None:
    """Return perplexities of what follows the first half of texts, token by token; None without a cache."""
    found = []
    for model in (dense, sparse):
        losses: list[Tensor] = []
        with evaluating(model):
            for part in batches_of(data, 8):
                tokens = _tokens(part.to(device_of(model)))
                if tokens is None or tokens.shape[1] < 4:
                    return None
                half = tokens.shape[1] // 2
                output = model(tokens[:, :half])
                for place in range(half, min(tokens.shape[1], half + STEPS)):
                    losses.append(F.cross_entropy(output.logits[:, -1].float(), tokens[:, place]))
                    past = getattr(output, "past_key_values", None)
                    if past is None:
                        return None
                    output = model(tokens[:, place : place + 1], past_key_values=past, use_cache=True)
        found.append(math.exp(torch.stack(losses).mean()))
    return "perplexity of what follows", found[0], found[1]


def _skipped(sparse: nn.Module, data: Any) -> tuple[tuple[Layer, ...], float]:
    with evaluating(sparse), realised(sparse) as counts:
        for part in batches_of(data, 8):
            batch = part.to(device_of(sparse))
            _output(sparse, batch)
            _output(sparse, _last(batch))
    layers = [
        Layer(name, 1 - c["active"] / c["all"], c["read"] / c["weights"] if c["weights"] else 1.0)
        for name, c in counts.items()
        if c["all"]
    ]
    saved = sum(
        (c["weights"] - c["read"]) / _seen(sparse, name, c) for name, c in counts.items() if c["weights"]
    )
    whole = _entries(sparse)
    return tuple(layers), float(whole / max(1.0, whole - saved))


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _seen(model: nn.Module, name: str, counts: Any) -> float:
    """Return how many tokens a module counted: its own entries of weights, over those of one token."""
    return max(1.0, float(counts["weights"] / max(1, _entries(model.get_submodule(name)))))


def _entries(module: nn.Module) -> int:
    """Return how many entries the weights of the linear layers in a module have."""
    linear: list[Any] = [m for m in module.modules() if _linear(m)]
    return sum(m.weight.numel() for m in linear)


def _last(batch: Batch) -> Batch:
    """Return a batch's last token alone, as decoding sees it; the batch itself where it is no text."""
    tokens = _tokens(batch)
    if tokens is None:
        return batch
    step = tokens[:, -1:]
    return (
        Batch((), {"input_ids": step}, None, batch.size)
        if batch.named
        else Batch((step,), {}, None, batch.size)
    )


def _speed(dense: nn.Module, sparse: nn.Module, batch: Batch, rounds: int) -> float:
    """Return the dense model's time for one token over the sparse one's, after the same prompt."""
    batch = batch.to(device_of(dense))
    step = _last(batch)
    with evaluating(dense), evaluating(sparse):
        runs: list[Callable[[], Any]] = []
        for model in (dense, sparse):
            _output(model, batch)
            runs.append(lambda model=model: _output(model, step))  # type: ignore[misc]
        whole, skipping = median_seconds(runs, rounds, warm=3)
    return whole / skipping
