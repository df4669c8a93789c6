"""One sweep over data, forward and where there is a loss backward: what every place's units do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.engines.activity.batches import Batch, batches_of, device_of
from workingpapers.engines.activity.places import watching
from workingpapers.engines.activity.streams import Kept, Moments, Reservoir, Stream
from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.running import call

ROWS = 512  # examples, and rows, of a sample
POSITIONS = 256  # of an example's map
HELD = 256  # examples whose batches are held for what needs the loss again

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class View:
    """What one tensor of a place showed.

    Attributes:
        moments: of its rows, per unit: all positions of an example, at most POSITIONS evenly spaced ones of a map.
        examples: means over positions (n, units) of a sample of examples, the same for every view and in one order;
            empty where the tensor's first dimension does not count examples.
        rows: one row (n, units) each of the same examples, at random positions, alike where views have as many.
        gradients: moments of the loss's slope by this tensor; None without a loss.
    """

    moments: Moments
    examples: Tensor
    rows: Tensor
    gradients: Moments | None

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self.moments.mean)


@dataclass(frozen=True)
class Place:
    """A layer with weights, a norm, or an activation, under the name of its module.

    An activation that a module calls itself is named `module:function`; a second run in one pass ends in `#2`.
    `input` is what an activation or a layer read, None for norms; `activation` its name.
    """

    name: str
    kind: str
    module: nn.Module
    activation: str | None
    input: View | None
    output: View


@dataclass(frozen=True)
class Activity:
    """What a sweep found: the places in the order in which they ran, and what the model gave.

    Attributes:
        examples: how many ran.
        targets: of the sample of examples, in the order of the views' `examples`; None without targets.
        outputs: of the same examples, the model's tensor, or of Hugging Face's outputs the logits or the last
            hidden states; None where it gives anything else.
        loss: the mean over batches; None without one.
        slopes: root mean square over batches of each parameter's gradient norm; empty without a loss.
        batches: the first ones, together at most HELD examples.
    """

    model: nn.Module
    places: dict[str, Place]
    examples: int
    targets: Tensor | None
    outputs: Tensor | None
    loss: float | None
    slopes: dict[str, float]
    batches: tuple[Batch, ...]

    def activations(self) -> list[Place]:
        """Return the places that are activations."""
        return [place for place in self.places.values() if place.kind == "activation"]

    def layers(self) -> list[Place]:
        """Return the places that are layers with weights."""
        return [place for place in self.places.values() if place.kind == "layer"]


class _Views:
    """What is gathered of one tensor of a place."""

    def __init__(self, size: int) -> None:
        self.stream, self.slope = Stream(), Stream()
        self.examples, self.rows = Kept(size), Kept(size)
        self.own: Reservoir | None = None

    def view(self) -> View:
        """Return what was gathered."""
        slopes = self.slope.moments() if self.slope.count else None
        return View(self.stream.moments(), self.examples.found(), self.rows.found(), slopes)


@dataclass
class _Sweep:
    """The state of a sweep: what is kept of the running batch, and everything gathered so far."""

    size: int
    generator: torch.Generator
    number: int = 0
    gathered: dict[tuple[str, str], _Views] = field(default_factory=dict)
    heads: dict[str, tuple[str, nn.Module, str | None]] = field(default_factory=dict)
    batch: Batch | None = None
    kept: tuple[Tensor, Tensor] = (torch.zeros(0), torch.zeros(0))
    newest: tuple[Tensor | None, int, Any] = (None, 0, None)  # the tensor taken last, its version, its views
    drawn: dict[int, Tensor] = field(default_factory=dict)  # by the number of positions, for one batch

    def seen(
        self,
        kind: str,
        name: str,
        module: nn.Module,
        held: str | None,
        before: Tensor | None,
        output: Tensor,
        last: bool,
    ) -> None:
        """Take what a place read and gave."""
        self.heads.setdefault(name, (kind, module, held))
        if before is not None:
            self._take(name, "input", before, last)
        self._take(name, "output", output, last)

    def _take(self, name: str, side: str, value: Tensor, last: bool) -> None:
        # what an activation reads is mostly what the layer before it gave, unless `h += x` came between
        if value is self.newest[0] and value._version == self.newest[1]:
            self.gathered[name, side] = self.newest[2]
            return
        views = self.gathered.setdefault((name, side), _Views(self.size))
        self.newest = value, value._version, views
        batch = self.batch
        assert batch is not None
        whole = _by_example(value, last, batch).detach()
        mask, shaped = _mask(batch, whole), self._thinned(whole)
        mask = None if mask is None else self._thinned(mask)
        views.stream.add(shaped if mask is None else shaped[mask])
        if len(shaped) == batch.size:
            self._sample(views, shaped, mask)
        else:  # tokens sent to an expert, and the like: rows of no known example
            views.own = views.own or Reservoir(self.size, self.generator)
            rows = shaped.flatten(0, 1)
            kept, slots = views.own.draw(len(rows))
            views.rows.put(rows[kept.to(rows.device)], slots)
        if value.requires_grad:
            value.register_hook(lambda slope: views.slope.add(self._thinned(_by_example(slope, last, batch))))

    def _thinned(self, shaped: Tensor) -> Tensor:
        """Return evenly spaced positions of a map from a start that the batch number decides."""
        step = -(-shaped.shape[1] // POSITIONS)
        return shaped if step == 1 else shaped[:, self.number % step :: step]

    def _sample(self, views: _Views, shaped: Tensor, mask: Tensor | None) -> None:
        kept, slots = self.kept
        if len(kept) == 0:
            return
        there = torch.ones(len(kept), shaped.shape[1]) if mask is None else mask.cpu()[kept].float()
        if (size := shaped.shape[1]) not in self.drawn:
            self.drawn[size] = torch.multinomial(there + 1e-12, 1, generator=self.generator)[:, 0]
        position = self.drawn[size].to(shaped.device)
        kept = kept.to(shaped.device)
        if mask is None:
            means = shaped.mean(1)[kept]
        else:
            weights = there.to(shaped) / there.to(shaped).sum(1, keepdim=True).clamp(min=1)
            means = (weights[:, None] @ shaped[kept])[:, 0]
        views.examples.put(means, slots)
        views.rows.put(shaped[kept, position], slots)


def _by_example(value: Tensor, last: bool, batch: Batch) -> Tensor:
    """Return values (examples, positions, units); what is flat over tokens is put back by the batch's size."""
    if value.ndim == 2:
        whole = len(value) > batch.size and len(value) % batch.size == 0 and batch.mask is not None
        return value.reshape(batch.size, -1, value.shape[1]) if whole else value[:, None]
    if last:
        return value.flatten(1, -2)
    return value.flatten(2).transpose(1, 2)


