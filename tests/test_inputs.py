"""Whatever holds examples, and models that take more than one tensor: each gives what a wrapper by hand gives."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

import expunge
from expunge.auditing.preparation import prepare
from expunge.data import Examples, calibration_side
from expunge.data.content import digests
from expunge.errors import InputError
from expunge.inputs import fitted
from expunge.methods import METHODS, make_method
from tests.arrangements import SHORT, read_by, state_bits

RNG = torch.Generator().manual_seed(0)
X = torch.rand(24, 6, generator=RNG)
Y = torch.arange(24) % 3
IDS = torch.randint(1, 20, (24, 8), generator=RNG)
LENGTHS = 3 + torch.arange(24) % 6
MASK = (torch.arange(8) < LENGTHS[:, None]).long()
METHOD = expunge.Targeted(lr=0.01, epochs=3)


class Net(nn.Module):
    """Numbers (B, 6) to logits of three classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 3)

    def forward(self, values: Tensor) -> Any:
        return self.layer(values)


class Text(nn.Module):
    """As models of transformers: by name, with an output that has `.logits`. Texts are averaged where the mask is 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Any = None) -> Any:
        mask = attention_mask[..., None].float()
        logits = self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1))
        return type("Output", (), {"logits": logits})()


class Two(nn.Module):
    """Numbers and a category."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(4, 2), nn.Linear(8, 3)

    def forward(self, numbers: Tensor, category: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([numbers, self.embed(category)], 1))
        return logits


class Whole(Two):
    """The same, of one dict that is an argument."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["numbers"], batch["category"])


class TextOfPlanes(nn.Module):
    """The wrapper by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Text()

    def forward(self, planes: Tensor) -> Tensor:
        ids, mask = planes.clamp(min=0).unbind(1)
        logits: Tensor = self.model(ids, mask).logits
        return logits


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y.tolist(), strict=True))


