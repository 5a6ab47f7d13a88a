"""Examples of any container as pairs of an input and a label: loaders, tables, dicts, tuples, streams."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from expunge.data import Examples
from expunge.data.examples import items_at, size_of
from expunge.data.ids import ids_of
from expunge.data.rows import LABELS
from expunge.errors import InputError, one_line
from expunge.models import parameters_of

ADVICE = 'say which columns are meant: expunge.with_columns(dataset, "image", "label")'
ADVICE_TABLE = 'say which column is the label: (table, "kind")'


class Pairs(Dataset[tuple[Any, Any]]):
    """The items of an indexable, each as a pair of an input and a label.

    `is_table`: an input is cells of a table; `columns` are their names, where they are one row of numbers.
    """

    def __init__(
        self,
        items: Any,
        pair: Callable[[Any], tuple[Any, Any]],
        given: Any,
        label: Any = None,
        is_table: bool = False,
        columns: tuple[str, ...] = (),
    ) -> None:
        self.items, self.pair, self.is_table, self.columns = items, pair, is_table, columns
        self.ids = ids_of(given)
        self.class_names = _class_names(given, label)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.pair(self.items[index])


class Collated:
    """The examples of a `DataLoader` that it collates by a function of its own, one at a time."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return first_of(self.collate([self.dataset[index]]))

    def together(self, index: Sequence[int]) -> Any:
        """The first of the examples at `index`, as it is in a batch with the others."""
        return first_of(self.collate([self.dataset[n] for n in index]))


