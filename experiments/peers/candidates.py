"""Which methods of which libraries are measured, where the libraries come from, and what had to be mended in them."""

import ast
import inspect
import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from experiments.peers import adapters
from experiments.peers.job import Job
from expunge.errors import MissingExtraError, one_line

REPOSITORY = "https://github.com/Harry24k/machine-unlearning-pytorch"
PIP = "pip install --target DIR --no-deps {}, and put DIR on PYTHONPATH"
INSTALL = {
    "torchunlearn": f"git clone {REPOSITORY} DIR, and put DIR on PYTHONPATH",
    "erasus": PIP.format("erasus==0.2.0"),
    "unlearn-lib": PIP.format("unlearn-lib==0.1.0 xgboost"),
    "supreme": "pip install --target DIR wandb, and "
    + PIP.format("supreme-unlearning==0.1.5 lightning lightning-utilities pytorch-lightning torchmetrics debugpy"),
}
"""Into a directory of its own, not into the environment: none of them is a dependency of anything here."""
VERSIONS = {"torchunlearn": "405bab1", "erasus": "0.2.0", "unlearn-lib": "0.1.0", "supreme": "0.1.5"}
SUPREME = "supreme.methods.unlearning_methods"


@dataclass(frozen=True)
class Candidate:
    """A method of a library.

    Attributes:
        library: a key of `INSTALL`, or "expunge".
        method: its name there.
        run: the adapter.
        modules: what it imports, which is done before the clock starts.
        data: which examples it reads beside those to forget: "none", "half of the test set" or "retained".
        mend: what is to make it run on a CPU, and in a few words what that is; None: nothing.
        prepare: what is set for it without a look at how it does otherwise.
    """

    library: str
    method: str
    run: Callable[[nn.Module, Job], Any]
    modules: tuple[str, ...]
    data: str = "none"
    mend: tuple[Callable[[], None], str] | None = None
    prepare: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        """As it is in the results."""
        return f"{self.library} {self.method}"


def stay_on_cpu() -> None:
    """`.cuda()` of a tensor leaves it where it is."""

    def stay(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return tensor

    torch.Tensor.cuda = stay  # type: ignore[method-assign, assignment]


def no_workers() -> None:
    """supreme's loaders read in their own process: it starts eight others otherwise."""
    os.environ["SCALENE"] = "1"


CPU = (stay_on_cpu, "`.cuda()` patched")
TORCHUNLEARN = ("torchunlearn", "torchunlearn.unlearn", "torchunlearn.utils.data")
ERASUS = ("erasus", "erasus.strategies", "erasus.unlearners.erasus_unlearner")
OURS = ("expunge", "expunge.forgetting", "expunge.auditing")


def _ours(method: str, run: Callable[..., Any], data: str = "none") -> Candidate:
    return Candidate("expunge", method, run, OURS, data)


def _torchunlearn(method: str, run: Callable[..., Any], data: str = "none") -> Candidate:
    return Candidate("torchunlearn", method, run, TORCHUNLEARN, data)


def _erasus(method: str, run: Callable[..., Any], data: str = "none") -> Candidate:
    return Candidate("erasus", method, run, ERASUS, data)


def _unlearn_lib(method: str, run: Callable[..., Any], data: str = "none") -> Candidate:
    return Candidate("unlearn-lib", method, run, ("unlearn",), data, CPU)


def _supreme(method: str, run: Callable[..., Any], data: str = "none") -> Candidate:
    return Candidate("supreme", method, run, ("lightning.fabric", f"{SUPREME}.{method}"), data, prepare=no_workers)


CANDIDATES = (
    _ours("calibrated", adapters.expunge_calibrated, "half of the test set"),
    _ours("held_boundary", adapters.expunge_held_boundary),
    _ours("targeted (paper)", adapters.expunge_targeted),
    _torchunlearn("NegGrad", adapters.torchunlearn_neg_grad),
    _torchunlearn("RandomLabel", adapters.torchunlearn_random_label),
    _torchunlearn("MUMis", adapters.torchunlearn_mu_mis),
    _torchunlearn("BadTeacher", adapters.torchunlearn_bad_teacher, "retained"),
    _torchunlearn("BoundaryShrink", adapters.torchunlearn_boundary_shrink, "retained"),
    _torchunlearn("SCRUB", adapters.torchunlearn_scrub, "retained"),
    _erasus("knowledge_distillation", adapters.erasus_knowledge_distillation),
    _erasus("gradient_ascent", adapters.erasus_gradient_ascent),
    _erasus("wga", adapters.erasus_wga),
    _erasus("saliency_unlearning", adapters.erasus_saliency),
    _erasus("knowledge_distillation, retain", adapters.erasus_knowledge_distillation_retain, "retained"),
    _erasus("scrub", adapters.erasus_scrub, "retained"),
    _unlearn_lib("GradAscent", adapters.unlearn_lib_grad_ascent),
    _unlearn_lib("SALSA", adapters.unlearn_lib_salsa),
    _unlearn_lib("RandomLabel", adapters.unlearn_lib_random_label, "retained"),
    _unlearn_lib("SCRUB", adapters.unlearn_lib_scrub, "retained"),
    _supreme("neg_grad", adapters.supreme_neg_grad),
    _supreme("jit", adapters.supreme_jit),
    _supreme("bad_teacher", adapters.supreme_bad_teacher, "retained"),
    _supreme("random_labeling", adapters.supreme_random_labeling, "retained"),
)
REFERENCES = ("no unlearning", "retrained")
"""Rows that are no library's."""
NAMES = (*REFERENCES, *(each.name for each in CANDIDATES))
BY_NAME = {each.name: each for each in CANDIDATES}


def check_installed(candidate: Candidate) -> None:
    """Imports what it needs. Raises `MissingExtraError`, which says how to install it."""
    for module in candidate.modules:
        try:
            import_module(module)
        except ImportError as error:
            told = f"{candidate.library} cannot be imported ({one_line(error)})"
            raise MissingExtraError(f"{told}: {INSTALL.get(candidate.library, 'see README.md')}") from error


def user_lines(run: Callable[..., Any]) -> int:
    """Lines of the body of an adapter that are neither blank nor a comment nor its docstring; imports count."""
    source = textwrap.dedent(inspect.getsource(run))
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    lines = source.splitlines()[body[0].lineno - 1 :]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)
