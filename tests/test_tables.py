"""Texts and tables on the command line: what forget writes loads where it came from."""

import json
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from safetensors.torch import save_file

import expunge
from expunge.data import Columns, ImageSet, RowSet, load_examples
from expunge.errors import InputError, SettingError
from tests.conftest import expunge as run_expunge
from tests.conftest import succeed

transformers: Any = pytest.importorskip("transformers", reason="the extra hf is not installed")

WORDS = [f"w{n}" for n in range(60)]
CLASSES = ["sport", "trade", "world"]


def texts(num: int, seed: int) -> pd.DataFrame:
    rng = torch.Generator().manual_seed(seed)
    rows = []
    for n in range(num):
        label = n % 3
        words = [WORDS[20 * label + int(w)] for w in torch.randint(20, (3 + n % 5,), generator=rng)]
        rows.append({"doc": f"{seed}-{n}", "text": " ".join(words), "topic": CLASSES[label]})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with its tokenizer, as save_pretrained writes them."""
    root = tmp_path_factory.mktemp("bert")
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = transformers.BertTokenizer(str(root / "vocab.txt"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS) + 5,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        num_labels=3,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: n for n, name in enumerate(CLASSES)},
    )
    model = transformers.BertForSequenceClassification(config)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    data = texts(60, 1)
    batch = tokenizer(list(data["text"]), padding=True, return_tensors="pt")
    labels = torch.tensor([CLASSES.index(topic) for topic in data["topic"]])
    for _ in range(12):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(root)
    tokenizer.save_pretrained(root)
    (root / "vocab.txt").unlink(missing_ok=True)
    return root


def test_texts_are_forgotten_and_the_directory_loads_again(classifier: Path, tmp_path: Path) -> None:
    texts(60, 1).to_csv(tmp_path / "train.csv", index=False)
    texts(90, 2).to_parquet(tmp_path / "unseen.parquet")
    (tmp_path / "ids").write_text("".join(f"1-{n}\n" for n in range(9)))
    columns = ["--label-column", "topic", "--id-column", "doc"]
    given = ["--forget", f"csv:{tmp_path}/train.csv", "--test", f"parquet:{tmp_path}/unseen.parquet", *columns]
    given += ["--ids", str(tmp_path / "ids")]
    done = run_expunge(
        "forget", "--model", f"hf:{classifier}", *given, "--method", "targeted", "--out", tmp_path / "out", "--json"
    )
    assert done.returncode in {0, 3}, done.stderr
    report = json.loads(done.stdout)
    assert report["trace"]["num_forget"] == 9
    assert report["audit"]["num_test"] == 90
    assert {found["id"] for found in report["audit"]["recognisable"]} <= {f"1-{n}" for n in range(9)}
    before, after = (
        transformers.AutoModelForSequenceClassification.from_pretrained(p) for p in (classifier, tmp_path / "out")
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    first = texts(60, 1).iloc[:9]
    batch = tokenizer(list(first["text"]), padding=True, return_tensors="pt")
    truth = torch.tensor([CLASSES.index(topic) for topic in first["topic"]])
    right = [(model.eval()(**batch).logits.argmax(1) == truth).double().mean().item() for model in (before, after)]
    assert right[0] == pytest.approx(report["before"]["forget_accuracy"])
    assert right[1] == pytest.approx(report["after"]["forget_accuracy"])
    assert right[0] > right[1]
    audit = ["audit", "--before", f"hf:{classifier}", "--after", f"hf:{tmp_path}/out", *given, "--json"]
    again = run_expunge(*audit, "--out", tmp_path / "audited")
    assert again.returncode in {0, 3}, again.stderr
    assert json.loads(again.stdout)["audit"]["scores_after"] == report["audit"]["scores_after"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_of_texts_is_forgotten_with_its_base_left_alone(classifier: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra hf is not installed")
    network = transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
    torch.manual_seed(0)
    made = peft.get_peft_model(network, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    made.save_pretrained(tmp_path / "in")
    texts(9, 1).to_csv(tmp_path / "train.csv", index=False)
    base = (classifier / "model.safetensors").read_bytes()
    given = ["--forget", f"csv:{tmp_path}/train.csv", "--label-column", "topic", "--id-column", "doc"]
    given += ["--method", "neg_grad", "--set", "lr=0.03", "--out", str(tmp_path / "out"), "--json"]
    done = run_expunge("forget", "--model", f"hf:{tmp_path}/in", *given)
    assert done.returncode == 0, done.stderr
    assert (classifier / "model.safetensors").read_bytes() == base
    assert not (tmp_path / "out/model.safetensors").exists()
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForSequenceClassification.from_pretrained(classifier), tmp_path / "out"
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    batch = tokenizer(list(texts(9, 1)["text"]), padding=True, return_tensors="pt")
    right = (theirs(**batch).logits.argmax(1) == torch.arange(9) % 3).double().mean().item()
    report = json.loads(done.stdout)
    assert right == pytest.approx(report["after"]["forget_accuracy"])
    assert right < report["before"]["forget_accuracy"]
    again = run_expunge("forget", "--model", f"hf:{tmp_path}/out", *given[:-2], str(tmp_path / "twice"), "--json")
    assert json.loads(again.stdout)["before"] == report["after"]


def test_a_dataset_of_hugging_face_with_texts(classifier: Path, tmp_path: Path) -> None:
    datasets: Any = pytest.importorskip("datasets", reason="the extra hf is not installed")
    data = texts(30, 1)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=CLASSES[::-1])})
    rows = {"text": list(data["text"]), "label": [CLASSES[::-1].index(topic) for topic in data["topic"]]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(tmp_path / "data")
    found = load_examples(f"hf:{tmp_path}/data:train", class_names=tuple(CLASSES))
    assert isinstance(found, RowSet)
    assert [CLASSES[n] for n in found.labels.tolist()] == list(data["topic"])
    succeed("data", "show", f"hf:{tmp_path}/data:train")
    out = tmp_path / "out"
    succeed(
        "forget",
        "--model",
        f"hf:{classifier}",
        "--forget",
        f"hf:{tmp_path}/data:train",
        "--out",
        out,
        "--set",
        "epochs=1",
    )
    assert (out / "tokenizer.json").exists()


def make() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def test_columns_of_numbers_for_a_network_of_ones_own(tmp_path: Path) -> None:
    save_file(make().state_dict(), tmp_path / "w.safetensors")
    table = pd.DataFrame({"name": [f"r{n}" for n in range(20)], "a": range(20), "b": 0.5, "c": 1, "label": [0, 1] * 10})
    table.to_csv(tmp_path / "t.csv", index=False)
    rows = load_examples(f"csv:{tmp_path}/t.csv", columns=Columns(id="name"))
    assert isinstance(rows, RowSet)
    assert rows.ids[:2] == ("r0", "r1")
    assert torch.equal(rows[3][0], torch.tensor([3.0, 0.5, 1.0]))
    table.assign(d=None).to_csv(tmp_path / "empty.csv", index=False)
    with pytest.raises(InputError, match="'d' is not of texts, numbers"):
        load_examples(f"csv:{tmp_path}/empty.csv", columns=Columns(id="name"))
    one = load_examples(f"csv:{tmp_path}/t.csv", columns=Columns(id="name", inputs=("b", "a")))
    assert torch.equal(one[3][0], torch.tensor([0.5, 3.0]))
    model: list[str | Path] = ["--model", "py:tests.test_tables:make", "--weights", tmp_path / "w.safetensors"]
    succeed(
        "forget",
        *model,
        "--forget",
        f"csv:{tmp_path}/t.csv",
        "--id-column",
        "name",
        "--out",
        tmp_path / "out",
        "--method",
        "targeted",
    )
    assert expunge.load_model("py:tests.test_tables:make", weights=tmp_path / "out" / "model.safetensors")


def test_images_in_a_parquet_file(tmp_path: Path) -> None:
    image: Any = pytest.importorskip("PIL.Image", reason="the extra vision is not installed")
    files = []
    for n in range(4):
        image.new("L", (8, 8), 50 * n).save(tmp_path / f"{n}.png")
        files.append((tmp_path / f"{n}.png").read_bytes())
    pd.DataFrame({"image": files, "label": [0, 1, 0, 1]}).to_parquet(tmp_path / "bytes.parquet")
    pd.DataFrame({"image": [{"bytes": f, "path": None} for f in files], "label": [0, 1, 0, 1]}).to_parquet(
        tmp_path / "hf.parquet"
    )
    for name in ("bytes", "hf"):
        found = load_examples(f"parquet:{tmp_path}/{name}.parquet")
        assert isinstance(found, ImageSet)
        assert found.images[:, 0, 0, 0].tolist() == [0, 50, 100, 150]
    named = pd.DataFrame({"image": files, "label": [0, 1, 0, 1], "key": list("abcd")})
    named.to_parquet(tmp_path / "named.parquet")
    assert load_examples(f"parquet:{tmp_path}/named.parquet", columns=Columns(id="key")).ids == ("a", "b", "c", "d")


def test_tables_whose_columns_have_another_order_are_refused(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": range(40), "b": 0.5, "c": 1, "label": [0, 1] * 20})
    table[:20].to_csv(tmp_path / "forget.csv", index=False)
    table[20:][["b", "a", "c", "label"]].to_csv(tmp_path / "test.csv", index=False)
    model: list[str | Path] = ["--model", "py:tests.test_tables:make", "--weights", tmp_path / "w.safetensors"]
    save_file(make().state_dict(), tmp_path / "w.safetensors")
    sets: list[str | Path] = ["--forget", f"csv:{tmp_path}/forget.csv", "--test", f"csv:{tmp_path}/test.csv"]
    command: list[str | Path] = ["forget", *model, *sets, "--method", "targeted", "--set", "epochs=1"]
    done = run_expunge(*command, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert "columns a, b, c, and the test set b, a, c: give both in the model's order" in done.stderr
    assert not (tmp_path / "out").exists()
    named = run_expunge(*command, "--input-columns", "b,a,c", "--out", tmp_path / "out")
    assert named.returncode in {0, 3}, named.stderr


BAD_CSV = {
    "an index": (",a,label\n0,1.5,0\n1,2.5,1\n", "without a name.*index=False"),
    "semicolons": ("a;b;label\n1;2;0\n", "separated by ';'"),
    "tabs": ("a\tb\tlabel\n1\t2\t0\n", "separated by"),
    "names for a model without": ("a,label\n1,cat\n2,dog\n", "labels in .* must be numbers, not 'cat'"),
    "parts for labels": ("a,label\n1,0.5\n2,1\n", "must be numbers, not 0.5"),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_what_a_csv_file_is_not_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    text, message = BAD_CSV[name]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_examples(f"csv:{tmp_path}/t.csv", class_names=())
    assert "\n" not in str(caught.value)


def test_whole_floats_are_numbers_of_classes(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,label\n1,0.0\n2,2.0\n")
    assert load_examples(f"csv:{tmp_path}/t.csv", class_names=()).labels.tolist() == [0, 2]


def test_an_index_that_is_no_input_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(",text,label\n0,a b,0\n1,c,1\n")
    assert load_examples(f"csv:{tmp_path}/t.csv")[1] == ("c", 1)
    (tmp_path / "n.csv").write_text(",a,b,label\n0,5,6,0\n1,7,8,1\n")
    rows = load_examples(f"csv:{tmp_path}/n.csv", columns=Columns(inputs=("a", "b")))
    assert rows[1][0].tolist() == [7.0, 8.0]
    rows = load_examples(f"csv:{tmp_path}/n.csv", columns=Columns(id="Unnamed: 0"))
    assert rows.ids == ("0", "1")
    assert rows[1][0].tolist() == [7.0, 8.0]


BAD: dict[str, tuple[dict[str, list[Any]], Columns, str]] = {
    "no label": ({"text": ["a"], "kind": [1]}, Columns(), "--label-column"),
    "unknown column": ({"text": ["a"], "label": [1]}, Columns(label="topic"), "no column 'topic'.*'text'"),
    "missing value": ({"text": ["a", None], "label": [1, 0]}, Columns(), "example 1 has no 'text'"),
    "two texts": ({"text": ["a"], "title": ["b"], "label": [1]}, Columns(), "'text' and 'title'.*--input-columns"),
    "unknown class": ({"text": ["a"], "label": ["music"]}, Columns(), "class 'music'.*sport"),
    "outside of the classes": ({"text": ["a"], "label": [7]}, Columns(), "label 7"),
    "ids twice": ({"text": ["a", "b"], "label": [0, 1], "id": [1, 1]}, Columns(id="id"), "all unique"),
    "no input": ({"label": [0, 1]}, Columns(), "no column beside"),
    "empty": ({"text": [], "label": []}, Columns(), "is empty"),
    "lists": ({"input_ids": [[1, 2], [3]], "label": [0, 1]}, Columns(), "'input_ids' is not of texts"),
    "texts and numbers": ({"a": [1, 2], "b": ["x", "y"], "label": [0, 1]}, Columns(inputs=("a", "b")), "by itself"),
    "infinite": ({"a": [1e300, 1.0], "label": [0, 1]}, Columns(), "infinity"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_table_cannot_tell_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    table, columns, message = BAD[name]
    pd.DataFrame(table).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message) as caught:
        load_examples(f"parquet:{tmp_path}/t.parquet", columns=columns, class_names=tuple(CLASSES))
    assert "\n" not in str(caught.value)


def test_no_label_of_hugging_face_is_no_class(tmp_path: Path) -> None:
    """Splits without labels hold -1 for each."""
    datasets: Any = pytest.importorskip("datasets", reason="the extra hf is not installed")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=CLASSES[::-1])})
    rows = {"text": ["a", "b"], "label": [-1, -1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "data")
    with pytest.raises(InputError, match="label -1"):
        load_examples(f"hf:{tmp_path}/data", class_names=tuple(CLASSES))


def test_classes_of_other_names_are_refused_and_numbers_count_where_the_model_has_no_names(tmp_path: Path) -> None:
    datasets: Any = pytest.importorskip("datasets", reason="the extra hf is not installed")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).save_to_disk(tmp_path / "d")
    with pytest.raises(InputError, match="class 'y'"):
        load_examples(f"hf:{tmp_path}/d", class_names=("left", "right"))
    with pytest.raises(InputError, match="several of that name"):
        load_examples(f"hf:{tmp_path}/d", class_names=("x", "y", "y"))
    for names in (("LABEL_0", "LABEL_1"), ("0", "1"), ("x", "y"), None):
        assert load_examples(f"hf:{tmp_path}/d", class_names=names).labels.tolist() == [1, 0]


def test_what_is_not_used_and_what_is_cut_is_told(classifier: Path, tmp_path: Path) -> None:
    table = texts(6, 1)
    table.loc[0, "text"] = " ".join(["w1"] * 50)
    table["length"] = 3
    table.to_csv(tmp_path / "t.csv", index=False)
    found = load_examples(f"csv:{tmp_path}/t.csv", columns=Columns(label="topic", id="doc"))
    assert isinstance(found, RowSet)
    assert "'length' is not used" in found.notes[0]
    given = ["--forget", f"csv:{tmp_path}/t.csv", "--label-column", "topic", "--id-column", "doc"]
    more = ["--unlabelled", f"csv:{tmp_path}/bare.csv", "--set", "epochs=1", "--json"]
    table[["doc", "text"]].assign(text="w3 w4 w5").drop_duplicates("doc").to_csv(tmp_path / "bare.csv", index=False)
    refused = run_expunge("forget", "--model", f"hf:{classifier}", *given, *more, "--out", tmp_path / "no")
    assert "no column 'topic'" in refused.stderr
    done = run_expunge("forget", "--model", f"hf:{classifier}", *given, *more[2:], "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert any("1 of 6 texts" in note and "cut at" in note for note in json.loads(done.stdout)["notes"])
    bare = load_examples(f"csv:{tmp_path}/bare.csv", columns=Columns(id="doc"), labelled=False)
    assert len(bare) == 6


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,b\n"1,2\n3')
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing")
    for spec in ("csv:nowhere.csv", f"parquet:{tmp_path}/t.parquet", f"csv:{tmp_path}"):
        with pytest.raises(InputError):
            load_examples(spec)
    pd.DataFrame({"a": [1], "label": [0]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match="no images"):
        expunge.load_data(f"csv:{tmp_path}/t.csv")
    with pytest.raises(SettingError, match="no columns"):
        load_examples("sample", columns=Columns(label="x"))


def test_a_model_and_data_of_two_kinds_are_refused(classifier: Path, tmp_path: Path) -> None:
    texts(9, 1).to_csv(tmp_path / "t.csv", index=False)
    done = run_expunge("forget", "--model", f"hf:{classifier}", "--forget", "sample", "--out", tmp_path / "o")
    assert done.returncode == 1
    assert "holds images, and the model takes texts" in done.stderr
    assert not (tmp_path / "o").exists()
