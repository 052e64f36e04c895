"""Plain words: what the field's own words on screens mean, for those who do not read loss curves.

They are English for English: a catalogue translates what stands here, so that one table serves all languages.
"""

from __future__ import annotations

from collections.abc import Mapping

from qaf_core.text.glossary import GLOSSARY

#: What is said in place of a text of the screens; both take the same values.
PLAIN_WORDS: Mapping[str, str] = {
    # how the solve of a layer ended
    "Converged": "Done",
    "Best kept": "Done, best kept",
    "Limit reached": "Best in given steps",
    "Time limit": "Best in given time",
    "Diverged, best kept": "Trouble on the way, best version kept",
    "Weights not finite": "Not solved: its numbers are broken",
    "Solver": "How it ended",
    # how far a layer is from the original
    "Mean layer error": "Mean change of the numbers",
    "Error of each layer": "How far each layer's numbers moved",
    "Errors of the finished layers": "How far the finished layers' numbers moved",
    "Layer error (%)": "Change of the numbers (%)",
    "Layer error (% of the norm of the weights)": "Change of a layer's numbers (%)",
    "Layer error by iteration": "Change of the numbers by step",
    "Quantized (on the grid)": "As stored",
    "Float (without the grid)": "Before rounding",
    "Quantized": "As stored",
    "Float": "Before rounding",
    "error {error}": "numbers moved by {error}",
    "error of its output {error}": "its output moved by {error}",
    GLOSSARY["layer_error"].meaning: (
        "How far a layer's stored numbers are from the original ones. This is no share of wrong answers: "
        "layers are fitted afterwards, so that what they put out comes close again. What counts is measured "
        "on images."
    ),
    "How well each layer's weights were kept, and how its factors use their integer grids.": (
        "How far each layer's numbers moved, and which whole numbers its small layers use."
    ),
    "How the solver got there": "How the numbers were found",
    # the solver at work
    "Residuals": "Is the solver settling?",
    "Residual (log scale)": "Distance (log scale)",
    "Residuals by iteration": "Distance by step",
    "Distance from the grid": "Still to be rounded",
    "Iteration": "Step",
    "Solve the layers": "Find the small layers",
    "Calibrate": "Fit to images",
    "Calibrating": "Fitting to images",
    "Layer being solved": "Layer at work",
    # plans
    "Structure": "Form",
    "Rank": "Components",
    "rank {rank}": "{rank} components",
    "Weight bits": "Bits of a stored number",
    "Activation bits": "Bits of a passing number",
    "Parameter reduction": "Fewer numbers, times",
    "Reduction": "Fewer numbers",
    "Joint": "Joint (ours)",
    "Paper": "Paper (published)",
    "Sequential": "Sequential (usual way)",
    "Dense": "Dense (rounding only)",
    "Keep": "Left as it is",
    # cost and quality
    "Bit-operations": "Arithmetic effort",
    "Bit-operations per image": "Arithmetic per image",
    "BOPs": "Arithmetic",
    "BOPs left": "Arithmetic left",
    "Of original BOPs": "Arithmetic left",
    "Latency": "Time of one answer",
    "Latency here (median)": "Time of one answer here",
    "Deployed": "File on the device",
    "Mean IoU": "Pixels matched (mean IoU)",
    "mAP at 0.5": "Boxes found (mAP at 0.5)",
    "95 % interval": "Likely range",
    "★ knee": "★ best value",
    "Share of the divergence": "Share of the change in answers",
    "Largest share of the divergence": "Largest share of the change in answers",
}
