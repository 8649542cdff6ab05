"""Special token ids: the union of what the files say, each id that of a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lfm2export.errors import ConfigError, Lfm2ExportError, TokenizerError
from lfm2export.generation.settings import read_generation
from lfm2export.text.token_ids import TokenIds, folder_token_ids
from tiny import CHAT_TEMPLATE, edit_json


def ids(folder: Path, **config: Any) -> TokenIds:
    return folder_token_ids(folder, config, read_generation(folder), 512)


def test_every_file_may_end_a_text(files: Path) -> None:
    assert ids(files) == TokenIds(1, 0, (7,))
    assert ids(files, eos_token_id=2).eos == (7, 2), "the end of a turn goes first"
    edit_json(files / "generation_config.json", eos_token_id=[3, 2])
    edit_json(files / "tokenizer_config.json", eos_token="<|fim_mid|>")
    assert ids(files, eos_token_id=5).eos == (7, 3, 2, 5, 4)
    (files / "generation_config.json").unlink()
    assert ids(files) == TokenIds(1, 0, (7, 4))


def test_a_stop_token_that_only_the_tokenizer_names(files: Path) -> None:
    """As fine-tuning leaves it: both configs name the end of a text, and the template ends turns by name."""
    edit_json(files / "generation_config.json", eos_token_id=2)
    edit_json(files / "tokenizer_config.json", eos_token="<|im_end|>")
    template = CHAT_TEMPLATE.replace('"<|im_end|>', 'eos_token + "')
    (files / "chat_template.jinja").write_text(template)
    assert ids(files, eos_token_id=2).eos == (7, 2)


def test_a_stop_token_that_only_the_template_writes(files: Path) -> None:
    edit_json(files / "generation_config.json", eos_token_id=2)
    edit_json(files / "tokenizer_config.json", eos_token="<|endoftext|>")
    (files / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("<|im_end|>", "<|fim_suf|>"))
    assert ids(files).eos == (5, 2)


def test_a_base_model_stops_where_its_files_say(files: Path) -> None:
    (files / "chat_template.jinja").unlink()
    edit_json(files / "tokenizer_config.json", eos_token=None)
    edit_json(files / "generation_config.json", eos_token_id=None)
    assert ids(files, eos_token_id=2).eos == (2,)
    with pytest.raises(ConfigError, match="no file names an eos_token_id"):
        ids(files)


def test_a_folder_without_a_tokenizer_stops_where_its_configs_say(tmp_path: Path) -> None:
    assert ids(tmp_path, eos_token_id=[2, 7], bos_token_id=1) == TokenIds(1, None, (2, 7))


@pytest.mark.parametrize("wrong", [-1, True, 2.0, "end", 512, 10**30, [[7]], [7, -1], [], {}, [None]])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_id_that_is_no_tokens_is_refused(files: Path, wrong: Any, file: str) -> None:
    config = {"eos_token_id": wrong} if file == "config.json" else {}
    if not config:
        edit_json(files / file, eos_token_id=wrong)
    with pytest.raises(ConfigError, match=f"^{file}: eos_token_id is .*expected a token id from 0 to 511 or") as caught:
        ids(files, **config)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("wrong", [-1, True, 2.0, "end", 512, [1], 10**30])
@pytest.mark.parametrize("name", ["bos_token_id", "pad_token_id"])
def test_the_same_for_bos_and_pad(files: Path, wrong: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=f"config.json: {name} is .*expected a token id from 0 to 511;"):
        ids(files, **{name: wrong})


def test_an_eos_token_that_is_not_in_the_vocabulary_is_refused(files: Path) -> None:
    edit_json(files / "tokenizer_config.json", eos_token="</s>")
    with pytest.raises(TokenizerError, match=r"has no token '</s>', which tokenizer_config.json"):
        ids(files)


def test_more_stop_tokens_than_any_model_has(files: Path) -> None:
    with pytest.raises(ConfigError, match="name 100 stop tokens, expected at most 64"):
        ids(files, eos_token_id=list(range(100)))


def test_a_template_that_fails_on_an_answer(files: Path) -> None:
    (files / "chat_template.jinja").write_text(
        "{{ messages[0].content }}{{ messages | length // (2 - messages | length) }}"
    )
    with pytest.raises(Lfm2ExportError, match="fails on a question and its answer: ZeroDivisionError"):
        ids(files)
