"""What a contract found: each check's outcome, readable as a table."""

from dataclasses import dataclass, field

from workingpapers.contracts._check import ContractFailure

PASSED, FAILED = "passed", "failed"
KNOWN_FAILURE, UNEXPECTEDLY_PASSED = "known failure", "unexpectedly passed"


@dataclass(frozen=True)
class Result:
    """One check's outcome, one of the four words above, and the sentence that goes with it."""

    outcome: str
    says: str = ""

    @property
    def good(self) -> bool:
        """Whether the check passed, or failed as declared."""
        return self.outcome in (PASSED, KNOWN_FAILURE)

    def __str__(self) -> str:
        return f"{self.outcome}: {self.says}" if self.says else self.outcome


@dataclass(frozen=True)
class Report:
    """All results of one component's contract, by the checks' names and in their order."""

    name: str
    kind: str
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every check passed or failed as declared."""
        return not self.failures

    @property
    def failures(self) -> dict[str, str]:
        """The sentence of each broken promise, by the check's name."""
        return {name: result.says for name, result in self.results.items() if not result.good}

    def raise_for_failure(self) -> None:
        """Raise `ContractFailure` with every broken promise, if there is any."""
        if self.failures:
            lines = [f"{name}: {says}" for name, says in self.failures.items()]
            raise ContractFailure("\n".join([f"{self.name} breaks its contract as {self.kind}", *lines]))

    def __str__(self) -> str:
        good = sum(result.good for result in self.results.values())
        width = max((len(name) for name in self.results), default=0)
        lines = [f"{self.name} ({self.kind}): {good} of {len(self.results)} checks passed"]
        lines += [f"  {name:{width}}  {result}" for name, result in self.results.items()]
        return "\n".join(lines)
