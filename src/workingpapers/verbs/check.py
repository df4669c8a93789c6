"""check: does a paper's contract pass, and do its own claims hold here?"""

import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import workingpapers
from workingpapers.catalog import available, load, record
from workingpapers.catalog.ledger import record_entries
from workingpapers.catalog.records import families
from workingpapers.catalog.registry import claims, path_of
from workingpapers.claims import Verdict, check_claims
from workingpapers.contracts import Report, check_contract
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments.store import Store
from workingpapers.tasks import budget as named_budget


@dataclass(frozen=True)
class Checked:
    """What a check of one paper gave: the contract of each component, and a verdict for each claim."""

    paper: str
    contracts: dict[str, Report]
    verdicts: list[Verdict]

    @property
    def passed(self) -> bool:
        """Tell whether every contract passed."""
        return all(report.passed for report in self.contracts.values())

    @property
    def complete(self) -> bool:
        """Tell whether every contract passed and every claim could be measured (whatever the verdict)."""
        return self.passed and all(v.complete for v in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary for `--json`."""
        return {
            "paper": self.paper,
            "contract": {n: _results(r) for n, r in self.contracts.items()},
            "claims": [{**v.entry(), "errors": v.errors} for v in self.verdicts],
        }


def chosen(ids: Sequence[str], families_: Sequence[str] = (), all: bool = False) -> list[str]:
    """Return the papers meant by ids, families, or all; those that are not written yet are left out of families."""
    for family in families_:
        if family not in families():
            raise unknown("family", family, families())
    for id in ids:
        path_of(id) or load(id)  # what is not written yet is said before the others are run
    written = available()
    found = [*ids, *(i for i in written if all or record(i).family in families_)]
    if not found:
        asked = f"in {', '.join(families_)} is written yet" if families_ else "was named"
        raise WorkingPapersError(f"no paper {asked}; give ids, --family or --all")
    return list(dict.fromkeys(found))


def check(
    id: str,
    *,
    budget: str = "quick",
    names: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    contract: bool = True,
    store: Store | None = None,
    workers: int | None = None,
    on: str = "local",
    progress: Callable[[Any], None] | None = None,
) -> Checked:
    """Check the contract of every component of the paper `id`, then measure its claims.

    `budget` is 'quick' (minutes on two cores) or 'full'; `names` picks claims (an empty list: none); `seeds`
    replaces the declared seeds for calibration.  Runs that the store holds already are not repeated.
    """
    named_budget(budget)
    contracts = {name: check_contract(name) for name in load(id)} if contract else {}
    verdicts = check_claims(
        id, budget=budget, names=names, seeds=seeds, store=store, workers=workers, on=on, progress=progress
    )
    return Checked(id, contracts, verdicts)


def write_ledger(checked: Checked) -> None:
    """Write the results of a check into the ledger; refuse claims that were not measured on their own seeds."""
    declared = claims(checked.paper)
    for verdict in checked.verdicts:
        if tuple(verdict.seeds) != declared[verdict.claim].seeds:
            why = "; ".join(verdict.errors) or "other seeds than the declared ones were run"
            raise WorkingPapersError(f"the claim {checked.paper}:{verdict.claim} is not recorded: {why}")
    entries = [v.entry() for v in checked.verdicts]
    if checked.contracts:
        entries.append(contract_entry(checked))
    record_entries(checked.paper, entries)


def contract_entry(checked: Checked) -> dict[str, Any]:
    """Return the contracts' results as one ledger entry."""
    return {
        "what": "contract",
        "name": checked.paper,
        "result": "passed" if checked.passed else "failed",
        "components": {name: _results(report) for name, report in checked.contracts.items()},
        "version": workingpapers.__version__,
        "machine": platform.machine(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _results(report: Report) -> dict[str, str]:
    return {name: str(result) for name, result in report.results.items()}


def check_many(
    words: Sequence[str],
    *,
    families: Sequence[str] = (),
    all: bool = False,
    record: bool = False,
    claims: bool = True,
    **options: Any,
) -> Iterator[Checked]:
    """Check the papers meant by `words` (ids, or paper:claim), families or all; yield each as it is done.

    With `record`, each goes into the ledger before it is yielded; without `claims`, contracts alone are checked.
    """
    if options.get("seeds") is not None and record:
        raise WorkingPapersError("--seeds is for calibrating a rule; its verdicts cannot be recorded")
    claims_of: dict[str, list[str]] = {}
    whole: set[str] = set()  # papers named without a claim
    for word in words:
        id, _, claim = word.partition(":")
        claims_of.setdefault(id, []).append(claim)
        whole |= set() if claim else {id}
    opened = options.pop("store", None)
    options["store"] = opened if isinstance(opened, Store) else Store(opened)
    for id in chosen(list(claims_of), families, all):
        names = None if id in whole else claims_of.get(id)
        checked = check(id, names=names if claims else [], **options)
        if record:
            write_ledger(checked)
        yield checked


def parse_seeds(text: str | None) -> list[int] | None:
    """Read '1000-1004' or '3,5,8' as seeds; None stays None."""
    if text is None:
        return None
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if low > high:
            raise WorkingPapersError(f"seeds are given as 1000-1004 or 3,5,8; got {text!r}")
        seeds += range(low, high + 1)
    return list(dict.fromkeys(seeds))
