"""Networks: building them from a description, and checkpoints that carry that description."""

from expunge.models.building import ARCHITECTURES, Classifier, ModelSpec, build, own_factory
from expunge.models.checkpoint import (
    Header,
    calibration_seeds,
    load_weights,
    mark_calibrated,
    mark_undone,
    read_header,
    save_checkpoint,
    says_calibration,
    undone_steps,
)
from expunge.models.copies import copied, own_copy
from expunge.models.inference import (
    as_float,
    built_by,
    check_same_network,
    computes_in_bf16,
    device_and_dtype,
    device_name,
    enough_memory,
    forward,
    last_layer,
    logits_of,
    mask_names,
    not_finite,
    refusing,
)
from expunge.models.loading import class_names_of, load_model
from expunge.models.preprocessing import own_fit
from expunge.models.saving import save_model
from expunge.models.two_classes import TwoClasses, check_one_label

__all__ = [
    "ARCHITECTURES",
    "Classifier",
    "Header",
    "ModelSpec",
    "TwoClasses",
    "as_float",
    "build",
    "built_by",
    "calibration_seeds",
    "check_one_label",
    "check_same_network",
    "class_names_of",
    "computes_in_bf16",
    "copied",
    "device_and_dtype",
    "device_name",
    "enough_memory",
    "forward",
    "last_layer",
    "load_model",
    "load_weights",
    "logits_of",
    "mark_calibrated",
    "mark_undone",
    "mask_names",
    "not_finite",
    "own_copy",
    "own_factory",
    "own_fit",
    "read_header",
    "refusing",
    "save_checkpoint",
    "save_model",
    "says_calibration",
    "undone_steps",
]
