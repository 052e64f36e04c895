"""A user's own network: weights, class names and images, checked before anything is compressed."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import streamlit as st

from dashboard import catalogue, common, jobs
from dashboard.jobs import Job
from dashboard.text import _
from qaf_core.data.files import write_file
from qaf_core.data.registry import add_model, add_weights
from qaf_core.errors import DataError, ModelError, QafError
from qaf_core.review.units import duration_text, percent_text

CHECK_JOB = "check-model"
FORM = "add-model"
CHUNK_BYTES = 1 << 20
CHECK_IMAGES = 256
PREVIEW_COLUMNS = 9


class Upload(Protocol):
    """What Streamlit's uploader gives."""

    name: str
    size: int

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, /) -> int: ...


def show() -> None:
    """The form, then the check as it goes and what it found."""
    architectures = catalogue.other_models()
    left, right = st.columns(2, gap="medium")
    with left:
        name = st.text_input(
            _("Name"),
            key=f"{FORM}-name",
            placeholder="my/parts",
            help=_("What the model is called here: letters, digits, '.', '_' and '-', at most one '/'."),
        )
        base = st.selectbox(
            _("Architecture"),
            architectures,
            index=architectures.index("torchvision/resnet18"),
            key=f"{FORM}-base",
            help=_(
                "The network the weights were trained with. A module of your own is code: it is registered "
                "on the command line, with `qaf models --add`."
            ),
        )
        classes = st.text_area(
            _("Class names (optional)"),
            key=f"{FORM}-classes",
            placeholder=_("one a line, in the order of the network's outputs"),
            height=110,
        )
    with right:
        weights = _file_or_path(
            _("Trained weights"),
            "weights",
            ["safetensors", "pth", "pt"],
            _("A safetensors file, or a PyTorch state dict. Files that hold code are refused."),
        )
        data = _file_or_path(
            _("Labelled images"),
            "data",
            ["zip"],
            _("A zip of a folder with one sub-folder for each class. A few hundred images are enough."),
        )
    asked = {"name": name.strip(), "base": base, "classes": classes, "weights": weights, "data": data}
    missing = _missing(asked)
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = st.button(
            _("Check"),
            type="primary",
            icon=":material/fact_check:",
            disabled=bool(missing),
            key="check-model",
        )
        if pressed:
            folder = common.workspace()
            jobs.shared().forget(_job_key())
            jobs.shared().start(_job_key(), lambda job: _check(job, folder, asked))
        st.caption(missing or _("Nothing is compressed yet: the check runs the original on your images."))
    _outcome()


def _file_or_path(label: str, field: str, types: list[str], help_text: str) -> Upload | str:
    """An upload, or a path on the computer the dashboard runs on, whichever is given."""
    upload = st.file_uploader(label, type=types, key=f"{FORM}-{field}-upload", help=help_text)
    path = st.text_input(
        _("or a path on this computer"),
        key=f"{FORM}-{field}-path",
        placeholder=_("/path/to/it"),
        label_visibility="collapsed",
        disabled=upload is not None,
    )
    return upload if upload is not None else path.strip()


def _missing(asked: Mapping[str, Any]) -> str:
    labels = {"name": _("a name"), "weights": _("trained weights"), "data": _("labelled images")}
    lacking = [label for field, label in labels.items() if not asked[field]]
    return _("Still to give: {fields}.").format(fields=", ".join(lacking)) if lacking else ""


def _job_key() -> str:
    """One check at a time for each browser session."""
    return f"{CHECK_JOB}-{st.session_state.setdefault('session-id', id(st.session_state))}"


# --- in the background


def _check(job: Job, folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Store what was uploaded, then let another process run the original on the images."""
    job.progress = "weights"
    weights = asked["weights"]
    if not isinstance(weights, str):
        weights = str(add_weights(folder, weights.name, _chunks(weights)))
    from qaf_core.data.archives import add_archive

    job.progress = "images"
    data = asked["data"]
    if not isinstance(data, str):
        data = str(add_archive(folder, data, Path(data.name).stem))
    job.progress = "check"
    classes = _keep_classes(folder, asked["name"], asked["classes"])
    arguments = ["check", asked["base"], "--weights", weights, "--data", data]
    arguments += ["--images", str(CHECK_IMAGES), "--preview", "--json"]
    arguments += ["--classes", classes] if classes else []
    found = jobs.run_command(arguments, job=job)
    return {
        "found": found, "name": asked["name"], "base": asked["base"], "weights": weights, "data": data,
        "classes": classes,
    }  # fmt: skip


def _chunks(upload: Upload) -> Iterator[bytes]:
    upload.seek(0)
    while chunk := upload.read(CHUNK_BYTES):
        yield chunk


def _keep_classes(folder: Path, name: str, text: str) -> str | None:
    if not text.strip():
        return None
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name) or "model"
    path = folder / "models" / f"{safe}.classes.txt"
    write_file(path, text.strip().encode())
    return str(path)


# --- what came of it


@st.fragment(run_every=1.0)
def _outcome() -> None:
    job = jobs.shared().find(_job_key())
    if job is None:
        return
    if job.state == "running":
        steps = {
            "weights": _("Storing and checking the weights…"),
            "images": _("Unpacking the images…"),
            "check": _("Running the original on the images…"),
        }
        text = steps.get(job.progress, job.progress)
        st.info(f"{text} {duration_text(job.elapsed_seconds)}", icon=":material/hourglass_top:")
        return
    if job.state == "failed":
        st.error(_(job.error), icon=":material/error:")
        return
    _report(job.result)


def _report(result: Mapping[str, Any]) -> None:
    found = result["found"]
    low, high = found["ci95"]
    st.markdown(
        _("**The original is right on {value}** of {n} images (95 % interval {low} to {high}).").format(
            value=percent_text(found["value"]), n=found["n"], low=percent_text(low), high=percent_text(high)
        )
    )
    for finding in found["findings"]:
        text = f"{_(finding['sentence'])} {_(finding['remedy'] or '')}".strip()
        st.warning(text, icon=":material/warning:")
    if not found["findings"]:
        st.success(_("Class order and image preparation look right."), icon=":material/check_circle:")
    _preview(found.get("preview") or [])
    if st.button(_("Add to this workspace"), icon=":material/add:", key="add-checked"):
        _add(result)


def _preview(rows: list[Mapping[str, Any]]) -> None:
    if not rows:
        return
    cells = "".join(
        f'<figure class="{"right" if row["predicted"] == row["label"] else "wrong"}">'
        f'<img src="{html.escape(row["image"])}" alt="{html.escape(row["label"])}">'
        f"<figcaption><b>{html.escape(row['label'])}</b>"
        f"<span>{'✓' if row['predicted'] == row['label'] else '✗'} {html.escape(row['predicted'])}</span>"
        "</figcaption></figure>"
        for row in rows[:PREVIEW_COLUMNS]
    )
    st.html(f'<div class="qaf-preview">{cells}</div>')
    st.caption(_("Each image with its label, and below it what the original network says."))


def _add(result: Mapping[str, Any]) -> None:
    try:
        source = add_model(
            common.workspace(),
            model_id=result["name"], base=result["base"], weights=result["weights"],
            classes=result["classes"], data=result["data"],
        )  # fmt: skip
    except (ModelError, DataError, QafError) as error:
        st.error(_(str(error)), icon=":material/error:")
        return
    jobs.shared().forget(_job_key())
    st.session_state["model-added"] = source.id
    st.rerun()


def image_address(png: bytes) -> str:
    """A PNG as a data address."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
