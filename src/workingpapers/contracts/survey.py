"""The contract of surveys: a map whose every branch leads to an entry that works.

A survey has `branches`, a mapping from a branch's name to the ids of components in the catalogue.
"""

from collections.abc import Mapping
from typing import Any

from workingpapers.catalog import available, records
from workingpapers.contracts._check import Contract, ContractFailure, expect
from workingpapers.contracts._subject import Subject
from workingpapers.errors import unknown


class SurveySubject(Subject):
    """A survey, built with its small options."""

    def branches(self) -> Mapping[str, list[str]]:
        """Return the ids of the entries by branch."""
        survey: Any = self.target if hasattr(self.target, "branches") else self.target(**self.options)
        branches = getattr(survey, "branches", None)
        if not isinstance(branches, Mapping) or not branches:
            raise ContractFailure(f"its branches are {branches!r}, not a mapping from names to ids")
        return branches


contract = Contract(SurveySubject)


@contract.check("known entries", "every id on the map is in the catalogue")
def _known_entries(subject: SurveySubject) -> None:
    known = records()
    wrong = [
        f"the branch {branch!r} names {id!r}, and {unknown('paper', id, known)}"
        for branch, ids in subject.branches().items()
        for id in ids
        if id.split(".")[0] not in known
    ]
    expect(not wrong, "; ".join(wrong))


@contract.check("working entries", "every branch names at least one entry that works")
def _working_entries(subject: SurveySubject) -> None:
    written = set(available())
    dead = [
        f"the branch {branch!r} leads to {', '.join(ids) or 'nothing'}, where nothing is written yet"
        for branch, ids in subject.branches().items()
        if not any(id.split(".")[0] in written for id in ids)
    ]
    expect(not dead, f"{len(dead)} of {len(subject.branches())} branches lead nowhere: {'; '.join(dead)}")
