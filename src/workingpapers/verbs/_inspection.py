"""What inspect finds: to read, to print, to keep, to hold against another."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.evidence import Finding, Symptom

SEVERITIES = ("serious", "warning", "note")


@dataclass(frozen=True)
class Inspection:
    """The findings of one inspection, by the check that made each.

    Attributes:
        model: the class of the model.
        examples: how many ran through it.
        findings: by check, such as `redo.dormant`.
        skipped: checks that do not apply, and what they would need.
        failed: checks that broke, and what they said.
        seconds: of the sweep over the data (under "sweep") and of each check.
        loss: the mean loss; None without one.
    """

    model: str
    examples: int
    findings: Mapping[str, Finding]
    skipped: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    loss: float | None = None

    @property
    def symptoms(self) -> list[tuple[str, Symptom]]:
        """All symptoms with the check that saw them, the worst first."""
        every = [(check, symptom) for check, found in self.findings.items() for symptom in found.symptoms]
        return sorted(every, key=lambda pair: SEVERITIES.index(pair[1].severity))

    @property
    def healthy(self) -> bool:
        """Whether nothing is serious and nothing warns."""
        return all(symptom.severity == "note" for _, symptom in self.symptoms)

    def __getitem__(self, check: str) -> Finding:
        """Return the finding of a check."""
        return self.findings[check]

    def __str__(self) -> str:
        lines = [self.headline()]
        for check, symptom in self.symptoms:
            where = f"{symptom.where}: " if symptom.where else ""
            lines += [
                f"  {symptom.severity:<8} {where}{symptom.says} [{check}]",
                f"           {symptom.remedy}",
            ]
        lines += [f"  {check:<28} {found.reading}" for check, found in self.findings.items()]
        lines += [f"  {check:<28} not applied: {why}" for check, why in self.skipped.items()]
        lines += [f"  {check:<28} failed: {why}" for check, why in self.failed.items()]
        return "\n".join(lines)

    def headline(self) -> str:
        """Return the inspection in a sentence."""
        count = {s: sum(symptom.severity == s for _, symptom in self.symptoms) for s in SEVERITIES}
        said = [f"{count['serious']} serious"] if count["serious"] else []
        said += [f"{n} warning{'s' * (n > 1)}"] if (n := count["warning"]) else []
        said += [f"{n} note{'s' * (n > 1)}"] if (n := count["note"]) else []
        verdict = ", ".join(said) or "nothing to complain of"
        return f"{self.model} on {self.examples} examples, {len(self.findings)} checks: {verdict}."

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "model": self.model,
            "examples": self.examples,
            "loss": self.loss,
            "healthy": self.healthy,
            "symptoms": [
                {"check": check, "where": s.where, "severity": s.severity, "says": s.says, "remedy": s.remedy}
                for check, s in self.symptoms
            ],
            "findings": {
                check: {"reading": found.reading, "numbers": dict(found.numbers)}
                for check, found in self.findings.items()
            },
            "skipped": dict(self.skipped),
            "failed": dict(self.failed),
            "seconds": dict(self.seconds),
        }

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, which `Inspection.load` reads."""
        from workingpapers.experiments.comparison import finite
        from workingpapers.files import write_whole

        write_whole(Path(path), json.dumps(finite(self.as_dict()), indent=1, ensure_ascii=False) + "\n")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Inspection":
        """Read what `save` wrote; figures are not kept.

        Raises:
            WorkingPapersError: where the file is none of these.
        """
        try:
            held = json.loads(Path(path).read_text("utf-8"))
            symptoms: dict[str, list[Symptom]] = {}
            for s in held["symptoms"]:
                symptom = Symptom(s["where"], s["severity"], s["says"], s["remedy"])
                symptoms.setdefault(s["check"], []).append(symptom)
            findings = {
                check: Finding(f["numbers"], f["reading"], symptoms=tuple(symptoms.get(check, ())))
                for check, f in held["findings"].items()
            }
            kept = {
                name: held[name] for name in ("model", "examples", "skipped", "failed", "seconds", "loss")
            }
            return cls(findings=findings, **kept)
        except OSError as error:
            raise WorkingPapersError(f"cannot read {path}: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise WorkingPapersError(
                f"expected {path} to hold an inspection that `save` wrote; it is none"
            ) from None

    def since(self, before: "Inspection") -> "Difference":
        """Return what changed since another inspection: before and after, two checkpoints, two models."""
        return Difference(before, self)

    def report(self, path: str | Path) -> Path:
        """Write a page that stands alone: each finding with its sentence and its picture."""
        from workingpapers.report.inspected import write_inspection

        return write_inspection(path, self)


@dataclass(frozen=True)
class Difference:
    """Two inspections side by side."""

    before: Inspection
    after: Inspection

    @property
    def gone(self) -> list[tuple[str, Symptom]]:
        """Symptoms that were there before and are not now."""
        now = {(check, s.where) for check, s in self.after.symptoms}
        return [(check, s) for check, s in self.before.symptoms if (check, s.where) not in now]

    @property
    def new(self) -> list[tuple[str, Symptom]]:
        """Symptoms that were not there before."""
        return Difference(self.after, self.before).gone

    def numbers(self) -> dict[str, tuple[float, float]]:
        """Return every number that both have and that changed, before and after, as `check: name`."""
        found = {}
        for check in self.before.findings.keys() & self.after.findings.keys():
            one, other = self.before[check].numbers, self.after[check].numbers
            for name in one.keys() & other.keys():
                if one[name] != other[name]:
                    found[f"{check}: {name}"] = (one[name], other[name])
        return dict(sorted(found.items()))

    def __str__(self) -> str:
        lines = [self.before.headline(), self.after.headline()]
        lines += [f"  gone  {s.where}: {s.says} [{check}]" for check, s in self.gone]
        lines += [f"  new   {s.where}: {s.says} [{check}]" for check, s in self.new]
        lines += [f"  {name:<48} {a:.6g} -> {b:.6g}" for name, (a, b) in self.numbers().items()]
        return "\n".join(lines)