class Table:
    """A dataset of Hugging Face as far as it counts: rows by position, and features that name the classes."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.features = rows, {"label": type("ClassLabel", (), {"names": ["a", "b", "c"]})()}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


PAIRS = list(zip(X, Y.tolist(), strict=True))
FRAME = pd.DataFrame(X.numpy(), columns=list("abcdef"))
ONE_TENSOR: dict[str, Any] = {
    "list": PAIRS,
    "examples": Examples(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=5),
    "loader that shuffles": DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True),
    "loader of some": DataLoader(TensorDataset(torch.cat([X, X + 1]), torch.cat([Y, Y])), sampler=range(24)),
    "loader that draws some twice": DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler([1.0] * 24, 500)),
    "loader of batches": DataLoader(TensorDataset(X, Y), batch_sampler=[[*range(12)], [*range(12, 24)]]),
    "loader of a stream": DataLoader(Stream(), batch_size=5),
    "loader with a function": DataLoader(
        TensorDataset(X, Y),
        collate_fn=lambda items: {"x": torch.stack([x for x, _ in items]), "y": torch.tensor([y for _, y in items])},
    ),
    "stream": Stream(),
    "dicts": [{"image": x, "label": y} for x, y in PAIRS],
    "dicts with text": [{"image": x, "name": "a", "label": y} for x, y in PAIRS],
    "three parts": TensorDataset(X, Y, torch.arange(24)),
    "arrays": (X.numpy(), Y.numpy()),
    "tensors": (X, Y),
    "lists": (X.tolist(), Y.tolist()),
    "frame and series": (pd.DataFrame(X.numpy()), pd.Series(Y.numpy())),
    "frame with its label": FRAME.assign(label=Y.numpy()),
    "frame and the name of its label": (FRAME.assign(label=0).assign(sort=Y.numpy()).drop(columns="label"), "sort"),
    "columns of a frame": expunge.with_columns(FRAME.assign(name="a", sort=Y.numpy()), list("abcdef"), "sort"),
    "frame whose label is categories of numbers": FRAME.assign(label=pd.Categorical(Y.numpy())),
    "dict of columns": {"values": X, "label": Y},
    "table": Table([{"values": x.tolist(), "label": y} for x, y in PAIRS]),
    "columns by name": expunge.with_columns([{"a": x, "b": 1, "c": y} for x, y in PAIRS], "a", "c"),
    "columns by position": expunge.with_columns([(0, y, x) for x, y in PAIRS], 2, 1),
}


@pytest.mark.parametrize("name", ONE_TENSOR)
@pytest.mark.filterwarnings("ignore::expunge.ExpungeWarning")
def test_any_container_gives_the_same(name: str) -> None:
    wanted = expunge.unlearn(Net(), TensorDataset(X, Y), method=METHOD)
    found = expunge.unlearn(Net(), ONE_TENSOR[name], method=METHOD)
    assert state_bits(found.model) == state_bits(wanted.model)
    if name not in {"lists", "table"}:  # Python's numbers are in float64
        assert found.trace.forget_digest == wanted.trace.forget_digest
    assert expunge.accuracy(Net(), ONE_TENSOR[name]) == expunge.accuracy(Net(), TensorDataset(X, Y))


ROWS = [
    {"input_ids": ids[:n].tolist(), "attention_mask": [1] * n, "label": y}
    for ids, n, y in zip(IDS, LENGTHS.tolist(), Y.tolist(), strict=True)
]
FULL = [
    ({"input_ids": ids * mask, "attention_mask": mask}, y) for ids, mask, y in zip(IDS, MASK, Y.tolist(), strict=True)
]


def padded(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """What a collator of transformers does."""
    longest = max(len(item["input_ids"]) for item in items)
    fill = {"input_ids": 7, "attention_mask": 0}
    batch = {k: torch.tensor([item[k] + [pad] * (longest - len(item[k])) for item in items]) for k, pad in fill.items()}
    return {**batch, "labels": torch.tensor([item["label"] for item in items])}


TEXTS: dict[str, Any] = {
    "pairs of a dict, padded": FULL,
    "rows of lists": ROWS,
    "rows with text": [{**row, "text": "words", "idx": n} for n, row in enumerate(ROWS)],
    "table": Table(ROWS),
    "loader with a collator": DataLoader(ROWS, batch_size=4, shuffle=True, collate_fn=padded),  # type: ignore[arg-type]
    "columns": {"input_ids": IDS * MASK, "attention_mask": MASK, "labels": Y},
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.filterwarnings("ignore::expunge.ExpungeWarning")
def test_texts_give_what_a_wrapper_gives(name: str) -> None:
    planes = TensorDataset(torch.stack([IDS * MASK, MASK], 1), Y)
    wanted = expunge.unlearn(TextOfPlanes(), planes, method=METHOD).model.get_submodule("model")
    found = expunge.unlearn(Text(), TEXTS[name], method=METHOD).model
    assert isinstance(found, Text)
    for one, other in zip(found.parameters(), wanted.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_what_is_left_out_is_said() -> None:
    with pytest.warns(expunge.ExpungeWarning, match="no 'idx', 'text'"):
        expunge.unlearn(Text(), TEXTS["rows with text"], method=METHOD)
    with pytest.warns(expunge.ExpungeWarning, match="last 1 of the 3 parts"):
        expunge.unlearn(Net(), ONE_TENSOR["three parts"], method=METHOD)


def test_the_split_does_not_depend_on_how_long_the_others_are() -> None:
    short = [row for row in ROWS if len(row["input_ids"]) < 6]
    sets = [fitted(Text(), {"forget": rows}).sets["forget"] for rows in (short, ROWS)]
    at = torch.tensor([len(row["input_ids"]) < 6 for row in ROWS]).nonzero()[:, 0]
    assert digests(sets[0].inputs) == digests(sets[1].take(at).inputs)
    assert torch.equal(calibration_side(sets[0].inputs, 0), calibration_side(sets[1].inputs, 0)[at])


BOTH = [((x, int(c)), y) for x, c, y in zip(X, IDS[:, 0] % 4, Y.tolist(), strict=True)]
TWO_INPUTS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "pairs of a tuple": (Two, BOTH),
    "three parts": (Two, [(x, c, y) for (x, c), y in BOTH]),
    "dict by name": (Two, [({"category": c, "numbers": x}, y) for (x, c), y in BOTH]),
    "flat dict": (Two, [{"numbers": x, "category": c, "label": y} for (x, c), y in BOTH]),
    "one dict": (Whole, [({"category": c, "numbers": x}, y) for (x, c), y in BOTH]),
    "columns": (Two, ({"numbers": X, "category": IDS[:, 0] % 4}, Y)),
    "named": (Two, expunge.with_columns([(0, x, c, y) for (x, c), y in BOTH], (1, 2), 3)),
}


class TwoOfRows(nn.Module):
    """The wrapper by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Two()

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.model(rows[:, :6], rows[:, 6].long())
        return logits


