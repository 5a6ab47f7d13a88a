"""`expunge audit --full`: a method against many models that were retrained without the forget set."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from expunge.auditing.full_audit import LEAST_MODELS, FullAudit, full_audit
from expunge.auditing.preparation import not_in
from expunge.auditing.references import OWN_DATA, RECIPE_ALONE, ReferencePlan, recipe_sets, train_references
from expunge.cli.printing import announce
from expunge.cli.sources import Sources, forget_set, images_for, loaded, notes_on
from expunge.data import ImageSet, digests
from expunge.errors import InputError, SettingError
from expunge.files import check_unused, new_directory, write_private
from expunge.methods import Method, method_of
from expunge.methods.retrain import Retrain
from expunge.tasks import cluster
from expunge.trainer import device_named


def run(
    sources: Sources,
    train: str | None,
    references: Path | None,
    out: str | Path,
    *,
    methods: Sequence[str] = ("targeted",),
    num_models: int = 64,
    workers: int = 2,
    ray: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> FullAudit:
    """Trains what is missing of the reference models, compares, and writes `full_audit.json` and `full_audit.md`.

    Without the DATA spec `train`, method and recipe are audited on halves of the test set, in which as many examples
    are forgotten; that says nothing about the model at hand. `references` (default: OUT-references) is kept.
    """
    out, where = Path(out), device_named(device)
    check_unused(out)
    references = references or out.with_name(f"{out.name}-references")
    if out.resolve() in [references.resolve(), *references.resolve().parents]:
        raise SettingError(f"the references {references} must lie outside of {out}, which is written at the end")
    assert sources.test is not None
    if num_models < LEAST_MODELS:
        raise SettingError(f"a full audit needs at least {LEAST_MODELS} models of each kind, not {num_models}")
    chosen = dict(named_method(text) for text in methods)
    _, header = loaded(sources)
    if not header.recipe:
        raise InputError(f"{sources.model} does not say how it was trained; take a checkpoint of `expunge train`")
    recipe = method_of("retrain", header.recipe)
    assert isinstance(recipe, Retrain)
    forgotten = forget_set(sources, header)
    if not isinstance(forgotten, ImageSet):
        raise InputError(f"{sources.forget} holds no images, which a full audit takes alone")
    test = images_for(sources.test, header, sources)
    if train is None:
        data, ids, test = recipe_sets(test, len(forgotten), seed)
        subject = RECIPE_ALONE
    else:
        data, subject = images_for(train, header, sources), OWN_DATA
        inside = forgotten.without(data)
        if len(inside):
            raise InputError(f"{len(inside)} of the examples to forget are not in {train}; give the data with them")
        wanted = set(digests(forgotten.images))
        ids = tuple(i for i, digest in zip(data.ids, digests(data.images), strict=True) if digest in wanted)
        unseen, left_out = not_in(test.images, data.images, "training", len(test))
        test = test.take(unseen)
        for line in (*left_out, *notes_on(sources, header)):
            announce(line)
    with new_directory(out) as temporary:
        plan = ReferencePlan(
            spec=header.spec,
            recipe=recipe.recipe,
            data=data,
            forget_ids=ids,
            heldout=test,
            methods=chosen,
            seed=seed,
            subject=subject,
            device=where.type,
        )
        with nullcontext() if ray is None else cluster(ray) as where_else:
            found = train_references(
                references, plan, num_models=num_models, workers=workers, cluster=where_else, announce=announce
            )
        result = full_audit(found, seed=seed)
        write_private(temporary / "full_audit.json", result.to_json())
        told = "\n".join(f"- {caveat}" for caveat in result.caveats)
        write_private(temporary / "full_audit.md", f"{result.table()}\n\n{told}\n")
    return result


def named_method(text: str) -> tuple[str, Method]:
    """A row's name and the method that `NAME,SETTING=VALUE,…` means.

    >>> row, method = named_method("targeted,preset=paper,lam=3")
    >>> row, method.lam, method.epochs
    ('targeted+preset=paper+lam=3', 3.0, 20)
    """
    name, *pairs = (part.strip() for part in text.split(","))
    settings = {}
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not found or not key:
            raise SettingError(f"--method takes NAME,SETTING=VALUE,… such as targeted,lam=3, not {text!r}")
        settings[key] = value
    preset = settings.pop("preset", None)
    return "+".join([name, *pairs]), method_of(name, settings, preset=preset)
