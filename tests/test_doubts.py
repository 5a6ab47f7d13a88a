"""What is odd about a model or its labels, and would pass in silence, is said."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

import expunge
from expunge.data import ImageSet, as_numbered, load_data
from expunge.doubts import doubts_of_scale, whole_classes
from expunge.errors import ExpungeWarning, InputError
from expunge.methods import make_method
from expunge.models import class_names_of, load_model
from tests.conftest import pixels, succeed

CLASSES = 6
CENTRES = 3 * torch.randn(CLASSES, 10, generator=torch.Generator().manual_seed(9))
BRIEF = make_method("targeted", epochs=1, lr=1e-6)


def blobs(size: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (size,), generator=rng)
    return CENTRES[labels] + torch.randn(size, 10, generator=rng), labels


X, Y = blobs(300, 0)
U, V = blobs(300, 1)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    adam = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(100):
        adam.zero_grad()
        F.cross_entropy(made(X), Y).backward()
        adam.step()
    return made.eval()


def warned(model: nn.Module, data: Dataset[Any], method: Any = BRIEF, **given: Any) -> str:
    return " | ".join(expunge.unlearn(model, data, method=method, **given).trace.warnings)


def test_labels_in_another_order_are_told(net: nn.Module) -> None:
    order = torch.tensor([0, 1, 3, 4, 5, 2])
    said = warned(net, TensorDataset(X[:100], order[Y[:100]]))
    assert "order" in said
    assert "2 as 5" in said
    assert "order" not in warned(net, TensorDataset(X[:100], Y[:100]))
    assert "right" not in warned(net, TensorDataset(X[:100], Y[:100]))


def test_a_model_that_knows_none_of_its_examples_is_told(net: nn.Module) -> None:
    """Whatever the cause: no other order makes these right."""
    noise = torch.randint(0, CLASSES, (100,), generator=torch.Generator().manual_seed(2))
    said = warned(net, TensorDataset(X[:100], noise))
    assert "sure" in said
    assert "order" not in said
    fresh = copy.deepcopy(net)
    torch.nn.init.zeros_(fresh[2].weight)  # type: ignore[index]
    assert "sure" not in warned(fresh, TensorDataset(X[:100], noise)), "it is sure of nothing"


def test_two_odd_examples_are_no_sign(net: nn.Module) -> None:
    labels = Y[:30].clone()
    labels[:2] = (labels[:2] + 1) % CLASSES
    for part in (slice(0, 2), slice(0, 30)):
        assert "sure" not in warned(net, TensorDataset(X[part], labels[part]))


def test_the_audit_tells_of_labels_and_of_whole_classes(net: nn.Module) -> None:
    order = torch.tensor([0, 1, 3, 4, 5, 2])
    with pytest.warns(ExpungeWarning, match="test examples right.*order"):
        done = expunge.forget(net, TensorDataset(X[:60], Y[:60]), test=TensorDataset(U, order[V]), method=BRIEF)
    assert any("order" in line for line in done.trace.warnings)
    assert done.report is not None
    assert "another order" in done.report.page()
    whole = (Y == 3).nonzero()[:, 0]
    with pytest.warns(ExpungeWarning, match=r"Without class 3.*%"):
        expunge.forget(net, TensorDataset(X[whole], Y[whole]), test=TensorDataset(U, V), method=BRIEF)


def test_a_class_that_is_forgotten_as_a_whole_is_told(net: nn.Module) -> None:
    whole = (Y == 3).nonzero()[:, 0]
    assert "class 3" in warned(net, TensorDataset(X[whole], Y[whole]))
    assert "class" not in warned(net, TensorDataset(X[whole[:5]], Y[whole[:5]]))
    retain = TensorDataset(X[Y != 3], Y[Y != 3])
    mixed = TensorDataset(torch.cat([X[whole], U[:9] + 0.5]), torch.cat([Y[whole], V[:9]]))
    finetune = make_method("finetune", epochs=1)
    assert "class 3 " in warned(net, mixed, finetune, retain=retain)
    half = TensorDataset(X[whole[: len(whole) // 2]], Y[whole[: len(whole) // 2]])
    rest = [n for n in range(len(X)) if n not in whole[: len(whole) // 2].tolist()]
    assert "class" not in warned(net, half, finetune, retain=TensorDataset(X[rest], Y[rest]))
    assert whole_classes(torch.tensor([1, 2]), torch.tensor([0] * 19), 2) == []
    assert whole_classes(torch.tensor([1, 2]), torch.tensor([0] * 20 + [2] * 10), 3) == [1]


def test_a_pruned_model_that_loses_its_zeros_is_told(net: nn.Module) -> None:
    pruned = copy.deepcopy(net)
    prune.l1_unstructured(pruned[0], "weight", 0.5)  # type: ignore[index]
    prune.remove(pruned[0], "weight")  # type: ignore[index]
    data = TensorDataset(X[:30], Y[:30])
    assert "zero" in warned(pruned, data, make_method("targeted", epochs=2))
    assert "zero" not in warned(pruned, data, make_method("targeted", epochs=0))
    assert "zero" not in warned(net, data, make_method("targeted", epochs=2))


class Halved(nn.Module):
    """A layer of integers, as quantisation leaves it, and one of floats."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.codes = nn.Parameter((net[0].weight * 32).round().to(torch.int8), requires_grad=False)
        self.bias, self.head = net[0].bias, net[2]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(F.linear(x, self.codes.to(x) / 32, self.bias)))
        return logits