@pytest.mark.parametrize("name", TWO_INPUTS)
def test_two_inputs_give_what_a_wrapper_gives(name: str) -> None:
    rows = TensorDataset(torch.cat([X, (IDS[:, :1] % 4).float()], 1), Y)
    wanted = expunge.unlearn(TwoOfRows(), rows, method=METHOD).model.get_submodule("model")
    kind, given = TWO_INPUTS[name]
    found = expunge.unlearn(kind(), given, method=METHOD).model
    assert type(found) is kind
    for one, other in zip(found.parameters(), wanted.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_half_precision_keeps_codes() -> None:
    """Codes above 256 have no bfloat16."""

    class Codes(Two):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(1000, 2)

    data = [((x, 700 + n), n % 3) for n, x in enumerate(X)]
    found = expunge.unlearn(Codes().bfloat16(), data, method=expunge.Targeted(lr=0.01, epochs=3, weight_decay=0.0))
    table, before = found.model.get_parameter("embed.weight"), Codes().bfloat16().embed.weight
    moved = table.ne(before).any(1).nonzero()[:, 0].tolist()
    assert moved == list(range(700, 724))


def test_half_precision_is_measured_on_whole_codes() -> None:
    class Codes(Two):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(1000, 2)

    model, codes = Codes().bfloat16(), torch.arange(700, 724)
    said = model(X.bfloat16(), codes).argmax(1).tolist()
    assert expunge.accuracy(model, list(zip(zip(X, codes.tolist(), strict=True), said, strict=True))) == 1


@pytest.mark.filterwarnings("ignore::expunge.ExpungeWarning")
def test_short_texts_are_filled_up_as_the_loader_does() -> None:
    class Sum(Text):
        def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
            logits: Tensor = self.head(self.embed(input_ids).sum(1))
            return logits

    model = Sum()
    said = model(padded(ROWS)["input_ids"]).argmax(1).tolist()
    rows = [{**row, "label": label} for row, label in zip(ROWS, said, strict=True)]
    assert expunge.accuracy(model, DataLoader(rows, batch_size=4, collate_fn=padded)) == 1  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::expunge.ExpungeWarning")
def test_labels_within_a_dict_do_not_reach_the_model() -> None:
    class Loss(Text):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Any = None) -> Any:
            assert labels is None
            return super().forward(input_ids, attention_mask)

    pairs = [({**each, "labels": label}, label) for each, label in FULL]
    assert expunge.accuracy(Loss(), pairs) == expunge.accuracy(Text(), FULL)


TABLES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "named label": lambda frame: (frame, "label"),
    "a column beside": lambda frame: (frame.drop(columns="label"), frame["label"]),
    "with_columns": lambda frame: expunge.with_columns(frame, [c for c in frame if c != "label"], "label"),
    "a subset": lambda frame: Subset(
        expunge.with_columns(frame, [c for c in frame if c != "label"], "label"), range(9)
    ),
}


