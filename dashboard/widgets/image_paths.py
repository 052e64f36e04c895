"""Where a user's images lie: the fields for it, and what is wrong with what is given."""

from __future__ import annotations

import streamlit as st

from dashboard.state import address
from dashboard.text import _
from dashboard.widgets import ui
from qaf_core.data.formats.sources import ACCEPTED, missing_path
from qaf_core.errors import DataError

DATA_KEY, CALIBRATION_KEY = "data-path", "calibration-path"


def ask(task: str) -> tuple[str, str | None]:
    """The paths of images to measure on and, if given, of those to fit with.

    Args:
        task: What the network does: it decides what the data must hold.
    """
    left, right = st.columns(2)
    data = left.text_input(
        _("Labelled images to measure on"),
        key=address.text("data", key=DATA_KEY),
        placeholder=_("/path/to/images or images.npz"),
        help=_data_help(task),
    )
    calibration = right.text_input(
        _("Images to fit with (optional)"),
        key=address.text("calibration", key=CALIBRATION_KEY),
        placeholder=_("a part of the others"),
        help=_(
            "A few hundred images like those the network sees in use; labels are not used. Left "
            "empty, a part of the "
            "images on the left is set aside for it."
        ),
    )
    return data.strip(), calibration.strip() or None


def _data_help(task: str) -> str:
    if task == "segmentation":
        return _(
            "A path on the computer the dashboard runs on: a folder (or a .zip of one) with images and masks "
            "(grey PNG files of the same names, the class number of each pixel), or an .npz file with "
            "x (N,H,W,3) uint8 and y (N,H,W)."
        )
    if task == "detection":
        return _(
            "A path on the computer the dashboard runs on: a folder (or a .zip of one) with images and an "
            "annotations.json in COCO's form, or an .npz file with x (N,H,W,3) uint8, boxes (D,4), "
            "labels (D,) and counts (N,)."
        )
    return _("Without copying, from the computer the dashboard runs on: {accepted}.").format(
        accepted=ui.plain(_(ACCEPTED))
    )


def problem(data: str, calibration: str | None) -> str | None:
    """What is wrong with these paths, in words, or None."""
    if data != "builtin" and not data:
        return _("Give the path of labelled images: accuracy is measured on them.")
    for place in (data, calibration):
        try:
            path = missing_path(place) if place else None
        except DataError as error:
            return error.text(_)
        if path is not None:
            return _("There is no file or folder {path}.").format(path=path)
    return None
