"""A grid of experiments from one TOML file: checked once, then a list of cells."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from experiments.grid.cells import BEFORE, CONDITIONS, Cell, Original
from expunge.data import NAMED
from expunge.errors import InputError, SettingError
from expunge.methods import METHODS, Needs, method_of, settings_of
from expunge.models import ARCHITECTURES
from expunge.parsing import MAX_TOML_BYTES, parse_toml, read_text
from expunge.training import Recipe, recipe_for

GRID_FORMAT = "expunge-grid/1"
_NEEDED = {"format", "datasets", "architectures", "sizes", "seeds", "retain_size", "rows", "profiles"}
_TOP = _NEEDED | {"originals", "heldout", "readings"}
WITHOUT_SETTINGS = {BEFORE: "it is the model as it is", "retrain": "it takes the original's recipe"}
_TARGETS = {"retain_accuracy", "test_accuracy"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method with its settings: a row of the paper's tables.

    Attributes:
        name: how the row is called, unique.
        method: a key of `METHODS`, or `before`.
        settings: all fields of the method; empty for `before`, and for `retrain`, which takes each original's recipe.
        withheld: in a grid with held-out examples, this row's method is handed none.
        conditions: what else the method runs under, by keys of `CONDITIONS`.
    """

    name: str
    method: str
    settings: Mapping[str, Any]
    withheld: bool = False
    conditions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How cells are measured on one kind of machine.

    Attributes:
        retain, test: examples that retain and test accuracy are measured on; None: all. The row `before` is measured
            on all of them where `test` is given.
        precision: what methods run in: `fp32`, or `bf16` for autocast.
    """

    retain: int | None
    test: int | None = None
    precision: str = "fp32"

    def conditions(self, row: Row) -> dict[str, Any]:
        """What a row runs under."""
        kept = self.precision == "fp32" or row.method == "retrain"  # which has its recipe's own
        return {**({} if kept else {"precision": self.precision}), **row.conditions}

    def subsets(self, row: Row) -> tuple[int | None, int | None]:
        """How many retained and test examples a row is measured on."""
        whole = row.method == BEFORE and self.test is not None
        return (None, None) if whole else (self.retain, self.test)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Everything that a run of experiments is: every original × row × size × seed.

    Attributes:
        originals: dataset by dataset, in the order in which they are worked through.
        rows, sizes, seeds: as the file lists them.
        profiles: {name: how cells are measured}.
        heldout: methods may calibrate on one half of the test set, and all are measured on the other.
    """

    originals: tuple[Original, ...]
    rows: tuple[Row, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    profiles: Mapping[str, Profile]
    heldout: bool = False

    def cells(self, profile: str) -> list[Cell]:
        """All cells: original by original, in each seed by seed, then row, then size, so that a part is balanced.

        Raises:
            SettingError: the grid has no such profile.
        """
        if profile not in self.profiles:
            raise SettingError(f"the grid has no profile {profile!r}; it has {', '.join(self.profiles)}")
        how = self.profiles[profile]
        return [
            Cell(
                original=original,
                row=row.name,
                method=row.method,
                settings=original.recipe if row.method == "retrain" else row.settings,
                forget_size=size,
                seed=seed,
                retain_subset=how.subsets(row)[0],
                test_subset=how.subsets(row)[1],
                conditions=how.conditions(row),
                heldout=self.heldout,
                withheld=row.withheld,
            )
            for original in self.originals
            for seed in self.seeds
            for row in self.rows
            for size in self.sizes
        ]


def load_grid(path: Path) -> Grid:
    """Reads a grid and checks all of it.

    Raises:
        InputError: no such file, no TOML, or a part that is missing, unknown or of the wrong kind.
        SettingError: an unknown dataset, architecture, method or setting, or a value out of range.
    """
    text = read_text(path, MAX_TOML_BYTES)
    try:
        return _grid(parse_toml(text))
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _grid(content: Mapping[str, Any]) -> Grid:
    _check_keys(content, _TOP, _NEEDED, "the grid")
    if content["format"] != GRID_FORMAT:
        raise InputError(f"its format is {content['format']!r}, not {GRID_FORMAT!r}")
    datasets, architectures = _list(content, "datasets", str), _list(content, "architectures", str)
    for kind, given, known in (("dataset", datasets, NAMED), ("architecture", architectures, ARCHITECTURES)):
        for name in given:
            if name not in known:
                raise SettingError(f"unknown {kind} {name!r}; there are {', '.join(known)}")
    sizes, seeds = _list(content, "sizes", int), _list(content, "seeds", int)
    retain_size = content["retain_size"]
    if min(sizes) < 1 or min(seeds) < 0 or type(retain_size) is not int or retain_size < 1:
        raise SettingError("sizes and retain_size are at least 1, seeds at least 0, all whole numbers")
    heldout = content.get("heldout", False)
    if type(heldout) is not bool:
        raise InputError(f"heldout is true or false, not {heldout!r}")
    entries = _list(content, "rows", dict)
    if "readings" in content:
        entries = _read_in_each_way(entries, _list(content, "readings", dict))
    rows = tuple(_row(entry, retain_size, heldout) for entry in entries)
    repeated = {row.name for row in rows if sum(other.name == row.name for other in rows) > 1}
    if repeated:
        raise InputError(f"two rows are called {min(repeated)!r}")
    for n, row in enumerate(rows):
        for other in rows[:n]:
            if replace(row, name=other.name) == other:
                raise InputError(f"the rows {other.name!r} and {row.name!r} are the same method with the same settings")
    return Grid(
        originals=_originals(content.get("originals", {}), datasets, architectures),
        rows=rows,
        sizes=tuple(sizes),
        seeds=tuple(seeds),
        profiles=_profiles(content["profiles"]),
        heldout=heldout,
    )


def _read_in_each_way(rows: list[Mapping[str, Any]], readings: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Every row with settings under every reading, as `ROW: READING`; a reading may be of some rows alone."""
    made = [row for row in rows if row.get("method") in WITHOUT_SETTINGS]
    for reading in readings:
        _check_keys(reading, {"name", "rows", "settings", "conditions"}, {"name"}, "a reading")
        for row in rows:
            if row in made or row.get("name") not in reading.get("rows", [row.get("name")]):
                continue
            both = {key: {**row.get(key, {}), **reading.get(key, {})} for key in ("settings", "conditions")}
            made.append({**row, "name": f"{row.get('name')}: {reading['name']}", **both})
    return made


def _row(entry: Mapping[str, Any], retain_size: int, heldout: bool) -> Row:
    _check_keys(entry, {"name", "method", "preset", "settings", "withheld", "conditions"}, {"name", "method"}, "a row")
    for key in ("name", "method", "preset"):
        if not isinstance(entry.get(key, ""), str):
            raise InputError(f"a row's {key} is text, not {entry[key]!r}")
    name, method, settings = entry["name"], entry["method"], dict(_table(entry.get("settings", {}), "settings"))
    if "," in name or name != name.strip() or not name:
        raise InputError(f"a row's name is text without commas, which --only parts names by, not {name!r}")
    if method in WITHOUT_SETTINGS:
        if len(entry) > 2:
            raise InputError(f"the row {name!r} takes no preset and no settings: {WITHOUT_SETTINGS[method]}")
        return Row(name=str(name), method=method, settings={})
    if method not in METHODS:
        raise SettingError(f"unknown method {method!r}; there are {BEFORE}, {', '.join(METHODS)}")
    if "retain_size" in {field.name for field in fields(METHODS[method])}:
        settings.setdefault("retain_size", retain_size)
    chosen = method_of(method, settings, preset=entry.get("preset"))
    withheld = entry.get("withheld", False)
    if type(withheld) is not bool or (withheld and not (heldout and Needs.TEST in chosen.needs)):
        raise SettingError(
            f"the row {name!r}: withheld is true or false, and true only where the grid has heldout = true and the "
            "method reads held-out examples"
        )
    conditions = dict(_table(entry.get("conditions", {}), "conditions"))
    for key, value in conditions.items():
        if value not in CONDITIONS.get(key, ()):
            known = ", ".join(f"{key} = {values[0]!r}" for key, values in CONDITIONS.items())
            raise SettingError(f"the row {name!r}: there is no condition {key} = {value!r}; there are {known}")
    return Row(name=str(name), method=method, settings=settings_of(chosen), withheld=withheld, conditions=conditions)


def _profiles(content: Any) -> dict[str, Profile]:
    profiles: dict[str, Profile] = {}
    for name, entry in _table(content, "profiles").items():
        _check_keys(_table(entry, name), {"retain", "test", "precision"}, {"retain"}, f"the profile {name!r}")
        sizes: dict[str, int | None] = {}
        for key in ("retain", "test"):
            size = entry.get(key, "all")
            if size != "all" and (type(size) is not int or size < 1):
                raise SettingError(f'the profile {name!r}: {key} is "all" or a number of examples, not {size!r}')
            sizes[key] = None if size == "all" else size
        precision = entry.get("precision", "fp32")
        if precision not in {"fp32", "bf16"}:
            raise SettingError(f"the profile {name!r}: precision is fp32 or bf16, not {precision!r}")
        profiles[name] = Profile(**sizes, precision=precision)
    if not {"cpu", "gpu"} <= set(profiles):
        raise InputError("it needs the profiles cpu and gpu")
    return profiles


def _originals(content: Any, datasets: list[str], architectures: list[str]) -> tuple[Original, ...]:
    tables = dict(_table(content, "originals"))
    seed = tables.pop("seed", 0)
    if type(seed) is not int or seed < 0:
        raise SettingError(f"the originals' seed is a whole number, not {seed!r}")
    _check_keys(tables, set(datasets), set(), "originals")
    for dataset, entries in tables.items():
        _check_keys(_table(entries, dataset), set(architectures), set(), f"originals.{dataset}")
    return tuple(
        _original(dataset, architecture, tables.get(dataset, {}).get(architecture, {}), seed)
        for dataset in datasets
        for architecture in architectures
    )


def _original(dataset: str, architecture: str, entry: Any, seed: int) -> Original:
    where = f"originals.{dataset}.{architecture}"
    _check_keys(_table(entry, where), {"recipe", "options", "target"}, set(), where)
    recipe, options = recipe_for(dataset, architecture)
    over, more = _table(entry.get("recipe", {}), "recipe"), _table(entry.get("options", {}), "options")
    for name, value in more.items():
        if not isinstance(value, bool | int | float | str):
            raise InputError(f"{where}.options: {name} is text, a number, true or false, not {value!r}")
    _check_keys(over, {field.name for field in fields(Recipe)}, set(), f"{where}.recipe")
    chosen = method_of("retrain", {**recipe.to_dict(), **over})  # it has the recipe's fields, and checks them
    assert isinstance(chosen, Recipe)
    target = _table(entry.get("target", {}), "target")
    _check_keys(target, _TARGETS, set(), f"{where}.target")
    if not all(type(value) in {int, float} and 0 <= value <= 1 for value in target.values()):
        raise SettingError(f"{where}.target: accuracies are fractions in [0, 1]")
    return Original(
        dataset=dataset,
        architecture=architecture,
        recipe=chosen.recipe.to_dict(),
        options={**options, **more},
        seed=seed,
        settings={**over, **more},
        target=dict(target),
    )


def _check_keys(content: Mapping[str, Any], known: set[str], needed: set[str], where: str) -> None:
    unknown, missing = sorted(set(content) - known), sorted(needed - set(content))
    if unknown:
        raise InputError(f"{where} has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
    if missing:
        raise InputError(f"{where} lacks {missing[0]!r}")


def _table(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{name} must be a table, not {value!r}")
    return value


def _list(content: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    values = content[key]
    if not isinstance(values, list) or not values or not all(type(value) is kind for value in values):
        raise InputError(f"{key} must be a list of at least one {kind.__name__}")
    if kind is not dict and len(set(values)) < len(values):
        raise InputError(f"{key} lists a value twice")
    return values
