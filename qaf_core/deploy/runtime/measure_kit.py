"""Latency and peak memory of ONNX models side by side; this file is also the ``measure.py`` of a device kit.

It needs only ONNX Runtime and numpy and nothing else of this package, so that it runs as it is on the device
a model is meant for: ``python measure.py`` beside the ``manifest.json`` of a kit writes ``result.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

KIT_SCHEMA_VERSION = 1
WARM_UP_ROUNDS, LEAST_ROUNDS = 5, 5
BOOTSTRAP_SAMPLES = 1000
BUSY_SHARE = 0.1  # of all processors, used by others: times are disturbed
PARTS, QUANTILES = 5, (0.1, 0.25, 0.5, 0.75, 0.9)  # of disturbed rounds, to be looked at by themselves
MEMORY_RUNS = 3
PROBE_SECONDS = 120.0
LEAST_RUNTIME = (1, 23)  # of onnxruntime: earlier ones have no Cast of 4-bit integers
LEAST_AGREEMENT = 0.995
CLASS_AXES = {2: 1, 3: 2, 4: 1}  # where class scores stand: by image, by place, by pixel


class _Figures:
    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Latency(_Figures):
    """Wall-clock time of one inference: median and the 5 % and 95 % quantiles of ``n`` runs."""

    median_ms: float
    p5_ms: float
    p95_ms: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Ratio(_Figures):
    """One model's median latency over another's, with a 95 % interval over the paired rounds."""

    value: float
    low: float
    high: float


def open_session(
    model: Path | bytes, *, threads: int, profile_prefix: str | None = None
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the processor.

    Args:
        model: A file, or a serialized model.
        threads: Threads of one operation. They spin while a run lasts, as where a service has the machine to
            itself, but not longer: otherwise the threads of one model would hold up the next.
        profile_prefix: Write a profile to a file whose name begins like this, or None.

    Raises:
        Exception: ONNX Runtime's own where the model cannot be loaded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def time_interleaved(
    runs: Mapping[str, Callable[[], object]], *, rounds: int, seconds: float | None = None, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Time several things in rounds; each round runs all of them once, in an order drawn anew.

    What disturbs a machine for a while then disturbs all of them alike, and none always follows the same
    other one.

    Args:
        runs: What to time, by name.
        rounds: Rounds that count; a few more warm up before.
        seconds: End earlier when this much time has passed, but not before ``LEAST_ROUNDS``.
        seed: Of the orders.

    Returns:
        Milliseconds of every round by name, in the same order of rounds.
    """
    names, generator, began = list(runs), random.Random(seed), time.perf_counter()
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(-WARM_UP_ROUNDS, rounds):
        generator.shuffle(names)
        for name in names:
            before = time.perf_counter()
            runs[name]()
            if index >= 0:
                times[name].append((time.perf_counter() - before) * 1e3)
        late = seconds is not None and time.perf_counter() - began > seconds
        if late and index + 1 >= LEAST_ROUNDS:
            break
    return {name: np.asarray(values) for name, values in times.items()}


def summarise(milliseconds: NDArray[np.float64]) -> Latency:
    """Median and quantiles of measured times."""
    low, middle, high = map(float, np.percentile(milliseconds, (5, 50, 95)))
    return Latency(median_ms=middle, p5_ms=low, p95_ms=high, n=len(milliseconds))


