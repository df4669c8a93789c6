"""Running a network's blocks in any order, with gaps and repeats: the embedding before and the head behind stay."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.running import call

Chain = tuple[int, ...]
CACHES = ("past_key_values", "past_key_value", "layer_past", "cache_params")


class _Slot(nn.Module):
    """Stands in a block's place and hands the hidden states on; the last one runs the chain.

    Every block gets the masks and positions that were given to its own place, whatever order they run in.
    """

    def __init__(self, run: "_Pass", number: int) -> None:
        super().__init__()
        self.__dict__["run"], self.number = run, number

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["run"].layers[self.__dict__["number"]], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the hidden states in the form in which the block would."""
        run = self.__dict__["run"]
        if any(kwargs.get(name) is not None for name in CACHES):
            raise WorkingPapersError(
                "chains of layers run without a key-value cache; call with use_cache=False"
            )
        hidden = args[0] if args else kwargs.pop("hidden_states")
        run.given[self.number] = (args[1:], kwargs)
        if self.number == len(run.layers) - 1:
            for number in run.chain:
                rest, options = run.given[number]
                found = run.layers[number](hidden, *rest, **options)
                hidden = found[0] if isinstance(found, tuple) else found
        return (hidden,) if run.tuples else hidden


class _Pass:
    """One run: the blocks, the chain, and what each place was given."""

    def __init__(self, layers: list[nn.Module], chain: Sequence[int], tuples: bool) -> None:
        self.layers, self.chain, self.tuples = layers, chain, tuples
        self.given: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}


def _hidden(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and value else value


class ChainRunner:
    """Runs a model, which stays as it is, with its blocks in the order of a chain.

    Args:
        model: a decoder of Hugging Face, or any network in which a list of blocks hands one tensor on.
        inputs: an example of what it takes: a tensor, a tuple, or a mapping of arguments.
        blocks: name of the nn.ModuleList or nn.Sequential; by default the only one found to work so.

    Attributes:
        layers: the blocks N in their order; blocks: name of the list.

    Raises:
        WorkingPapersError: where there is no such list, or several and none is named.
    """

    def __init__(self, model: nn.Module, inputs: Any, blocks: str | None = None) -> None:
        self.model = model
        found = _lists(model, _without_cache(model, inputs))
        if blocks is None:
            outermost = [
                n for n in found if not any(n.startswith(f"{other}.") for other in found if other != n)
            ]
            if len(outermost) != 1:
                said = f"several: {', '.join(outermost)}; name one" if outermost else "none; name it"
                raise WorkingPapersError(
                    f"chains need the list of blocks of {type(model).__name__}, and it has {said} with blocks="
                )
            blocks = outermost[0]
        if blocks not in found:
            known = ", ".join(found) or "none does"
            raise WorkingPapersError(
                f"{blocks!r} is no list of blocks that hand one tensor on; of these, {known}"
            )
        self.blocks, self.tuples = blocks, found[blocks]
        holder: Any = model.get_submodule(blocks)
        self.holder = holder
        self.layers: list[nn.Module] = list(holder)

    @property
    def original(self) -> Chain:
        """The chain of the model as it is."""
        return tuple(range(len(self.layers)))

    def __call__(self, inputs: Any, chain: Sequence[int]) -> Any:
        """Return the model's output in evaluation mode, without gradients, with the blocks of `chain`."""
        odd = next((i for i in chain if not 0 <= i < len(self.layers)), None)
        if odd is not None or not len(chain):
            raise WorkingPapersError(
                f"a chain names blocks from 0 to {len(self.layers) - 1}, at least one; got {list(chain)}"
            )
        run = _Pass(self.layers, chain, self.tuples)
        every, modes = self.holder._modules, {m: m.training for m in self.model.modules() if m.training}
        try:
            self.model.eval()
            self.holder._modules = {str(i): _Slot(run, i).eval() for i in range(len(self.layers))}
            with torch.no_grad():
                return call(self.model, _without_cache(self.model, inputs))
        finally:
            self.holder._modules = every
            for module, mode in modes.items():
                module.training = mode


def _without_cache(model: nn.Module, inputs: Any) -> Any:
    """Return the inputs with the key-value cache turned off, where the model has one."""
    if getattr(getattr(model, "config", None), "use_cache", None) is None:
        return inputs
    if isinstance(inputs, Tensor):
        return {"input_ids": inputs, "use_cache": False}
    return {"use_cache": False, **inputs} if hasattr(inputs, "keys") else inputs


@torch.no_grad()
def _lists(model: nn.Module, inputs: Any) -> dict[str, bool]:
    """Run the model; return the lists whose blocks hand one tensor on in order, and whether they give tuples."""
    lists = {
        name: [*m.children()]
        for name, m in model.named_modules()
        if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1 and len({type(c) for c in m}) == 1
    }
    taken: dict[nn.Module, list[Any]] = defaultdict(list)
    given: dict[nn.Module, list[Any]] = defaultdict(list)

    def note(block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        taken[block].append(args[0] if args else kwargs.get("hidden_states"))
        given[block].append(output)

    blocks = {block for layers in lists.values() for block in layers}
    handles = [b.register_forward_hook(note, with_kwargs=True) for b in blocks]
    modes = {m: m.training for m in model.modules() if m.training}
    try:
        model.eval()
        call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode

    def hands_on(layers: list[nn.Module]) -> bool:
        if any(len(given[block]) != 1 for block in layers):
            return False
        ends = [_hidden(given[block][0]) for block in layers]
        starts = [taken[block][0] for block in layers]
        same = all(a is b for a, b in zip(ends[:-1], starts[1:], strict=True))
        tensors = [t for t in pytree.tree_leaves([starts, ends]) if isinstance(t, Tensor)]
        return same and len(tensors) == 2 * len(layers) and len({t.shape for t in tensors}) == 1

    return {
        name: isinstance(given[layers[0]][0], tuple) for name, layers in lists.items() if hands_on(layers)
    }
