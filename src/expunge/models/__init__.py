"""Networks: building them from a description, and checkpoints that carry that description."""

from expunge.models.adapter import (
    Adapted,
    Form,
    Leaf,
    TwoClasses,
    WithOutput,
    check_one_label,
    parameters_of,
    unwrapped,
)
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
from expunge.models.fingerprint import fingerprint
from expunge.models.heads import check_heads
from expunge.models.inference import (
    as_float,
    built_by,
    check_no_sigmoid,
    check_same_network,
    computes_in_bf16,
    device_and_dtype,
    device_name,
    enough_memory,
    forward,
    in_precision,
    last_layer,
    logits_of,
    mask_names,
    not_finite,
    refusing,
    split_logits_of,
)
from expunge.models.loading import class_names_of, load_model
from expunge.models.preprocessing import own_fit
from expunge.models.recomputing import recomputing
from expunge.models.saving import save_model

__all__ = [
    "ARCHITECTURES",
    "Adapted",
    "Classifier",
    "Form",
    "Header",
    "Leaf",
    "ModelSpec",
    "TwoClasses",
    "WithOutput",
    "as_float",
    "build",
    "built_by",
    "calibration_seeds",
    "check_heads",
    "check_no_sigmoid",
    "check_one_label",
    "check_same_network",
    "class_names_of",
    "computes_in_bf16",
    "copied",
    "device_and_dtype",
    "device_name",
    "enough_memory",
    "fingerprint",
    "forward",
    "in_precision",
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
    "parameters_of",
    "read_header",
    "recomputing",
    "refusing",
    "save_checkpoint",
    "save_model",
    "says_calibration",
    "split_logits_of",
    "undone_steps",
    "unwrapped",
]
