"""MODEL specs: from a text such as `runs/fm-r18` or `timm:vit_tiny_patch16_224` to a network with weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from expunge.data.specs import import_factory
from expunge.errors import InputError, SettingError
from expunge.models.adapters import CONFIG, WEIGHTS, Adapter, num_labels
from expunge.models.building import Classifier, ModelSpec, build, timm_defaults, with_spec
from expunge.models.checkpoint import (
    Header,
    check_description,
    checkpoint_path,
    header_in,
    load_weights,
    mark_calibrated,
    mark_undone,
    normalise_in_its_dtype,
    read_header,
)
from expunge.models.huggingface import LogitsOnly, from_directory, load_hf
from expunge.models.saving import recorded
from expunge.models.texts import ARCHITECTURE, holds_texts
from expunge.models.vision import torchvision_weights
from expunge.tensor_files import check_digest


def class_names_of(model: nn.Module) -> tuple[str, ...]:
    """The names of a model's classes, in the order of its logits; () where it has none but numbers.

    They are those of its file, or of the configuration of a model of transformers.
    """
    for module in model.modules():
        told = getattr(module, "class_names", None)
        labels = getattr(getattr(module, "config", None), "id2label", None)
        if isinstance(told, list | tuple) and all(isinstance(name, str) for name in told):
            return tuple(told)
        if isinstance(labels, dict) and sorted(labels) == list(range(len(labels))):
            names = tuple(str(labels[n]) for n in range(len(labels)))
            return () if names == tuple(f"LABEL_{n}" for n in range(len(names))) else names
    return ()


def load_model(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    allow_pickle: bool = False,
    weights_key: str | None = None,
) -> tuple[nn.Module, Header]:
    """Loads the model that a MODEL spec names, in eval mode, on the CPU.

    Args:
        spec: a directory or .safetensors file that expunge wrote; `hf:DIR`; `timm:NAME` or
            `timm:NAME,num_classes=10,in_chans=1`; `torchvision:NAME,num_classes=10`; `py:package.module:factory`
            (called without arguments, returns an `nn.Module` that maps a batch of float images in [0, 1] to logits),
            which may tell what it takes: `py:package.module:factory,image_size=224,in_chans=3`.
        weights: a .safetensors file (or .pt with `allow_pickle`) for `timm:`, `torchvision:` and `py:`.
        allow_pickle: accept a .pt file as `weights`, loaded with `weights_only=True`.
        weights_key: which weights in the file, where it holds several: the name that they have there, such as
            `model_ema` or `state_dict_ema`. Without it, such a file is refused: the raw weights of a training are not
            the averaged ones that were deployed.

    Raises:
        SettingError: `weights` or `weights_key` is missing where needed, or given where not; unknown architecture.
        InputError: the file is missing, damaged, a pickle, does not fit, or holds several sets of weights.
    """
    model, header = _loaded(str(spec), weights, allow_pickle, weights_key)
    if header.class_names != tuple(map(str, range(len(header.class_names)))):
        # For datasets that name their classes, too.
        model.class_names = header.class_names  # type: ignore[assignment]
    return model, header


def _loaded(
    spec: str, weights: str | Path | None, allow_pickle: bool, weights_key: str | None
) -> tuple[nn.Module, Header]:
    kind, _, rest = spec.partition(":")
    if kind in _FROM:
        if weights is None:
            raise SettingError(f"{spec} says nothing of the weights; add --weights FILE.safetensors")
        weights = Path(weights)
        model, header = _FROM[kind](rest)
        ours = None
        if weights.suffix == ".safetensors":
            check_digest(weights)  # a damaged one of expunge's own is not to be taken for another's
            ours = header_in(weights)
        if ours is None:
            load_weights(model, weights, allow_pickle=allow_pickle, key=weights_key)
            return model.eval(), header
        if weights_key is not None:
            raise SettingError(f"{weights}, which expunge wrote, holds one set of weights; leave out --weights-key")
        if ours.spec.architecture != header.spec.architecture:
            raise InputError(f"{weights} was written for {ours.spec.architecture}: give that as the model, not {spec}")
        if kind != "py":  # normalised as it was trained, and not as the library's own weights
            _check_numbers(spec, ours, weights)
            model = _built(ours, weights)
        else:  # what the command says of a factory goes before what an earlier one said
            ours = replace(ours, spec=header.spec, class_names=header.class_names)
        load_weights(model, weights)
        return _marked(model, ours)
    if weights is not None or weights_key is not None:
        raise SettingError(f"{spec} brings its own weights; leave out --weights and --weights-key")
    if kind == "hf" and rest:
        return _from_hf(Path(rest))
    path = checkpoint_path(Path(spec))
    if not path.exists() and (Path(spec) / CONFIG).exists():
        path = Path(spec) / WEIGHTS
    if not path.exists() and (Path(spec) / "config.json").exists():
        raise InputError(f"{spec} holds a Hugging Face model: give hf:{spec}")
    header = read_header(path)
    beside = any((path.parent / name).exists() for name in ("config.json", CONFIG))
    if header.spec.architecture in {"hf", ARCHITECTURE} and beside:
        return _from_hf(path.parent)
    if header.spec.architecture.startswith("py:"):
        raise InputError(
            f"{path} was built by {header.spec.architecture}, code that expunge does not run on a file's word; "
            f"give {header.spec.architecture} as the model, and {path} as its weights"
        )
    model = _built(header, path)
    load_weights(model, path)
    return _marked(model, header)


def _built(header: Header, path: Path) -> nn.Module:
    check_description(path, header.spec)
    try:
        return build(header.spec)
    except SettingError as error:  # the file is at fault, not the command
        raise InputError(f"{path} cannot be built: {error}") from error


def _marked(model: nn.Module, header: Header) -> tuple[nn.Module, Header]:
    """The model, with marks of the held-out examples that it was calibrated on and of updates that were undone."""
    mark_calibrated(model, *(seed for entry in header.history for seed in entry.get("calibration_seeds", ())))
    mark_undone(model, *(step for entry in header.history for step in entry.get("undone_steps", ())))
    return model.eval(), header


def _options(rest: str, advice: str) -> tuple[str, dict[str, int]]:
    """The name and the numbers of `NAME,KEY=NUMBER,…`. Raises `SettingError` with the advice."""
    name, *pairs = rest.split(",")
    options = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if not (value.isascii() and value.isdigit()):
            raise SettingError(f"{advice}, not {pair!r}")
        options[key] = int(value)
    return name, options


def _check_numbers(spec: str, ours: Header, weights: Path) -> None:
    """Raises `SettingError` where what a command says of a model is not what the checkpoint says."""
    _, given = _options(spec, spec)
    told = ours.spec
    known = {"num_classes": told.num_classes, "in_chans": told.in_channels, "image_size": told.image_size}
    known |= told.options
    for key, value in given.items():
        if key in known and known[key] != value:
            raise SettingError(f"{spec} says {key}={value}, and {weights} {key}={known[key]}: leave it out")


def _from_timm(rest: str) -> tuple[nn.Module, Header]:
    name, options = _options(rest, f"timm:{rest}: write timm:NAME,num_classes=10,in_chans=1,image_size=64")
    defaults = timm_defaults(name)
    channels = options.pop("in_chans", defaults["input_size"][0])
    num_classes = options.pop("num_classes", defaults["num_classes"])
    own_size = options.get("img_size", defaults["input_size"][1])
    size = options.pop("image_size", own_size)
    if size != own_size and defaults.get("fixed_input_size"):
        raise SettingError(f"timm:{name} takes images of {own_size} pixels alone; img_size={size} may build another")
    mean, std = tuple(defaults["mean"]), tuple(defaults["std"])
    if len(mean) != channels:  # as timm does for another number of channels: the average
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    spec = ModelSpec(
        architecture=f"timm:{name}",
        num_classes=num_classes,
        in_channels=channels,
        image_size=size,
        mean=mean,
        std=std,
        options=options,
    )
    return build(spec), Header(spec=spec, class_names=tuple(map(str, range(num_classes))))


def _from_torchvision(rest: str) -> tuple[nn.Module, Header]:
    advice = f"torchvision:{rest}: write torchvision:NAME,num_classes=10,image_size=64"
    name, options = _options(rest, advice)
    if unknown := set(options) - {"num_classes", "image_size"}:
        raise SettingError(f"{advice}, without {min(unknown)!r}")
    theirs = torchvision_weights(name)
    form = theirs.transforms()
    num_classes = options.get("num_classes", len(theirs.meta["categories"]))
    spec = ModelSpec(
        architecture=f"torchvision:{name}",
        num_classes=num_classes,
        in_channels=3,
        image_size=options.get("image_size", form.crop_size[0]),
        mean=tuple(form.mean),
        std=tuple(form.std),
    )
    return build(spec), Header(spec=spec, class_names=tuple(map(str, range(num_classes))))


def _from_factory(rest: str) -> tuple[nn.Module, Header]:
    advice = f"py:{rest}: write py:package.module:factory,image_size=224,in_chans=3"
    path, options = _options(rest, advice)
    if unknown := set(options) - {"image_size", "in_chans"}:
        raise SettingError(f"{advice}, without {min(unknown)!r}")
    network = import_factory(path)()
    if not isinstance(network, nn.Module):
        raise InputError(f"py:{path} returned {type(network).__name__}; it must return an nn.Module")
    # Shape and classes are the factory's business; zeros say "not known" until data is seen.
    spec = ModelSpec(
        architecture=f"py:{path}",
        num_classes=0,
        in_channels=options.get("in_chans", 0),
        image_size=options.get("image_size", 0),
        mean=(0.0,),
        std=(1.0,),
    )
    return Classifier(spec, network), Header(spec=spec, class_names=())


def _from_hf(directory: Path) -> tuple[nn.Module, Header]:
    record = recorded(directory)  # first, as it sees whether the weights are whole
    adapter = Adapter(directory) if (directory / CONFIG).exists() else None
    if holds_texts(directory if adapter is None else adapter.base):
        network, options = _texts(directory, adapter)
        told = options["config"]["id2label"]
        names = _class_names(tuple(str(told[key]) for key in sorted(told, key=int)), adapter)
        spec = ModelSpec(
            architecture=ARCHITECTURE,
            num_classes=len(names),
            in_channels=0,
            image_size=0,
            mean=(0.0,),
            std=(1.0,),
            options=options,
        )
        return _with_record(with_spec(network, spec), Header(spec=spec, class_names=names), record)
    if adapter is None:
        found, network = load_hf(str(directory))
    else:
        own = str(directory) if (directory / "preprocessor_config.json").exists() else None
        found, network = load_hf(str(adapter.base), adapter.replaced, num_labels(adapter.replaced), own)
        network = LogitsOnly(adapter.around(network.model))
    options, processor = {"config": found.pop("config")}, found.pop("processor")
    class_names = _class_names(found.pop("class_names"), adapter)
    if adapter is not None:
        options["adapter"] = adapter.settings
    spec = ModelSpec(architecture="hf", options=options, **found)
    model = Classifier(spec, network)
    normalise_in_its_dtype(model)
    return _with_record(model, Header(spec=spec, class_names=class_names, processor=processor), record)


def _texts(directory: Path, adapter: Adapter | None) -> tuple[nn.Module, dict[str, Any]]:
    """A text classifier, with an adapter if there is one, and the options of its description."""
    if adapter is None:
        network, config = from_directory(str(directory), texts=True)
        return network, {"config": config}
    network, config = from_directory(
        str(adapter.base), texts=True, replaced=adapter.replaced, num_labels=num_labels(adapter.replaced)
    )
    return adapter.around(network), {"config": config, "adapter": adapter.settings}


def _class_names(told: tuple[str, ...], adapter: Adapter | None) -> tuple[str, ...]:
    """Those of a configuration, numbers where an adapter has classes of its own, not the base model's."""
    unnamed = told == tuple(f"LABEL_{n}" for n in range(len(told)))
    return tuple(map(str, range(len(told)))) if adapter is not None and unnamed else told


def _with_record(model: nn.Module, header: Header, record: Header | None) -> tuple[nn.Module, Header]:
    """The model with what was recorded beside its weights, if anything was."""
    if record is None:
        return model.eval(), header
    return _marked(model, replace(header, data=record.data, recipe=record.recipe, history=record.history))


_FROM = {"timm": _from_timm, "torchvision": _from_torchvision, "py": _from_factory}
"""Kinds of MODEL whose weights are in a file of their own."""
