"""SalUn's mask and labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.errors import SettingError
from expunge.methods import make_method, salun
from expunge.methods.random_label import wrong_labels
from tests.arrangements import Arrangement, arrange, pairs


def moved(arrangement: Arrangement, **settings: Any) -> Tensor:
    """Which of all weights changed, flat."""
    model = arrangement.run(**settings).model
    both = zip(model.parameters(), arrangement.model.parameters(), strict=True)
    return torch.cat([(after != before).flatten() for after, before in both])


def forget_gradient(arrangement: Arrangement) -> Tensor:
    model = arrangement.model.eval()
    value = F.cross_entropy(model(arrangement.forget.inputs), arrangement.forget.labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "adam", "weight_decay": 0.1},
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda settings: settings["optimizer"])
@pytest.mark.parametrize("network", ["batch_norm", "layer_norm", "tied"])
def test_exactly_the_most_salient_weights_move(network: str, optimizer: dict[str, Any], tmp_path: Path) -> None:
    """Weight decay and momentum would move the others too: in the authors' code they long did."""
    arrangement = arrange("salun", network, tmp_path)
    size = forget_gradient(arrangement).abs()
    changed = moved(arrangement, share=0.1, epochs=4, batch_size=5, **optimizer)
    kept = int(0.1 * len(size))
    assert int(changed.sum()) == kept
    assert size[changed].min() >= size[~changed].max()


def test_the_whole_network_may_move(tmp_path: Path) -> None:
    assert moved(arrange("salun", "layer_norm", tmp_path), share=1.0).all()


def test_the_mask_does_not_depend_on_how_the_forget_set_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrangement = arrange("salun", "layer_norm", tmp_path)
    whole = moved(arrangement, epochs=1)
    monkeypatch.setattr("expunge.methods._inputs.MOST_AT_ONCE", 4)  # 4 and 2
    assert torch.equal(moved(arrangement, epochs=1), whole)


def test_labels_are_wrong_and_drawn_anew_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def watched(labels: Tensor, num_classes: int, rng: torch.Generator) -> Tensor:
        drawn.append(wrong_labels(labels, num_classes, rng))
        return drawn[-1]

    monkeypatch.setattr(salun, "wrong_labels", watched)
    arrangement = arrange("salun", "layer_norm", tmp_path)
    arrangement.forget = pairs(50, seed=8)
    arrangement.run(epochs=3, batch_size=20)
    assert len(drawn) == 3
    assert all((labels != arrangement.forget.labels).all() for labels in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(SettingError, match="share="):
        make_method("salun", share=share)


def test_published_settings() -> None:
    method = make_method("salun", preset="fan2024")
    assert (method.lr, method.momentum, method.weight_decay) == (0.013, 0.9, 5e-4)  # type: ignore[attr-defined]
    assert (method.share, method.epochs, method.retain_size) == (0.5, 10, None)  # type: ignore[attr-defined]
