"""What this machine's processor does with 8-bit products."""

from __future__ import annotations

import platform
from pathlib import Path

from qaf_core.errors import PlanError

THIS, ANY = "this", "any"
TARGETS = (THIS, ANY)
X86_NAMES = ("x86_64", "amd64", "i686", "i386", "x86")
DOT_PRODUCT_FLAGS = ("avx512_vnni", "avx_vnni")
CPU_INFO = Path("/proc/cpuinfo")


def saturates_products(machine: str | None = None, cpu_info: str | None = None) -> bool:
    """Whether sums of two products of unsigned and signed 8-bit numbers are cut off at 16 bits.

    x86 without VNNI does so (``vpmaddubsw``); it shows for weights beyond ±64. A processor that cannot be
    asked counts as doing so.

    Args:
        machine: Name of the architecture; None for this machine's.
        cpu_info: Text of ``/proc/cpuinfo``; None for this machine's.
    """
    if (platform.machine() if machine is None else machine).lower() not in X86_NAMES:
        return False
    if cpu_info is None:
        try:
            cpu_info = CPU_INFO.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return True
    flags = {word for line in cpu_info.splitlines() if line.startswith("flags") for word in line.split()}
    return not flags & set(DOT_PRODUCT_FLAGS)


def saturates_for(target: str) -> bool:
    """Whether files for a target must keep clear of products that are cut off.

    Args:
        target: ``this`` machine's processor, or ``any``: then the files are right wherever they run, and
            perhaps slower on processors that would not have needed it.

    Raises:
        PlanError: If the target is neither.
    """
    if target not in TARGETS:
        raise PlanError("unknown target", got=target, expected=", ".join(TARGETS))
    return target == ANY or saturates_products()
