"""The contract of trainers: an optimizer, a loss, or an object with `fit`, as the property `trains` says."""

from workingpapers.contracts import _fit, _loss, _optimizer
from workingpapers.contracts._check import Contract
from workingpapers.contracts._trainer import TrainerSubject

contract = Contract(
    TrainerSubject, [*_optimizer.contract.checks, *_loss.contract.checks, *_fit.contract.checks]
)