def ratio_of(
    first: NDArray[np.float64], second: NDArray[np.float64], *, seed: int = 0, disturbed: bool = False
) -> Ratio:
    """Median of ``first`` over median of ``second``, both of the same rounds.

    The interval comes from drawing rounds, both times of each together, with replacement. That takes rounds
    for independent, which they are not where others use the machine: of ``disturbed`` ones the interval also
    holds the ratio of every part of the rounds, and of the faster and the slower ones.
    """
    value = float(np.median(first) / np.median(second))
    drawn = np.random.default_rng(seed).integers(0, len(first), (BOOTSTRAP_SAMPLES, len(first)))
    ratios = np.median(first[drawn], axis=1) / np.median(second[drawn], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    if disturbed:
        parts = zip(np.array_split(first, PARTS), np.array_split(second, PARTS), strict=True)
        bounds = [float(np.median(one) / np.median(other)) for one, other in parts if len(one)]
        bounds += [*(np.quantile(first, QUANTILES) / np.quantile(second, QUANTILES))]
        low, high = min(low, *bounds), max(high, *bounds)
    return Ratio(value=value, low=float(low), high=float(high))


class Load:
    """How much of the machine others have used since this was made."""

    def __init__(self) -> None:
        self._began = (time.perf_counter(), _busy_seconds(), time.process_time())

    def others_share(self) -> float | None:
        """Share of all processors, 0 to 1; None where the system does not tell."""
        began, busy_before, own_before = self._began
        busy, seconds = _busy_seconds(), time.perf_counter() - began
        if busy is None or busy_before is None or seconds <= 0:
            return None
        others = (busy - busy_before) - (time.process_time() - own_before)
        return min(1.0, max(0.0, others / seconds / (os.cpu_count() or 1)))


def _busy_seconds() -> float | None:
    """Seconds that all processors together have been at work since the system began (Linux)."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii", errors="replace").partition("\n")[0]
        user, nice, system, _idle, _wait, *rest = map(int, line.split()[1:9])
        return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None


def time_models(
    models: Mapping[str, Path],
    images: NDArray[np.float32],
    *,
    threads: int,
    rounds: int,
    seconds: float | None = None,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of every round of several models on the same images, interleaved in one process.

    Args:
        models: ONNX files by name; each takes one input.
        images: ``(batch, C, H, W)``.
        threads: Threads of one operation.
        rounds, seconds, seed: As in :func:`time_interleaved`.
    """
    runs = open_runs(models, images, threads=threads)
    return time_interleaved(runs, rounds=rounds, seconds=seconds, seed=seed)


def open_runs(
    models: Mapping[str, Path], images: NDArray[np.float32], *, threads: int
) -> dict[str, Callable[[], object]]:
    """One inference of each model on the images, ready to be called; arguments as in :func:`time_models`."""
    return {name: one_inference(open_session(path, threads=threads), images) for name, path in models.items()}


def one_inference(session: onnxruntime.InferenceSession, images: NDArray[Any]) -> Callable[[], object]:
    """An inference of a model with one input, ready to be called."""
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: images})


