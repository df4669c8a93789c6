"""sparsify: a trained model that skips what is small, how much, at what cost in quality, and how much faster."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from workingpapers.catalog import component, make
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.surgery import changes
from workingpapers.verbs._sparse_measures import Layer, decoding_speed, quality, skipped
from workingpapers.verbs.compare import load_function

# papers whose component takes (model, calibration data) and says in `target` which option is the share left out
METHODS: tuple[str, ...] = ("cats", "r_sparse", "coreinfer")


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
        rise: by which share quality worsens, with its 95 % interval over the texts or batches.
        predicted: speed over the dense model if time went with the entries of linear layers read for a token.
        speed: over the dense model, measured here, one token at a time: the median, and 5 and 95 % of rounds.
        changes: in sentences.
    """

    method: str
    target: float
    layers: tuple[Layer, ...]
    measure: str
    before: float
    after: float
    rise: tuple[float, float, float]
    predicted: float
    speed: tuple[float, float, float]
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
            f"  {self.measure}  {self.before:.4g} before, {self.after:.4g} after: {_interval(self.rise, '+.1%')}",
            f"  one token at a time  {_interval(self.speed, '.2f')} x as fast here, "
            f"{self.predicted:.2f} x by the weights read",
        ]
        return "\n".join(lines)


def _interval(value: tuple[float, float, float], form: str) -> str:
    return f"{value[0]:{form}} [{value[1]:{form}}, {value[2]:{form}}]"


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
    data = calibration if evaluation is None else evaluation
    measured = quality(model, sparse, data, float(target))
    layers, predicted = skipped(sparse, data)
    speed = decoding_speed(model, sparse, data, rounds)
    (what, before, after, rise), noted = measured, tuple(changes(sparse))
    found = Sparsified(method, float(target), layers, what, before, after, rise, predicted, speed, noted)
    return sparse, found


def sparsify_named(case: str, **options: Any) -> tuple[nn.Module, Sparsified]:
    """Sparsify what 'file.py:function' returns: a model, calibration data, and evaluation data if it likes.

    Raises:
        WorkingPapersError: where it returns anything else.
    """
    model, calibration, *rest = case_named(case)
    return sparsify(model, calibration=calibration, evaluation=rest[0] if rest else None, **options)


def case_named(case: str) -> tuple[Any, ...]:
    """Return what 'file.py:function' returns, a model and one or two sets of data.

    Raises:
        WorkingPapersError: where it returns anything else.
    """
    made = load_function(case)()
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not isinstance(made[0], nn.Module):
        raise WorkingPapersError(
            f"expected {case} to return (model, calibration) or (model, calibration, evaluation); "
            f"it returns a {type(made).__name__}"
        )
    return made


def numbers(text: str) -> list[float]:
    """Return the numbers of a text such as "0.5" or "0.25,0.5".

    Raises:
        WorkingPapersError: where a part is none.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise WorkingPapersError(
            f"expected a target as a number, or several with commas; got {text!r}"
        ) from None


def keep(model: Any, folder: str) -> None:
    """Write a Hugging Face model to a folder by its own `save_pretrained`.

    Raises:
        WorkingPapersError: where the model has none, or the folder cannot be written.
    """
    if not hasattr(model, "save_pretrained"):
        raise WorkingPapersError(
            f"{type(model).__name__} is no Hugging Face model and cannot be kept in a folder; use torch.save"
        )
    try:
        model.save_pretrained(folder)
    except OSError as error:
        raise WorkingPapersError(f"cannot write {folder}: {error.strerror or error}") from None