@pytest.mark.parametrize("form", TABLES)
def test_columns_in_another_order_are_refused_and_other_names_told(form: str) -> None:
    """Which order is the model's nobody says: whoever is wrong would get other inputs in silence."""
    given, frame = TABLES[form], FRAME.assign(label=Y.numpy())
    test = pd.DataFrame(X.numpy() + 1, columns=list("abcdef")).assign(label=Y.numpy())
    turned = test[["b", "a", "c", "d", "e", "f", "label"]]
    with pytest.raises(InputError, match=r"columns a, b, c, d, e, f, and the test set b, a, c, d, e, f"):
        expunge.forget(Net(), given(frame), test=given(turned), method=METHOD)
    with pytest.raises(InputError, match=r"in the model's order"):
        expunge.audit(Net(), Net(), given(frame), given(turned))
    with pytest.warns(expunge.ExpungeWarning, match=r"by their places in the forget set: 'z' for 'a'"):
        renamed = expunge.forget(Net(), given(frame), test=given(test.rename(columns={"a": "z"})), method=METHOD)
    same = expunge.forget(Net(), given(frame), test=given(test), method=METHOD)
    assert state_bits(renamed.model) == state_bits(same.model)
    assert not any("places" in sentence for sentence in same.trace.warnings)


def test_two_columns_of_one_name_are_no_other_order() -> None:
    twice, unseen = (pd.DataFrame((X + n).numpy(), columns=list("abcdde")) for n in range(2))
    done = expunge.forget(Net(), (twice, pd.Series(Y.numpy())), test=(unseen, pd.Series(Y.numpy())), method=METHOD)
    plain = expunge.forget(Net(), (X.numpy(), Y.numpy()), test=((X + 1).numpy(), Y.numpy()), method=METHOD)
    assert state_bits(done.model) == state_bits(plain.model)


@pytest.mark.parametrize(
    "how", [{"replacement": True}, {"num_samples": 12}, {"replacement": True, "num_samples": 12}], ids=str
)
def test_a_loader_that_draws_others_each_time_is_refused(how: dict[str, Any]) -> None:
    """Nobody can tell which of its examples are to be forgotten."""
    data = TensorDataset(X, Y)
    for drawn in (
        DataLoader(data, sampler=RandomSampler(data, **how)),
        DataLoader(data, batch_sampler=Batches(RandomSampler(data, **how))),
    ):
        with pytest.raises(InputError, match=r"draws other examples each time; give its dataset"):
            expunge.unlearn(Net(), drawn, method=METHOD)


class Batches:
    """A sampler's draws, as batches of four."""

    def __init__(self, sampler: RandomSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        drawn = list(self.sampler)
        return iter([drawn[n : n + 4] for n in range(0, len(drawn), 4)])


def many(num: int) -> tuple[list[Any], list[Any]]:
    """Texts of several lengths, and examples of two inputs."""
    rng = torch.Generator().manual_seed(1)
    texts = [torch.randint(1, 20, (3 + n % 6,), generator=rng).tolist() for n in range(num)]
    both = [((torch.rand(6, generator=rng), n % 4), n % 3) for n in range(num)]
    return [{"input_ids": t, "attention_mask": [1] * len(t), "label": n % 3} for n, t in enumerate(texts)], both


@pytest.mark.parametrize(("kind", "data"), list(zip((Text, Two), many(90), strict=True)), ids=["text", "two inputs"])
@pytest.mark.filterwarnings("ignore::expunge.ExpungeWarning")
def test_forget_audits_and_gives_back_the_users_model(kind: Callable[[], nn.Module], data: Any) -> None:
    done = expunge.forget(kind(), data[:9], test=data[9:], method=expunge.Calibrated(epochs=2))
    assert type(done.model) is kind
    assert done.report is not None
    assert done.report.audit is not None
    assert done.trace.change.by_layer.keys() <= {name for name, _ in done.model.named_modules()}
    again = expunge.audit(kind(), done.model, data[:9], data[9:])
    assert again.num_test == done.report.audit.num_test < 81
    assert (again.verdict, again.attacks_after) == (done.report.audit.verdict, done.report.audit.attacks_after)


FAMILIES = {
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "roberta": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "electra": {"hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 0},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::expunge.ExpungeWarning")
def test_text_classifiers_of_transformers_in_one_line(family: str) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, vocab_size=40, num_labels=3, **FAMILIES[family])
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()  # type: ignore[no-untyped-call]
    texts, _ = many(90)
    done = expunge.forget(model, texts[:9], test=texts[9:])
    assert type(done.model) is type(model)
    row = texts[0]
    alone = done.model.eval()(**{k: torch.tensor([row[k]]) for k in ("input_ids", "attention_mask")}).logits
    fit = fitted(done.model, {"forget": texts})
    packed = fit.around(done.model)(fit.sets["forget"].inputs[:20]).logits[:1]  # beside longer ones
    assert torch.allclose(alone, packed, atol=1e-5)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"amnesiac_undo"}))
