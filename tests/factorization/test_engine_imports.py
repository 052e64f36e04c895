"""The engine runs where only torch, numpy, scipy and safetensors are installed, as on a GPU server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: What is refused: every package of ours but those four and what torch itself needs.
REFUSED = (
    "torchvision", "PIL", "onnx", "onnxruntime", "onnxscript", "pandas", "plotly", "typer", "streamlit",
    "tensorly", "sklearn", "timm", "psutil", "rich", "click", "defusedxml", "pydantic", "tqdm", "requests",
)  # fmt: skip
HOOK = """
import runpy, sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {refused!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hiding, sys.meta_path)
sys.argv = ["gpu.py", "--device", "cpu", "--quick", "--seconds", "60"]
runpy.run_path({script!r}, run_name="__main__")
"""


def test_the_prepared_script_runs_without_other_packages() -> None:
    """Solver, calibration and sensitivity, with all other packages hidden."""
    code = HOOK.format(refused=REFUSED, script=str(ROOT / "benchmarks" / "gpu.py"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    parts = told["devices"]["cpu"]
    assert len(parts) == 4
    for part, row in parts.items():
        assert "seconds" in row or "stopped_after_seconds" in row, (part, row)
    assert told["card"] is None
