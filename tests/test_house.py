"""The house rules that a program can see: lengths, copies, light imports, arrows.  Each rule is shown to bite."""

import ast
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "workingpapers"
FILE_LINES, FUNCTION_LINES, COPY_LINES = 300, 50, 15


def sources(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


def long_files(root: Path) -> list[str]:
    counts = {p: len(p.read_text("utf-8").splitlines()) for p in sources(root)}
    return [f"{p.relative_to(root)}: {n} lines" for p, n in counts.items() if n > FILE_LINES]


def functions(root: Path) -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sources(root):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def long_functions(root: Path) -> list[str]:
    """Count a function's lines without its signature and docstring: those are read, not followed."""
    found = []
    for path, node in functions(root):
        body = node.body[1:] if ast.get_docstring(node) else node.body
        length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
        if length > FUNCTION_LINES:
            found.append(f"{path.relative_to(root)}:{node.lineno} {node.name}: {length} lines")
    return found


def copies(root: Path) -> list[str]:
    """Return runs of COPY_LINES lines of code (imports, comments and blank lines left out) that stand twice."""
    seen: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path in sources(root):
        lines = [
            (n, text)
            for n, line in enumerate(path.read_text("utf-8").splitlines(), 1)
            if (text := line.strip()) and not text.startswith(("#", "import ", "from "))
        ]
        for start in range(len(lines) - COPY_LINES + 1):
            block = tuple(text for _, text in lines[start : start + COPY_LINES])
            seen[block].append(f"{path.relative_to(root)}:{lines[start][0]}")
    return [" = ".join(places) for places in seen.values() if len(places) > 1]


def undocumented(root: Path) -> list[str]:
    """Return public modules, classes and functions without a docstring."""
    found = []
    for path in sources(root):
        tree = ast.parse(path.read_text("utf-8"))
        if not ast.get_docstring(tree):
            found.append(str(path.relative_to(root)))
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):  # type: ignore[arg-type]
                found.append(f"{path.relative_to(root)}: {node.name}")  # type: ignore[attr-defined]
    return found


def test_files_are_short() -> None:
    assert long_files(SOURCE) == []


def test_functions_fit_a_screen() -> None:
    assert long_functions(SOURCE) == []


def test_nothing_is_written_twice() -> None:
    assert copies(SOURCE) == []


def test_public_things_say_what_they_are() -> None:
    assert undocumented(SOURCE) == []


def test_the_rules_bite(tmp_path: Path) -> None:
    body = "\n".join(f"    x = {i}" for i in range(FUNCTION_LINES + 1))
    (tmp_path / "one.py").write_text(f"def long():\n{body}\n" + "\n" * FILE_LINES)
    (tmp_path / "two.py").write_text(f"def other():\n{body}\n")
    assert len(long_files(tmp_path)) == 1
    assert len(long_functions(tmp_path)) == 2
    assert copies(tmp_path)
    assert len(undocumented(tmp_path)) == 4


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command as run; run()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(folder / "src"), "PATH": ""},
    )


def test_the_arrows_bite(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.jsonl", "*.npz")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=ignore)
    shutil.copy(ROOT / ".importlinter", tmp_path)
    kept = lint(tmp_path)
    assert kept.returncode == 0, kept.stdout
    offender = tmp_path / "src" / "workingpapers" / "data" / "__init__.py"
    offender.write_text(offender.read_text() + "\nimport workingpapers.catalog\n")
    broken = lint(tmp_path)
    assert broken.returncode != 0
    assert "workingpapers.data -> workingpapers.catalog" in broken.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import workingpapers",
        "import workingpapers.catalog",
        "import workingpapers.cli",
        "from workingpapers.catalog import find",
    ],
)
def test_light_imports_leave_torch_alone(code: str) -> None:
    heavy = "[m for m in ('torch', 'scipy', 'sklearn', 'matplotlib', 'pandas') if m in sys.modules]"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint({heavy})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
