"""Train a small LFM2 from nothing on the corpus and write it as a checkpoint folder that looks like a released one.

Run `corpus.py` first. Everything is seeded. Training can go in stages: a stage that is given `--resume` continues from
the weights and the tokenizer that the output folder holds, with an optimizer and conversations of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import Lfm2Config, Lfm2ForCausalLM

import card
import chat
import data

HEAD_DIM = 64
ROPE_THETA = 1_000_000.0


@dataclass(frozen=True)
class Options:
    """What decides the result, with the machine's speed left out."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    attention: tuple[int, ...]
    steps: int
    stop_after: int
    batch: int
    width: int
    learning_rate: float
    warmup: int
    weight_decay: float
    chats: int
    chat_share: float
    repeat_share: float
    mix: str
    seed: int


def config_json(options: Options) -> dict[str, Any]:
    """The key set of the family's published config files; loaders and exporters are tested against these names."""
    hidden = options.hidden
    return {
        "architectures": ["Lfm2ForCausalLM"],
        "block_auto_adjust_ff_dim": False,
        "block_dim": hidden,
        "block_ff_dim": options.ffn,
        "block_ffn_dim_multiplier": 1.0,
        "block_mlp_init_scale": 1.0,
        "block_multiple_of": 256,
        "block_norm_eps": 1e-05,
        "block_out_init_scale": 1.0,
        "block_use_swiglu": True,
        "block_use_xavier_init": True,
        "bos_token_id": 1,
        "conv_L_cache": 3,
        "conv_bias": False,
        "conv_dim": hidden,
        "conv_dim_out": hidden,
        "conv_use_xavier_init": True,
        "eos_token_id": 7,
        "full_attn_idxs": list(options.attention),
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "model_type": "lfm2",
        "norm_eps": 1e-05,
        "num_attention_heads": options.heads,
        "num_heads": options.heads,
        "num_hidden_layers": options.layers,
        "num_key_value_heads": options.kv_heads,
        "pad_token_id": 0,
        "rope_theta": ROPE_THETA,
        "tie_embedding": True,
        "torch_dtype": "bfloat16",
        "transformers_version": transformers.__version__,
        "use_cache": True,
        "use_pos_enc": True,
        "vocab_size": options.vocab,
    }


GENERATION_CONFIG = {
    "bos_token_id": 1,
    "do_sample": True,
    "eos_token_id": 7,
    "min_p": 0.15,
    "pad_token_id": 0,
    "repetition_penalty": 1.05,
    "temperature": 0.3,
    "transformers_version": transformers.__version__,
}

TOKENIZER_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": data.BOS,
    "clean_up_tokenization_spaces": False,
    "eos_token": data.EOS_OF_TURN,
    "legacy": False,
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": 32768,
    "pad_token": data.PAD,
    "padding_side": "left",
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def build_model(options: Options) -> Lfm2ForCausalLM:
    if options.hidden != options.heads * HEAD_DIM:
        raise ValueError(f"head_dim is {HEAD_DIM}: hidden must be {options.heads * HEAD_DIM}, got {options.hidden}")
    keys = config_json(options)
    for name in ("architectures", "torch_dtype", "transformers_version"):
        del keys[name]
    model = Lfm2ForCausalLM(Lfm2Config(**keys))
    if model.config.rope_parameters["rope_theta"] != ROPE_THETA:
        raise ValueError(f"rope_theta: got {model.config.rope_parameters['rope_theta']}, expected {ROPE_THETA}")
    return model