class Rows:
    """Columns side by side, such as those of a table: an item is a dict of a value each."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self.columns = columns
        lengths = {len(column) for column in columns.values()}
        if len(lengths) != 1:
            raise InputError(f"columns must be of one length, not of {', '.join(map(str, sorted(lengths)))}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}


class Chosen:
    """The items of an indexable at some positions."""

    def __init__(self, items: Any, index: Sequence[int]) -> None:
        self.items, self.index = items, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Any:
        return self.items[self.index[index]]


def with_columns(dataset: Any, inputs: str | int | Sequence[str] | Sequence[int], label: str | int) -> Dataset[Any]:
    """A dataset whose examples are what `inputs` and `label` name in those of another.

    Args:
        dataset: anything that `expunge.forget` takes: a dataset of dicts or tuples, a `DataLoader`, a table, a stream.
        inputs: the column of a dict, or the position in a tuple, that is the model's input. Several: the model is
            called with them by name where its `forward` has such names, else one after the other.
        label: the column or position of the integer class.

    Raises:
        InputError: there is no such column, or the dataset cannot be read.

    >>> data = [{"image": np.zeros(4), "age": 30, "kind": 1}]
    >>> with_columns(data, "image", "kind")[0][1]
    1
    """
    items = _indexed(dataset, "given")

    def at(item: Any, column: str | int) -> Any:
        try:
            return item[column]
        except (KeyError, IndexError, TypeError) as error:
            there = f"; there are {', '.join(map(repr, item))}" if isinstance(item, Mapping) else ""
            raise InputError(f"an example has no column {column!r}{there}") from error

    def pair(item: Any) -> tuple[Any, Any]:
        if isinstance(inputs, str | int):
            return at(item, inputs), at(item, label)
        if all(isinstance(column, str) for column in inputs):
            return {str(column): at(item, column) for column in inputs}, at(item, label)
        return tuple(at(item, column) for column in inputs), at(item, label)

    if size_of(items, "given"):
        pair(items[0])
    return Pairs(items, pair, dataset, label, is_table=_is_table(dataset))


def as_pairs(given: Any, model: nn.Module, name: str, *, labelled: bool = True) -> tuple[Any, Any, list[str]]:
    """A dataset of (input, label) of whatever holds examples, its first input, and sentences on what is left out.

    What is one already stays as it is. Where it need not be `labelled`, the label may be None.

    Raises:
        InputError: nothing tells what is the input and what the label.
    """
    items = given if isinstance(given, Pairs) else _indexed(given, name)
    size_of(items, name)
    ((_, first),) = items_at(items, name, [0])
    found, said = _as_pairs(items, first, given, model, name, labelled)
    example = found.pair(first) if isinstance(found, Pairs) and found is not given else first
    return found, example[0] if isinstance(example, tuple | list) and len(example) else example, said


def _as_pairs(items: Any, first: Any, given: Any, model: nn.Module, name: str, labelled: bool) -> tuple[Any, list[str]]:
    whole = given
    while isinstance(whole, Subset):
        whole = whole.dataset
    if isinstance(whole, Pairs) and whole.is_table and _is_row(first[0], model):
        return Pairs(given, lambda pair: (_row(pair[0]), pair[1]), given, columns=tuple(first[0])), []
    if isinstance(given, Examples | Pairs):
        return given, []
    said: list[str] = []
    if isinstance(first, Mapping):
        label = _label_of(first, given, name, labelled)
        cells = {key: value for key, value in first.items() if key != label}
        keep, said = _kept(cells, model, name)
        if _is_table(given) and _is_row(keep(first), model):
            names = tuple(map(str, keep(first)))
            return Pairs(
                items, lambda item: (_row(keep(item)), None if label is None else item[label]), given, columns=names
            ), said
        return Pairs(items, lambda item: (keep(item), None if label is None else item[label]), given, label), said
    if isinstance(first, tuple | list) and len(first) == 2 and isinstance(first[0], Mapping):
        keep, said = _kept({key: value for key, value in first[0].items() if key not in LABELS}, model, name)
        return Pairs(items, lambda item: (keep(item[0]), item[1]), given), said
    if isinstance(first, tuple | list) and len(first) > 2 and labelled:
        return _of_tuple(items, first, given, model, name)
    if items is given:
        return given, []
    beside = isinstance(given, tuple) and getattr(given[0], "ndim", 0) == 2 and hasattr(given[0], "iloc")
    return Pairs(items, lambda item: item, given, columns=tuple(map(str, given[0].columns)) if beside else ()), []


def first_of(batch: Any) -> Any:
    """The first example of a batch, in the same structure."""
    if isinstance(batch, Mapping):
        return {key: first_of(value) for key, value in batch.items()}
    if isinstance(batch, Tensor | np.ndarray):
        return batch[0]
    if isinstance(batch, tuple | list) and any(isinstance(part, Tensor | np.ndarray | Mapping) for part in batch):
        return tuple(first_of(part) for part in batch)
    return batch[0]


def _indexed(given: Any, name: str) -> Any:
    """What has a length, and an item at each position."""
    if isinstance(given, DataLoader):
        return _of_loader(given, name)
    if _is_table(given) and isinstance(given, tuple):
        given = given[0]
    if isinstance(given, tuple) and len(given) == 2 and all(getattr(part, "ndim", 0) > 1 for part in given):
        raise InputError(
            f"the {name} set: labels must be one integer class an example, of shape ({len(given[1])},), not "
            f"{tuple(given[1].shape)}. Of one-hot labels give labels.argmax(1); of several labels an example, forget "
            "one at a time: expunge.TwoClasses(model, label), with labels[:, label]"
        )
    if isinstance(given, tuple) and len(given) == 2 and _is_column(given[1], given[0]):
        inputs, labels = given
        if isinstance(inputs, Mapping):
            held = Rows({str(key): _column(column) for key, column in inputs.items()})
            return list(zip((held[n] for n in range(len(held))), _column(labels), strict=True))
        return list(zip(_column(inputs), _column(labels), strict=True))
    if isinstance(given, Mapping) and any(hasattr(part, "features") for part in given.values()):
        raise InputError(f"the {name} set has the splits {', '.join(map(str, given))}: give one of them")
    if isinstance(given, Mapping) or hasattr(given, "iloc"):
        names = list(given.columns) if hasattr(given, "iloc") else list(given)
        if not names:
            raise InputError(f"the {name} set is empty; give it at least one example")
        return Rows({str(key): _column(given[key]) for key in names})
    if isinstance(given, IterableDataset) or (isinstance(given, Iterable) and not hasattr(given, "__getitem__")):
        return _of_stream(given, name)
    return given


def _of_stream(given: Iterable[Any], name: str) -> list[Any]:
    """The examples of a stream, which is read to its end: twice, as far as the first are concerned."""
    try:
        items = list(given)
        if items and next(iter(given), None) is None:
            raise InputError(f"the {name} set can be read only once; give a list of it")
    except InputError:
        raise
    except Exception as error:  # the stream's own code runs here, and may raise anything
        raise InputError(f"the {name} set cannot be read: {one_line(error)}") from error
    return items


def _of_loader(loader: "DataLoader[Any]", name: str) -> Any:
    """The examples that a loader gives, whatever its order: each once, by its own function where it collates by one."""
    if loader.batch_size is None and loader.batch_sampler is None:
        raise InputError(f"the {name} set is a DataLoader without a batch size; give its dataset")
    items: Any = loader.dataset
    if isinstance(items, IterableDataset):
        items = _of_stream(items, name)
    else:
        sampler: Any = loader.sampler
        batches = loader.batch_sampler if type(loader.batch_sampler) is not BatchSampler else None
        whole = isinstance(sampler, SequentialSampler) or (
            isinstance(sampler, RandomSampler) and not sampler.replacement and len(sampler) == len(items)
        )
        if batches is not None or not whole:
            drawn, again = (
                {int(n) for n in (sampler if batches is None else chain.from_iterable(batches))} for _ in range(2)
            )
            if drawn != again:
                raise InputError(
                    f"the {name} set is a DataLoader that draws other examples each time; give its dataset"
                )
            items = Chosen(items, sorted(drawn))
    return items if loader.collate_fn is default_collate else Collated(items, loader.collate_fn)


def _is_table(given: Any) -> bool:
    """Whether it is a pandas table, alone or with the name of its label's column."""
    named = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], str)
    return hasattr(given[0] if named else given, "iloc")


