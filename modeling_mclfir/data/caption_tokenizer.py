# SPDX-License-Identifier: Apache-2.0
"""A tokenizer learned from captions, for text towers without pretrained weights."""

from collections.abc import Iterable

_SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def train_tokenizer(captions: Iterable[str], vocab_size: int = 8000, max_length: int = 64):
    """
    Learn pieces of words from captions (BPE): lower-cased, accents taken off, `[CLS]` before and `[SEP]` behind.

    Args:
        captions: texts to learn from. The same texts, in any order, give the same tokenizer.
        vocab_size: pieces at most, the four special ones included; few captions fill fewer.
        max_length: tokens that are kept of a caption where truncation is asked for.

    Returns:
        a fast tokenizer of transformers, saved and loaded as any other. `[PAD]` has the id 0.

    Raises:
        ValueError: no caption; a vocabulary that has no room beyond the special pieces.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    captions = sorted(captions)
    if not any(caption.strip() for caption in captions):
        raise ValueError("There is no caption to learn a tokenizer from; give the training captions.")
    if vocab_size <= len(_SPECIAL):
        raise ValueError(f"vocab_size must be above {len(_SPECIAL)}, the special pieces; got {vocab_size}.")
    # Not WordPiece: its trainer numbers pieces as a hash table hands them out, another way each time.
    tokenizer = Tokenizer(models.BPE(unk_token=_SPECIAL["unk_token"], fuse_unk=True))
    steps = [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    words = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.decoder = decoders.Metaspace()
    special = list(_SPECIAL.values())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    start, end = (tokenizer.token_to_id(_SPECIAL[name]) for name in ("cls_token", "sep_token"))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", end), ("[CLS]", start))
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_length, model_input_names=names, **_SPECIAL
    )
