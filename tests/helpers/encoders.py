"""Tiny random encoders with a word-level tokenizer."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "fish",
    "runs",
    "sleeps",
    "eats",
    "sings",
    "big",
    "small",
    "red",
    "blue",
    "happy",
    "sad",
    "in",
    "on",
    "under",
    "house",
    "tree",
    "river",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]

SIZE = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
}
_DISTILBERT = {"vocab_size": SIZE["vocab_size"], "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0, "pooler_hidden_size": 16}
_TOKEN_IDS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
ENCODER_CONFIGS = {
    "bert": transformers.BertConfig(**SIZE),
    "roberta": transformers.RobertaConfig(**SIZE, type_vocab_size=1),
    "xlm-roberta": transformers.XLMRobertaConfig(**SIZE, type_vocab_size=1),
    "electra": transformers.ElectraConfig(**SIZE, embedding_size=8),
    "deberta-v2": transformers.DebertaV2Config(**SIZE, **_DEBERTA, position_biased_input=False),
    "mpnet": transformers.MPNetConfig(**SIZE),
    "distilbert": transformers.DistilBertConfig(**_DISTILBERT, max_position_embeddings=66),
    "albert": transformers.AlbertConfig(**SIZE, embedding_size=8),
    "modernbert": transformers.ModernBertConfig(**SIZE, **_TOKEN_IDS, global_attn_every_n_layers=2, local_attention=8),
}


def make_tokenizer(family: str = "bert") -> transformers.PreTrainedTokenizerFast:
    """A word-level tokenizer of `WORDS` that puts texts together as a family does."""
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    second = "[SEP]:1" if family in ("bert", "electra", "albert") else "[SEP]"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B{':1' if second.endswith('1') else ''} {second}",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if second.endswith("1") else [])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=names,
    )


def make_encoder(folder: Path, family: str) -> Path:
    """A random encoder of a family with a word-level tokenizer, saved as on the hub."""
    make_tokenizer(family).save_pretrained(folder)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(ENCODER_CONFIGS[family]).save_pretrained(folder)
    return folder