@pytest.mark.parametrize("kind", [Text, Two])
@pytest.mark.filterwarnings("ignore::expunge.ExpungeWarning")
def test_every_method_runs_on_texts_and_on_two_inputs(kind: Callable[[], nn.Module], method: str) -> None:
    data = many(90)[kind is Two]
    chosen = make_method(method, **SHORT[method])

    def fresh() -> nn.Module:
        network = kind()
        for parameter in network.parameters():
            parameter.data.mul_(0.5)
        return network

    given = read_by(chosen, retain=data[9:30], test=data[30:], factory=fresh)
    model = kind()
    found = expunge.unlearn(model, data[:9], method=chosen, **given).model
    assert state_bits(model) == state_bits(kind())
    assert found.state_dict().keys() == model.state_dict().keys()
    assert state_bits(found) != state_bits(model)
    assert all(p.requires_grad for p in found.parameters())
    assert not any(module._forward_hooks for module in found.modules())
    again = expunge.unlearn(model, data[:9], method=chosen, **given).model
    assert state_bits(found) == state_bits(again)


def test_ids_are_those_of_the_parent_or_the_paths() -> None:
    class Folder(Dataset[Any]):
        root, samples = "/data", [(f"/data/cat/{n}.png", 0) for n in range(24)]

        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> Any:
            return PAIRS[index]

    assert prepare(Subset(Folder(), [3, 5]), TensorDataset(X[10:], Y[10:])).ids == ("cat/3.png", "cat/5.png")
    assert prepare(Subset(TensorDataset(X, Y), [3, 5])).ids == ("3", "5")
    assert prepare(Examples(X, Y, ids=tuple("abcdefghijklmnopqrstuvwx"))).ids == tuple("abcdefghijklmnopqrstuvwx")


class Gives(Net):
    """A network with an output of another form."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, values: Tensor) -> Any:
        return self.form(self.layer(values))


FORMS: dict[str, Callable[[Tensor], Any]] = {
    ".logits": lambda z: type("Output", (), {"logits": z, "aux_logits": z + 1})(),
    "dict": lambda z: {"features": z[:, :1], "logits": z},
    "dict of one": lambda z: {"out": z},
    "tuple": lambda z: (z, z.repeat(1, 5)),
    "maps": lambda z: z[..., None, None],
}


@pytest.mark.parametrize("name", FORMS)
def test_outputs_of_any_form(name: str) -> None:
    wanted = expunge.unlearn(Net(), PAIRS, method=METHOD)
    found = expunge.unlearn(Gives(FORMS[name]), PAIRS, method=METHOD)
    assert state_bits(found.model) == state_bits(wanted.model)


class Outputs(NamedTuple):
    """As torchvision's."""

    logits: Tensor
    aux: Tensor


def test_auxiliary_heads_in_train_mode() -> None:
    """GoogLeNet and Inception give logits in eval mode, and more beside them in train mode."""

    class Auxiliary(Net):
        def forward(self, values: Tensor) -> Any:
            logits = self.layer(values)
            return Outputs(logits, logits * 2) if self.training else logits

    wanted = expunge.unlearn(Net(), PAIRS, method=METHOD)
    assert state_bits(expunge.unlearn(Auxiliary(), PAIRS, method=METHOD).model) == state_bits(wanted.model)


