"""Checks of how an nn.Module lives: saving, copying, compiling, exporting, moving, printing, refusing."""

import copy
import io
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workingpapers.contracts._check import Contract, ContractFailure, expect, expect_none
from workingpapers.contracts._module import ModuleSubject, call, evaluate, train_one_step
from workingpapers.contracts._tensors import (
    expect_close,
    expect_finite,
    floating,
    gradients,
    map_floating,
    map_tensors,
    tensors,
    weighted_sum,
    with_gradients,
)

contract = Contract(ModuleSubject)

NOT_IN_REPR = {"inplace", "device", "dtype", "seed", "generator"}
OWN_ERRORS = (TypeError, ValueError, RuntimeError)  # the latter as torch's own operators raise it


@contract.check("state_dict", "a saved state_dict, loaded into a fresh instance, gives the same outputs")
def _state_dict(subject: ModuleSubject) -> None:
    module, fresh, inputs = subject.build(0), subject.build(1), subject.inputs()
    train_one_step(module, inputs)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    expect_close(evaluate(fresh, inputs), evaluate(module, inputs), 0.0, "outputs after loading differ")


@contract.check("deepcopy", "a deep copy, taken after training, gives the same outputs and shares nothing")
def _deepcopy(subject: ModuleSubject) -> None:
    module, inputs = subject.build(), subject.inputs()
    train_one_step(module, inputs)
    other = copy.deepcopy(module)
    before = evaluate(module, inputs)
    expect(other is not module, "the copy is the module itself")
    expect_close(evaluate(other, inputs), before, 0.0, "the copy's outputs differ")
    with torch.no_grad():
        for tensor in [*other.parameters(), *other.buffers()]:
            tensor.zero_()
    expect_close(evaluate(module, inputs), before, 0.0, "outputs changed with the copy's weights")


@contract.check("pickle", "pickling, after training, and loading gives the same outputs")
def _pickle(subject: ModuleSubject) -> None:
    module, inputs = subject.build(), subject.inputs()
    train_one_step(module, inputs)
    other = pickle.loads(pickle.dumps(module))
    expect_close(evaluate(other, inputs), evaluate(module, inputs), 0.0, "the loaded module's outputs differ")


@contract.check(
    "compile", "torch.compile takes it as one graph, with the outputs and gradients of eager mode"
)
def _compile(subject: ModuleSubject) -> None:
    module = subject.build().eval()
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = []
    torch._dynamo.reset()
    try:
        for runner in (module, torch.compile(module, backend="aot_eager", fullgraph=True)):
            inputs = with_gradients(subject.inputs())
            outputs = call(runner, inputs)
            sources = [*floating(inputs), *parameters]
            found.append([*outputs, *(gradients(weighted_sum(outputs), sources) if sources else [])])
    finally:
        torch._dynamo.reset()
    expect_close(found[1], found[0], 1e-4, "compiled and eager differ")


@contract.check("export", "torch.export takes it, and the exported program gives the same outputs")
def _export(subject: ModuleSubject) -> None:
    module, inputs = subject.build().eval(), subject.inputs()
    program = torch.export.export(module, inputs)
    with torch.no_grad():
        found = tensors(program.module()(*inputs))
    expect_close(found, evaluate(module, inputs), 1e-4, "exported and eager outputs differ")


@contract.check(
    "device moves",
    "to(device) moves every tensor: each is a parameter or a buffer, and forward "
    "makes none on another device than its input's",
)
def _device_moves(subject: ModuleSubject) -> None:
    module = subject.build().eval()
    for place, tensor in _attributes(module):
        kept = any(tensor is known for known in [*module.parameters(), *module.buffers()])
        expect(kept or not tensor.numel(), f"{place} is a tensor but neither parameter nor buffer")
    module.to("meta")
    inputs = map_tensors(lambda t: t.to("meta"), subject.inputs())
    try:
        outputs = tensors(module(*inputs))
    except Exception as error:
        if "meta tensors" in str(error).lower():  # it asks for a value: only a real second device could tell
            return
        raise
    for output in outputs:
        expect(output.device.type == "meta", f"inputs on the device meta gave an output on {output.device}")


