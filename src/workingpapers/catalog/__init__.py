"""The catalogue: records of every paper, the registry that binds code to them, and the ledger of results."""

from workingpapers.catalog.kinds import KINDS, Kind
from workingpapers.catalog.records import Record, families, record, records
from workingpapers.catalog.registry import (
    Claim,
    Component,
    available,
    claim,
    claims,
    component,
    load,
    make,
    paper,
)

__all__ = [
    "KINDS",
    "Claim",
    "Component",
    "Kind",
    "Record",
    "available",
    "claim",
    "claims",
    "component",
    "families",
    "load",
    "make",
    "paper",
    "record",
    "records",
]
