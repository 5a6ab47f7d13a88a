"""Gradient checkpointing: the same steps, with each block run a second time for its gradient."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import expunge
from expunge.errors import SettingError
from tests.arrangements import state_bits

IMAGES = TensorDataset(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3)
TEXTS = [{"input_ids": torch.randint(1, 40, (9,)), "labels": n % 3} for n in range(8)]


def timm_model() -> tuple[nn.Module, Any, str]:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=2, embed_dim=24, num_heads=2)
    return model, IMAGES, "blocks.0"


def bert() -> tuple[nn.Module, Any, str]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    return transformers.BertForSequenceClassification(config), TEXTS, "bert.encoder.layer.0.attention"


@pytest.mark.parametrize("build", [timm_model, bert])
@pytest.mark.parametrize("method", ["targeted", "masked_distillation"])
def test_blocks_run_once_more_and_steps_are_the_same(build: Any, method: str) -> None:
    model, data, block = build()
    runs, found = [0], []
    model.get_submodule(block).register_forward_pre_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    for wanted in (False, True):
        torch.manual_seed(1)
        runs[0] = 0
        chosen = expunge.make_method(method, gradient_checkpointing=wanted, epochs=3, stop="budget")
        result = expunge.unlearn(model.eval(), data, method=chosen)
        found.append((result.trace.steps, runs[0], state_bits(result.model), result.model))
    (steps, plain, bits, _), (again, more, same, after) = found
    assert again == steps > 0
    assert more >= plain + steps
    assert same == bits
    assert not any("forward" in vars(m) or getattr(m, "grad_checkpointing", False) for m in after.modules())


def test_a_model_that_has_none_is_refused() -> None:
    chosen = expunge.make_method("targeted", gradient_checkpointing=True)
    with pytest.raises(SettingError, match="the model has none"):
        expunge.unlearn(nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)), IMAGES, method=chosen)


def test_batch_normalisation_is_refused() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=3)
    chosen = expunge.make_method("targeted", gradient_checkpointing=True)
    with pytest.raises(SettingError, match="twice"):
        expunge.unlearn(model, IMAGES, method=chosen)
