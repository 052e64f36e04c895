"""The house keeps its order: what imports what, how quickly, and that every module has its tests."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each may import only those before it; errors and files are free to all.
ORDER = (
    *("text", "quantization", "factorization", "network", "data", "pipeline", "deploy", "api", "search"),
    *("runs", "review", "cli"),
)
LONGEST_FUNCTION, MOST_PARAMETERS = 60, 8  # lines without the docstring; of commands neither is asked
# Those that do not keep to it yet; no others may join them. ``solve_layer`` is a contract.
LONGER_YET = {"qaf_core.factorization.solve.solve_layer"}
LARGEST_ROOM = 14  # modules
QUICK_MODULES = (
    "qaf_core",
    "qaf_core.errors",
    "qaf_core.quantization.spec",
    "qaf_core.factorization.options",
    "qaf_core.network.plan.layer_info",
    "qaf_core.network.plan.rules",
    "qaf_core.network.plan.cost",
    "qaf_core.data.models.catalogue",
    "qaf_core.data.load",
    "qaf_core.data.inspection.dataset",
    "qaf_core.data.workspace.registry",
    "qaf_core.data.models.settings",
    "qaf_core.pipeline.check.plausibility",
    "qaf_core.pipeline.events",
    "qaf_core.runs.store.request",
    "qaf_core.runs.store.store",
    "qaf_core.runs.worker.supervisor",
    "qaf_core.deploy.onnx_export.code_examples",
    "qaf_core.deploy.onnx_export.report",
    "qaf_core.deploy.runtime.model_files",
    "qaf_core.review.charts",
    "qaf_core.cli.entry",
)
HEAVY = ("torch", "torchvision", "timm", "tensorly", "sklearn", "onnx", "onnxruntime")
CORE_MODULES = sorted((ROOT / "qaf_core").rglob("*.py"))
DASHBOARD_MODULES = sorted((ROOT / "dashboard").rglob("*.py"))


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file's syntax tree."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imported_modules(path: Path) -> tuple[str, ...]:
    """Every module a file imports, also inside functions."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "qaf_core").with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("path", CORE_MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_imports_only_those_before_it(path: Path) -> None:
    room = room_of(path)
    for module in imported_modules(path):
        top = module.split(".")[0]
        assert top not in ("streamlit", "dashboard"), f"{module} belongs to the dashboard"
        assert top != "plotly" or room == "review", "plotly is review's"
        parts = module.split(".")
        if top == "qaf_core" and len(parts) > 1 and parts[1] in ORDER and room in ORDER:
            assert ORDER.index(parts[1]) <= ORDER.index(room), f"{room} must not import {module}"
        if room == "errors":
            assert top != "qaf_core" or module.startswith("qaf_core.text.said")


def test_no_files_import_each_other_in_a_circle() -> None:
    """Also through imports inside functions, and through those for types alone."""
    paths = {module_name(path): path for path in CORE_MODULES + DASHBOARD_MODULES}
    reads = {
        name: {other for other in imported_modules(path) if other in paths} for name, path in paths.items()
    }
    left = dict(reads)
    while free := [name for name, others in left.items() if not others & (left.keys() - {name})]:
        for name in free:
            del left[name]
    assert left == {}, f"in a circle, or behind one: {sorted(left)}"


def test_a_room_holds_no_more_than_a_reader_keeps_in_mind() -> None:
    rooms: dict[Path, int] = {}
    for path in CORE_MODULES + DASHBOARD_MODULES:
        if path.stem not in ("__init__", "__main__"):
            rooms[path.parent] = rooms.get(path.parent, 0) + 1
    assert {str(room): count for room, count in rooms.items() if count > LARGEST_ROOM} == {}


@pytest.mark.parametrize("path", DASHBOARD_MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_dashboard_holds_no_tensors(path: Path) -> None:
    for module in imported_modules(path):
        assert module.split(".")[0] not in HEAVY


def test_functions_stay_short_and_take_few_parameters() -> None:
    found: set[str] = set()
    for path in CORE_MODULES + DASHBOARD_MODULES:
        command_line = room_of(path) == "cli" if path in CORE_MODULES else False
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not command_line:
                many = len(parameters_of(node)) > MOST_PARAMETERS
                if many or code_lines(node) > LONGEST_FUNCTION:
                    found.add(f"{module_name(path)}.{node.name}")
    assert found - LONGER_YET == set()


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names of all parameters, keyword-only ones too, but for the object itself."""
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [one.arg for one in every if one is not None and one.arg not in ("self", "cls")]


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first, last = function.body[0], function.end_lineno or function.lineno
    told = ast.get_docstring(function) is not None
    return last - function.lineno + 1 - (((first.end_lineno or 0) - first.lineno + 1) if told else 0)


def test_what_the_first_page_needs_imports_without_torch() -> None:
    script = (
        "import importlib, sys\n"
        f"for name in {QUICK_MODULES!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [module for module in {HEAVY!r} if module in sys.modules]\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


def test_every_module_is_tested_in_the_mirrored_folder() -> None:
    """By a test that imports it, or through a tested module of its package that uses it."""
    untested: set[str] = set()
    for room in {room_of(path) for path in CORE_MODULES} - {"__init__"}:
        own = {module_name(path): path for path in CORE_MODULES if room_of(path) == room}
        folder = ROOT / "tests"
        tests = [*(folder / room).rglob("test_*.py"), *folder.glob(f"test_{room}.py")]
        reached = {name for test in tests for name in imported_modules(test)} & own.keys()
        while (
            more := {name for seen in reached for name in imported_modules(own[seen])} & own.keys() - reached
        ):
            reached |= more
        untested |= {
            name for name, path in own.items() if path.stem not in ("__init__", "__main__")
        } - reached
    assert untested == set()


def module_name(path: Path) -> str:
    inside = path.relative_to(ROOT).with_suffix("")
    return ".".join(inside.parent.parts if path.stem == "__init__" else inside.parts)


# What may know structures by their names: their descriptors, their algebra, and texts.
KNOW_STRUCTURES = ("qaf_core/factorization/structures", "qaf_core/factorization/algebra", "dashboard/text")


def test_only_descriptors_and_algebra_branch_on_a_structures_name() -> None:
    """A method is called dense too: comparisons of methods are not meant."""
    from qaf_core.factorization.structures import STRUCTURES

    found = []
    for path in CORE_MODULES + DASHBOARD_MODULES:
        name = str(path.relative_to(ROOT))
        if name.startswith(KNOW_STRUCTURES):
            continue
        for node in nodes_of(path):
            if isinstance(node, ast.Compare | ast.MatchValue) and "method" not in ast.unparse(node):
                parts = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                if parts & STRUCTURES.keys():
                    found.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_the_source_names_no_registry_and_no_machine() -> None:
    # Written in pieces, so that this file does not name them either.
    unwanted = [
        a + b for a, b in (("pypi.", "org"), ("download.", "pytorch"), ("/wo", "rk/"), ("/ro", "ot/"))
    ]
    for path in (ROOT / name for name in tracked_files()):
        if path.suffix in (".py", ".toml", ".txt", ".md", "", ".json", ".yml") and path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not [word for word in unwanted if word in text], path


def tracked_files() -> list[str]:
    outcome = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    return outcome.stdout.splitlines()
