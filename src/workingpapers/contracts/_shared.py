"""The checks that every nn.Module is held to, whatever its kind."""

from workingpapers.contracts import _batches, _random, _state, _values

MODULE_CHECKS = [
    *_values.contract.checks,
    *_batches.contract.checks,
    *_random.contract.checks,
    *_state.contract.checks,
]
