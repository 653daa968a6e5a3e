"""The tokenizer of a specialist: a lower-casing byte-level BPE of at most 512 entries in which every digit is a token.

All that happens to a text before the model sees it (Unicode form, case, spaces) is in the tokenizer's own file, so
every engine that reads `tokenizer.json` treats a prompt alike.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
VOCABULARY = 512
MAX_LENGTH = 128


def train_tokenizer(prompts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learns the merges from prompts. Nothing is put around a prompt: it begins with its own first token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Strip(),
            # The first word gets the same tokens as any other.
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Replace(" =", "="),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(prompts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
