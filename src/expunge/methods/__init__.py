"""The methods, one file each, and the registry that names them."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from expunge.errors import SettingError
from expunge.methods._gradient import GradientMethod
from expunge.methods._task import Method, Needs, Recorder, Task
from expunge.methods.amnesiac import Amnesiac
from expunge.methods.amnesiac_undo import AmnesiacUndo
from expunge.methods.amun import Amun
from expunge.methods.amun_retain import AmunRetain
from expunge.methods.bad_teacher import BadTeacher
from expunge.methods.boundary_shrink import BoundaryShrink
from expunge.methods.calibrated import Calibrated
from expunge.methods.delete import Delete
from expunge.methods.falw import FaLW
from expunge.methods.finetune import FineTune
from expunge.methods.held_boundary import HeldBoundary
from expunge.methods.instance_wise import InstanceWise
from expunge.methods.jit import JiT
from expunge.methods.lfssd import LFSSD
from expunge.methods.masked_distillation import MaskedDistillation
from expunge.methods.mu_mis import MUMis
from expunge.methods.neg_grad import NegGrad
from expunge.methods.random_label import RandomLabel
from expunge.methods.retrain import Retrain
from expunge.methods.salsa import Salsa
from expunge.methods.salun import SalUn
from expunge.methods.scrub import Scrub
from expunge.methods.ssd import SSD
from expunge.methods.targeted import Targeted

METHODS: dict[str, type[Any]] = {
    "targeted": Targeted,
    "calibrated": Calibrated,
    "masked_distillation": MaskedDistillation,
    "held_boundary": HeldBoundary,
    "neg_grad": NegGrad,
    "random_label": RandomLabel,
    "boundary_shrink": BoundaryShrink,
    "delete": Delete,
    "amun": Amun,
    "instance_wise": InstanceWise,
    "jit": JiT,
    "mu_mis": MUMis,
    "salsa": Salsa,
    "bad_teacher": BadTeacher,
    "amnesiac": Amnesiac,
    "amnesiac_undo": AmnesiacUndo,
    "finetune": FineTune,
    "retrain": Retrain,
    "salun": SalUn,
    "scrub": Scrub,
    "ssd": SSD,
    "lfssd": LFSSD,
    "falw": FaLW,
    "amun_retain": AmunRetain,
}
"""Every method by its registry name."""


def list_methods(needs: Needs | None = None) -> list[str]:
    """The names of the methods, in the registry's order.

    Args:
        needs: what there is, such as `Needs.FORGET | Needs.RETAIN`: only methods that need no more. Test and unlabelled
            examples are read where they are given, so a method that reads them does not need them. None: all methods.

    >>> "scrub" in list_methods(Needs.FORGET)
    False
    """
    given = None if needs is None else needs | Needs.IF_GIVEN
    return [name for name, method in METHODS.items() if given is None or method.needs in given]


def make_method(name: str, *, preset: str | None = None, **settings: Any) -> Method:
    """Builds a method from its registry name.

    Args:
        name: a key of `METHODS`.
        preset: a preset of that method to start from: `paper` for every method, and published settings such as
            `chundawat2023`. None starts from the defaults.
        **settings: fields of the method; text is converted to the field's type.

    Raises:
        SettingError: unknown method, preset or setting, or a value of the wrong type or out of range.

    >>> make_method("targeted", lam="3").lam
    3.0
    """
    return method_of(name, settings, preset=preset)


def method_of(name: str, settings: Mapping[str, Any], *, preset: str | None = None) -> Method:
    """`make_method` of settings that a file or a command names: they may be called `name` or `preset`."""
    if name not in METHODS:
        raise SettingError(f"unknown method {name!r}; there are {', '.join(METHODS)}{_hint(name, METHODS)}")
    cls = METHODS[name]
    if preset is not None and preset not in cls.presets:
        raise SettingError(f"{name} has no preset {preset!r}; it has {', '.join(cls.presets)}")
    known = [field.name for field in fields(cls)]
    for key in settings:
        if key not in known:
            listed = ", ".join(known) or "none"
            raise SettingError(f"{name} has no setting {key!r}; it has {listed}{_hint(key, known)}")
    chosen = {**(cls.presets[preset] if preset else {}), **settings}
    method: Method = cls(**chosen)
    return method


def default_method(has_test: bool) -> str:
    """The name of the method that is taken where none is named, with or without test examples.

    docs/research/comparisons.md says why.
    """
    return "calibrated" if has_test else "held_boundary"


def settings_of(method: Method) -> dict[str, Any]:
    """A method's fields as JSON values; `make_method(method.name, **settings_of(method))` gives it back.

    Fields that say where something lies, with `metadata={"setting": False}`, are left out.
    """
    return {f.name: getattr(method, f.name) for f in fields(method) if f.metadata.get("setting", True)}  # type: ignore[arg-type]


def _hint(word: str, known: Mapping[str, Any] | list[str]) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


__all__ = [
    "LFSSD",
    "METHODS",
    "SSD",
    "Amnesiac",
    "AmnesiacUndo",
    "Amun",
    "AmunRetain",
    "BadTeacher",
    "BoundaryShrink",
    "Calibrated",
    "Delete",
    "FaLW",
    "FineTune",
    "GradientMethod",
    "HeldBoundary",
    "InstanceWise",
    "JiT",
    "MUMis",
    "MaskedDistillation",
    "Method",
    "Needs",
    "NegGrad",
    "RandomLabel",
    "Recorder",
    "Retrain",
    "SalUn",
    "Salsa",
    "Scrub",
    "Targeted",
    "Task",
    "list_methods",
    "make_method",
    "method_of",
    "settings_of",
]
