"""Reference points that every comparison needs and no paper of ours brings: torch's own activations."""

from typing import Any

# name -> (attribute of torch.nn, options, properties for the activation contract)
REFERENCES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "relu": (
        "ReLU",
        {},
        {"monotone": True, "lipschitz": 1.0, "positively_homogeneous": True, "zero_at_zero": True},
    ),
    "leaky_relu": (
        "LeakyReLU",
        {},
        {"monotone": True, "lipschitz": 1.0, "positively_homogeneous": True, "zero_at_zero": True},
    ),
    "elu": ("ELU", {}, {"smooth": True, "monotone": True, "lipschitz": 1.0, "zero_at_zero": True}),
    "selu": ("SELU", {}, {"monotone": True, "zero_at_zero": True}),
    "gelu": ("GELU", {}, {"smooth": True, "zero_at_zero": True}),
    "gelu_tanh": ("GELU", {"approximate": "tanh"}, {"smooth": True, "zero_at_zero": True}),
    "silu": ("SiLU", {}, {"smooth": True, "zero_at_zero": True}),
    "softplus": ("Softplus", {}, {"smooth": True, "monotone": True, "lipschitz": 1.0}),
    "hardswish": ("Hardswish", {}, {"zero_at_zero": True}),
    "tanh": (
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
    "sigmoid": ("Sigmoid", {}, {"smooth": True, "monotone": True, "lipschitz": 0.25, "bounded": (0.0, 1.0)}),
    "identity": (
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
}
