"""Every family in `transformers` with a head for sequence classification: it works, or is refused in one line."""

import inspect
import json

import pytest
import torch
import transformers
from helpers.encoders import make_tokenizer
from helpers.tasks import TASKS, make_rows, write_jsonl
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as FAMILIES

from multitask.errors import UserError

SMALL = {
    "hidden_size": 16,
    "d_model": 16,
    "n_embd": 16,
    "dim": 16,
    "emb_dim": 16,
    "embedding_size": 16,
    "embed_dim": 16,
    "d_embed": 16,
    "hidden_dim": 32,
    "intermediate_size": 32,
    "d_ff": 32,
    "d_inner": 32,
    "ffn_dim": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_heads": 2,
    "n_head": 2,
    "n_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "d_kv": 8,
    "d_head": 8,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "num_experts": 2,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
}


def tiny(family, vocab_size):
    """A small configuration of a family, or None if it has no such names."""
    config_class = transformers.AutoConfig.for_model(family).__class__
    names = set(inspect.signature(config_class.__init__).parameters) | set(config_class().to_dict())
    options = {name: value for name, value in SMALL.items() if name in names}
    special = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    return config_class(**options, vocab_size=vocab_size, **special)


@pytest.mark.slow
def test_each_family_works_or_is_refused_in_a_line(train, mixture_config, tmp_path, capsys):
    tokenizer = make_tokenizer("roberta")
    files = {}
    for split in ("train", "validation"):
        files[split] = str(write_jsonl(tmp_path / f"{split}.jsonl", make_rows("classification", 12)))
    mixture_config["tasks"] = {"animal": TASKS["animal"] | {"dataset": "json", "data_files": files}}
    outcomes: dict[str, list[str]] = {"worked": [], "refused": [], "no tiny one": [], "neither": []}
    for family in sorted(FAMILIES):
        folder = tmp_path / "encoders" / family
        try:
            config = tiny(family, len(tokenizer))
            with torch.device("meta"):
                model = transformers.AutoModelForSequenceClassification.from_config(config)
            if (size := sum(p.numel() for p in model.parameters())) > 2_000_000:
                raise ValueError(f"it has {size:,} parameters, as its sizes have other names")
            model = transformers.AutoModelForSequenceClassification.from_config(config)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except Exception as error:
            outcomes["no tiny one"].append(f"{family}: {str(error)[:80]}")
            continue
        mixture_config["model"]["encoder"] = str(folder)
        mixture_config["training"]["output_dir"] = str(tmp_path / "runs" / family)
        try:
            run = train("--training.max_steps", "2", "--model.max_length", "32")
            exported = transformers.AutoModelForSequenceClassification.from_pretrained(run / "export" / "animal")
            assert all(torch.isfinite(parameter).all() for parameter in exported.parameters())
            assert json.loads((run / "metrics.json").read_text())["tasks"]["animal"]["accuracy"] >= 0
            outcomes["worked"].append(family)
        except UserError as refusal:
            has_begun = (tmp_path / "runs" / family / "checkpoints").exists()
            outcomes["neither" if has_begun else "refused"].append(f"{family}: {refusal}")
        except Exception as error:
            outcomes["neither"].append(f"{family}: {type(error).__name__}: {str(error)[:200]}")
    with capsys.disabled():
        print("\n", json.dumps({name: of if name != "worked" else len(of) for name, of in outcomes.items()}, indent=1))
    assert outcomes["neither"] == [] and len(outcomes["worked"]) >= 80
