"""Energy of one inference, modelled from operation and memory counts; never measured. Free of torch.

Figures per operation: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014,
45 nm, 0.9 V: 8-bit integer multiplication 0.2 pJ, 32-bit integer addition 0.1 pJ, fp32 multiplication 3.7 pJ
and addition 0.9 pJ, a 32-bit word from a small SRAM 5 pJ and from DRAM 640 pJ.

What the model assumes: every weight is read from DRAM once per image; activations stay on the chip and pass
through SRAM where a link reads its input and where it writes its output; an integer product costs in
proportion to the product of its bit-widths and is added into 32 bits; where weight or activation is floating
point, so is the arithmetic. Caches, control and idle power are left out: only comparisons under this same
model mean anything.
"""

from __future__ import annotations

PICOJOULE = 1e-12
INT8_MULTIPLY_PJ = 0.2
INT32_ADD_PJ = 0.1
FLOAT32_MULTIPLY_PJ = 3.7
FLOAT32_ADD_PJ = 0.9
SRAM_WORD_PJ = 5.0
DRAM_WORD_PJ = 640.0
WORD_BYTES = 4
BITS_FLOAT = 32

MODELLED = "modelled from operation and memory counts (45 nm figures, Horowitz 2014), not measured"


def mac_joules(weight_bits: int, activation_bits: int) -> float:
    """Energy of one multiply-accumulate at these bit-widths (32: floating point), in joules."""
    if weight_bits >= BITS_FLOAT or activation_bits >= BITS_FLOAT:
        return (FLOAT32_MULTIPLY_PJ + FLOAT32_ADD_PJ) * PICOJOULE
    return (INT8_MULTIPLY_PJ * weight_bits * activation_bits / 64 + INT32_ADD_PJ) * PICOJOULE


def weight_traffic_joules(weight_bytes: float) -> float:
    """Energy of reading weights once from DRAM, in joules."""
    return weight_bytes / WORD_BYTES * DRAM_WORD_PJ * PICOJOULE


def activation_traffic_joules(activation_bytes: float) -> float:
    """Energy of moving activations once through on-chip SRAM, in joules."""
    return activation_bytes / WORD_BYTES * SRAM_WORD_PJ * PICOJOULE
