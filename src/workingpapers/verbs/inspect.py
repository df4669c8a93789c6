"""inspect: what a network's units do, what is dead, redundant, collapsed or unstable, and what to do about it."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import available, component
from workingpapers.engines.activity.case import Case, NotApplicable, case_of
from workingpapers.engines.activity.observe import Activity, Loss
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments.evidence import Finding, Symptom
from workingpapers.verbs._inspection import Inspection
from workingpapers.verbs.compare import load_function

# each a part of the paper that it comes from, in the order in which they are told
CHECKS: tuple[str, ...] = (
    "redo.dormant",
    "ap_prune.dead",
    "convergent_learning.duplicates",
    "edim_oscillation.collapse",
    "pdlt.scale",
    "sgd_stability.limit",
    "ocs_extrapolation.constant",
    "lazy_neuron.sparsity",
    "sparsing_law.ratio",
    "neural_hash.codes",
    "nc_linear.collapse",
    "splinecam.slice",
)

LOSSES: dict[str, Loss] = {
    "cross_entropy": lambda output, y: nn.functional.cross_entropy(_tensor(output), y),
    "mse": lambda output, y: nn.functional.mse_loss(_tensor(output), y),
}


def _tensor(output: Any) -> Tensor:
    """Return what a model gave as one tensor; Hugging Face's classifiers give it as `logits`."""
    found: Tensor = getattr(output, "logits", output)
    return found


def inspect(
    model: nn.Module,
    data: Any,
    *,
    loss: str | Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    lr: float | None = None,
    checks: str | Sequence[str] = "all",
    batch: int = 64,
    seed: int = 0,
    watch: Callable[[str], None] | None = None,
) -> Inspection:
    """Sweep once over data, forward and with a loss backward, and say what is wrong with the network.

    >>> found = inspect(model, (x, y), loss="cross_entropy", optimizer=adam)  # doctest: +SKIP
    >>> print(found)                                                           # doctest: +SKIP
    >>> found.report("health.html")                                            # doctest: +SKIP

    Args:
        model: any module; it stays as it is.
        data: a tensor, a pair (inputs, targets), a mapping as Hugging Face models take it, or an iterable of such.
        loss: "cross_entropy", "mse", or (output, targets) -> a scalar; None leaves out what needs gradients.
        optimizer: whose learning rate and momentum are held against the curvature.
        lr: the learning rate, in place of an optimizer.
        checks: "all", or names: of checks (`inspect.CHECKS`) or of the papers that they come from.
        batch: examples at a time, where data are one tensor or pair.
        seed: of samples and probes.
        watch: called with what goes on.

    Raises:
        WorkingPapersError: where a check is unknown or the model does not run on the data.
    """
    if not isinstance(model, nn.Module):
        raise WorkingPapersError(f"expected a torch module to inspect; got {type(model).__name__}")
    chosen, say = chosen_checks(checks), watch or (lambda what: None)
    began = time.perf_counter()
    say("running the data")
    case = case_of(model, data, loss=loss_named(loss), optimizer=optimizer, lr=lr, batch=batch, seed=seed)
    seconds = {"sweep": time.perf_counter() - began}
    findings: dict[str, Finding] = broken(case.activity)
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in chosen:
        say(name)
        began = time.perf_counter()
        _run(name, case, findings, skipped, failed)
        seconds[name] = time.perf_counter() - began
    activity = case.activity
    return Inspection(
        type(model).__name__, activity.examples, findings, skipped, failed, seconds, activity.loss
    )


def broken(activity: Activity) -> dict[str, Finding]:
    """Return, as the finding `sweep`, where outputs first are no finite numbers; nothing where all are."""
    rows = {name: place.output.moments.nonfinite for name, place in activity.places.items()}
    first = next((name for name, number in rows.items() if number), None)
    if first is None:
        return {}
    symptom = Symptom(
        first,
        "serious",
        f"{rows[first]} of its outputs hold NaN or infinite numbers, the first of {sum(map(bool, rows.values()))} "
        "places that do.",
        "Look at its weights and at what it reads: an overflow, a division by 0, or a step that was too long.",
    )
    numbers = {f"rows not finite in {name}": float(number) for name, number in rows.items() if number}
    return {
        "sweep": Finding(numbers, f"From {first} on outputs are not finite.", symptoms=(symptom,)),
    }


def inspect_named(case: str, **options: Any) -> Inspection:
    """Inspect what 'file.py:function' returns: a model and data, then a loss and an optimizer if it likes.

    Raises:
        WorkingPapersError: where it returns anything else.
    """
    made = load_function(case)()
    if not isinstance(made, tuple) or not 2 <= len(made) <= 4 or not isinstance(made[0], nn.Module):
        raise WorkingPapersError(
            f"expected {case} to return (model, data), (model, data, loss) or (model, data, loss, optimizer); "
            f"it returns a {type(made).__name__}"
        )
    model, data, *rest = made
    given = dict(zip(("loss", "optimizer"), rest, strict=False))
    return inspect(model, data, **{**given, **{k: v for k, v in options.items() if v is not None}})


def _run(
    name: str, case: Case, findings: dict[str, Finding], skipped: dict[str, str], failed: dict[str, str]
) -> None:
    try:
        findings[name] = component(name).target(case)
    except NotApplicable as why:
        skipped[name] = str(why)
    except Exception as error:  # one check that breaks on a strange model must not take the others with it
        failed[name] = f"{type(error).__name__}: {error}"


def chosen_checks(checks: str | Sequence[str]) -> list[str]:
    """Return the names of checks; a paper's name stands for all of its checks.

    Raises:
        UnknownName: for any other name.
    """
    written = set(available())
    every = [name for name in CHECKS if name.split(".")[0] in written]
    if checks == "all":
        return every
    found: list[str] = []
    for wanted in [checks] if isinstance(checks, str) else checks:
        named = [name for name in every if wanted in (name, name.split(".")[0])]
        if not named:
            raise unknown("check", wanted, every)
        found += named
    return list(dict.fromkeys(found))


def loss_named(loss: str | Loss | None) -> Loss | None:
    """Return a loss by name, or as it is.

    Raises:
        UnknownName: for another name.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    return LOSSES[loss]
