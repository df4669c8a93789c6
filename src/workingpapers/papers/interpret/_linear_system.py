"""The affine system y = A x + r that a network is for one input, as operators: no matrix is ever formed."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.interpret._replay import Record, Replay, evaluating, naming

Place = int | Sequence[int]
ROUNDING = 1000  # units in the last place by which an affine system may seem not to be one


class LinearInterpreter:
    """A model with its decisions on the inputs `x` (N, ...) held fast: model(x) = A x + r, an A for each input.

    Attributes:
        x: the inputs.
        y: the model's outputs (N, ...).
        r: what is left of them without the inputs, from biases, means and other constants, (N, ...).

    Raises:
        WorkingPapersError: where the model multiplies or divides what depends on the input by other such things
            than gates, so that it is not affine once the decisions are fixed.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model, x.detach()
        self._record = Record()
        with evaluating(model), torch.no_grad(), self._record:
            y = model(self.x.clone())
        if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]:
            raise WorkingPapersError(
                f"a linear interpreter needs outputs (N, ...); {type(model).__name__} gives others"
            )
        self.y: Tensor = y
        with torch.no_grad():
            self.r = self._run(torch.zeros_like(self.x))
        self._check()

    def _run(self, v: Tensor, scales: dict[str, Tensor] | None = None) -> Tensor:
        """Return A v + r, with the constants of each module multiplied by its scales."""
        replay = Replay(self._record, scales, len(v))
        names = nullcontext() if scales is None else naming(self.model, replay.modules)
        with evaluating(self.model), names, replay:
            found: Tensor = self.model(v.clone())
        return found

    @torch.no_grad()
    def _check(self) -> None:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(self.x.shape, generator=generator).to(self.x)
        v = drawn * self.x.std(correction=0).clamp(min=1e-3)
        one, both = self._run(v), self._run(self.x + v)
        size = max(float(t.abs().max()) for t in (self.y, one, both, self.r)) or 1.0
        gap = float((both - one - (self.y - self.r)).abs().max())
        gap = max(gap, float((self._run(self.x) - self.y).abs().max()))
        if not gap <= max(ROUNDING * torch.finfo(self.y.dtype).eps, 1e-9) * size:
            raise WorkingPapersError(
                f"{type(self.model).__name__} is not affine once its decisions are fixed (it is off by "
                f"{gap / size:.1g} of its outputs): it multiplies two things that both depend on the input"
            )

    def _probes(self, v: Tensor, like: Tensor, what: str) -> None:
        if v.shape[1:] != like.shape[1:] or (len(self.x) > 1 and len(v) != len(self.x)):
            number = "any number" if len(self.x) == 1 else str(len(self.x))
            raise WorkingPapersError(
                f"{what} are {number} of the shape {tuple(like.shape[1:])}; got {tuple(v.shape)}"
            )

    @torch.no_grad()
    def forward(self, v: Tensor) -> Tensor:
        """Return A v for probes `v` (N, ...); of a single input's system, for any number of probes."""
        self._probes(v, self.x, "probes")
        with forward_ad.dual_level():
            found = self._run(
                forward_ad.make_dual(torch.zeros_like(v), v.detach())
            )  # the derivative of A v + r is A
            tangent = forward_ad.unpack_dual(found).tangent
        return torch.zeros_like(found) if tangent is None else tangent.clone()

    def adjoint(self, u: Tensor) -> Tensor:
        """Return A^T u for `u` shaped like the outputs, (N, ...)."""
        self._probes(u, self.y, "adjoint probes")
        with torch.enable_grad():
            v = self.x.new_zeros(len(u), *self.x.shape[1:]).requires_grad_()
            y = self._run(v)
            if not y.requires_grad:
                return torch.zeros_like(v)
            (found,) = torch.autograd.grad(y, v, u.detach(), allow_unused=True, materialize_grads=True)
        return found

    def linear_part(self) -> Tensor:
        """Return A x, (N, ...)."""
        return self.forward(self.x)

    def row(self, place: Place) -> Tensor:
        """Return the row of A that makes the output at `place`, shaped like the inputs, (N, ...)."""
        return self.adjoint(_unit(self.y, place, "output"))

    def votes(self, place: Place) -> Tensor:
        """Return row * x: what every pixel gives to the output at `place`; they add up to (A x) there."""
        return self.row(place) * self.x

    def column(self, place: Place) -> Tensor:
        """Return the column of A of the input at `place`, its impulse response, shaped like the outputs."""
        return self.forward(_unit(self.x, place, "input"))

    def bias_share(self, place: Place) -> Tensor:
        """Return r / y at `place`, (N,)."""
        index = _index(self.y, place, "output")
        return self.r[index] / self.y[index]

    def contributions(self, place: Place) -> dict[str, Tensor]:
        """Return by module what its constants give to r at `place`, (N,) each; together they are r.

        "other" is what no bias, mean or offset of a module gives: gates at the output, or constants that the
        model adds itself.
        """
        index = _index(self.y, place, "output")
        scales: dict[str, Tensor] = {}
        with torch.enable_grad():
            r = self._run(torch.zeros_like(self.x), scales)[index]
            names = list(scales)
            grads = (
                torch.autograd.grad(r.sum(), [scales[n] for n in names], allow_unused=True) if names else ()
            )
        zero = torch.zeros_like(self.r[index])
        # with the decisions frozen r is a sum of the modules' constants, so a derivative is a share
        found = {n: zero if g is None else g.detach() for n, g in zip(names, grads, strict=True)}
        found["other"] = self.r[index] - sum(found.values(), zero)
        return found

    def operator(self) -> Any:
        """Return A of a single input as a scipy LinearOperator (outputs, inputs), in float64."""
        from scipy.sparse.linalg import LinearOperator

        if len(self.x) != 1:
            raise WorkingPapersError(
                f"an operator is that of a single input; this interpreter has {len(self.x)}"
            )

        def through(values: NDArray[np.float64], shape: torch.Size, call: Any) -> NDArray[np.float64]:
            probe = torch.as_tensor(
                values.reshape(-1).copy(), dtype=self.x.dtype, device=self.x.device
            ).reshape(shape)
            return np.asarray(call(probe).double().cpu().numpy().reshape(-1))

        return LinearOperator(
            (self.y.numel(), self.x.numel()),
            matvec=lambda v: through(v, self.x.shape, self.forward),
            rmatvec=lambda u: through(u, self.y.shape, self.adjoint),
            dtype=np.float64,
        )

    def singular(self, k: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return the `k` largest singular triplets: of outputs (k, ...), values (k,), of inputs (k, ...)."""
        from scipy.sparse.linalg import svds

        operator = self.operator()
        most = min(operator.shape) - 1
        if not 1 <= k <= most:
            raise WorkingPapersError(
                f"of this system 1 to {most} singular vectors can be found; asked for {k}"
            )
        start = np.random.default_rng(seed).standard_normal(min(operator.shape))
        left, values, right = svds(operator, k=k, v0=start)
        order = np.argsort(-values)
        u, s, v = (torch.as_tensor(t.copy()) for t in (left.T[order], values[order], right[order]))
        return u.reshape(k, *self.y.shape[1:]), s, v.reshape(k, *self.x.shape[1:])

    def eigen(self, k: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return the `k` largest eigenvalues (k,) and eigenvectors (k, ...), complex, of a square system."""
        from scipy.sparse.linalg import eigs

        operator = self.operator()
        if operator.shape[0] != operator.shape[1]:
            raise WorkingPapersError(
                f"only a square system has eigenvectors; this one takes {operator.shape[1]} numbers to "
                f"{operator.shape[0]}"
            )
        start = np.random.default_rng(seed).standard_normal(operator.shape[0])
        values, vectors = eigs(operator, k=k, v0=start)
        order = np.argsort(-np.abs(values))
        found = torch.as_tensor(vectors.T[order].copy()).reshape(k, *self.x.shape[1:])
        return torch.as_tensor(values[order].copy()), found


def linear_interpreter(model: nn.Module, x: Tensor) -> LinearInterpreter:
    """Run `model` on `x` (N, ...) once and hold all its decisions fast; see `LinearInterpreter`."""
    return LinearInterpreter(model, x)


def _index(like: Tensor, place: Place, what: str) -> tuple[Any, ...]:
    """Return what picks the place in every row of `like`."""
    index = (place,) if isinstance(place, int) else tuple(place)
    shape = tuple(like.shape[1:])
    if len(index) != len(shape) or not all(-n <= i < n for i, n in zip(index, shape, strict=True)):
        raise WorkingPapersError(f"a place in an {what} of shape {shape} was expected; got {place}")
    return (slice(None), *index)


def _unit(like: Tensor, place: Place, what: str) -> Tensor:
    probe = torch.zeros_like(like)
    probe[_index(like, place, what)] = 1
    return probe