@pytest.mark.parametrize("form", ["plain", "torch", "numpy", "stream"])
@pytest.mark.filterwarnings("ignore::expunge.ExpungeWarning")
def test_datasets_of_hugging_face(form: str) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    labels = datasets.ClassLabel(names=["a", "b", "c"])
    features = datasets.Features({"values": datasets.Sequence(datasets.Value("float32")), "label": labels})
    data = datasets.Dataset.from_dict({"values": X.tolist(), "label": Y.tolist()}, features=features)
    given = data.to_iterable_dataset() if form == "stream" else data if form == "plain" else data.with_format(form)
    wanted = expunge.unlearn(Net(), TensorDataset(X, Y), method=METHOD)
    assert state_bits(expunge.unlearn(Net(), given, method=METHOD).model) == state_bits(wanted.model)
    named = Net()
    named.class_names = ("c", "a", "b")  # type: ignore[assignment]
    if form != "stream":  # which tells its features, too, but no column of them until it is read
        with pytest.warns(expunge.ExpungeWarning, match="matched by name"):
            expunge.unlearn(named, given, method=METHOD)


def test_outputs_that_cannot_be_told_are_refused_with_the_way() -> None:
    odd = Gives(lambda z: (z.repeat(1, 5), z))
    with pytest.raises(InputError, match="WithOutput"):
        expunge.unlearn(odd, PAIRS, method=METHOD)
    found = expunge.unlearn(expunge.WithOutput(odd, lambda output: output[1]), PAIRS, method=METHOD)
    assert state_bits(found.model.get_submodule("model")) == state_bits(
        expunge.unlearn(Net(), PAIRS, method=METHOD).model
    )
    for bad in (lambda z: None, lambda z: z.argmax(1), lambda z: {"a": z, "b": z}):
        with pytest.raises(InputError, match="must return logits"):
            expunge.unlearn(Gives(bad), PAIRS, method=METHOD)


class Once:
    """A stream that ends for good."""

    def __init__(self) -> None:
        self.items = iter(PAIRS)

    def __iter__(self) -> Iterator[Any]:
        return self.items


REFUSED: dict[str, tuple[nn.Module, Any, str]] = {
    "no label": (Net(), [{"a": x, "b": 1} for x in X], "'a', 'b'.*with_columns"),
    "two labels": (Net(), [{"a": x, "label": 1, "target": 1} for x in X], "'label' and 'target'"),
    "nothing in numbers": (Net(), [{"text": "words", "label": 1}], "tokenizer"),
    "pictures": (Net(), [{"image": object(), "label": 1}], "none holds numbers"),
    "splits": (Net(), {"train": Table(ROWS), "test": Table(ROWS)}, "train, test"),
    "no mask": (Text(), [{k: v for k, v in row.items() if k != "attention_mask"} for row in ROWS], "attention_mask"),
    "another structure": (Two(), [BOTH[0], ({"numbers": X[0]}, 1)], "not built as the first"),
    "NaN": (Two(), [((x * torch.nan, c), y) for (x, c), y in BOTH], "NaN"),
    "large codes": (Two(), [((x, 2**30), y) for (x, _), y in BOTH], "16,777,216"),
    "columns of two lengths": (Net(), {"values": X, "label": Y[:5]}, "one length"),
    "once": (Net(), Once(), "only once"),
    "too many parts": (Net(), [(x, x, x, y) for x, y in PAIRS], "with_columns"),
    "frame without a label": (Net(), FRAME, r"'f'.*\(table, "),
    "frame without this label": (Net(), (FRAME.assign(label=0), "sort"), "no column is called sort"),
    "one-hot labels": (Net(), (X, torch.eye(3)[Y]), r"\(24,\), not \(24, 3\).*argmax"),
    "truth values": (Net(), (X, Y == 1), r"bool.*astype\(int\)"),
    "names for labels": (Net(), (FRAME, pd.Series(["a", "b", "c"] * 8, dtype="category")), r"str.*map"),
    "no such column": (Net(), lambda: expunge.with_columns([{"a": 1}], "b", "a"), "no column 'b'.*'a'"),
    "numbers of two lengths": (Two(), [((x[: 5 + n % 2], 1), 0) for n, x in enumerate(X)], "several lengths"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_refused_in_one_line(name: str) -> None:
    model, given, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as caught:
        expunge.unlearn(model, given() if callable(given) else given, method=METHOD)
    assert "\n" not in str(caught.value)


def test_random_inputs_are_refused_in_any_container() -> None:
    class Random(Table):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"numbers": X[index] + torch.rand(6), "category": 1, "label": 0}

    with pytest.raises(InputError, match="without_transforms"):
        expunge.unlearn(Two(), Random(ROWS), method=METHOD)


def test_sets_must_be_of_one_form() -> None:
    with pytest.raises(InputError, match="one form"):
        expunge.unlearn(Two(), BOTH[:6], retain=TensorDataset(X, Y), method="finetune")


class Heads(nn.Module):
    """Two heads in train mode, in either order, and one in eval mode."""

    def __init__(self, own: int, named: bool = False) -> None:
        super().__init__()
        self.named = named
        torch.manual_seed(0)
        self.body, self.main, self.other, self.own = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 3), own

    def forward(self, values: Tensor) -> Any:
        values = torch.relu(self.body(values))
        if not self.training:
            return self.main(values)
        heads = [self.other(values), self.other(values)]
        heads[self.own] = self.main(values)
        return {"aux": heads[0], "out": heads[1]} if self.named else tuple(heads)


