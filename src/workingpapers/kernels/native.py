"""C++ beside the Python: compiled on this machine at first use, kept in the user's cache, loaded by ctypes.

The sources know nothing of torch; they take pointers and sizes.  Where no compiler works every caller has its
plain formula in torch operations.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

import platformdirs

VARIABLE = "WORKINGPAPERS_NATIVE"  # "never" leaves all to the plain formulas
# NaN and infinity keep their meaning; sums may be taken in any order, as vectors take them
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
PARALLEL = "-fopenmp"


@cache
def library(name: str) -> ctypes.CDLL | None:
    """Return the library compiled from `name`.cpp in this folder, or None where there is no working compiler."""
    compiler = os.environ.get("CXX") or next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    if os.environ.get(VARIABLE) == "never" or compiler is None:
        return None
    import torch  # noqa: F401  # its OpenMP is loaded first, and the library finds that one

    source = Path(__file__).parent / f"{name}.cpp"
    try:
        target = _folder() / f"{name}-{_key(compiler, source)}.so"
        if not target.exists():
            _compile(compiler, source, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        warnings.warn(
            f"{name} is not compiled here, and computed by torch: {said[0] if said else error}", stacklevel=2
        )
        return None


def _folder() -> Path:
    folder = Path(platformdirs.user_cache_dir("workingpapers", appauthor=False)) / "native"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _key(compiler: str, source: Path) -> str:
    """Name all that a library is made for: another machine may see the same cache."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = (
        source.read_text("utf-8"),
        version,
        " ".join((*FLAGS, PARALLEL)),
        platform.machine(),
        _features(),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: str, source: Path, target: Path) -> None:
    """Compile in a folder of its own and move the result into place: several processes may be at it."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "made.so"
        command = [compiler, *FLAGS, str(source), "-o", str(made)]
        done = subprocess.run([*command, PARALLEL], capture_output=True, text=True, check=False)
        if done.returncode:  # a compiler without OpenMP
            subprocess.run(command, capture_output=True, text=True, check=True)
        os.replace(made, target)
