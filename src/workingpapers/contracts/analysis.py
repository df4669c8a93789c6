"""The contract of analyses: a finding of finite numbers that keeps the invariances it declares."""

from workingpapers.contracts._finding import contract

__all__ = ["contract"]
