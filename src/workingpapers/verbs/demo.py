"""demo: six activations compared on real images, then the quick claims of three papers checked."""

from collections.abc import Callable, Iterator
from typing import Any

from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.comparison import Comparison
from workingpapers.experiments.store import Store
from workingpapers.verbs.check import Checked, check
from workingpapers.verbs.compare import compare

ACTIVATIONS = ["relu", "gelu", "silu", "mish", "golu", "snake"]
SEEDS = 5
TASKS = ["digits-mlp", "digits-cnn", "fashion_mnist-mlp", "fashion_mnist-cnn"]
PAPERS = ["prelu_xor", "golu", "snake"]
CLAIMS = {"golu": ["variance_ratio"], "snake": ["sine_beyond_its_range"]}


def comparisons(store: Store, progress: Callable[[Any], None] | None) -> Iterator[Comparison]:
    """Compare the activations on every task whose data is bundled, in the offline folder, or can be downloaded."""
    for name in TASKS:
        if reachable(name.split("-")[0]):
            yield compare(name, {"activation": ACTIVATIONS}, seeds=SEEDS, store=store, progress=progress)


def reachable(name: str) -> bool:
    """Tell whether a data set is at hand; downloads it where that is possible."""
    from workingpapers.data import images

    try:
        images(name)
    except WorkingPapersError:
        return False
    return True


def claims(store: Store, progress: Callable[[Any], None] | None) -> Iterator[Checked]:
    """Measure quick claims of three papers that need no download."""
    for id in PAPERS:
        yield check(id, names=CLAIMS.get(id), store=store, contract=False, progress=progress)
