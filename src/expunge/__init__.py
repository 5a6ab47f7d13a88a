"""expunge makes a trained PyTorch classifier forget chosen training examples.

The public names load on first use, so that `expunge --help` answers without importing torch. This file imports nothing:
the command sees to signals before anything else.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # typing's own takes time, in which the command could not be stopped in one line
if TYPE_CHECKING:
    from typing import Any

    from expunge import auditing as auditing
    from expunge import metrics as metrics
    from expunge import progress as progress
    from expunge import theory as theory
    from expunge.auditing import AuditReport, AuditSettings, accuracy, audit, audit_outputs
    from expunge.data import Examples, ImageSet, load_data, without_transforms
    from expunge.errors import (
        ExpungeError,
        ExpungeWarning,
        InputError,
        MissingExtraError,
        NonFiniteError,
        SettingError,
    )
    from expunge.forgetting import Forgotten, forget
    from expunge.inputs import with_columns
    from expunge.methods import (
        LFSSD,
        METHODS,
        SSD,
        Amnesiac,
        AmnesiacUndo,
        Amun,
        AmunRetain,
        BadTeacher,
        BoundaryShrink,
        Calibrated,
        Delete,
        FaLW,
        FineTune,
        GradientMethod,
        HeldBoundary,
        InstanceWise,
        JiT,
        MaskedDistillation,
        Method,
        MUMis,
        Needs,
        NegGrad,
        RandomLabel,
        Recorder,
        Retrain,
        Salsa,
        SalUn,
        Scrub,
        Targeted,
        Task,
        list_methods,
        make_method,
    )
    from expunge.models import (
        Header,
        ModelSpec,
        TwoClasses,
        WithOutput,
        build,
        fingerprint,
        load_model,
        save_checkpoint,
    )
    from expunge.records import Measurement, Trace
    from expunge.trainer import train
    from expunge.unlearning import Unlearned, unlearn

_HOMES = {
    "AuditReport": "auditing",
    "AuditSettings": "auditing",
    "accuracy": "auditing",
    "audit": "auditing",
    "audit_outputs": "auditing",
    "Forgotten": "forgetting",
    "forget": "forgetting",
    "train": "trainer",
    "Examples": "data",
    "ImageSet": "data",
    "load_data": "data",
    "without_transforms": "data",
    "ExpungeError": "errors",
    "ExpungeWarning": "errors",
    "InputError": "errors",
    "MissingExtraError": "errors",
    "NonFiniteError": "errors",
    "SettingError": "errors",
    "LFSSD": "methods",
    "METHODS": "methods",
    "SSD": "methods",
    "Amnesiac": "methods",
    "AmnesiacUndo": "methods",
    "Amun": "methods",
    "AmunRetain": "methods",
    "BadTeacher": "methods",
    "BoundaryShrink": "methods",
    "Calibrated": "methods",
    "Delete": "methods",
    "FaLW": "methods",
    "FineTune": "methods",
    "GradientMethod": "methods",
    "InstanceWise": "methods",
    "JiT": "methods",
    "MUMis": "methods",
    "HeldBoundary": "methods",
    "MaskedDistillation": "methods",
    "Method": "methods",
    "Needs": "methods",
    "NegGrad": "methods",
    "RandomLabel": "methods",
    "Recorder": "methods",
    "Retrain": "methods",
    "SalUn": "methods",
    "Salsa": "methods",
    "Scrub": "methods",
    "Targeted": "methods",
    "Task": "methods",
    "list_methods": "methods",
    "make_method": "methods",
    "Header": "models",
    "ModelSpec": "models",
    "TwoClasses": "models",
    "WithOutput": "models",
    "with_columns": "inputs",
    "build": "models",
    "fingerprint": "models",
    "load_model": "models",
    "save_checkpoint": "models",
    "Measurement": "records",
    "Trace": "records",
    "Unlearned": "unlearning",
    "unlearn": "unlearning",
}

__all__ = [
    "LFSSD",
    "METHODS",
    "SSD",
    "Amnesiac",
    "AmnesiacUndo",
    "Amun",
    "AmunRetain",
    "AuditReport",
    "AuditSettings",
    "BadTeacher",
    "BoundaryShrink",
    "Calibrated",
    "Delete",
    "Examples",
    "ExpungeError",
    "ExpungeWarning",
    "FaLW",
    "FineTune",
    "Forgotten",
    "GradientMethod",
    "Header",
    "HeldBoundary",
    "ImageSet",
    "InputError",
    "InstanceWise",
    "JiT",
    "MUMis",
    "MaskedDistillation",
    "Measurement",
    "Method",
    "MissingExtraError",
    "ModelSpec",
    "Needs",
    "NegGrad",
    "NonFiniteError",
    "RandomLabel",
    "Recorder",
    "Retrain",
    "SalUn",
    "Salsa",
    "Scrub",
    "SettingError",
    "Targeted",
    "Task",
    "Trace",
    "TwoClasses",
    "Unlearned",
    "WithOutput",
    "accuracy",
    "audit",
    "audit_outputs",
    "build",
    "fingerprint",
    "forget",
    "list_methods",
    "load_data",
    "load_model",
    "make_method",
    "save_checkpoint",
    "train",
    "unlearn",
    "with_columns",
    "without_transforms",
]


_PARTS = {"auditing", "metrics", "progress", "theory"}
"""Packages whose functions are called by their full name, such as `expunge.metrics.score_test`."""


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _PARTS:
        return import_module(f"expunge.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'expunge' has no attribute {name!r}")
    return getattr(import_module(f"expunge.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
