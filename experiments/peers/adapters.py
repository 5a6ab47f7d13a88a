"""What a user writes to forget with each library: one function a method, which the table counts the lines of.

Each is handed the trained network, in eval mode, and a `Job`; it returns the network that has forgotten. Settings are
the library's own. Ours is called by `unlearn`; `forget`, which also audits, takes as many lines. torchunlearn leaves
the optimizer to the user, so it gets the one of its README. Batches are of 128, as there, wherever the user makes the
loader.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from experiments.peers.job import BATCH, CLASSES, Job


def expunge_calibrated(model: nn.Module, job: Job) -> Any:
    import expunge

    return expunge.unlearn(model, job.forget, test=job.test).model


def expunge_held_boundary(model: nn.Module, job: Job) -> Any:
    import expunge

    return expunge.unlearn(model, job.forget).model


def expunge_targeted(model: nn.Module, job: Job) -> Any:
    import expunge

    method = expunge.make_method("targeted", preset="paper")
    return expunge.unlearn(model, job.forget, method=method).model


def torchunlearn_neg_grad(model: nn.Module, job: Job) -> Any:
    from torchunlearn import RobModel
    from torchunlearn.unlearn import NegGrad
    from torchunlearn.utils.data import MergedLoaders

    loaders = MergedLoaders({"Forget": DataLoader(job.forget, BATCH, shuffle=True)})
    trainer = NegGrad(RobModel(model, n_classes=CLASSES))
    trainer.setup(optimizer="SGD(lr=0.01, momentum=0.9, weight_decay=5e-4)", n_epochs=5)
    trainer.fit(train_loaders=loaders, n_epochs=5)
    return trainer.rmodel.model


def torchunlearn_random_label(model: nn.Module, job: Job) -> Any:
    from torchunlearn import RobModel
    from torchunlearn.unlearn import RandomLabel
    from torchunlearn.utils.data import MergedLoaders

    loaders = MergedLoaders({"Forget": DataLoader(job.forget, BATCH, shuffle=True)})
    trainer = RandomLabel(RobModel(model, n_classes=CLASSES))
    trainer.setup(optimizer="SGD(lr=0.01, momentum=0.9, weight_decay=5e-4)", n_epochs=5)
    trainer.fit(train_loaders=loaders, n_epochs=5)
    return trainer.rmodel.model


def torchunlearn_mu_mis(model: nn.Module, job: Job) -> Any:
    from torchunlearn import RobModel
    from torchunlearn.unlearn import MUMis

    trainer = MUMis(RobModel(model, n_classes=CLASSES))
    trainer.setup(optimizer="SGD(lr=0.01, momentum=0.9, weight_decay=5e-4)", n_epochs=5)
    trainer.fit(train_loaders=DataLoader(job.forget, BATCH, shuffle=True), n_epochs=5)
    return trainer.rmodel.model


def torchunlearn_bad_teacher(model: nn.Module, job: Job) -> Any:
    from torchunlearn import RobModel
    from torchunlearn.unlearn import BadTeacher
    from torchunlearn.utils.data import MergedLoaders

    forget = DataLoader(job.forget, BATCH, shuffle=True)
    loaders = MergedLoaders({"Retain": DataLoader(job.retain, BATCH, shuffle=True), "Forget": forget})
    trainer = BadTeacher(RobModel(model, n_classes=CLASSES))
    trainer.setup(optimizer="SGD(lr=0.01, momentum=0.9, weight_decay=5e-4)", n_epochs=5)
    trainer.fit(train_loaders=loaders, n_epochs=5)
    return trainer.rmodel.model


def torchunlearn_boundary_shrink(model: nn.Module, job: Job) -> Any:
    from torchunlearn import RobModel
    from torchunlearn.unlearn import BoundaryShrink
    from torchunlearn.utils.data import MergedLoaders

    forget = DataLoader(job.forget, BATCH, shuffle=True)
    loaders = MergedLoaders({"Retain": DataLoader(job.retain, BATCH, shuffle=True), "Forget": forget})
    trainer = BoundaryShrink(RobModel(model, n_classes=CLASSES))
    trainer.setup(optimizer="SGD(lr=0.01, momentum=0.9, weight_decay=5e-4)", n_epochs=5)
    trainer.fit(train_loaders=loaders, n_epochs=5)
    return trainer.rmodel.model


def torchunlearn_scrub(model: nn.Module, job: Job) -> Any:
    from torchunlearn import RobModel
    from torchunlearn.unlearn import SCRUB
    from torchunlearn.utils.data import MergedLoaders

    forget = DataLoader(job.forget, BATCH, shuffle=True)
    loaders = MergedLoaders({"Retain": DataLoader(job.retain, BATCH, shuffle=True), "Forget": forget})
    trainer = SCRUB(RobModel(model, n_classes=CLASSES))
    trainer.setup(optimizer="SGD(lr=0.01, momentum=0.9, weight_decay=5e-4)", n_epochs=5)
    trainer.fit(train_loaders=loaders, n_epochs=5)
    return trainer.rmodel.model


def erasus_knowledge_distillation(model: nn.Module, job: Job) -> Any:
    from erasus import ErasusUnlearner

    unlearner = ErasusUnlearner(model=model, strategy="knowledge_distillation")
    return unlearner.fit(DataLoader(job.forget, BATCH, shuffle=True)).model


def erasus_gradient_ascent(model: nn.Module, job: Job) -> Any:
    from erasus import ErasusUnlearner

    unlearner = ErasusUnlearner(model=model, strategy="gradient_ascent")
    return unlearner.fit(DataLoader(job.forget, BATCH, shuffle=True)).model


def erasus_wga(model: nn.Module, job: Job) -> Any:
    from erasus import ErasusUnlearner

    unlearner = ErasusUnlearner(model=model, strategy="wga")
    return unlearner.fit(DataLoader(job.forget, BATCH, shuffle=True)).model


def erasus_saliency(model: nn.Module, job: Job) -> Any:
    from erasus import ErasusUnlearner

    unlearner = ErasusUnlearner(model=model, strategy="saliency_unlearning")
    return unlearner.fit(DataLoader(job.forget, BATCH, shuffle=True)).model


def erasus_scrub(model: nn.Module, job: Job) -> Any:
    from erasus import ErasusUnlearner

    unlearner = ErasusUnlearner(model=model, strategy="scrub")
    retain = DataLoader(job.retain, BATCH, shuffle=True)
    return unlearner.fit(DataLoader(job.forget, BATCH, shuffle=True), retain).model


def erasus_knowledge_distillation_retain(model: nn.Module, job: Job) -> Any:
    from erasus import ErasusUnlearner

    unlearner = ErasusUnlearner(model=model, strategy="knowledge_distillation")
    retain = DataLoader(job.retain, BATCH, shuffle=True)
    return unlearner.fit(DataLoader(job.forget, BATCH, shuffle=True), retain).model


def unlearn_lib_grad_ascent(model: nn.Module, job: Job) -> Any:
    from unlearn import create_unlearn_method

    given = SimpleNamespace(num_classes=CLASSES, seed=job.seed)
    method = create_unlearn_method("GradAscent")(model, nn.CrossEntropyLoss(), None, given)
    loaders = dict.fromkeys(["retain_train", "retain_valid", "forget_valid"])
    method.prepare_unlearn({**loaders, "forget_train": DataLoader(job.forget, BATCH, shuffle=True)})
    return method.get_unlearned_model()


def unlearn_lib_salsa(model: nn.Module, job: Job) -> Any:
    from unlearn import create_unlearn_method

    given = SimpleNamespace(num_classes=CLASSES, seed=job.seed)
    method = create_unlearn_method("SALSA")(model, nn.CrossEntropyLoss(), None, given)
    method.prepare_unlearn({"forget_train": DataLoader(job.forget, BATCH, shuffle=True)})
    return method.get_unlearned_model()


class WithTargets(Dataset[tuple[torch.Tensor, int]]):
    """Images and `targets`, as torchvision's datasets have them: unlearn-lib exchanges these."""

    def __init__(self, tensors: TensorDataset) -> None:
        self.data, labels = tensors.tensors
        self.targets: list[int] = labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.data[index], self.targets[index]


