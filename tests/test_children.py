"""Children run nothing that lies where they start; server and worker are in tests/cli/test_app.py."""

import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from qaf_core.children import child_environment, safe_spawning
from qaf_core.cli import doctor
from qaf_core.deploy.runtime.measure_kit import measure_peak_memory
from qaf_core.pipeline.compress.solve_cache import SolveCache
from qaf_core.pipeline.compress.solver_pool import SolverPool


@pytest.fixture(autouse=True)
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder all is started in, with modules that say so when they are run."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    monkeypatch.chdir(tmp_path)
    for name in ("torchvision", "numpy", "pickle", "platform", "random", "tempfile"):
        (tmp_path / f"{name}.py").write_text(f"open('RUN-{name}', 'w').close()\n")
    return tmp_path


def test_helpers_of_the_solver(planted: Path) -> None:
    with SolverPool([], shared=(), cache=SolveCache(planted / "cache"), helpers=1):
        (helper,) = multiprocessing.active_children()
        assert helper.pid is not None
        os.waitid(os.P_PID, helper.pid, os.WEXITED | os.WNOWAIT)
    assert not list(planted.glob("RUN-*"))


def test_probes_of_doctor_and_of_memory(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TORCH_PROBE", "import pickle; print(pickle.__file__, 1, '', sep='|')")
    told = doctor._check_torch().text()
    assert "pickle.py" in told
    assert str(planted) not in told
    assert measure_peak_memory(planted / "none.onnx", np.zeros((1, 3), np.float32), threads=1) is None
    assert not list(planted.glob("RUN-*"))


def test_the_environment_of_children(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f":{planted / 'named'}:")
    paths = child_environment()["PYTHONPATH"].split(os.pathsep)
    assert paths[0] == str(planted / "named")
    assert "" not in paths, "an empty one is the folder it starts in"
    before = dict(os.environ)
    with safe_spawning():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert dict(os.environ) == before
    assert not sys.flags.safe_path
