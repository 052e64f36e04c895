import pytest

from qaf_core.deploy.runtime.target import saturates_for, saturates_products
from qaf_core.errors import PlanError

AVX2 = "processor : 0\nflags\t\t: fpu sse4_2 avx avx2 fma\n"
VNNI = "processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n"


@pytest.mark.parametrize(
    ("machine", "cpu_info", "expected"),
    [
        ("x86_64", AVX2, True),
        ("AMD64", AVX2, True),
        ("x86_64", VNNI, False),
        ("x86_64", "flags : avx2 avx_vnni", False),
        ("x86_64", "model name : avx512_vnni", True),
        ("x86_64", "", True),
        ("aarch64", "", False),
        ("arm64", AVX2, False),
    ],
)
def test_only_x86_without_dot_products_cuts_sums_off(machine: str, cpu_info: str, expected: bool) -> None:
    assert saturates_products(machine, cpu_info) is expected


def test_this_machine_can_be_asked() -> None:
    assert isinstance(saturates_products(), bool)


def test_files_for_any_processor_keep_clear_of_it() -> None:
    assert saturates_for("any")
    assert saturates_for("this") is saturates_products()
    with pytest.raises(PlanError, match="unknown target; got that; expected this, any"):
        saturates_for("that")