def parameter_count(model: Lfm2ForCausalLM) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def optimizer_for(model: Lfm2ForCausalLM, options: Options) -> torch.optim.AdamW:
    """Weight decay on matrices only: it pulls norm weights away from 1 for nothing."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95), fused=True)


def learning_rate_at(step: int, options: Options) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    progress = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def loss_of(model: Lfm2ForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of every token of `rows` `[B, S]` but the first, matrix products in bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(rows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: Lfm2ForCausalLM, rows: np.ndarray) -> float:
    model.eval()
    losses = [loss_of(model, torch.from_numpy(rows[i : i + 8])).item() for i in range(0, len(rows) // 8 * 8, 8)]
    model.train()
    return math.exp(sum(losses) / len(losses))


def train(model: Lfm2ForCausalLM, rows: data.Rows, options: Options) -> Iterator[tuple[int, float]]:
    """Yield (step, mean training loss since the last yield) now and then, so that the caller can log and save."""
    optimizer = optimizer_for(model, options)
    losses: list[float] = []
    for step in range(options.stop_after):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, options)
        loss = loss_of(model, torch.from_numpy(rows.batch(options.batch)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 20 == 0 or step + 1 == options.stop_after:
            yield step + 1, sum(losses) / len(losses)
            losses.clear()


def rounded_weights(model: Lfm2ForCausalLM) -> dict[str, torch.Tensor]:
    """The weights as they are shipped: bfloat16, and the output head left out because it is the embedding."""
    state = model.state_dict()
    return {name: value.to(torch.bfloat16).contiguous() for name, value in state.items() if name != "lm_head.weight"}


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save(model: Lfm2ForCausalLM, options: Options, out: Path) -> None:
    """Write the checkpoint; the weights go to a temporary name first, so that a reader never sees half a file."""
    write_json(out / "config.json", config_json(options))
    write_json(out / "generation_config.json", GENERATION_CONFIG)
    partial = out / "model.safetensors.partial"
    save_file(rounded_weights(model), partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(out / "model.safetensors")


def save_tokenizer(tokenizer: data.Tokenizer, out: Path) -> None:
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "tokenizer_config.json", TOKENIZER_CONFIG)
    special = {"bos_token": data.BOS, "eos_token": data.EOS_OF_TURN, "pad_token": data.PAD}
    write_json(out / "special_tokens_map.json", special)
    shutil.copyfile(chat.TEMPLATE, out / "chat_template.jinja")


def read_lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class Corpus:
    documents: list[str]
    chats: list[str]
    heldout_documents: list[str]
    heldout_chats: list[str]


def load_corpus(cache: Path, options: Options) -> Corpus:
    """Documents and conversations as the model sees them, special tokens included."""
    entries = read_lines(cache / "entries.jsonl")
    train_chats, heldout_chats = chat.conversations(entries, options.chats, options.seed, options.mix)
    return Corpus(
        documents=[data.framed(row["text"]) for row in read_lines(cache / "train.jsonl")],
        chats=train_chats,
        heldout_documents=[data.framed(row["text"]) for row in read_lines(cache / "heldout.jsonl")],
        heldout_chats=heldout_chats[:80],
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here.parent / "lfm2export" / "shipped")
    parser.add_argument("--cache", type=Path, default=here / "cache", help="what corpus.py wrote")
    for name, default in (("hidden", 256), ("layers", 8), ("heads", 4), ("kv-heads", 2), ("ffn", 512), ("vocab", 3072)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--attention", type=int, nargs="+", default=(2, 5, 7), help="indices of the attention layers")
    for name, default in (
        ("steps", 3000),
        ("batch", 8),
        ("width", 512),
        ("warmup", 100),
        ("chats", 40_000),
        ("seed", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--stop-after", type=int, help="stop before the schedule of --steps ends (default: do not)")
    parser.add_argument("--mix", choices=sorted(chat.MIXES), default="broad", help="which conversations to make")
    parser.add_argument("--resume", action="store_true", help="continue from what --out holds, as a further stage")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--chat-share", type=float, default=0.25, help="share of the rows that hold conversations")
    parser.add_argument("--repeat-share", type=float, default=0.0, help="share of the rows that repeat a few tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=500, help="steps between early checkpoints")
    return parser.parse_args()


def options_from(args: argparse.Namespace) -> Options:
    fields = {name: getattr(args, name) for name in Options.__dataclass_fields__}
    return Options(**fields | {"attention": tuple(args.attention), "stop_after": args.stop_after or args.steps})


def load_weights(model: Lfm2ForCausalLM, out: Path) -> None:
    missing, unexpected = model.load_state_dict(load_file(out / "model.safetensors"), strict=False)
    if missing != ["lm_head.weight"] or unexpected:
        raise ValueError(f"{out} holds another shape of model: missing {missing}, unexpected {unexpected}")


def tokenizer_and_heldout(
    corpus: Corpus, options: Options, out: Path, resume: bool
) -> tuple[data.Tokenizer, list[str]]:
    """Made and written by the first stage, read by the next ones: they belong to the model, not to a stage."""
    if not resume:
        save_tokenizer(data.train_tokenizer(corpus.documents + corpus.chats, options.vocab), out)
        card.write_heldout(corpus.heldout_documents, corpus.heldout_chats, out)
    return data.Tokenizer.from_file(str(out / "tokenizer.json")), card.read_heldout(out)


def main() -> None:
    args = arguments()
    options = options_from(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(options.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    corpus = load_corpus(args.cache, options)
    tokenizer, heldout = tokenizer_and_heldout(corpus, options, args.out, args.resume)
    documents, chats = data.encode(tokenizer, corpus.documents), data.encode(tokenizer, corpus.chats)
    validation = data.fixed_rows(data.encode(tokenizer, heldout), options.width + 1)
    unigram = data.unigram_perplexity(documents + chats, validation, options.vocab)
    rows = data.Rows(documents, chats, options.width + 1, options.chat_share, options.repeat_share, options.seed)
    model = build_model(options)
    if args.resume:
        load_weights(model, args.out)
    parameters, text_tokens, chat_tokens = parameter_count(model), sum(map(len, documents)), sum(map(len, chats))
    print(f"{parameters:,} parameters; tokens: manuals {text_tokens:,}, chat {chat_tokens:,}; unigram {unigram:.1f}")

    started = time.monotonic()
    for step, loss in train(model, rows, options):
        rate = step * options.batch * options.width / (time.monotonic() - started)
        print(f"step {step}/{options.stop_after} loss {loss:.3f} {rate:.0f} token/s", flush=True)
        if step % args.save_every == 0 and step < options.stop_after:
            print(f"step {step} held-out perplexity {perplexity(model, validation[:128]):.2f}", flush=True)
            save(model, options, args.out)
    minutes = (time.monotonic() - started) / 60

    model.load_state_dict(rounded_weights(model), strict=False)
    save(model, options, args.out)
    stage = {
        "options": asdict(options),
        "tokens_seen": options.stop_after * options.batch * options.width,
        "epochs_begun": {"manuals": rows.text_epochs, "chat": rows.chat_epochs},
        "minutes": round(minutes, 1),
        "threads": args.threads,
    }
    figures = {
        "parameters": parameters,
        "corpus_tokens": {"manuals": text_tokens, "chat": chat_tokens},
        "heldout_tokens": int(validation.size),
        "heldout_perplexity": round(perplexity(model, validation), 3),
        "unigram_perplexity": round(unigram, 2),
    }
    sources = json.loads((args.cache / "sources.json").read_text(encoding="utf-8"))
    card.write_provenance(args.out, sources, stage, figures, args.resume)
    print(json.dumps(stage | figures, indent=2))


if __name__ == "__main__":
    main()
