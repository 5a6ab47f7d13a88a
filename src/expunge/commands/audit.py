"""`expunge audit`: how well a model forgot, whoever made it forget and however."""

from pathlib import Path

from expunge.auditing import difficulty_of
from expunge.auditing.default_audit import evaluate, report_of
from expunge.auditing.preparation import prepare
from expunge.commands.sources import (
    Sources,
    device_named,
    factory_of,
    forget_set,
    given_set,
    is_same_network,
)
from expunge.errors import InputError, SettingError
from expunge.files import check_unused, new_directory
from expunge.methods import make_method
from expunge.models import Header, build, load_model
from expunge.report.record import Report, told, write_report
from expunge.training import Recipe


def audit(
    sources: Sources,
    after: str,
    out: str | Path,
    *,
    after_weights: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    with_images: bool = False,
    difficulty_calibration: bool = False,
) -> Report:
    """Audits a model that was made to forget, and writes `report.json` and `report.html` to the new directory `out`.

    Args:
        sources: what to read: `model` is the original, `test` must be given.
        after: MODEL spec of the unlearned model.
        out: must not exist.
        after_weights: a weights file of the unlearned model, for `timm:` and `py:` models.
        seed: of the draws of relearning's controls.
        device: `cpu`, `cuda`, or `auto`.
        with_images: show the forgotten images that are still recognisable in the report, which then holds them.
        difficulty_calibration: for a forget set that is no random draw: train networks on the test set alone, and take
            off the scores how hard each example is for them. The verdict is then that of the corrected scores.
    """
    out = Path(out)
    check_unused(out)
    where = device_named(device)
    if sources.test is None:
        raise SettingError("an audit needs test examples: add --test DATA")
    original, header = load_model(sources.model, weights=sources.weights, allow_pickle=sources.allow_pickle)
    unlearned, header_after = load_model(after, weights=after_weights, allow_pickle=sources.allow_pickle)
    if not is_same_network(header.spec, header_after.spec):
        raise InputError(f"{after} is another network than {sources.model}; an audit compares a model with itself")
    forgotten = forget_set(sources, header)
    test, retain = (given_set(spec, sources, header) for spec in (sources.test, sources.retain))
    sets = prepare(forgotten, test, retain).uncalibrated(unlearned)
    assert sets.test is not None
    notes: tuple[str, ...] = ()
    difficulty = None
    with new_directory(out) as temporary:
        evaluations = evaluate(original.to(where), sets), evaluate(unlearned.to(where), sets)
        if difficulty_calibration:
            fresh = factory_of(original, sources.model) or (lambda: build(header.spec))
            recipe, notes = _recipe(header)
            difficulty = difficulty_of(
                sets.forget, sets.test, factory=lambda: fresh().to(where), recipe=recipe, seed=seed
            )
        audited = report_of(
            original,
            unlearned,
            sets,
            evaluations,
            class_names=header.class_names or forgotten.class_names,
            difficulty=difficulty,
            seed=seed,
        )
        report = Report(
            directory=str(out),
            sources=told(
                sources,
                after=after,
                after_weights=after_weights,
                difficulty_calibration=difficulty_calibration,
                device=None if device == "auto" else device,
            ),
            before=audited.before,
            after=audited.after,
            audit=audited,
            notes=notes,
        )
        return write_report(temporary, report, forgotten if with_images else None)


def _recipe(header: Header) -> tuple[Recipe, tuple[str, ...]]:
    """How the audited model was trained, and what to say where it does not tell."""
    if header.recipe:
        recipe = make_method("retrain", **header.recipe)
        assert isinstance(recipe, Recipe)
        return recipe.recipe, ()
    told = "the model does not say how it was trained: the networks that difficulty comes from had the default recipe"
    return Recipe(), (told,)
