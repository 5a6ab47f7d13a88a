"""Reference models for the full audit: trained in parallel processes, one small file each, resumable at any moment."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.auditing._reference_files import (
    AUDITED,
    FORMAT,
    SETS,
    check_row,
    check_shapes,
    digest_of,
    file_of,
    read,
    read_labels,
    read_manifest,
    read_tag,
    tag_of,
    update_manifest,
)
from expunge.auditing.forward import outputs_of
from expunge.auditing.relearning import TOLERANCE, network_steps
from expunge.data import ImageSet, audit_side, check_disjoint
from expunge.errors import ExpungeError, InputError, NonFiniteError, SettingError
from expunge.files import scratch_directory, written_whole
from expunge.methods import METHODS, Method, Needs, settings_of
from expunge.metrics.scores import cross_entropy
from expunge.models import ModelSpec, build
from expunge.progress import advance
from expunge.randomness import stream
from expunge.tasks import Cluster, Died, in_processes
from expunge.tensor_files import write_tensors
from expunge.training import Recipe, train
from expunge.unlearning import unlearn

OWN_DATA = "the model's own training data and recipe"
RECIPE_ALONE = "audits the recipe, not this model"


@dataclass(frozen=True, kw_only=True)
class References:
    """What the reference models say. Keys of the mappings: `original`, `retrained` and the names of the methods.

    Attributes:
        logits: {row: {"forget" | "heldout" | "retained": float32, shape (N, n, C)}}.
        labels: {set: int64, shape (n,)}.
        relearn_steps: {row: float64, shape (N,)}: T(D_f) of the whole network, cut at `relearn_max_steps`, which also
            stands for networks whose loss grows without bound.
        methods: {name: {"method": its registry name, "settings": its fields}}.
        settings: everything else that the results depend on, JSON values.
        subject: what the audit is about: `OWN_DATA` or `RECIPE_ALONE`.
    """

    logits: Mapping[str, Mapping[str, NDArray[np.float32]]]
    labels: Mapping[str, NDArray[np.int64]]
    relearn_steps: Mapping[str, NDArray[np.float64]]
    methods: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    subject: str = OWN_DATA

    @property
    def num_models(self) -> int:
        """N, of each kind."""
        return len(self.relearn_steps["original"])


@dataclass(frozen=True, kw_only=True)
class ReferencePlan:
    """What reference models are trained, made to forget and measured on.

    Attributes:
        spec, recipe: the network and how it is trained.
        data: D, with `forget_ids` among its ids.
        forget_ids: of D_f. Every image of D with the same pixels counts as forgotten.
        heldout: examples that no model is trained on.
        methods: by a name of letters, digits and `._=+-`. `amnesiac_undo` is not possible: no update log is kept.
        num_retained: the most retained examples whose logits are kept.
        relearn_max_steps, relearn_lr: of `network_steps`, on the whole forget set toward 1.05 × O_j's loss on it.
        seed: of everything random.
        subject: what the audit is about, told in its report.
        device: `cpu`, or `cuda`, of which there may be several: workers are spread over them.

    Raises:
        SettingError: a setting out of range, a method's name that cannot stand in a file's name, or `amnesiac_undo`.
    """

    spec: ModelSpec
    recipe: Recipe
    data: ImageSet
    forget_ids: Sequence[str]
    heldout: ImageSet
    methods: Mapping[str, Method]
    num_retained: int = 512
    relearn_max_steps: int = 100
    relearn_lr: float = 0.01
    seed: int = 0
    subject: str = OWN_DATA
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.num_retained, self.relearn_max_steps) < 1 or not self.relearn_lr > 0:
            raise SettingError("num_retained and relearn_max_steps are at least 1, relearn_lr positive")
        if self.device != "cpu" and not (self.device == "cuda" and torch.cuda.is_available()):
            raise SettingError(f"device={self.device!r}: it is cpu, or cuda where there is a GPU")
        for name, method in self.methods.items():
            check_row(name)
            if Needs.UPDATES in method.needs:
                raise SettingError(f"{name} needs an update log, which reference models do not write; leave it out")


def train_references(
    directory: Path,
    plan: ReferencePlan,
    *,
    num_models: int = 64,
    workers: int = 2,
    cluster: Cluster | None = None,
    announce: Callable[[str], None] = lambda message: None,
) -> References:
    """Trains O_j on all data, U_j = unlearn(O_j) by every method, and R_j without the forget set, j < `num_models`.

    Every network starts from fresh random weights of its own seed. What is in the directory already is not trained
    again; killing it loses at most the models in the making. More models or methods can be asked for later. A new
    method trains the originals anew, since weights are not kept: to the same bits on the same processor, but not on
    GPUs, so name all methods at once there.

    The directory holds `manifest.json`, `labels.safetensors` and, for each number j, `original-j`, `retrained-j` and
    one `unlearned-NAME-j` for each method: the logits (float32) on the forget set, on held-out examples and on a fixed
    draw of retained ones. It names digests of the images: keep it as private as the data.

    Args:
        directory: where the results go; made if it is not there.
        plan: what is trained.
        num_models: N, ≥ 1. The full audit wants 64.
        workers: processes of one thread each, ≥ 1; of a cluster all are used.
        cluster: a Ray cluster (`expunge.tasks.cluster`) that trains them in place of this machine.
        announce: is told how much there is to do, and after the first pair of models how long the rest will take.

    Raises:
        InputError: unknown ids, forgotten examples among the held-out ones, or results of other settings in the
            directory.
        SettingError: a number out of range.
        ExpungeError: a worker process died. What was finished is kept.
    """
    if min(num_models, workers) < 1:
        raise SettingError("num_models and workers are at least 1")
    forget = plan.data.select(plan.forget_ids)
    check_disjoint(forget.images, plan.heldout.images, "forget", "held-out")
    rest = plan.data.without(forget)
    if len(rest) == 0:
        raise InputError("the forget set is all of the data; nothing is left to train the retrained models on")
    order = torch.randperm(len(rest), generator=stream("retained", plan.seed), device="cpu")
    retained = rest.take(sorted(order[: plan.num_retained].tolist()))
    sets = dict(zip(SETS, (forget, plan.heldout, retained), strict=True))
    settings = {
        "spec": plan.spec.to_dict(),
        "recipe": plan.recipe.recipe.to_dict(),
        "data": digest_of(plan.data),
        **{name: digest_of(images) for name, images in sets.items()},
        "seed": plan.seed,
        "relearn": {"max_steps": plan.relearn_max_steps, "lr": plan.relearn_lr},
        "subject": plan.subject,
    }
    if plan.device != "cpu":  # results of earlier versions, which knew no other, stay valid
        settings["device"] = plan.device
    told = {name: {"method": method.name, "settings": settings_of(method)} for name, method in plan.methods.items()}
    directory.mkdir(parents=True, exist_ok=True)
    known = update_manifest(directory, settings, told)
    with written_whole(directory / "labels.safetensors") as temporary:
        sides = {AUDITED: audit_side(plan.heldout.images, [plan.seed])}
        write_tensors({name: images.labels for name, images in sets.items()} | sides, temporary, {})
    rows = ("original", "retrained", *plan.methods)
    tags = {row: tag_of(settings, known.get(row)) for row in rows}
    job = _Job(directory=directory, tags=tags, plan=plan, rest=rest, sets=sets)
    missing = [j for j in range(num_models) if any(not job.has(row, j) for row in rows)]
    announce(f"{len(missing)} of {num_models} pairs of reference models are to be trained in {directory}")
    finished = num_models - len(missing)
    advance("reference models", finished, num_models)
    workers = workers if cluster is None else cluster.workers
    function = partial(_make, job, on_node=cluster is not None)
    todo = [(j, {} if cluster is None else job.contents(j)) for j in missing]
    for n, (_, made) in enumerate(in_processes(function, todo, workers=workers, cluster=cluster)):
        if isinstance(made, Died):
            raise ExpungeError(f"{made.why}; what was finished is kept, run it again to go on")
        seconds, new = made
        for name, content in new.items():
            with written_whole(directory / name) as temporary:
                temporary.write_bytes(content)
        if n == 0 and len(missing) > 1:
            left = (len(missing) - 1) * seconds / min(workers, len(missing))
            announce(f"the first pair took {seconds:.0f} s; the rest will take about {left / 60:.0f} min")
        advance("reference models", finished + n + 1, num_models)
    return load_references(directory, rows=tuple(plan.methods), num_models=num_models)


def load_references(directory: Path, *, rows: Sequence[str] | None = None, num_models: int | None = None) -> References:
    """Reads what `train_references` wrote.

    Args:
        directory: as given there.
        rows: names of methods; None: all in the manifest.
        num_models: N; None: as many as are there without a gap.

    Raises:
        InputError: no references there, a damaged or foreign file, or models that are missing.

    >>> load_references(Path("nowhere"))
    Traceback (most recent call last):
    expunge.errors.InputError: there are no reference models in nowhere; train_references makes them
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise InputError(f"there are no reference models in {directory}; train_references makes them")
    settings, methods = manifest.settings, manifest.methods
    chosen = tuple(methods) if rows is None else tuple(rows)
    unknown = [row for row in chosen if row not in methods]
    if unknown:
        raise InputError(
            f"{directory} has no models unlearned by {unknown[0]!r}; it has {', '.join(methods) or 'none'}"
        )
    tags = {row: tag_of(settings, methods.get(row)) for row in ("original", "retrained", *chosen)}
    if num_models is None:
        num_models = 0
        while all(file_of(directory, row, num_models).exists() for row in tags):
            num_models += 1
    if num_models == 0:
        raise InputError(f"{directory} has no complete pair of reference models yet")
    outputs = {row: [read(directory, row, j, tag) for j in range(num_models)] for row, tag in tags.items()}
    labels = read_labels(directory)
    check_shapes([each for found in outputs.values() for each in found], labels)
    keep = {name: np.ones(len(labels[name]), dtype=bool) for name in SETS}
    known = [METHODS.get(methods[row]["method"]) for row in chosen]  # a user's own method is not among them
    if any(method is None or Needs.TEST in method.needs for method in known):
        keep["heldout"] = labels[AUDITED].numpy()  # all rows are measured on what none was calibrated on
    return References(
        logits={
            row: {name: np.stack([f[name].numpy()[keep[name]] for f in found]) for name in SETS}
            for row, found in outputs.items()
        },
        labels={name: labels[name].numpy()[keep[name]] for name in SETS},
        relearn_steps={row: np.array([float(f["relearn_steps"]) for f in found]) for row, found in outputs.items()},
        methods={row: methods[row] for row in chosen},
        settings=settings,
        subject=settings["subject"],
    )


