"""Forget sets and datasets: from folders, named datasets, tensors and id lists to images in memory."""

from expunge.data.class_names import as_numbered, names_of
from expunge.data.content import check_disjoint, digests
from expunge.data.examples import Examples, ImageSet, as_examples, draw_ids, materialise, materialise_inputs
from expunge.data.ids import read_ids
from expunge.data.named import NAMED, download
from expunge.data.rows import Columns, RowSet
from expunge.data.specs import load_data, load_examples, load_unlabelled
from expunge.data.split import audit_side, calibration_side
from expunge.data.transforms import without_transforms

__all__ = [
    "NAMED",
    "Columns",
    "Examples",
    "ImageSet",
    "RowSet",
    "as_examples",
    "as_numbered",
    "audit_side",
    "calibration_side",
    "check_disjoint",
    "digests",
    "download",
    "draw_ids",
    "load_data",
    "load_examples",
    "load_unlabelled",
    "materialise",
    "materialise_inputs",
    "names_of",
    "read_ids",
    "without_transforms",
]
