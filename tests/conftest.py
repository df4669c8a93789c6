"""The test room: harsher than the user's.  NaN-filled memory, no network by accident, one thread, own folders."""

import os
from itertools import count
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import settings

pytest_plugins = ["tests.collection"]

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
if "WORKINGPAPERS_DATA" not in os.environ and BESIDE.is_dir():
    os.environ["WORKINGPAPERS_DATA"] = str(BESIDE)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile("same", derandomize=True)  # HYPOTHESIS_PROFILE=default draws anew
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(autouse=True, scope="session")
def _harsh_torch() -> None:
    import torch

    torch.set_num_threads(1)
    torch.utils.deterministic.fill_uninitialized_memory = True


_NUMBERS = count()


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep runs and caches of every test out of the user's folders."""
    # numbered here: pytest's own numbering looks through all folders made before, once for every test
    home = tmp_path_factory.getbasetemp() / f"home{next(_NUMBERS)}"
    home.mkdir()
    monkeypatch.setenv("WORKINGPAPERS_STORE", str(home / "runs.sqlite"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))


@pytest.fixture(autouse=True)
def _own_draws(request: pytest.FixtureRequest) -> None:
    """Seed torch by the test's name: what a test draws does not depend on what ran before it in its process."""
    import torch

    torch.manual_seed(crc32(request.node.nodeid.encode()))