def test_the_head_that_counts_is_trained_or_the_model_is_refused() -> None:
    for model in (Heads(0), expunge.WithOutput(Heads(1), lambda o: o[1] if isinstance(o, tuple) else o)):
        heads = model if isinstance(model, Heads) else model.model
        after = expunge.unlearn(model, (X, Y), method=METHOD).model
        moved = after if isinstance(after, Heads) else after.model
        assert isinstance(heads, Heads)
        assert isinstance(moved, Heads)
        assert not torch.equal(moved.main.weight, heads.main.weight)
        assert torch.equal(moved.other.weight, heads.other.weight)
    with pytest.raises(InputError, match=r"output\[1\] if isinstance\(output, tuple\)"):
        expunge.unlearn(Heads(1), (X, Y), method=METHOD)


def test_of_heads_by_name_the_one_that_counts_is_said() -> None:
    with pytest.raises(InputError) as caught:
        expunge.unlearn(Heads(1, named=True), (X, Y), method=METHOD)
    (line,) = re.findall(r"expunge\.WithOutput\(model, (lambda .*)\)$", str(caught.value))
    wrapped = expunge.WithOutput(Heads(1, named=True), eval(line))  # noqa: S307 - the line that a user copies
    moved = expunge.unlearn(wrapped, (X, Y), method=METHOD).model.get_submodule("model.main")
    plain = expunge.unlearn(Heads(0), (X, Y), method=METHOD).model.get_submodule("main")
    assert state_bits(moved) == state_bits(plain)


class Named(TensorDataset):
    """Examples whose classes have names, as an ImageFolder gives them."""

    def __init__(self, inputs: Tensor, labels: Tensor, classes: list[str]) -> None:
        super().__init__(inputs, labels)
        self.classes = classes


def test_sets_that_number_the_same_names_otherwise_are_matched() -> None:
    """A folder of the forgotten images alone may lack classes, and so give others their numbers."""
    more = torch.rand(90, 6, generator=torch.Generator().manual_seed(1))
    unseen = Named(more, torch.arange(90) % 3, ["ant", "bee", "cow"])
    few = Named(X[:3], torch.tensor([0, 0, 1]), ["bee", "cow"])
    with pytest.warns(expunge.ExpungeWarning, match="classes of the test set"):
        found = expunge.unlearn(Net(), few, test=unseen, method="calibrated")
    wanted = expunge.unlearn(Net(), (X[:3], torch.tensor([1, 1, 2])), test=unseen, method="calibrated")
    assert state_bits(found.model) == state_bits(wanted.model)
    with pytest.raises(InputError, match=r"test set.*'elk'"):
        expunge.unlearn(Net(), Named(X[:2], torch.tensor([0, 1]), ["bee", "elk"]), test=unseen, method="calibrated")
