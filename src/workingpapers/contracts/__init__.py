"""Contracts: what every component of a kind must satisfy, callable by anyone on a component of their own.

>>> from torch import nn
>>> from workingpapers.contracts import check_contract
>>> check_contract(nn.Tanh, kind="activation", odd=True, bounded=(-1.0, 1.0)).passed
True
"""

from workingpapers.contracts._check import Check, ContractFailure
from workingpapers.contracts._report import Report, Result
from workingpapers.contracts._run import check_contract, checks

__all__ = ["Check", "ContractFailure", "Report", "Result", "check_contract", "checks"]
