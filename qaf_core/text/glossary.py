"""The terms of the field that screens use, each told in a plain sentence or two, here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qaf_core.text.said import Translate, untranslated


@dataclass(frozen=True)
class Term:
    """A term of the field.

    Attributes:
        group: The key of ``GROUPS`` it belongs to.
        title: The term as labels write it.
        meaning: What it means, for someone who has not met it.
    """

    group: str
    title: str
    meaning: str


GROUPS: Mapping[str, str] = {
    "compression": "What compression does",
    "solver": "How a layer is solved",
    "cost": "What a network costs",
    "quality": "How right it is, and how sure that is",
    "choice": "Choosing a plan",
    "decision": "Deciding",
}

GLOSSARY: Mapping[str, Term] = {
    # --- what compression does
    "layer": Term(
        "compression",
        "Layer",
        "One step of a network: it multiplies what comes in by a table of trained numbers, its weights.",
    ),
    "parameters": Term(
        "compression", "Parameters", "The trained numbers of a network: weights, biases and scales."
    ),
    "factorization": Term(
        "compression",
        "Factorization",
        "A layer's table of weights is replaced by a few small tables whose product comes close to it: fewer "
        "numbers to store and to multiply.",
    ),
    "quantization": Term(
        "compression",
        "Quantization",
        "Numbers are stored as whole multiples of a step, in a few bits, in place of 32-bit numbers.",
    ),
    "joint": Term(
        "compression",
        "Joint",
        "Our method: factorize and quantize as one problem, so that the small tables are found as whole "
        "numbers at once; then each layer is fitted to the original's outputs.",
    ),
    "paper": Term(
        "compression",
        "Paper",
        "The published joint method (arXiv 2308.04595) as it was described, to compare with.",
    ),
    "sequential": Term(
        "compression",
        "Sequential",
        "The usual way: factorize in floating point first, round to whole numbers afterwards.",
    ),
    "dense": Term(
        "compression",
        "Dense",
        "No factorization: only careful rounding of the original weights. A strong rival above three bits.",
    ),
    "structure": Term(
        "compression",
        "Structure",
        "The form that replaces a layer: how many small layers, of which shapes, one after another.",
    ),
    "cp": Term(
        "compression",
        "CP",
        "Canonical polyadic form: three thin layers, the smallest file. Its middle layer works on each "
        "component alone.",
    ),
    "tucker2": Term(
        "compression",
        "Tucker-2",
        "Three layers: fewer channels, a small full convolution among them, and back. Often faster than CP.",
    ),
    "svd": Term(
        "compression",
        "SVD",
        "Singular value decomposition: two layers, the fewest steps, so often the fastest.",
    ),
    "spatial": Term(
        "compression",
        "Spatial SVD",
        "A square filter becomes an upright and a level one, two layers that are both small.",
    ),
    "keep": Term("compression", "Keep", "The layer stays as it is, in floating point."),
    "rank": Term(
        "compression",
        "Rank",
        "The number of components a layer is rebuilt from: more is more accurate, and larger. Tucker-2 takes "
        "two, such as 12 × 24.",
    ),
    "bits": Term(
        "compression",
        "Bit-width",
        "How many bits a stored number takes: 4 bits are 16 steps, 8 bits 256, a usual number has 32 bits.",
    ),
    "activation_bits": Term(
        "compression",
        "Activation bits",
        "Bits of the numbers that flow between layers: 8, or 32 for floating point.",
    ),
    "factor": Term(
        "compression", "Factor", "One of the small tables of weights that a layer is replaced by."
    ),
    "scale": Term(
        "compression", "Scale", "The step of a grid: a stored whole number times its scale is the weight."
    ),
    "grid": Term(
        "compression", "Integer grid", "The values that can be stored: whole numbers times a scale."
    ),
    "code": Term("compression", "Code", "The whole number that is stored for a weight."),
    # --- how a layer is solved
    "admm": Term(
        "solver",
        "ADMM",
        "Alternating direction method of multipliers, the solver: it draws free weights and whole ones "
        "together, step by step, until they meet.",
    ),
    "iteration": Term(
        "solver", "Iteration", "One step of the solver, in which all factors are bettered once."
    ),
    "residual": Term(
        "solver",
        "Residuals",
        "Two signs that the solver settles down: how far its floating-point factors are from the integer "
        "grid, and how much they still change from step to step. Both should fall.",
    ),
    "layer_error": Term(
        "solver",
        "Reconstruction error",
        "How far the compressed weights of a layer are from the original ones: the norm of the difference "
        "divided by the norm of the original. 0 % is exact. Much of it can be made up for by fitting the "
        "layer's output, so look at what is measured in the end.",
    ),
    "float_error": Term(
        "solver",
        "Error without the grid",
        "The error the same factors would have in floating point, without the integer grid.",
    ),
    "output_error": Term(
        "solver",
        "Output error",
        "How far what a layer puts out is from the original's, as a share of how much that varies. It says "
        "more about answers than the error of weights does.",
    ),
    "solver_end": Term(
        "solver",
        "Why the solver ended",
        "Converged: more steps would change nothing. Limit reached: the planned steps are used up and the "
        "best result is kept, which is usual and no fault.",
    ),
    "output_fit": Term(
        "solver",
        "Output fit",
        "After solving, a layer's last factor is set anew so that its outputs come close to the original's "
        "on calibration images.",
    ),
    "calibration": Term(
        "solver",
        "Calibration",
        "Images without labels pass both networks, to find the ranges of numbers between layers and to fit "
        "the compressed layers to the original ones.",
    ),
    "effort": Term(
        "solver",
        "Effort",
        "How much computing is spent: more starts and more steps lower the error, with less and less gained.",
    ),
    "finetuning": Term(
        "solver",
        "Fine-tuning",
        "The compressed network learns on from the original's answers, and from labels where there are any; "
        "its size stays.",
    ),
    "seed": Term(
        "solver", "Seed", "The start of all chance in a run: the same seed gives the same codes again."
    ),
    # --- what a network costs
    "packed_file": Term(
        "cost",
        "Packed file",
        "The smallest file of a network: codes at their own bit-width, scales, biases and everything else it "
        "needs. It is what accuracy is measured from.",
    ),
    "deployed_file": Term(
        "cost",
        "Deployed file",
        "The ONNX file with 8-bit integers that a device runs as it is; larger than the packed file.",
    ),
    "macs": Term("cost", "MACs", "Multiply-accumulate operations per image, whatever their bits."),
    "bops": Term(
        "cost",
        "BOPs",
        "Bit-operations: multiplications per image, each counted as weight bits × activation bits. A measure "
        "of arithmetic effort, not of time.",
    ),
    "latency": Term(
        "cost",
        "Latency",
        "The time of one answer, measured on the machine that is named; the median of many.",
    ),
    "time_ratio": Term(
        "cost",
        "Time against the original in 8 bits",
        "Above 1 the compressed network is slower than the plainly rounded one. Fewer operations are not "
        "always less time.",
    ),
    "energy": Term(
        "cost",
        "Energy",
        "Of one image. Modelled from operations and memory traffic unless it is said to be measured.",
    ),
    "memory": Term(
        "cost", "Peak memory", "The most memory that one inference takes, the network's file included."
    ),
    "working_memory": Term(
        "cost",
        "Working memory",
        "The most that any one layer reads and writes for one image. Factorized layers can be wide inside, "
        "so this can rise.",
    ),
    # --- how right it is
    "accuracy": Term("quality", "Accuracy", "Top-1: how often the first answer is right."),
    "miou": Term(
        "quality",
        "Mean IoU",
        "Mean intersection over union: the pixels found and true, divided by the pixels found or true, "
        "averaged over the classes.",
    ),
    "map50": Term(
        "quality",
        "mAP at 0.5",
        "Mean average precision: how completely and how surely the boxes of each class are found; "
        "a box counts as found if it covers the true one by half (IoU 0.5).",
    ),
    "points": Term(
        "quality",
        "Percentage points",
        "Percentage points: from 95.0 % to 94.0 % are −1.0 points. Minus is worse than the original.",
    ),
    "agreement": Term(
        "quality",
        "Agreement",
        "The share of images on which the compressed network answers as the original does, right or wrong.",
    ),
    "paired": Term(
        "quality",
        "Paired difference",
        "Both networks are compared image by image on the same images: so a real difference shows that two "
        "overlapping intervals of accuracy would hide.",
    ),
    "interval": Term(
        "quality",
        "95 % interval",
        "Confidence interval: made in this way from other images, 95 of 100 such ranges would hold the true "
        "value. More images make it narrower.",
    ),
    "divergence": Term(
        "quality",
        "Divergence",
        "How differently two networks weigh their answers (Kullback-Leibler), even where the first answer is "
        "the same.",
    ),
    "held_back": Term(
        "quality",
        "Images held back",
        "Images that nothing is fitted to, kept to judge by.",
    ),
    "confidence": Term(
        "quality",
        "Confidence",
        "The probability a network gives its own answer; it need not be right as often as that.",
    ),
    "ece": Term(
        "quality",
        "Expected calibration error",
        "How far confidence is from being right as often as it says, averaged over answers (ECE).",
    ),
    "robustness": Term(
        "quality",
        "Robustness",
        "How right both networks stay on noisy, blurred, darker, compressed or shifted images.",
    ),
    # --- choosing a plan
    "plan": Term("choice", "Plan", "The structure, rank and bits of every layer."),
    "reduction": Term(
        "choice",
        "Parameter reduction",
        "How many times fewer parameters each covered layer gets. It decides the rank: the number of "
        "components a layer is made of. The first convolution and the classifier are not factorized.",
    ),
    "sensitivity": Term(
        "choice",
        "Sensitivity",
        "How strongly a network's answers react to a change of one layer.",
    ),
    "harm": Term(
        "choice",
        "Expected harm",
        "How much a setting of a layer is expected to change the network's answers, told before any run.",
    ),
    "expected": Term(
        "choice",
        "Expected accuracy",
        "What a run of this plan is expected to measure, with a 95 % interval. It is learnt from the "
        "network's own gradients on calibration images and corrected by every run made of it.",
    ),
    "budget": Term(
        "choice", "Budget", "A limit that a plan must keep: size, operations, time or accuracy lost."
    ),
    "front": Term(
        "choice",
        "Pareto front",
        "The best trade-offs: runs that no other beats on both axes at once.",
    ),
    "knee": Term(
        "choice",
        "Knee",
        "The point of a front after which more size buys little accuracy, and before which less size costs "
        "much.",
    ),
    "target": Term("choice", "Target", "What a run must keep to, such as ≥ 94 %, ≤ 80 kB, ≤ 5 ms."),
    "baseline": Term("choice", "Original", "The network before compression; its weights count 4 bytes each."),
    # --- deciding
    "criterion": Term(
        "decision",
        "Criterion",
        "What a network must hold to be used. It is passed when its whole interval keeps the limit, failed "
        "when the whole interval breaks it, else not shown.",
    ),
    "missed": Term("decision", "Missed defect", "A defective part that the network answers is in order."),
    "false_alarm": Term("decision", "False alarm", "A part in order that the network answers is defective."),
    "confusion": Term(
        "decision", "Confusion", "Which class is taken for which: true classes against answers."
    ),
    "soak": Term("decision", "Soak", "Minutes of steady work, to see whether memory or latency drift."),
    "payback": Term("decision", "Payback", "The months after which savings have paid for the work."),
}


def meaning(term: str, _: Translate = untranslated) -> str:
    """What a term means, in the language of ``_``.

    Args:
        term: A key of ``GLOSSARY``.
        _: Translation of texts.
    """
    return _(GLOSSARY[term].meaning)


def meanings_by_title(_: Translate) -> dict[str, str]:
    """What each term means, by its title in the language of ``_``: for headings of finished tables."""
    return {_(term.title): _(term.meaning) for term in GLOSSARY.values()}
