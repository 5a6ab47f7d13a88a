"""The audit of outputs alone: it finds what `audit` finds, in Python and on the command line."""

import json
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

import expunge
from expunge.auditing.forward import outputs_of
from expunge.data import Examples
from expunge.data.outputs import load_outputs
from expunge.errors import InputError
from tests.conftest import expunge as command


def examples(num: int, seed: int) -> Examples:
    rng = torch.Generator().manual_seed(seed)
    return Examples(torch.randn(num, 6, generator=rng), torch.randint(0, 3, (num,), generator=rng))


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    """Two networks, the sets, and what the networks say of them."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)) for _ in range(2)]
    sets = {"forget": examples(40, 1), "test": examples(300, 2), "retain": examples(50, 3)}
    logits = [{name: outputs_of(net, held).logits for name, held in sets.items()} for net in nets]
    labels = {name: held.labels.numpy() for name, held in sets.items()}
    return {"nets": nets, "sets": sets, "logits": dict(zip(("before", "after"), logits, strict=True)), "labels": labels}


def test_damaged_files_of_outputs_are_one_line(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    for name in ("forget", "test"):
        arrays |= {f"{when}_{name}": np.zeros((9, 3)) for when in ("before", "after")}
    arrays |= {f"labels_{name}": np.arange(9) % 3 for name in ("forget", "test")}
    for path in (tmp_path / "x.npz", tmp_path / "x.safetensors"):
        np.savez(path, **arrays) if path.suffix == ".npz" else save_file(arrays, path)
        load_outputs(path)
        whole = path.read_bytes()
        for damaged in (whole[:-9], whole[: len(whole) // 2], whole[:90], b""):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match="cannot be read"):
                load_outputs(path)
    np.savez(tmp_path / "ids.npz", **arrays, ids=np.array("one"))
    with pytest.raises(InputError, match="ids"):
        load_outputs(tmp_path / "ids.npz")


def test_a_small_file_of_outputs_does_not_become_a_large_one(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "x.npz", "w", ZIP_DEFLATED) as file:
        file.writestr("before_forget.npy", bytes(32 * 2**20))
    assert (tmp_path / "x.npz").stat().st_size < 100_000
    with pytest.raises(InputError, match="grow"):
        load_outputs(tmp_path / "x.npz")


def test_it_finds_what_the_audit_of_the_models_finds(given: dict[str, Any]) -> None:
    with pytest.warns(expunge.ExpungeWarning):
        whole = expunge.audit(*given["nets"], *list(given["sets"].values())[:2], retain=given["sets"]["retain"])
    with pytest.warns(expunge.ExpungeWarning, match="outputs"):
        found = expunge.audit_outputs(given["logits"]["before"], given["logits"]["after"], given["labels"])
    assert (found.before, found.after) == (whole.before, whole.after)
    assert (found.scores_before, found.scores_after) == (whole.scores_before, whole.scores_after)
    assert (found.confidences, found.roc_after, found.loss, found.unseen) == (
        whole.confidences, whole.roc_after, whole.loss, whole.unseen,
    )  # fmt: skip
    assert (found.change, found.relearning) == (None, None)
    assert {each.name for each in found.comparisons} == {"logits", "probabilities", "residual"}
    assert "What changed in the network" not in page_of(found)
    assert json.loads(json.dumps(found.to_dict()))["change"] is None


def page_of(report: Any) -> str:
    from expunge.report.page import render

    return render(report)


@pytest.mark.parametrize("form", ["npz", "safetensors", "parquet"])
def test_the_command_reads_each_form(tmp_path: Path, given: dict[str, Any], form: str) -> None:
    arrays = {f"{when}_{name}": z for when, sets in given["logits"].items() for name, z in sets.items()}
    arrays |= {f"labels_{name}": labels for name, labels in given["labels"].items()}
    path = tmp_path / f"outputs.{form}"
    if form == "npz":
        np.savez(path, **arrays, ids=np.array([f"a/{n}.png" for n in range(40)]))
    elif form == "safetensors":
        save_file(arrays, str(path))
    else:
        arrow = pytest.importorskip("pyarrow", reason="the extra hf brings pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet", reason="the extra hf brings pyarrow")
        rows = []
        for name, labels in given["labels"].items():
            for n, label in enumerate(labels):
                both = {when: given["logits"][when][name][n].tolist() for when in ("before", "after")}
                rows.append({"set": name, "label": int(label), "id": f"a/{n}.png", **both})
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    done = command("audit", "--logits", path, "--out", tmp_path / "out")
    assert done.returncode in {0, 3}, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    with pytest.warns(expunge.ExpungeWarning):
        found = expunge.audit_outputs(given["logits"]["before"], given["logits"]["after"], given["labels"])
    assert report["audit"]["verdict"] == found.verdict
    assert report["audit"]["scores_after"]["a1"] == found.scores_after.a1
    assert (tmp_path / "out" / "report.html").exists()
    again = command("audit", "--logits", path, "--out", tmp_path / "out")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)


def test_what_does_not_fit_is_refused(given: dict[str, Any]) -> None:
    before, after, labels = given["logits"]["before"], given["logits"]["after"], given["labels"]
    for bad in (
        (before, {"forget": after["forget"]}, labels),
        ({**before, "train": before["test"]}, after, labels),
        (before, {**after, "forget": after["forget"][:5]}, labels),
        (before, {**after, "forget": after["forget"][:, :2]}, labels),
        (before, after, {**labels, "forget": labels["forget"] + 9}),
        (before, after, {**labels, "forget": labels["forget"].astype(float)}),
        (before, {**after, "test": np.full((300, 3), np.nan)}, labels),
    ):
        with pytest.raises(InputError):
            expunge.audit_outputs(*bad)
    with pytest.raises(InputError):
        expunge.audit_outputs(before, after, labels, ids=["a"])


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.npz").write_text("no archive")
    np.savez(tmp_path / "c.npz", other=np.zeros(3))
    for name in ("a.txt", "b.npz", "c.npz", "missing.npz"):
        done = command("audit", "--logits", tmp_path / name, "--out", tmp_path / "out")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), name
    done = command("audit", "--logits", tmp_path / "c.npz", "--before", "x", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "--before" in done.stderr
    assert not (tmp_path / "out").exists()


def test_probabilities_are_refused_with_what_to_give() -> None:
    rng = np.random.default_rng(0)
    shares = {name: rng.dirichlet(np.ones(3), size=num) for name, num in (("forget", 20), ("test", 90))}
    labels = {"forget": np.arange(20) % 3, "test": np.arange(90) % 3}
    logs = {name: np.log(np.clip(values, 1e-6, 1)) for name, values in shares.items()}
    assert expunge.audit_outputs(logs, logs, labels).num_forget == 20
    with pytest.raises(InputError, match=r"after, forget: these are probabilities.*clip"):
        expunge.audit_outputs(logs, shares, labels)
    logs["test"][3, 1] = -np.inf
    with pytest.raises(InputError, match=r"before, test: there is −infinity.*clip"):
        expunge.audit_outputs(logs, logs, labels)