def unlearn_lib_random_label(model: nn.Module, job: Job) -> Any:
    from unlearn import create_unlearn_method

    given = SimpleNamespace(num_classes=CLASSES, seed=job.seed, batch_size=BATCH)
    method = create_unlearn_method("RandomLabel")(model, nn.CrossEntropyLoss(), None, given)
    forget = DataLoader(WithTargets(job.forget), BATCH, shuffle=True)
    loaders = {"retain_train": DataLoader(WithTargets(job.retain), BATCH, shuffle=True), "forget_train": forget}
    method.prepare_unlearn({**loaders, "retain_valid": None, "forget_valid": None})
    return method.get_unlearned_model()


def unlearn_lib_scrub(model: nn.Module, job: Job) -> Any:
    from unlearn import create_unlearn_method

    given = SimpleNamespace(num_classes=CLASSES, seed=job.seed)
    method = create_unlearn_method("SCRUB")(model, nn.CrossEntropyLoss(), None, given)
    forget, retain = (DataLoader(part, BATCH, shuffle=True) for part in (job.forget, job.retain))
    loaders = {"retain_train": retain, "forget_train": forget, "retain_valid": None, "forget_valid": None}
    method.prepare_unlearn(loaders)
    return method.get_unlearned_model()


class Triples(Dataset[tuple[torch.Tensor, int, int]]):
    """Images as supreme has them: input, place, label."""

    def __init__(self, tensors: TensorDataset) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        inputs, label = self.tensors[index]
        return inputs, index, int(label)


def supreme_neg_grad(model: nn.Module, job: Job) -> Any:
    from lightning.fabric import Fabric
    from supreme.methods.unlearning_methods.neg_grad import neg_grad

    fabric = Fabric(accelerator="cpu", devices=1)
    forget = DataLoader(Triples(job.forget), BATCH, shuffle=True)
    return neg_grad(fabric, 1, False, model, forget, forget).module


def supreme_jit(model: nn.Module, job: Job) -> Any:
    from lightning.fabric import Fabric
    from supreme.methods.unlearning_methods.jit import jit

    fabric = Fabric(accelerator="cpu", devices=1)
    forget = DataLoader(Triples(job.forget), BATCH, shuffle=True)
    return jit(fabric, 1, False, model, forget).module


def supreme_bad_teacher(model: nn.Module, job: Job) -> Any:
    from lightning.fabric import Fabric
    from supreme.methods.unlearning_methods.bad_teacher import bad_teacher

    from experiments.peers.job import network

    fabric = Fabric(accelerator="cpu", devices=1)
    retain, forget = (DataLoader(Triples(part), BATCH, shuffle=True) for part in (job.retain, job.forget))
    return bad_teacher(fabric, 1, False, model, network(), retain, forget).module


def supreme_random_labeling(model: nn.Module, job: Job) -> Any:
    from lightning.fabric import Fabric
    from supreme.methods.unlearning_methods.random_labeling import random_labeling

    fabric = Fabric(accelerator="cpu", devices=1)
    retain, forget = (DataLoader(Triples(part), BATCH, shuffle=True) for part in (job.retain, job.forget))
    return random_labeling(fabric, 1, False, "random_", CLASSES, model, retain, retain, forget).module