def _is_row(value: Any, model: nn.Module) -> bool:
    """Whether cells of a table are one input: the model takes one, and has no names of columns."""
    names, required, any_name = parameters_of(model)
    single = isinstance(value, Mapping) and required == 1 and not any_name and not set(value) & set(names)
    return single and all(np.ndim(cell) == 0 for cell in value.values())


def _row(cells: Mapping[str, Any]) -> Any:
    return np.array(list(cells.values()))


def _is_column(labels: Any, inputs: Any) -> bool:
    """Whether `labels` is a column of classes beside `inputs`, and no example."""
    one = getattr(labels, "ndim", None) == 1 or (isinstance(labels, list) and all(type(n) is int for n in labels))
    if isinstance(inputs, Mapping):
        return one
    return bool(one and hasattr(inputs, "__len__") and getattr(inputs, "ndim", 2) >= 1 and len(inputs) == len(labels))


def _column(values: Any) -> Any:
    """A column, or a table of numbers, as an array or whatever sequence it is."""
    return values.to_numpy() if hasattr(values, "to_numpy") else values


def _label_of(item: Mapping[str, Any], given: Any, name: str, needed: bool) -> str | None:
    if isinstance(given, tuple) and given[1] in item:
        return str(given[1])
    found = [key for key in LABELS if key in item and not isinstance(given, tuple)]
    if len(found) == 1 or (not needed and not found):
        return found[0] if found else None
    there = ", ".join(map(repr, item))
    which = f"no column is called {given[1] if isinstance(given, tuple) else 'label'}"
    which = f"{' and '.join(map(repr, found))} may be the label" if found else which
    advice = ADVICE_TABLE if _is_table(given) else ADVICE
    raise InputError(f"the {name} set has the columns {there}, and {which}: {advice}")


def _kept(item: Mapping[str, Any], model: nn.Module, name: str) -> tuple[Callable[[Mapping[str, Any]], Any], list[str]]:
    """What of the columns of an item is the model's input: by the names that its `forward` takes, else all numbers."""
    names, _, any_name = parameters_of(model)
    numeric = [key for key, value in item.items() if _is_numeric(value)]
    chosen = [key for key in numeric if key in names] or ([] if len(numeric) == 1 and not any_name else numeric)
    if not numeric:
        raise InputError(
            f"the {name} set has the columns {', '.join(map(repr, item))}, and none holds numbers: give what the model "
            "takes, such as by a processor's or a tokenizer's output"
        )
    left_out = sorted(set(item) - set(chosen or numeric))
    said = [f"The model takes no {', '.join(map(repr, left_out))}: left out of the {name} set."] if left_out else []
    if not chosen:  # one column, whatever its name
        (only,) = numeric
        return lambda item: item[only], said
    return lambda item: {key: item[key] for key in chosen}, said


def _is_numeric(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except (TypeError, ValueError):
        return False


def _of_tuple(items: Any, first: Sequence[Any], given: Any, model: nn.Module, name: str) -> tuple[Any, list[str]]:
    """Examples of three parts and more: inputs before a label, or an input, its label and what is not needed."""
    _, required, _ = parameters_of(model)
    if required == len(first) - 1 and _is_label(first[-1]):
        return Pairs(items, lambda item: (tuple(item[:-1]), item[-1]), given), []
    if required == 1 and _is_label(first[1]):
        more = len(first) - 2
        said = [f"The last {more} of the {len(first)} parts of each {name} example are not used."]
        return Pairs(items, lambda item: (item[0], item[1]), given), said
    raise InputError(
        f"the {name} set has examples of {len(first)} parts, and the model takes {required}: say which is what, such "
        "as expunge.with_columns(dataset, (0, 1), 2)"
    )


def _is_label(value: Any) -> bool:
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iu"


def _class_names(given: Any, label: Any) -> Sequence[str]:
    """The names of the classes that a dataset tells: those of its own, or of a column of Hugging Face's."""
    features = getattr(given, "features", None)
    told = getattr(features[label], "names", None) if isinstance(features, Mapping) and label in features else None
    for names in (told, getattr(given, "class_names", None), getattr(given, "classes", None)):
        if isinstance(names, list | tuple) and names and all(isinstance(each, str) for each in names):
            return tuple(names)
    return ()