def measure_peak_memory(model: Path, images: NDArray[np.float32], *, threads: int) -> int | None:
    """Memory one inference needs, in bytes: model, intermediates and ONNX Runtime's own tables.

    Measured in a process of its own: the largest resident size while the model runs, less the resident size
    before it was loaded (interpreter and libraries). What only loading needs is left out where the system
    lets the peak be reset (Linux).

    Returns:
        None where the process did not answer.
    """
    shape = ",".join(map(str, images.shape))
    command = [sys.executable, str(Path(__file__).resolve()), "--memory", str(model), shape, str(threads)]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=True,
        )
        return int(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _probe_memory(model: str, shape: str, threads: str) -> int:
    import onnxruntime  # noqa: F401  its own size belongs to the size before

    images = np.zeros([int(part) for part in shape.split(",")], np.float32)
    before = _memory_bytes("VmRSS")
    session = open_session(Path(model), threads=int(threads))
    _reset_peak()
    run = one_inference(session, images)
    for _ in range(MEMORY_RUNS):
        run()
    return max(0, _memory_bytes("VmHWM") - before)


def _memory_bytes(field: str) -> int:
    """A field of the process's status; where the system has none, the largest size so far."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    sizes = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    if sizes:
        return int(sizes[0]) * 1024
    import resource  # not on Windows, where a kit still measures times

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # the peak then includes what loading needed


def processor_name() -> str:
    """The processor's model name, or the machine's kind where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model", "Hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_machine(threads: int) -> dict[str, Any]:
    """What the times were measured on, ready for JSON."""
    import onnxruntime

    return {
        "processor": processor_name(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "threads": threads,
    }


def checksum(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def compare(times: Mapping[str, NDArray[np.float64]], others_share: float | None = None) -> dict[str, Any]:
    """Latencies, and every model's ratio to the dense INT8 model where that is there.

    ``ratio_to_dense_int8`` is that of ``factorized_int8``, the fast file; ``others_share`` of the processors
    was used by others meanwhile, which makes intervals wider.
    """
    report: dict[str, Any] = {"latencies": {n: summarise(values).to_dict() for n, values in times.items()}}
    report["others_share"], disturbed = others_share, (others_share or 0.0) > BUSY_SHARE
    if "dense_int8" in times:
        dense = times["dense_int8"]
        report["ratios"] = {
            name: ratio_of(values, dense, disturbed=disturbed).to_dict() for name, values in times.items()
        }
        if "factorized_int8" in times:
            report["ratio_to_dense_int8"] = report["ratios"]["factorized_int8"]
    return report


def top_answers(outputs: NDArray[Any]) -> NDArray[Any]:
    """The class on top by image, place or pixel, −1 where a score is not finite; others as they are."""
    axis = CLASS_AXES.get(outputs.ndim)
    if axis is None:
        return outputs
    finite = np.isfinite(outputs).all(axis=axis)
    return np.where(finite, outputs.argmax(axis=axis), -1).astype(np.int16)


def share_of_same(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Share of two arrays of :func:`top_answers` that is the same; of other outputs, to three digits."""
    if actual.shape != expected.shape:
        return 0.0
    if actual.dtype == expected.dtype == np.int16:
        return float(np.mean((actual == expected) & (expected >= 0)))
    return float(np.mean(np.isclose(actual, expected, rtol=5e-3, atol=1e-6)))


def restore_images(stored: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Images ``(N, C, H, W)`` from 8-bit codes with a step and a lowest number by channel.

    They are the same float32 numbers wherever this runs.
    """
    scaled: NDArray[np.float32] = stored["codes"].astype(np.float32) * stored["step"]
    images: NDArray[np.float32] = scaled + stored["low"]
    return images


def answer(model: Path, images: NDArray[np.float32], batch: int) -> NDArray[Any]:
    """A model's :func:`top_answers` for images that go in ``batch`` at a time; the first output counts."""
    session = open_session(model, threads=1)
    name = session.get_inputs()[0].name
    parts = [images[begin : begin + batch] for begin in range(0, len(images), batch)]
    return np.concatenate([top_answers(np.asarray(session.run(None, {name: part})[0])) for part in parts])


def measure_kit(folder: Path, *, threads: int, rounds: int, seconds: float | None) -> dict[str, Any]:
    """Measure the models of a device kit.

    Args:
        folder: Holds ``manifest.json``, the models and ``inputs.npz``.
        threads, rounds, seconds: As in :func:`time_models`.

    Raises:
        ValueError: If a file is missing or is not the one the kit was made with, or no model runs here.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name, digest in manifest["files"].items():
        if not (folder / name).is_file() or checksum(folder / name) != digest:
            raise ValueError(f"{name} is missing or altered; copy the whole folder again")
    batch = manifest["batch"]
    with np.load(folder / "inputs.npz", allow_pickle=False) as archive:
        images = restore_images(archive)
        expected = {name: archive[name] for name in manifest["models"]}
    inputs = np.resize(images, (batch, *images.shape[1:]))
    every = {name: folder / file for name, file in manifest["models"].items()}
    failed = find_failing(every, inputs, threads=threads)
    models = {name: path for name, path in every.items() if name not in failed}
    if not models:
        raise ValueError(f"no model runs here; the first fault: {next(iter(failed.values()))}")
    load = Load()
    times = time_models(models, inputs, threads=threads, rounds=rounds, seconds=seconds)
    result = {
        "schema_version": KIT_SCHEMA_VERSION,
        "run_id": manifest["run_id"],
        "files": manifest["files"],
        "batch": batch,
        "input_shape": list(images.shape[1:]),
        **compare(times, load.others_share()),
        "peak_memory_bytes": {
            name: measure_peak_memory(path, inputs, threads=threads) for name, path in models.items()
        },
        "same_answers": {
            name: share_of_same(answer(path, images, batch), expected[name]) for name, path in models.items()
        },
        "compared_images": len(images),
        "failed": failed,
        "machine": describe_machine(threads),
    }
    return {**result, "checksum": result_checksum(result)}


def find_failing(models: Mapping[str, Path], images: NDArray[np.float32], *, threads: int) -> dict[str, str]:
    """The models that do not load or run here, by name, with the reason in one line."""
    failed = {}
    for name, path in models.items():
        try:
            one_inference(open_session(path, threads=threads), images)()
        except Exception as error:  # the runtime's errors have no base class of their own
            failed[name] = " ".join(str(error).split())[:200] or type(error).__name__
    return failed


def result_checksum(result: Mapping[str, Any]) -> str:
    """SHA-256 of a result without its own checksum: tells a file that was edited or cut off."""
    content = {key: value for key, value in result.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_runtime() -> None:
    """Raise ValueError, in one line, unless an onnxruntime is here that knows all operators."""
    least = ".".join(map(str, LEAST_RUNTIME))
    try:
        import onnxruntime
    except Exception as error:  # built for another numpy, it raises what it likes
        remedy = f"pip install 'onnxruntime>={least}' numpy"
        raise ValueError(f"onnxruntime cannot be imported ({type(error).__name__}): {remedy}") from error
    version = str(onnxruntime.__version__)
    if tuple(map(int, version.split(".")[:2])) < LEAST_RUNTIME:
        raise ValueError(f"onnxruntime {version} is too old: pip install -U 'onnxruntime>={least}'")


def check_options(out: Path, threads: int, rounds: int) -> None:
    """Raise ValueError or OSError, in one line, before anything is measured in vain."""
    for name, value in (("--threads", threads), ("--rounds", rounds)):
        if value < 1:
            raise ValueError(f"{name} {value} is out of range, at least 1 is needed")
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out {out} is no file in a folder that exists")
    with tempfile.TemporaryFile(dir=out.parent):
        pass


def _write_result(out: Path, result: Mapping[str, Any]) -> None:
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        temporary.write_text(json.dumps(result, indent=1), "utf-8")
        temporary.replace(out)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def answer_lines(result: Mapping[str, Any], _: Callable[[str], str] = str) -> list[tuple[str, bool]]:
    """What a kit's result says beside the times: models that agree too little, or do not run.

    Args:
        result: As :func:`measure_kit` gives it.
        _: Puts a template into another language.

    Returns:
        Lines, each with whether it is a warning.
    """
    failed: Mapping[str, str] = result.get("failed") or {}
    text = _("warning: {name} does not run on this device: {why}")
    lines = [(text.format(name=name, why=why), True) for name, why in failed.items()]
    same, count = result.get("same_answers") or {}, result.get("compared_images")
    if same and count:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in same.items())
        text = _("same answers as where the kit was made, on {count} images: {shares}")
        lines.append((text.format(count=count, shares=shares), False))
    text = _("warning: {name} answers wrongly on this device: only {share} are the same")
    lines += [
        (text.format(name=name, share=f"{share:.1%}"), True)
        for name, share in same.items()
        if share < LEAST_AGREEMENT
    ]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the kit this file lies in, or with ``--memory`` one model for :func:`measure_peak_memory`."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv[:1] == ["--memory"]:
        sys.stdout.write(f"{_probe_memory(*argv[1:4])}\n")
        return 0
    folder = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Measure the models of this folder; writes result.json.")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=folder / "result.json")
    options = parser.parse_args(argv)
    try:
        check_runtime()
        check_options(options.out, options.threads, options.rounds)
        result = measure_kit(folder, threads=options.threads, rounds=options.rounds, seconds=options.seconds)
        _write_result(options.out, result)
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"The kit cannot be measured: {error}\n")
        return 2
    for name, row in result["latencies"].items():
        spread = f"{row['p5_ms']:.3f} to {row['p95_ms']:.3f}"
        sys.stdout.write(f"{name:21} {row['median_ms']:9.3f} ms  (5-95 %: {spread})\n")
    lines = [line for line, _ in answer_lines(result)]
    sys.stdout.write("".join(f"{line}\n" for line in (*lines, f"Written to {options.out}")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
