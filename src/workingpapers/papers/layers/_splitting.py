"""Splitting an ordinary differential equation x' = F(x) + G(x) into exact flows of its parts."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from workingpapers.experiments import Finding

Array = NDArray[np.float64]
Field = Callable[[Array], Array]
Step = Callable[[Field, Field, Array, float], Array]


def flow(field: Field, x: Array, time: float, method: str = "RK45", tolerance: float = 1e-10) -> Array:
    """Return where x' = field(x) takes `x` (any shape) in `time`, by adaptive Runge-Kutta steps."""

    def flat(_: float, y: Array) -> Array:
        return field(y.reshape(x.shape)).ravel()

    solved = solve_ivp(flat, (0.0, time), x.ravel(), method, rtol=tolerance, atol=tolerance)
    return np.asarray(solved.y[:, -1]).reshape(x.shape)


def lie_trotter(f: Field, g: Field, x: Array, h: float) -> Array:
    """Take one step of length `h`: the flow of `f`, then that of `g`, as attention and feed-forward follow."""
    return flow(g, flow(f, x, h), h)


def strang(f: Field, g: Field, x: Array, h: float) -> Array:
    """Take one step of length `h`: half a step of `g`, a whole one of `f`, half a step of `g`."""
    return flow(g, flow(f, flow(g, x, h / 2), h), h / 2)


def run(step: Step, f: Field, g: Field, x: Array, h: float, steps: int) -> Array:
    """Return where `steps` steps of length `h` take `x`."""
    for _ in range(steps):
        x = step(f, g, x, h)
    return x


def order(lengths: Sequence[float], errors: Sequence[float]) -> float:
    """Return the slope of log error against log step length, by least squares."""
    return float(np.polyfit(np.log(lengths), np.log(errors), 1)[0])


def linear_fields(rng: np.random.Generator, size: int = 6) -> tuple[Array, Array, Array]:
    """Return two random matrices of spectral norm 1, which do not commute, and a unit vector."""
    a, b = (m / np.linalg.norm(m, 2) for m in rng.standard_normal((2, size, size)))
    x = rng.standard_normal(size)
    return a, b, x / np.linalg.norm(x)


def particle_fields(rng: np.random.Generator, particles: int = 8, dim: int = 4) -> tuple[Field, Field, Array]:
    """Return a softmax attention and a tanh perceptron with random weights, and particles (N, D) to move."""
    q, k, v, up, down = rng.standard_normal((5, dim, dim)) / np.sqrt(dim)

    def attention(x: Array) -> Array:
        scores = (x @ q) @ (x @ k).T / np.sqrt(dim)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        return np.asarray(weights / weights.sum(1, keepdims=True) @ (x @ v))

    def perceptron(x: Array) -> Array:
        return np.asarray(np.tanh(x @ up) @ down)

    return attention, perceptron, rng.standard_normal((particles, dim))


def measured(
    f: Field, g: Field, x: Array, exact: Callable[[float], Array], lengths: Sequence[float]
) -> Finding:
    """Return the study's finding, given the exact solution at each time."""
    errors: dict[str, list[float]] = {}
    for name, step in (("lie_trotter", lie_trotter), ("strang", strang)):
        for h in lengths:
            for span, steps in (("local", 1), ("global", round(1 / h))):
                gap = run(step, f, g, x, h, steps) - exact(steps * h)
                errors.setdefault(f"{name}_{span}", []).append(float(np.linalg.norm(gap)))
    numbers = {f"{name}_order": order(lengths, found) for name, found in errors.items()}
    numbers["local_ratio"] = errors["strang_local"][-1] / errors["lie_trotter_local"][-1]
    reading = (
        f"The error at the end falls as the step to the power {numbers['lie_trotter_global_order']:.2f} by Lie and "
        f"Trotter and {numbers['strang_global_order']:.2f} by Strang and Marchuk."
    )
    return Finding(numbers, reading, details={"lengths": lengths, **errors})
