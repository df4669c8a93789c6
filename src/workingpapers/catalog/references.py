"""Reference points that every comparison needs and no paper of ours brings: torch's own activations, and gates.

They are named here and imported when they are asked for.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Reference(NamedTuple):
    """Where a reference is found, the options that make it this one, and what its kind's contract holds it to."""

    path: str
    options: Mapping[str, Any]
    properties: Mapping[str, Any]
    kind: str = "activation"


def _torch(name: str, options: Mapping[str, Any], properties: Mapping[str, Any]) -> Reference:
    return Reference(f"torch.nn.{name}", options, properties)


def _gate(name: str) -> Reference:
    return Reference(f"workingpapers.kernels.gates.{name}", {}, {"example": _twelve_features}, "layer")


def _twelve_features(batch: int, generator: Any) -> Any:
    import torch

    return torch.randn(batch, 12, generator=generator)


REFERENCES: dict[str, Reference] = {
    "relu": _torch(
        "ReLU",
        {},
        {"monotone": True, "lipschitz": 1.0, "positively_homogeneous": True, "zero_at_zero": True},
    ),
    "leaky_relu": _torch(
        "LeakyReLU",
        {},
        {"monotone": True, "lipschitz": 1.0, "positively_homogeneous": True, "zero_at_zero": True},
    ),
    "elu": _torch("ELU", {}, {"smooth": True, "monotone": True, "lipschitz": 1.0, "zero_at_zero": True}),
    "selu": _torch("SELU", {}, {"monotone": True, "zero_at_zero": True}),
    "gelu": _torch("GELU", {}, {"smooth": True, "zero_at_zero": True}),
    "gelu_tanh": _torch("GELU", {"approximate": "tanh"}, {"smooth": True, "zero_at_zero": True}),
    "silu": _torch("SiLU", {}, {"smooth": True, "zero_at_zero": True}),
    "softplus": _torch("Softplus", {}, {"smooth": True, "monotone": True, "lipschitz": 1.0}),
    "hardswish": _torch("Hardswish", {}, {"zero_at_zero": True}),
    "tanh": _torch(
        "Tanh",
        {},
        {
            "smooth": True,
            "monotone": True,
            "odd": True,
            "lipschitz": 1.0,
            "bounded": (-1.0, 1.0),
            "zero_at_zero": True,
        },
    ),
    "sigmoid": _torch(
        "Sigmoid", {}, {"smooth": True, "monotone": True, "lipschitz": 0.25, "bounded": (0.0, 1.0)}
    ),
    "identity": _torch(
        "Identity",
        {},
        {
            "smooth": True,
            "monotone": True,
            "odd": True,
            "lipschitz": 1.0,
            "positively_homogeneous": True,
            "zero_at_zero": True,
            "known_failures": {"clear errors": "torch's Identity takes any option, on purpose"},
        },
    ),
    "relu2": Reference(
        "workingpapers.kernels.gates.ReLU2", {}, {"smooth": True, "monotone": True, "zero_at_zero": True}
    ),
    "glu": _gate("GLU"),
    "reglu": _gate("ReGLU"),
    "geglu": _gate("GEGLU"),
    "swiglu": _gate("SwiGLU"),
}
