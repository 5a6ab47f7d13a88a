"""One library's method on one draw, measured in a process of its own.

    python -m experiments.peers.measuring NAME SEED

prints one line of JSON. Before the clock starts, everything is imported and a copy of the network has made a step, so
that what is measured is the library's call alone.
"""

import contextlib
import copy
import json
import os
import random
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import expunge
from experiments.peers.candidates import BY_NAME, REFERENCES, VERSIONS, Candidate, check_installed, user_lines
from experiments.peers.job import ORIGINAL, WORK, Job, job, reference, trained, training_record
from expunge.auditing import AuditSettings
from expunge.auditing.difficulty import difficulty_of, fresh_copy
from expunge.data import Examples
from expunge.errors import InputError, MissingExtraError, one_line
from expunge.metrics.difficulty import Difficulty

ACCURACIES = ("forget_accuracy", "retain_accuracy", "test_accuracy")


def measured(name: str, seed: int) -> dict[str, Any]:
    """What is known of one run; where it cannot be made, `failed` or `missing` says why."""
    warnings.simplefilter("ignore")
    this, before, retrained = job(seed), trained(ORIGINAL), trained(reference(seed))
    if name in REFERENCES:
        after = before if name == REFERENCES[0] else retrained
        took = {} if after is before else {"cpu_seconds": training_record(reference(seed))["cpu_seconds"]}
        return {**took, **judged(before, after, retrained, this)}
    candidate = BY_NAME[name]
    known: dict[str, Any] = {
        "data": candidate.data,
        "lines": user_lines(candidate.run),
        "version": VERSIONS.get(candidate.library, expunge.__version__),
    }
    if candidate.prepare:
        candidate.prepare()
    try:
        with quiet():
            check_installed(candidate)
    except MissingExtraError as error:
        return {"missing": str(error)}
    if candidate.mend:
        with quiet():
            known["as_installed"] = as_installed(candidate, before, this)
        known["mended"] = candidate.mend[1]
        candidate.mend[0]()
    try:
        with quiet():
            after, took = timed(candidate, before, this)
    except Exception as error:  # their code may raise anything
        return {**known, "failed": one_line(error)}
    return {**known, **took, **judged(before, _as_network(after), retrained, this)}


def as_installed(candidate: Candidate, model: nn.Module, this: Job) -> str:
    """How it ends without what is mended."""
    try:
        candidate.run(copy.deepcopy(model), this)
    except Exception as error:  # their code may raise anything
        return one_line(error)
    return "runs"


def timed(candidate: Candidate, model: nn.Module, this: Job) -> tuple[Any, dict[str, float]]:
    """What the adapter returns for a copy of the network, and what that took. Raises whatever the library does."""
    _warm_up(model, this.forget)
    given = copy.deepcopy(model)
    random.seed(this.seed)
    np.random.seed(this.seed)
    torch.manual_seed(this.seed)
    start_bytes = _restarted_peak()
    started, on_cpu = time.perf_counter(), _cpu_seconds()
    after = candidate.run(given, this)
    return after, {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": _cpu_seconds() - on_cpu,
        "peak_bytes": _peak_bytes() - start_bytes,
    }


def judged(before: nn.Module, after: nn.Module, retrained: nn.Module, this: Job) -> dict[str, Any]:
    """Accuracies, how far they and the outputs are from the retrained network's, and the audit's verdict."""
    own, theirs = (accuracies(model, this) for model in (after, retrained))
    distance = sum(abs(own[key] - theirs[key]) for key in ACCURACIES) / len(ACCURACIES)
    found = {**own, "distance": distance, "divergence": divergence(after, retrained, this.forget.tensors[0])}
    try:
        report = expunge.audit(before, after, this.forget, this.unseen, references=difficulty(before, this))
    except expunge.ExpungeError as error:
        return {**found, "verdict": "–", "not_audited": one_line(error)}
    return {**found, "verdict": report.verdict, "num_unseen": report.num_test}


def difficulty(before: nn.Module, this: Job) -> Difficulty:
    """What the default audit's reference models say: once a draw, since they know nothing of the network after."""
    path = WORK / f"difficulty-{this.seed}.json"
    if path.exists():
        told = json.loads(path.read_text())
        return Difficulty(**{**told, "forget": np.array(told["forget"]), "test": np.array(told["test"])})
    forget, test = (Examples(*part.tensors) for part in (this.forget, this.unseen))
    made = difficulty_of(forget, test, factory=partial(fresh_copy, before), recipe=AuditSettings().recipe)
    told = {**asdict(made), "forget": made.forget.tolist(), "test": made.test.tolist()}
    path.write_text(json.dumps(told))
    return made


def accuracies(model: nn.Module, this: Job) -> dict[str, float]:
    """In [0, 1], on the images to forget, the retained ones and the unseen half of the test set."""
    sets = zip(ACCURACIES, (this.forget, this.retain, this.unseen), strict=True)
    return {name: _accuracy(model, examples) for name, examples in sets}


def _accuracy(model: nn.Module, examples: TensorDataset) -> float:
    inputs, labels = examples.tensors
    return float((_logits(model, inputs).argmax(1) == labels).double().mean())


def divergence(after: nn.Module, retrained: nn.Module, inputs: Tensor) -> float:
    """The mean Jensen-Shannon divergence of two networks' outputs, nats: 0 where they are the same, ln 2 at most."""
    p, q = (_logits(model, inputs).double().softmax(1) for model in (after, retrained))
    middle = ((p + q) / 2).clamp(min=1e-300).log()
    parts = [(each * (each.clamp(min=1e-300).log() - middle)).sum(1) for each in (p, q)]
    return float(((parts[0] + parts[1]) / 2).mean())


@torch.no_grad()
def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    model.eval()
    return torch.cat([model(part) for part in inputs.split(1000)])


def _as_network(after: Any) -> nn.Module:
    """The network, with all of its parameters as they were: some libraries freeze them."""
    network: nn.Module = after
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network.eval()


def _warm_up(model: nn.Module, examples: TensorDataset) -> None:
    """What torch loads and sets aside on first use."""
    inputs, labels = (part[:128] for part in examples.tensors)
    for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
        own = copy.deepcopy(model).train()
        steps: Any = kind(own.parameters(), lr=1e-5)
        nn.functional.cross_entropy(own(inputs), labels).backward()
        steps.step()


def _cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _restarted_peak() -> int:
    """The peak from here on, where Linux lets it begin anew, else the peak so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries print."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def apart(module: str, *arguments: str, limit: float = 900) -> dict[str, Any]:
    """The last line that a module prints in a process of its own; `failed` where that ends badly.

    Raises `InputError` where a signal ends it, which is no result.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"no end within {limit:.0f} seconds"}
    if done.returncode < 0:
        raise InputError(f"{' '.join(arguments)} was ended by signal {-done.returncode}: start again to go on")
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(measure: Callable[[str, int], dict[str, Any]] = measured) -> None:
    """Prints one line."""
    torch.set_num_threads(1)
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))


if __name__ == "__main__":
    main()