def test_layers_that_cannot_change_are_told(net: nn.Sequential) -> None:
    data = TensorDataset(X[:30], Y[:30])
    assert "quantised" in warned(Halved(copy.deepcopy(net)), data)
    assert "quantised" not in warned(net, data)


class Named(TensorDataset):
    """As torchvision's datasets are: with names of classes."""

    def __init__(self, x: Tensor, y: Tensor, names: Sequence[str]) -> None:
        super().__init__(x, y)
        self.classes = list(names)
        self.class_to_idx = {name: n for n, name in enumerate(names)}


def test_classes_are_matched_by_name_where_both_have_names(net: nn.Module) -> None:
    model = copy.deepcopy(net)
    names = [f"c{n}" for n in range(CLASSES)]
    model.class_names = tuple(names)  # type: ignore[assignment]
    turned = torch.tensor([0, 1, 3, 4, 5, 2])
    theirs = [names[n] for n in turned.argsort().tolist()]
    data, test = Named(X, turned[Y], theirs), Named(U, turned[V], theirs)
    parts: list[Dataset[Any]] = [Subset(data, range(90)), Subset(data, range(90, 99))]
    for given in (data, parts[0], ConcatDataset(parts)):
        said = warned(model, given)
        assert "by name" in said
        assert "right" not in said
    with pytest.warns(ExpungeWarning, match="by name"):
        done = expunge.forget(model, Subset(data, range(90)), test=test, method=BRIEF)
    assert done.before.forget_accuracy > 0.9
    assert done.before.test_accuracy is not None
    assert done.before.test_accuracy > 0.9
    assert "name" not in warned(model, Named(X, Y, names))
    assert "name" not in warned(model, Named(X, Y, ["other"] * 2))
    with pytest.raises(InputError, match="'new'"):
        warned(model, Named(X, Y, ["c1", "new"]))
    with pytest.raises(InputError, match="no name"):
        warned(model, Named(X, Y, ["c1", "c0"]))
    images = ImageSet(pixels(2), torch.tensor([0, 1]), ("b", "a"))
    assert as_numbered(images, ("a", "b"), "forget")[0].labels.tolist() == [1, 0]  # type: ignore[attr-defined]


def test_the_audit_matches_classes_by_name_in_every_set(net: nn.Module) -> None:
    model = copy.deepcopy(net)
    names = [f"c{n}" for n in range(CLASSES)]
    model.class_names = tuple(names)  # type: ignore[assignment]
    turned = torch.tensor([0, 1, 3, 4, 5, 2])
    theirs = [names[n] for n in turned.argsort().tolist()]
    plain = TensorDataset(X[:90], Y[:90]), TensorDataset(U, V), TensorDataset(X[90:], Y[90:])
    other = Named(X[:90], turned[Y[:90]], theirs), Named(U, turned[V], theirs), Named(X[90:], turned[Y[90:]], theirs)
    expected = expunge.audit(net, net, plain[0], plain[1], retain=plain[2])
    with pytest.warns(ExpungeWarning, match="by name") as caught:
        found = expunge.audit(model, model, other[0], other[1], retain=other[2])
    assert (found.before, found.scores_after) == (expected.before, expected.scores_after)
    assert found.before.retain_accuracy is not None
    assert found.before.retain_accuracy > 0.9
    for part in ("forget", "test", "retain"):
        assert any(f"{part} set were matched by name" in str(each.message) for each in caught)
        assert any(f"{part} set were matched by name" in line for line in found.caveats)
    with pytest.raises(InputError, match="'new'"):
        expunge.audit(model, model, plain[0], Named(U, V, ["c1", "new"]))
    with pytest.warns(ExpungeWarning, match="another order"):  # without names the order can only be said
        expunge.audit(net, net, TensorDataset(X[:90], turned[Y[:90]]), TensorDataset(U, turned[V]))