def _mask(batch: Batch, shaped: Tensor) -> Tensor | None:
    mask = batch.mask
    return mask if mask is not None and mask.shape == shaped.shape[:2] else None


def observe(
    model: nn.Module, data: Any, *, loss: Loss | None = None, batch: int = 64, rows: int = ROWS, seed: int = 0
) -> Activity:
    """Run a model over data in evaluation mode and return what its units did; the model stays as it was.

    Args:
        model: any module: its activations may be modules or function calls.
        data: as `batches_of` takes them.
        loss: (output, targets) -> a scalar; with it gradients are gathered too.
        batch: examples at a time where data are one tensor or pair.
        rows: at most so many examples are sampled.
        seed: of the sample.

    Raises:
        WorkingPapersError: where the model does not run on the data, or a loss has no targets.
    """
    generator = torch.Generator().manual_seed(seed)
    sweep, examples = _Sweep(rows, generator), Reservoir(rows, generator)
    targets, outputs = Kept(rows), Kept(rows)
    losses: list[float] = []
    squares: dict[str, list[float]] = {}
    first: list[Batch] = []
    number, device = 0, device_of(model)
    with watching(model, sweep.seen) as begin, _slopes_kept(model):
        for part in batches_of(data, batch):
            part = part.to(device)
            begin()
            sweep.batch, sweep.kept = part, examples.draw(part.size)
            sweep.number += 1
            sweep.drawn.clear()
            with torch.set_grad_enabled(loss is not None):
                output = call(model, part.arguments if not part.named else part.named)
                if loss is not None:
                    losses.append(_backward(model, loss, output, part, squares))
            _keep(targets, part.targets, sweep.kept, part.size)
            _keep(outputs, _main(output), sweep.kept, part.size)
            if number + part.size <= HELD or not first:
                first.append(part)
            number += part.size
    places = {
        name: Place(name, *head, _view(sweep, name, "input"), sweep.gathered[name, "output"].view())
        for name, head in sweep.heads.items()
    }
    return Activity(
        model,
        places,
        number,
        targets.found() if bool(targets.used.any()) else None,
        outputs.found() if bool(outputs.used.any()) else None,
        sum(losses) / len(losses) if losses else None,
        {name: (sum(values) / len(values)) ** 0.5 for name, values in squares.items()},
        tuple(first),
    )


def _view(sweep: _Sweep, name: str, side: str) -> View | None:
    return sweep.gathered[name, side].view() if (name, side) in sweep.gathered else None


def _keep(kept: Kept, value: Any, drawn: tuple[Tensor, Tensor], size: int) -> None:
    if isinstance(value, Tensor) and value.ndim and len(value) == size and len(drawn[0]):
        kept.put(value[drawn[0].to(value.device)], drawn[1])


def _main(output: Any) -> Any:
    """Return the tensor that a model's output stands for."""
    for name in ("logits", "last_hidden_state"):
        if isinstance(getattr(output, name, None), Tensor):
            return getattr(output, name)
    return output


@contextmanager
def _slopes_kept(model: nn.Module) -> Iterator[None]:
    """Put the parameters' own gradients back afterwards."""
    held = [(p, p.grad) for p in model.parameters()]
    for p, _ in held:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in held:
            p.grad = grad


def _backward(
    model: nn.Module, loss: Loss, output: Any, part: Batch, squares: dict[str, list[float]]
) -> float:
    if part.targets is None:
        raise WorkingPapersError("expected data with targets beside a loss; got inputs alone")
    value = loss(output, part.targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise WorkingPapersError("expected a loss that gives one number")
    if value.requires_grad:
        value.backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            squares.setdefault(name, []).append(float(torch.linalg.vector_norm(p.grad)) ** 2)
            p.grad = None
    return float(value.detach())
