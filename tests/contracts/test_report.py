"""How contracts are asked for, what they refuse, and how they tell their results."""

import random
import warnings

import numpy
import pytest
import torch
from good_modules import Slope
from torch import nn

from workingpapers.contracts import ContractFailure, check_contract, checks
from workingpapers.errors import UnknownName, WorkingPapersError


def test_a_known_failure_is_no_failure_and_keeps_its_reason() -> None:
    report = check_contract(nn.ReLU, "activation", smooth=True, known_failures={"smooth": "it has a kink"})
    assert report.passed
    assert str(report.results["smooth"]) == "known failure: it has a kink"
    report.raise_for_failure()


def test_a_known_failure_that_passes_is_a_failure() -> None:
    report = check_contract(nn.Tanh, "activation", smooth=True, known_failures={"smooth": "it has a kink"})
    assert list(report.failures) == ["smooth"]
    assert str(report.results["smooth"]).startswith("unexpectedly passed: ")
    assert "it has a kink" in report.failures["smooth"]


@pytest.mark.parametrize("name", ["smoothe", "monotone"], ids=["no check", "a check that does not apply"])
def test_a_known_failure_of_no_check_is_refused(name: str) -> None:
    with pytest.raises(UnknownName, match=name):
        check_contract(nn.Tanh, "activation", smooth=True, known_failures={name: "why"})


def test_the_report_lists_every_check_and_raises_all_failures_at_once() -> None:
    report = check_contract(nn.GELU, "activation", smooth=True, monotone=True, odd=True)
    lines = str(report).splitlines()
    declared = {"smooth": True, "monotone": True, "odd": True}
    applicable = [c.name for c in checks("activation") if c.applies(declared)]
    assert list(report.results) == applicable
    assert lines[0] == f"GELU (activation): {len(applicable) - 2} of {len(applicable)} checks passed"
    assert len(lines) == 1 + len(applicable)
    assert set(report.failures) == {"monotone", "odd"}
    with pytest.raises(ContractFailure) as caught:
        report.raise_for_failure()
    assert "monotone: promised that" in str(caught.value)
    assert "odd: promised that" in str(caught.value)


def test_the_failure_sentence_has_the_place_and_the_numbers() -> None:
    report = check_contract(nn.Tanh, "activation", only="bounded", bounded=(0.0, 1.0))
    assert report.failures == {
        "bounded": "promised that every output lies within the declared (low, high), and bounded=False means that "
        "outputs keep growing with the input, but outputs lie between -1 and 1, not within (0, 1)"
    }


def test_a_registered_component_brings_kind_and_properties() -> None:
    report = check_contract("tanh", only=["odd", "even"])
    assert report.kind == "activation"
    assert list(report.results) == ["odd"]
    assert not check_contract("tanh", only="even", even=True).passed


def test_variants_are_held_to_the_same_checks() -> None:
    steep = {"variants": [{"slope": 0.5}, {"slope": 3.0}]}
    assert check_contract(Slope, "activation", lipschitz=1.0, only="lipschitz").passed
    report = check_contract(Slope, "activation", lipschitz=1.0, only="lipschitz", **steep)
    assert "but with slope=3.0 there is a slope of 3, more than 1" in report.failures["lipschitz"]


def test_only_and_progress_tell_what_runs() -> None:
    seen = []
    check_contract(nn.Tanh, "activation", only=["repr", "dtypes"], progress=lambda *step: seen.append(step))
    assert seen == [("dtypes", 0, 2), ("repr", 1, 2)]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (lambda: check_contract(nn.Tanh), "needs its kind"),
        (lambda: check_contract(nn.Tanh, "activator"), "activation"),
        (lambda: check_contract(nn.Tanh, "activation", bouned=True), "bounded"),
        (lambda: check_contract(nn.Tanh, "activation", only="gradient"), "gradients"),
        (lambda: check_contract("tanhh"), "tanh"),
        (lambda: check_contract("tanh", "layer"), "registered as activation"),
        (lambda: check_contract(nn.Linear, "layer"), "needs the property 'example'"),
        (lambda: check_contract(nn.Linear, "layer", replaces="Liner"), "'Linear'"),
        (lambda: check_contract(nn.Tanh(), "activation"), "give the class Tanh"),
        (lambda: check_contract(nn.Linear, "model"), "needs the property 'example'"),
        (lambda: check_contract(nn.MSELoss, "trainer"), "needs the property 'trains'"),
        (lambda: check_contract(nn.MSELoss, "trainer", trains="los"), "'loss'"),
        (lambda: check_contract(nn.MSELoss, "trainer", trains="loss"), "needs the property 'example'"),
        (lambda: checks("activations"), "activation"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_words(asked: object, words: str) -> None:
    with pytest.raises(WorkingPapersError, match=words):
        asked()


def test_what_is_no_module_fails_every_check_in_words() -> None:
    report = check_contract(lambda: 3, "activation", only=["dtypes", "pickle"])
    assert set(report.failures) == {"dtypes", "pickle"}
    assert "gives a int, which is no nn.Module" in report.failures["dtypes"]


def test_global_generators_and_warnings_are_left_alone() -> None:
    class Loud(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            warnings.warn("loud", stacklevel=2)
            random.random()
            numpy.random.rand()
            return x + torch.rand(())

    def states() -> str:
        return repr((torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()))

    before = states()
    report = check_contract(
        Loud, "activation", only=["determinism", "global generators", "no warnings", "dtypes"]
    )
    assert states() == before
    assert "it warned: loud" in report.failures["no warnings"]
    assert (
        "numpy's or Python's" in report.failures["global generators"]
        or "torch's" in report.failures["global generators"]
    )


def test_the_callers_gradient_mode_does_not_matter() -> None:
    with torch.no_grad():
        assert check_contract(nn.Tanh, "activation", only=["gradients", "double backward"]).passed
        assert not torch.is_grad_enabled()


def test_every_promise_completes_a_sentence() -> None:
    from workingpapers.catalog import KINDS

    for kind in KINDS:
        names = [check.name for check in checks(kind)]
        assert len(names) == len(set(names)), kind
        for check in checks(kind):
            assert check.promise[0].islower() or check.promise[0] in "(f+", check.promise
            assert not check.promise.endswith("."), check.promise


def test_a_check_gives_the_same_answer_every_time() -> None:
    one, other = (check_contract(Slope, "activation", lipschitz=0.5, only="lipschitz") for _ in range(2))
    assert one == other
    assert not one.passed
