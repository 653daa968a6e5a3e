"""Small BERT models of random weights, made and run by transformers: what pooling on vLLM is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["cross_scores", "mean_vectors", "write_cross_encoder", "write_embedder"]

WORDS = tuple("the quick brown fox jumps over a lazy dog and cat sat on mat red green blue".split())  # noqa: SIM905


def _config(**changes: object) -> object:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
        initializer_range=0.5,
        **changes,
    )


def _write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(path)


def write_embedder(path: Path) -> Path:
    """Vectors are the mean of the last layer, normalised, as its modules.json says."""
    import json

    import torch
    from transformers import BertModel

    torch.manual_seed(0)
    BertModel(_config()).save_pretrained(path)
    _write_tokenizer(path)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


def write_cross_encoder(path: Path) -> Path:
    """One number for a pair."""
    import torch
    from transformers import BertForSequenceClassification

    torch.manual_seed(1)
    BertForSequenceClassification(_config(num_labels=1)).save_pretrained(path)
    _write_tokenizer(path)
    return path


def mean_vectors(path: Path, texts: Sequence[str]) -> list[list[float]]:
    """The embedder by transformers."""
    import torch
    from transformers import AutoTokenizer, BertModel

    model, tokenizer = BertModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        means = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    return [(mean / mean.norm()).tolist() for mean in means]


def cross_scores(path: Path, query: str, documents: Sequence[str]) -> list[float]:
    """The cross-encoder by transformers, through the sigmoid."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        return [
            float(torch.sigmoid(model(**tokenizer(query, document, return_tensors="pt")).logits[0, 0]))
            for document in documents
        ]