def test_a_models_names_are_those_of_its_file(trained: Path, net: nn.Module) -> None:
    model, header = load_model(trained)
    assert class_names_of(model) == header.class_names
    assert class_names_of(net) == ()
    wrapped = nn.Sequential(copy.deepcopy(net))
    for labels, names in (({0: "a", 1: "b"}, ("a", "b")), ({0: "LABEL_0", 1: "LABEL_1"}, ())):
        wrapped[0].config = type("Config", (), {"id2label": labels})()
        assert class_names_of(wrapped) == names


def test_the_command_audit_tells_of_labels(tmp_path: Path, trained: Path) -> None:
    for name, split in (("forget", "train"), ("test", "test")):
        images = load_data(f"sample:{split}")
        labels = (images.labels[:300] + 1) % 10
        save_file({"images": images.images[:300].clone(), "labels": labels}, tmp_path / f"{name}.safetensors")
    sets = [part for name in ("forget", "test") for part in (f"--{name}", f"safetensors:{tmp_path}/{name}.safetensors")]
    said = succeed("audit", "--before", trained, "--after", trained, *sets, "--out", tmp_path / "out")
    assert "another order" in said
    assert "another order" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


class OneLogit(nn.Module):
    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.flat = nn.Linear(10, 1), flat

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layer(x)
        return z[:, 0] if self.flat else z


@pytest.mark.parametrize("flat", [False, True])
def test_a_model_of_one_logit_is_two_classes(flat: bool) -> None:
    data = TensorDataset(X[:30], Y[:30] % 2)
    two, method = expunge.TwoClasses(OneLogit(flat)), make_method("targeted", lr=0.1, epochs=50)
    z = OneLogit()(X)[:, 0]
    assert torch.allclose(two(X).softmax(1)[:, 1], z.sigmoid())
    wrapped = expunge.unlearn(two, data, method=method)
    assert wrapped.trace.forget_accuracy_after < wrapped.trace.forget_accuracy_before
    assert isinstance(wrapped.model.model, OneLogit)
    floats = [(x, float(label)) for x, label in zip(*data.tensors, strict=True)]  # as the loss of one logit takes them
    for given in (data, floats):
        done = expunge.unlearn(OneLogit(flat), given, method=method)
        assert isinstance(done.model, OneLogit)
        assert torch.allclose(done.model.layer.weight, wrapped.model.model.layer.weight)
    test = TensorDataset(X[30:], Y[30:] % 2)
    reports = [
        expunge.audit(before, after, data, test) for before, after in ((two, wrapped.model), (two.model, done.model))
    ]
    assert reports[0].attacks_before == reports[1].attacks_before


@pytest.mark.parametrize("flat", [False, True])
def test_a_probability_is_no_logit(flat: bool) -> None:
    data, test = TensorDataset(X[:30], Y[:30] % 2), TensorDataset(X[30:], Y[30:] % 2)
    net = nn.Sequential(OneLogit(), nn.Sigmoid(), *([nn.Flatten(0)] if flat else []))
    with pytest.raises(InputError, match="sigmoid"):
        expunge.unlearn(net, data, method=BRIEF)
    net.eval()
    with pytest.raises(InputError, match="sigmoid"):
        expunge.audit(net, net, data, test)
    assert not net.training
    logits = expunge.WithOutput(net, lambda p: torch.logit(p, 1e-6))
    assert expunge.accuracy(logits, data) == expunge.accuracy(OneLogit(), data)
    gated = nn.Sequential(nn.Linear(10, 4), nn.Sigmoid(), nn.Linear(4, 1))  # as a layer within, it may be there
    assert expunge.unlearn(gated, data, method=BRIEF).trace.steps


