"""What a description of a network may say: anybody may have written it, so only what is known is taken."""

import math
import re
from collections.abc import Mapping
from typing import Any

from expunge.errors import SettingError


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


MAX_NUMBER = 1_000_000
"""The largest number in a description: more classes, layers or channels no network has."""
MAX_OPTION = 65_536
"""The largest number among the options of a timm network."""
MAX_SIDE = 8192
"""The largest side of an input, in pixels."""
MAX_ENTRIES = 4096
"""Of a list in a description: one a stage or a layer."""
TIMM_OPTIONS = words(
    """aa_layer act_layer attn_drop_rate base_width block_size cardinality class_token conv_mlp conv_stem_ks
    depth depths dims drop_path_rate drop_rate dynamic_img_pad dynamic_img_size embed_dim embed_dims fc_norm
    final_norm global_pool growth_rate head_dropout head_hidden_size img_size in_chans init_values
    kernel_sizes layers ls_init_value mlp_ratio mlp_ratios no_embed_class norm_layer num_classes num_heads
    output_stride patch_drop_rate patch_size pos_drop_rate pos_embed pre_norm proj_drop_rate qk_norm qkv_bias
    reg_tokens replace_stem_pool stem_chs stem_type stem_width strict_img_size weight_init width widths
    window_size"""
)
"""Options of `timm.create_model` and of the transformer `vit` that change the network and nothing else."""
HF_FIXED = words(
    """architectures chunk_size_feed_forward id2label is_encoder_decoder label2id model_type num_labels out_features
    out_indices output_attentions output_hidden_states problem_type return_dict stage_names tie_word_embeddings
    _out_features _out_indices"""
)
"""Entries that any configuration of `transformers` may have."""
HF_UNUSED = words(
    """_name_or_path add_cross_attention bad_words_ids begin_suppress_tokens bos_token_id
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id is_decoder length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_scores pad_token_id prefix pruned_heads remove_invalid_values repetition_penalty
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
    use_bfloat16"""
)
"""Entries of older versions that change nothing in an image classifier: they are left out."""
HF_TEXTS = frozenset({"pad_token_id"})
"""Of these, what changes something in a text classifier."""
HF_NESTING = frozenset({"shieldgemma2", "timm_wrapper"})
"""Kinds whose configuration names another library's network, or any other configuration."""
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")


def check_numbers(name: str, *numbers: float, most: int = MAX_NUMBER) -> None:
    """Raises `SettingError` for a number that no network has."""
    for number in numbers:
        if not (math.isfinite(number) and abs(number) <= most):
            raise SettingError(f"{name} is {str(number)[:40]}; it must be at most {most:,}")


def check_options(what: str, options: Mapping[str, Any], known: frozenset[str] = TIMM_OPTIONS) -> None:
    """Raises `SettingError` for an option that is not `known`, or a value that could name a file or an address."""
    for key, value in options.items():
        if key not in known:
            raise SettingError(f"{what} has no option {key[:80]!r} that expunge knows (some read files); leave it out")
        check_plain(f"{what}: {key}", value, MAX_OPTION)


def plain_hf_config(config: Mapping[str, Any], library: Any, *, texts: bool = False) -> dict[str, Any]:
    """The entries of a configuration that `transformers` is to build a classifier of images, or of `texts`, from.

    `library` is `transformers`: the entries that its own class for this kind of network has are known.

    Raises:
        SettingError: an unknown kind or entry, such as one that names code, or a value that could name a file.
    """
    kind = config.get("model_type")
    from transformers.models.auto import modeling_auto

    images = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    kinds = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES if texts else images
    if not isinstance(kind, str) or kind not in kinds or kind in HF_NESTING:
        what = "text" if texts else "image"
        raise SettingError(f"{str(kind)[:80]!r} is no kind of {what} classifier that transformers itself can build")
    unused = HF_UNUSED - HF_TEXTS if texts else HF_UNUSED
    return _known_entries(config, library.CONFIG_MAPPING[kind], f"the configuration of {kind}", unused)


def _known_entries(
    config: Mapping[str, Any], kind: Any, what: str, unused: frozenset[str] = HF_UNUSED
) -> dict[str, Any]:
    parts = getattr(kind, "sub_configs", {})
    known = HF_FIXED | set(kind().to_dict())
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in unused:
            continue
        if key not in known:
            raise SettingError(f"{what} has an entry {key[:80]!r}, which expunge does not read; take it out")
        if key in parts and isinstance(value, Mapping):
            value = _known_entries(value, parts[key], f"{what}, {key}")
        elif key in {"id2label", "label2id"}:
            _check_names(what, value)
        else:
            check_plain(f"{what}: {key}", value)
        found[key] = value
    return found


def _check_names(what: str, value: Any) -> None:
    if value is not None and not (
        isinstance(value, Mapping)
        and len(value) <= MAX_NUMBER
        and all(type(part) in {str, int} and len(str(part)) <= 1000 for pair in value.items() for part in pair)
    ):
        raise SettingError(f"{what}: its classes are names and numbers")


def check_plain(where: str, value: Any, most: int = MAX_NUMBER) -> None:
    """Raises `SettingError` unless the value is a number, a word, true, false, nothing, or a list of such."""
    if isinstance(value, list | tuple) and len(value) <= MAX_ENTRIES:
        for part in value:
            check_plain(where, part, most)
    elif isinstance(value, int | float):
        check_numbers(where, value, most=most)
    elif not (value is None or (isinstance(value, str) and (not value or _WORD.fullmatch(value)))):
        raise SettingError(f"{where} must be a number, a word or a list of such, not {str(value)[:80]!r}")
