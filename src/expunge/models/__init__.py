"""Networks: building them from a description, and checkpoints that carry that description."""

from expunge.models.building import ARCHITECTURES, Classifier, build, own_factory
from expunge.models.checkpoint import Header, load_weights, read_header, save_checkpoint
from expunge.models.finite import mask_names, not_finite
from expunge.models.inference import (
    as_float,
    built_by,
    check_same_network,
    computes_in_bf16,
    device_and_dtype,
    device_name,
    enough_memory,
    forward,
    in_memory,
    last_layer,
    logits_of,
    refusing,
)
from expunge.models.loading import load_model
from expunge.models.marks import calibration_seeds, mark_calibrated, mark_undone, says_calibration, undone_steps
from expunge.models.spec import ModelSpec

__all__ = [
    "ARCHITECTURES",
    "Classifier",
    "Header",
    "ModelSpec",
    "as_float",
    "build",
    "built_by",
    "calibration_seeds",
    "check_same_network",
    "computes_in_bf16",
    "device_and_dtype",
    "device_name",
    "enough_memory",
    "forward",
    "in_memory",
    "last_layer",
    "load_model",
    "load_weights",
    "logits_of",
    "mark_calibrated",
    "mark_undone",
    "mask_names",
    "not_finite",
    "own_factory",
    "read_header",
    "refusing",
    "save_checkpoint",
    "says_calibration",
    "undone_steps",
]
