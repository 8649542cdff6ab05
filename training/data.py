"""The tokenizer and the rows of tokens that training reads."""

from __future__ import annotations

import random

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS_OF_TEXT, EOS_OF_TURN, PAD = "<|startoftext|>", "<|endoftext|>", "<|im_end|>", "<|pad|>"
NAMED_SPECIAL_TOKENS = (
    PAD,
    BOS,
    EOS_OF_TEXT,
    "<|fim_pre|>",
    "<|fim_mid|>",
    "<|fim_suf|>",
    "<|im_start|>",
    EOS_OF_TURN,
    "<|tool_list_start|>",
    "<|tool_list_end|>",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    "<|tool_response_start|>",
    "<|tool_response_end|>",
)
"""In the order of their ids in LFM2's vocabulary: 0, 1, 2, ..."""

SPECIAL_TOKEN_COUNT = 64

SPLIT = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""Words with their leading space, digits by threes, punctuation, line ends: what both Rust and JavaScript can run."""


def special_tokens() -> list[str]:
    reserved = range(len(NAMED_SPECIAL_TOKENS), SPECIAL_TOKEN_COUNT)
    return [*NAMED_SPECIAL_TOKENS, *(f"<|reserved_{i}|>" for i in reserved)]


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with LFM2's special tokens in front, so that any text can be encoded and decoded exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special_tokens()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the corpus is too small for {vocab_size} tokens: got {tokenizer.get_vocab_size()}")
    return tokenizer


def framed(text: str) -> str:
    """A document as the model sees it: begun and ended by special tokens."""
    return f"{BOS}{text}{EOS_OF_TEXT}"


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Token ids of texts that carry their own special tokens."""
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(one.ids, dtype=np.uint16) for one in encoded]


class Rows:
    """An endless, seeded supply of rows of `width` tokens.

    A share of the rows holds whole conversations, topped up with manual text, because a conversation cut in two teaches
    the model to answer questions that it cannot see. The other rows are slices of the shuffled manuals.
    """

    def __init__(
        self, documents: list[np.ndarray], chats: list[np.ndarray], width: int, share: float, repeats: float, seed: int
    ) -> None:
        self.documents, self.width, self.share, self.repeats = documents, width, share, repeats
        self.chats = [chat for chat in chats if len(chat) <= width]
        self.rng = random.Random(seed)
        self.text = np.empty(0, dtype=np.uint16)
        self.waiting: list[np.ndarray] = []
        self.text_epochs = self.chat_epochs = 0

    def take_text(self, count: int) -> np.ndarray:
        if len(self.text) < count:
            order = self.rng.sample(self.documents, len(self.documents))
            self.text = np.concatenate([self.text, *order])
            self.text_epochs += 1
        taken, self.text = self.text[:count], self.text[count:]
        return taken

    def chat_row(self) -> np.ndarray:
        parts: list[np.ndarray] = []
        room = self.width
        while True:
            if not self.waiting:
                self.waiting = self.rng.sample(self.chats, len(self.chats))
                self.chat_epochs += 1
            if len(self.waiting[-1]) > room:
                break
            parts.append(self.waiting.pop())
            room -= len(parts[-1])
        return np.concatenate([*parts, self.take_text(room)])

    def repeat_row(self) -> np.ndarray:
        """A few tokens in random order, over and over: only attention to what came before can predict them.

        Looking back is what answers and tool calls need, and so small a corpus teaches it slowly otherwise.
        """
        once = self.take_text(self.rng.randint(8, 48))
        once = once[self.rng.sample(range(len(once)), len(once))]
        return np.tile(once, self.width // len(once) + 1)[: self.width]

    def row(self) -> np.ndarray:
        if self.repeats and self.rng.random() < self.repeats:
            return self.repeat_row()
        return self.chat_row() if self.rng.random() < self.share else self.take_text(self.width)

    def batch(self, size: int) -> np.ndarray:
        """`[size, width]` int64."""
        return np.stack([self.row() for _ in range(size)]).astype(np.int64)


def fixed_rows(texts: list[np.ndarray], width: int) -> np.ndarray:
    """Held-out tokens in equal rows, `[rows, width]`; what is left over at the end is not used."""
    stream = np.concatenate(texts).astype(np.int64)
    return stream[: len(stream) // width * width].reshape(-1, width)


def unigram_perplexity(train: list[np.ndarray], rows: np.ndarray, vocab_size: int) -> float:
    """Perplexity on `rows` of the model that knows only how often each token occurs (add-one smoothing)."""
    counts = np.ones(vocab_size)
    for tokens in train:
        counts += np.bincount(tokens, minlength=vocab_size)
    log_probabilities = np.log(counts / counts.sum())
    return float(np.exp(-log_probabilities[rows[:, 1:]].mean()))