def test_models_of_several_labels_are_refused_with_what_to_do() -> None:
    labels = torch.stack([Y % 2, Y % 3]).T
    model = nn.Linear(10, 2)
    with pytest.raises(InputError, match="TwoClasses"):
        expunge.unlearn(model, TensorDataset(X[:30], labels[:30]))
    model.config = type("Config", (), {"problem_type": "multi_label_classification"})()
    with pytest.raises(InputError, match="TwoClasses"):
        expunge.unlearn(model, TensorDataset(X[:30], labels[:30, 0]))
    for label in (0, 1):
        two = expunge.TwoClasses(model, label)
        assert torch.equal(two(X)[:, 1], model(X)[:, label])
        assert expunge.unlearn(two, TensorDataset(X[:30], labels[:30, 0]), method=BRIEF).trace.steps
    with pytest.raises(InputError, match="no label 2"):
        expunge.TwoClasses(model, 2)(X)


ROWS: dict[str, tuple[Tensor, bool]] = {
    "as they are": (U, False),
    "one class": (U[V == 0], False),
    "in thousandths": (U * 1000, True),
    "moved": (U + 100, True),
}
PICTURES = pixels(200).float() / 255
IMAGES: dict[str, tuple[Tensor, Tensor, bool]] = {
    "alike": (PICTURES[:40], PICTURES[40:], False),
    "one of them": (PICTURES[:1], PICTURES[40:], False),
    "bytes and floats": (pixels(40), PICTURES[40:], False),
    "dark and bright": (PICTURES[:40] / 4, 0.6 + PICTURES[40:] / 3, False),
    "in [0, 255]": (PICTURES[:40], 255 * PICTURES[40:], True),
    "bytes and floats in [0, 255]": (pixels(40), 255 * PICTURES[40:], True),
    "normalised": (PICTURES[:40], (PICTURES[40:] - 0.45) / 0.27, True),
    "all normalised": ((PICTURES[:40] - 0.45) / 0.27, (PICTURES[40:] - 0.45) / 0.27, False),
}


@pytest.mark.parametrize("name", [*ROWS, *IMAGES])
def test_inputs_on_another_scale_are_told(name: str) -> None:
    forget, other, differ = (X[:40], *ROWS[name]) if name in ROWS else IMAGES[name]
    for one, two in ((forget, other), (other, forget)):
        assert len(list(doubts_of_scale(one, two, "test"))) == differ


def test_any_part_of_a_table_may_be_forgotten() -> None:
    for column in range(X.shape[1]):
        for part in (X[:, column].argsort()[:20], X[:, column].argsort()[-20:]):
            assert not list(doubts_of_scale(X[part], U, "test"))
            assert not list(doubts_of_scale(X[part, column, None], U[:, column, None], "test"))


def test_a_scaled_table_is_told_beside_one_as_it_was() -> None:
    ages = torch.randint(18, 80, (300, 1)).float()
    table = torch.cat([ages, 3e4 + 1e4 * torch.randn(300, 1), torch.rand(300, 1)], 1)
    scaled = (table - table.mean(0)) / table.std(0)
    for one, two, differ in ((table, scaled, 1), (scaled, table, 1), (table, table, 0), (scaled, scaled, 0)):
        assert len(list(doubts_of_scale(one[:40], two[40:], "test"))) == differ


@pytest.mark.parametrize("label", range(10))
def test_a_class_of_real_images_is_on_no_other_scale(label: int) -> None:
    train, test = load_data("sample:train"), load_data("sample:test")
    of_it = (train.labels == label).nonzero()[:, 0]
    for num in (1, 3, 200):
        assert not list(doubts_of_scale(train.images[of_it[:num]], test.images, "test"))


@pytest.mark.parametrize("role", ["test", "retain", "unlabelled"])
def test_a_set_on_another_scale_is_told_once_and_in_the_report(net: nn.Module, role: str) -> None:
    method: Any = {"test": BRIEF, "retain": make_method("finetune", epochs=1), "unlabelled": "held_boundary"}[role]
    given: dict[str, Any] = {"test": TensorDataset(U, V)} if role != "unlabelled" else {}
    given |= {
        role: {"test": TensorDataset(U * 1000, V), "retain": TensorDataset(X[40:] * 1000, Y[40:])}.get(role, U * 1000)
    }
    done = expunge.forget(net, TensorDataset(X[:40], Y[:40]), method=method, **given)
    told = [line for line in done.trace.warnings if f"inputs of the {role} set are on another scale" in line]
    assert len(told) == 1


def test_retained_examples_that_the_model_does_not_know_are_told(net: nn.Module) -> None:
    wrong = TensorDataset(X[40:], (Y[40:] + 1) % CLASSES)
    with pytest.warns(ExpungeWarning, match=r"of the retained examples right"):
        expunge.audit(net, net, TensorDataset(X[:40], Y[:40]), TensorDataset(U, V), retain=wrong)