def _attributes(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors among the modules' plain attributes, also those in lists, tuples and dicts."""
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            for tensor in filter(torch.is_tensor, pytree.tree_leaves(value)):
                yield f"the attribute {f'{name}.{key}'.lstrip('.')}", tensor


@contract.check("casts", "double() and float() carry every parameter and buffer along, there and back")
def _casts(subject: ModuleSubject) -> None:
    module, inputs = subject.build().eval(), subject.inputs()
    before = evaluate(module, inputs)
    for dtype, cast in ((torch.float64, module.double), (torch.float32, module.float)):
        cast()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            expect(
                not tensor.is_floating_point() or tensor.dtype == dtype,
                f"{name} is {tensor.dtype} after the cast to {dtype}".replace("torch.", ""),
            )
    expect_close(evaluate(module, inputs), before, 1e-6, "outputs differ after double() and float()")


@contract.check("repr", "repr tells the class, and tells options apart from the defaults")
def _repr(subject: ModuleSubject) -> None:
    text = repr(subject.build())
    name = type(subject.build()).__name__
    expect(name in text, f"repr does not name the class {name}: {text[:80]!r}")
    for change, changed in _variants(subject):
        expect(repr(changed) != text, f"repr is the same for {change} as without it")


def _variants(subject: ModuleSubject) -> Iterator[tuple[str, nn.Module]]:
    """Yield an instance for every option that takes another value than its present one, and which it is."""
    for option, value in _other_options(subject):
        try:
            changed = subject.build(**{option: value})
        except Exception:  # the changed value is a guess; that it is refused is no fault
            continue
        yield f"{option}={value!r}", changed


def _other_options(subject: ModuleSubject) -> Iterator[tuple[str, Any]]:
    """Yield a value other than the present one for each option that is a flag or a number."""
    args, options = subject.arguments()
    for name, parameter in list(subject.parameters().items())[len(args) :]:
        value = options.get(name, parameter.default)
        if name in NOT_IN_REPR or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if isinstance(value, bool):
            yield name, not value
        elif isinstance(value, int):
            yield name, value + 1
        elif isinstance(value, float):
            yield name, 0.5 * value if value else 0.5


@contract.check(
    "clear errors",
    "an unknown option is refused by its name, and integers where floats belong "
    "give an error in words or the right answer",
)
def _clear_errors(subject: ModuleSubject) -> None:
    try:
        subject.build(no_such_option=1)
    except Exception as error:
        expect("no_such_option" in str(error), f"the error for an unknown option does not name it: {error!r}")
    else:
        raise ContractFailure("the unknown option no_such_option=1 is taken in silence")
    module, inputs = subject.build().eval(), subject.inputs()
    if not floating(inputs):
        return
    whole = map_floating(torch.round, inputs)
    try:
        found = evaluate(module, map_floating(lambda t: t.long(), whole))
    except Exception as error:
        own = isinstance(error, OWN_ERRORS) or type(error).__module__.startswith("workingpapers")
        expect(
            own and len(str(error)) > 9,
            f"integers raised {type(error).__name__} with the text {str(error)!r}",
        )
    else:
        expect_close(
            found, evaluate(module, whole), 1e-3, "integers gave another answer than the same floats"
        )


@contract.check("no warnings", "building, printing, calling and differentiating it warns of nothing")
def _no_warnings(subject: ModuleSubject) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = subject.build()
        for variant in [module, *(changed for _, changed in _variants(subject))]:
            repr(variant)
        train_one_step(module, subject.inputs())
        outputs = evaluate(module, subject.inputs())
    expect_none([warning.message for warning in caught], "it warned: {}")
    expect_finite(outputs, "the outputs after one training step")
