"""Energy of one inference, modelled from operation and memory counts; never measured. Free of torch.

(What a machine really uses, where it can tell, is measured by ``qaf_core.deploy.runtime.rapl``.)

Published figures, for a 45 nm process at 0.9 V:

| what | energy | source |
| --- | --- | --- |
| 8-bit integer multiplication | 0.2 pJ | Horowitz 2014 |
| 32-bit integer multiplication | 3.1 pJ | Horowitz 2014 |
| 32-bit integer addition | 0.1 pJ | Horowitz 2014 |
| fp32 multiplication, addition | 3.7 pJ, 0.9 pJ | Horowitz 2014 |
| a 32-bit word from a small SRAM | 5 pJ | Horowitz 2014 (8 kB, 64 bits: 10 pJ); Han et al. 2015, table 1 |
| a 32-bit word from DRAM | 640 pJ | Horowitz 2014 (64 bits: 1.3 to 2.6 nJ); Han et al. 2015, table 1 |

M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014; S. Han, J. Pool, J. Tran,
W. Dally, "Learning both weights and connections for efficient neural networks", NeurIPS 2015 (arXiv
1506.02626).

By bit-width: a product of a ``b``-bit weight and an ``a``-bit activation costs 0.2 pJ · a·b / 64, in
proportion to the cells of an array multiplier (Horowitz's own two figures agree: 32 × 32 bits are 16 times
8 × 8, and 3.1 pJ is 15.5 times 0.2 pJ), and is added into 32 bits. Memory costs in proportion to the bytes
moved: a 4-bit weight an eighth of the 640 pJ of a 32-bit word. Where weight or activation is floating point,
so is the arithmetic.

What the model assumes: every weight is read from DRAM once per image; activations stay on the chip and pass
through SRAM where a link reads its input and where it writes its output. Caches, control and idle power are
left out: only comparisons under this same model mean anything.
"""

from __future__ import annotations

from qaf_core.quantization.grid import FLOAT

PICOJOULE = 1e-12
INT8_MULTIPLY_PJ = 0.2
INT32_ADD_PJ = 0.1
FLOAT32_MULTIPLY_PJ = 3.7
FLOAT32_ADD_PJ = 0.9
SRAM_WORD_PJ = 5.0
DRAM_WORD_PJ = 640.0
WORD_BYTES = 4

MODELLED = "modelled from operation and memory counts (45 nm figures, Horowitz 2014), not measured"


def mac_joules(weight_bits: int, activation_bits: int) -> float:
    """Energy of one multiply-accumulate at these bit-widths (32: floating point), in joules."""
    if FLOAT.bits in (weight_bits, activation_bits):
        return (FLOAT32_MULTIPLY_PJ + FLOAT32_ADD_PJ) * PICOJOULE
    return (INT8_MULTIPLY_PJ * weight_bits * activation_bits / 64 + INT32_ADD_PJ) * PICOJOULE


def weight_traffic_joules(weight_bytes: float) -> float:
    """Energy of reading weights once from DRAM, in joules."""
    return weight_bytes / WORD_BYTES * DRAM_WORD_PJ * PICOJOULE


def activation_traffic_joules(activation_bytes: float) -> float:
    """Energy of moving activations once through on-chip SRAM, in joules."""
    return activation_bytes / WORD_BYTES * SRAM_WORD_PJ * PICOJOULE