def recipe_sets(heldout: ImageSet, num_forget: int, seed: int = 0) -> tuple[ImageSet, tuple[str, ...], ImageSet]:
    """Halves of a held-out set, for an audit without training data: `data`, `num_forget` ids of it, `heldout`.

    Copies of one image go to one half. Give `subject=RECIPE_ALONE` along with them: such an audit says how the method
    fares under this recipe, nothing about the model at hand.
    """
    order = torch.randperm(len(heldout), generator=stream("halves", seed), device="cpu").tolist()
    data = heldout.take(order[: len(order) // 2])
    if not 1 <= num_forget < len(data):
        raise InputError(f"cannot forget {num_forget} of {len(data)} examples, half of the held-out set")
    return data, data.ids[:num_forget], heldout.without(data)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a worker is given once."""

    directory: Path
    tags: Mapping[str, str]
    plan: ReferencePlan
    rest: ImageSet
    sets: Mapping[str, ImageSet]

    def has(self, row: str, j: int) -> bool:
        """Whether that model's outputs are there. Raises `InputError` where they are damaged or of other settings."""
        path = file_of(self.directory, row, j)
        if path.exists():
            read_tag(path, self.tags[row])
        return path.exists()

    def contents(self, j: int) -> dict[str, bytes]:
        """The files of the j-th models that are there, by name."""
        paths = [file_of(self.directory, row, j) for row in self.tags]
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    def trained(self, data: ImageSet, kind: str, j: int) -> torch.nn.Module:
        """A network of its own seed, on the GPU that numbers like j go to, or on the CPU."""
        seed = _seed(self.plan.seed, f"{kind} {j}")
        torch.manual_seed(seed)
        on_cpu = self.plan.device == "cpu"
        device = torch.device("cpu") if on_cpu else torch.device("cuda", j % torch.cuda.device_count())
        network = build(self.plan.spec).to(device)
        train(network, data.examples, self.plan.recipe.recipe, rng=torch.Generator().manual_seed(seed))
        return network

    def write(self, row: str, j: int, model: torch.nn.Module) -> None:
        """Measures a model. Its relearning ends at `TOLERANCE` times the loss of O_j on the forget set."""
        tensors = {
            name: torch.from_numpy(outputs_of(model, images.examples).logits.astype(np.float32))
            for name, images in self.sets.items()
        }
        forget, most, steps = self.sets["forget"], self.plan.relearn_max_steps, 0.0
        if row != "original":
            logits = read(self.directory, "original", j, self.tags["original"])["forget"]
            target = TOLERANCE * float(cross_entropy(logits.numpy(), forget.labels.numpy()).mean())
            try:
                steps = network_steps(model, forget.examples, target, lr=self.plan.relearn_lr, max_steps=most)
            except NonFiniteError:  # a network that a method has wrecked need not learn at all
                steps = float(most)
        tensors["relearn_steps"] = torch.tensor(steps, dtype=torch.float64, device="cpu")
        with written_whole(file_of(self.directory, row, j)) as temporary:
            write_tensors(tensors, temporary, {"format": FORMAT, "digest": self.tags[row]})


def make_pair(job: _Job, j: int) -> None:
    """Makes those of O_j, its U_j and R_j that are not there yet. Runs in a worker."""
    plan = job.plan
    wanted = [name for name in plan.methods if not job.has(name, j)]
    if wanted or not job.has("original", j):
        original = job.trained(plan.data, "original", j)
        if not job.has("original", j):
            job.write("original", j, original)
        for name in wanted:
            method = plan.methods[name]
            given: dict[str, Any] = {"seed": _seed(plan.seed, f"{name} {j}")}
            if Needs.RETAIN in method.needs:
                given |= {"retain": job.rest}
            if Needs.TEST in method.needs:  # one seed for all, so that the same half of the examples is left
                given |= {"test": plan.heldout, "seed": plan.seed}
            try:
                result = unlearn(original, job.sets["forget"], method=method, **given)
            except ExpungeError as error:
                raise ExpungeError(f"{name}, model {j}: {error}; leave this method out, or change it") from error
            job.write(name, j, result.model)
    if not job.has("retrained", j):
        job.write("retrained", j, job.trained(job.rest, "retrained", j))


def _make(job: _Job, pair: tuple[int, Mapping[str, bytes]], *, on_node: bool) -> tuple[float, dict[str, bytes]]:
    """Makes the j-th models. Returns the seconds and, on a node, whose disk is its own, the files that are new."""
    started = time.perf_counter()
    j, files = pair
    if not on_node:
        make_pair(job, j)
        return time.perf_counter() - started, {}
    with scratch_directory() as directory:
        for file, content in files.items():
            (directory / file).write_bytes(content)
        make_pair(replace(job, directory=directory), j)
        made = {path.name: path.read_bytes() for path in directory.iterdir() if path.name not in files}
    return time.perf_counter() - started, made


def _seed(seed: int, purpose: str) -> int:
    return int(torch.randint(2**31, (1,), generator=stream(f"reference {purpose}", seed), device="cpu"))
