"""What is wrong with a source, or with what was asked for, is said in one line before anything is traced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner

import lfm2export.trace
from lfm2export.cli import main
from tiny import write_tiny


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """Keys of a JSON file changed."""

    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | changes))

    return change


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)

    return change


def link(name: str) -> Callable[[Path], None]:
    """The file becomes a link to one beside the folder."""

    def change(folder: Path) -> None:
        secret = folder.parent / "secret"
        if (folder / name).exists():
            (folder / name).rename(secret)
        else:
            secret.write_text("{}")
        (folder / name).symlink_to(secret)

    return change


def folder_for(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def template(name: str, text: str) -> Callable[[Path], None]:
    """One more chat template."""

    def change(folder: Path) -> None:
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)

    return change


def processor(pieces: int, tokens: int) -> dict[str, Any]:
    """A TemplateProcessing that puts `pieces`, each of `tokens` tokens, before a text."""
    special = {"id": "x", "ids": [1] * tokens, "tokens": ["x"] * tokens}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [*({"SpecialToken": {"id": "x", "type_id": 0}} for _ in range(pieces)), text]
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {"x": special}}


LINKED = (
    *("LICENSE", "NOTICE", "README.md", "generation_config.json", "tokenizer.json", "vocab.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja"),
)
BOMB = "---\na: &a [x, x]\nb: &b [*a, *a]\nlicense: mit\n---\n"
OUTSIDE = [{"name": "default", "template": "x"}, {"name": "../../outside", "template": "y"}]

FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    **{f"{name} leads out": (link(name), f"{name} is a link to ") for name in LINKED},
    "licence is a folder": (folder_for("LICENSE"), "LICENSE is a folder, expected a file"),
    "licence of a gigabyte": (write("LICENSE", b" " * (4 << 20 | 1)), "LICENSE has more than 4,194,304 bytes"),
    "card is Latin-1": (write("README.md", b"---\nlicense: mit\n---\ncaf\xe9"), "README.md is not UTF-8"),
    "front matter is damaged": (write("README.md", "---\nlicense: [\n---\n"), "is not valid YAML (line 2: "),
    "front matter is a bomb": (write("README.md", BOMB), "line 2: an alias, *a"),
    "front matter is a list": (write("README.md", "---\n- mit\n---\n"), "holds a list, expected a mapping"),
    "licence is a mapping": (write("README.md", "---\nlicense: {a: b}\n---\n"), "states the license {'a': 'b'}"),
    "licence is markup": (write("README.md", "---\nlicense: <b>\n---\n"), "states the license '<b>'"),
    "generation config is deep": (write("generation_config.json", "[" * 200_000), "generation_config.json is "),
    "generation config is a list": (write("generation_config.json", "[]"), "holds a JSON list, expected an object"),
    "temperature is text": (edit("generation_config.json", temperature="0.3"), "temperature is '0.3'"),
    "stop strings are numbers": (edit("generation_config.json", stop_strings=[1]), "stop_strings is [1]"),
    "stop token is negative": (edit("generation_config.json", eos_token_id=-1), "eos_token_id is -1"),
    "stop token is beyond": (edit("config.json", eos_token_id=512), "eos_token_id is 512"),
    "init range is text": (edit("config.json", initializer_range="small"), "initializer_range is 'small'"),
    "tokenizer is a list": (write("tokenizer.json", "[1]"), "tokenizer.json holds a JSON list"),
    "tokenizer config is a list": (write("tokenizer_config.json", "[1]"), "holds a JSON list, expected an object"),
    "tokenizer length is text": (edit("tokenizer_config.json", model_max_length="64"), "model_max_length is '64'"),
    "special token is a number": (edit("special_tokens_map.json", mask_token=5), "mask_token is 5"),
    "special tokens are numbers": (
        edit("special_tokens_map.json", additional_special_tokens=[5]),
        "special_tokens_map.json: additional_special_tokens is [5]",
    ),
    "added token is beyond": (write("added_tokens.json", '{"x": 512}'), "gives the token 'x' the id 512"),
    "vocabulary of texts": (write("vocab.json", '{"x": "y"}'), "gives the token 'x' the id 'y'"),
    "merges are no text": (write("merges.txt", b"\xff\xfea"), "merges.txt is not UTF-8"),
    "template leads out": (
        lambda folder: (
            (folder / "chat_template.jinja").unlink(),
            edit("tokenizer_config.json", chat_template=OUTSIDE)(folder),
        )[-1],
        "is named '../../outside'",
    ),
    "further template is no Jinja": (template("rag", "{% if %}"), "chat template 'rag' fails"),
    "further template divides by zero": (template("rag", "{{ 1/0 }}"), "chat template 'rag' fails"),
    "template for tools divides by zero": (template("tool_use", "{{ 1/0 }}"), "chat template 'tool_use' fails"),
    "templates are large in sum": (template("rag", "x" * (2 << 20)), "chat templates of 2,097,"),
    "suppressed token is beyond": (edit("generation_config.json", suppress_tokens=[512]), "suppress_tokens is [512]"),
    "bad word is negative": (edit("generation_config.json", bad_words_ids=[[-5]]), "bad_words_ids is [[-5]]"),
    "typical_p is negative": (edit("generation_config.json", typical_p=-4), "typical_p is -4"),
    "a million beams": (edit("generation_config.json", num_beams=10**6), "num_beams is 1000000"),
    "no time at all": (edit("generation_config.json", max_time=-1e300), "max_time is -1e+300"),
    "no new tokens": (edit("generation_config.json", max_new_tokens=0), "max_new_tokens is 0"),
    "length of nothing": (edit("generation_config.json", max_length=0), "max_length is 0"),
    "longer than any text": (edit("generation_config.json", min_length=2**31 - 1), "min_length is 2147483647"),
    "token of a thousand letters": (edit("tokenizer_config.json", mask_token="x" * 1000), "mask_token is 'xxx"),
    "post-processor of many tokens": (
        edit("tokenizer.json", post_processor=processor(pieces=1, tokens=17)),
        "its post_processor puts 2 pieces of up to 17 tokens around a text",
    ),
    "post-processor of many pieces": (
        edit("tokenizer.json", post_processor={"type": "Sequence", "processors": [processor(pieces=64, tokens=1)]}),
        "its post_processor puts 65 pieces of up to 1 tokens around a text",
    ),
    "template divides by zero": (write("chat_template.jinja", "{{ 1/0 }}"), "chat template 'default' fails"),
}

REQUESTS: dict[str, tuple[list[str], str]] = {
    "no calibration text": (["--calibrate", "--calibration-text", "nowhere.txt"], "nowhere.txt"),
    "short calibration text": (["--calibrate", "--calibration-text", "short.txt"], "expected at least 1024"),
    "a target of nothing": (["--target-bpw", "2"], "less than any choice takes"),
}


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError("traced")

    monkeypatch.setattr(lfm2export.trace, "trace", trace)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("early") / "source")


def refusal(source: Path, out: Path, *options: str) -> str:
    """The one line that a build ends with."""
    done = CliRunner().invoke(main, ["build", str(source), "-o", str(out), "--quiet", "--no-verify", *options])
    assert done.exit_code == 2, (done.output, done.exception)
    [line] = done.output.strip().splitlines()
    assert line.startswith("Error: ") and not out.exists()
    return line


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_source_is_said_before_the_trace(sound: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(sound, source)
    spoil, expected = FAULTS[name]
    spoil(source)
    assert expected in refusal(source, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("name", REQUESTS)
def test_what_cannot_be_done_is_said_before_the_trace(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("Too little.")
    options, expected = REQUESTS[name]
    assert expected in refusal(sound, tmp_path / "out", *options)


@pytest.mark.usefixtures("untraced")
def test_text_of_the_models_own_needs_a_start(sound: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(sound, source)
    edit("tokenizer.json", post_processor=None)(source)
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        content = json.loads((source / file).read_text())
        kept = {name: value for name, value in content.items() if not name.startswith("bos_token")}
        (source / file).write_text(json.dumps(kept))
    (source / "chat_template.jinja").unlink()
    line = refusal(source, tmp_path / "out", "--calibrate", "--calibration-text", "self")
    assert "no token before a text" in line


@pytest.mark.usefixtures("untraced")
def test_a_disk_that_is_too_small_is_said_before_the_trace(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("lfm2export.space.shutil.disk_usage", lambda path: usage._replace(free=100_000))
    line = refusal(sound, tmp_path / "out", "--dtype", "fp32")
    assert f"{tmp_path} has 0 MB free" in line and "fp32 need at least 1 MB" in line


def test_a_sound_source_is_traced(sound: Path, tmp_path: Path, untraced: None) -> None:
    """That the other tests see a trace when there is one."""
    done = CliRunner().invoke(main, ["build", str(sound), "-o", str(tmp_path / "out"), "--quiet", "--no-verify"])
    assert "traced" in repr((done.output, done.exception))
