"""Templates against transformers, decoding while streaming, and conversations that keep the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm2export.errors import PromptError, TokenizerError
from lfm2export.generation.chat import Conversation, stream
from lfm2export.generation.loop import Stop, generate
from lfm2export.generation.sampling import Sampler, Sampling
from lfm2export.runtime import BufferedModel, OnnxModel
from lfm2export.text.tokenizer import ChatTokenizer, StreamDecoder
from standin import CONFIG, write_standin
from tiny import write_companions

#: The released checkpoints' template in its essentials: a tool list in the system message, tool results wrapped.
TOOLS_TEMPLATE = """{{- bos_token -}}
{%- set ns = namespace(system="") -%}
{%- if messages[0]["role"] == "system" -%}
    {%- set ns.system = messages[0]["content"] -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
    {%- set ns.system = ns.system + ("\\n" if ns.system else "") + "List of tools: <|tool_list_start|>[" -%}
    {%- for tool in tools -%}
        {%- if tool is not string -%}
            {%- set tool = tool | tojson -%}
        {%- endif -%}
        {%- set ns.system = ns.system + tool -%}
        {%- if not loop.last -%}
            {%- set ns.system = ns.system + ", " -%}
        {%- endif -%}
    {%- endfor -%}
    {%- set ns.system = ns.system + "]<|tool_list_end|>" -%}
{%- endif -%}
{%- if ns.system -%}
    {{- "<|im_start|>system\\n" + ns.system + "<|im_end|>\\n" -}}
{%- endif -%}
{%- for message in messages -%}
    {{- "<|im_start|>" + message["role"] + "\\n" -}}
    {%- set content = message["content"] -%}
    {%- if content is not string -%}
        {%- set content = content | tojson -%}
    {%- endif -%}
    {%- if message["role"] == "tool" -%}
        {%- set content = "<|tool_response_start|>" + content + "<|tool_response_end|>" -%}
    {%- endif -%}
    {{- content + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
"""

ODD_TEMPLATE = """{{ strftime_now('%Y') }} {{ eos_token }} {{ unk_token is defined }}
{% for message in messages %}
  {% if message.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}
  {% generation %}{{ message | tojson(indent=2) }}{% endgeneration %}
  {% if message.reasoning_content %}think {{ message.reasoning_content }}{% endif %}
  {% if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}
{{ dict(a=1) | tojson }} {{ documents is none }}
"""

TOOLS = [{"name": "get_weather", "description": 'Wetter & <Wind> für "überall"', "parameters": {"type": "object"}}]


def folder_with(tmp_path: Path, template: str) -> Path:
    tmp_path.mkdir(exist_ok=True)
    write_companions(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    return tmp_path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ChatTokenizer, Any]]:
    from transformers import AutoTokenizer

    pairs = {}
    for name, template in (("tools", TOOLS_TEMPLATE), ("odd", ODD_TEMPLATE)):
        folder = folder_with(tmp_path_factory.mktemp(name), template)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        pairs[name] = (ChatTokenizer(folder), AutoTokenizer.from_pretrained(folder))
    return pairs


messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.text(max_size=30)},
        optional={"reasoning": st.text(max_size=5) | st.none(), "name": st.none()},
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(messages, st.booleans(), st.booleans(), st.sampled_from(["tools", "odd"]))
def test_rendering_equals_transformers(
    pair: dict[str, tuple[ChatTokenizer, Any]], chat: list[dict[str, Any]], prompt: bool, tools: bool, which: str
) -> None:
    ours, theirs = pair[which]
    given_tools = TOOLS if tools else None
    text = ours.render(chat, tools=given_tools, add_generation_prompt=prompt)
    assert text == theirs.apply_chat_template(chat, tools=given_tools, add_generation_prompt=prompt, tokenize=False)
    expected = theirs.apply_chat_template(chat, tools=given_tools, add_generation_prompt=True)["input_ids"]
    assert ours.encode_chat(chat, tools=given_tools) == expected


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_plain_text_encodes_as_transformers_does(pair: dict[str, tuple[ChatTokenizer, Any]], text: str) -> None:
    ours, theirs = pair["tools"]
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True)


def test_the_shipped_template_renders_as_in_transformers(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "lfm2export" / "shipped"
    from transformers import AutoTokenizer

    folder = folder_with(tmp_path, (shipped / "chat_template.jinja").read_text())
    (folder / "config.json").write_text(json.dumps(CONFIG))
    chat = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is C. elegans?"},
        {"role": "assistant", "content": "It's a tiny nematode."},
        {"role": "user", "content": "Where?"},
    ]
    for tools in (None, TOOLS):
        expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
            chat, tools=tools, add_generation_prompt=True, tokenize=False
        )
        assert ChatTokenizer(folder).render(chat, tools=tools) == expected


def test_a_template_may_refuse(pair: dict[str, tuple[ChatTokenizer, Any]], tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="the chat template refuses this conversation: no such role"):
        pair["odd"][0].render([{"role": "bad", "content": ""}])
    with pytest.raises(PromptError, match="the conversation is empty"):
        pair["odd"][0].render([])
    broken = ChatTokenizer(folder_with(tmp_path, "{% if %}"))
    with pytest.raises(PromptError, match="'default' fails on this conversation: TemplateSyntaxError"):
        broken.render([{"role": "user", "content": ""}])


def test_a_template_cannot_leave_its_sandbox(tmp_path: Path) -> None:
    hostile = ChatTokenizer(folder_with(tmp_path, "{{ ''.__class__.__mro__[1].__subclasses__() }}"))
    with pytest.raises(PromptError, match=r"SecurityError: .* is unsafe|UndefinedError"):
        hostile.render([{"role": "user", "content": ""}])


def test_an_embedded_template_is_used_when_there_is_no_file(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "")
    (folder / "chat_template.jinja").unlink()
    assert not ChatTokenizer(folder).has_chat_template
    with pytest.raises(PromptError, match="has no chat template"):
        ChatTokenizer(folder).render([{"role": "user", "content": "x"}])
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"chat_template": "{{ messages[0].content }}"}))
    assert ChatTokenizer(folder).render([{"role": "user", "content": "x"}]) == "x"
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    path.write_text(json.dumps(config | {"chat_template": named}))
    assert ChatTokenizer(folder).render([{"role": "user", "content": "x"}], tools=TOOLS) == "tools"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{}", "has no model vocabulary"),
        ("tokenizer_config.json", "[", "not valid JSON"),
        ("tokenizer_config.json", "[]", "holds a JSON list"),
    ],
)
def test_damaged_tokenizers_are_named(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    folder = folder_with(tmp_path, "")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(TokenizerError, match=message):
        ChatTokenizer(folder)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=40), st.booleans())
def test_streamed_pieces_make_the_whole_text(
    pair: dict[str, tuple[ChatTokenizer, Any]], ids: list[int], skip: bool
) -> None:
    tokenizer = pair["tools"][0]
    decoder = StreamDecoder(lambda tokens: tokenizer.decode(tokens, skip_special=skip))
    pieces = [decoder.push(token) for token in ids]
    assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids, skip_special=skip)
    assert decoder.flush() == ""


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(min_codepoint=0x80, exclude_categories=["Cs"]), max_size=20))
def test_no_piece_holds_half_a_character(pair: dict[str, tuple[ChatTokenizer, Any]], text: str) -> None:
    tokenizer = pair["tools"][0]
    decoder = StreamDecoder(tokenizer.decode)
    shown = ""
    for token in tokenizer.encode(text, special=False):
        shown += decoder.push(token)
        assert text.startswith(shown)
    assert shown + decoder.flush() == text


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_standin(tmp_path_factory.mktemp("model"), vocabulary=512, logits="all")
    write_companions(folder)
    (folder / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
    return folder


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("buffered", [False, True])
def test_a_conversation_prefills_only_what_is_new_and_answers_the_same(
    model_folder: Path, buffered: bool, draft: bool
) -> None:
    plain = OnnxModel(model_folder, threads=1)
    model: Any = BufferedModel(plain) if buffered else plain
    tokenizer = ChatTokenizer(model_folder)
    warm = Sampling(temperature=1.0)
    kept: Any = Conversation(
        model, tokenizer, eos_ids={7}, max_new_tokens=12, sampler=Sampler(warm, 0), system="Be brief.", draft=draft
    )
    held = 0
    for seed, text in enumerate(["Hello.", "What is the capital of France?", "é 漢字"]):
        kept.sampler = Sampler(warm, seed)
        shown: list[str] = []
        answer = kept.ask(text, on_text=shown.append)
        afresh = generate(model, answer.prompt, max_new_tokens=12, eos_ids={7}, sampler=Sampler(warm, seed))
        assert afresh.tokens == answer.generated.tokens
        assert tokenizer.decode(answer.prompt) == tokenizer.render(kept.messages[:-1])
        assert "".join(shown) == tokenizer.decode(
            [token for token in answer.generated.tokens if token != 7], skip_special=True
        )
        assert kept.messages[-1] == {"role": "assistant", "content": answer.text}
        assert answer.reused + answer.generated.prefilled == len(answer.prompt)
        assert answer.reused == held
        assert (answer.generated.drafted > 0) is draft
        held = int(answer.generated.state.lengths[0])


def test_a_cache_that_the_template_contradicts_is_dropped(model_folder: Path, tmp_path: Path) -> None:
    forgetful = "{{ messages[-1].content }}"
    tokenizer = ChatTokenizer(folder_with(tmp_path, forgetful))
    talk: Any = Conversation(OnnxModel(model_folder), tokenizer, eos_ids={7}, max_new_tokens=3)
    assert talk.ask("one two three").reused == 0
    assert talk.ask("four").reused == 0


def test_an_extending_conversation_reuses_all_that_was_fed(model_folder: Path, tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(model_folder)
    talk: Any = Conversation(OnnxModel(model_folder), tokenizer, eos_ids={7}, max_new_tokens=1)
    first = talk.ask("Hello.")
    fed = int(first.generated.state.lengths[0])
    assert fed == len(tokenizer.encode_chat(talk.messages[:-1]))
    assert talk.ask("And?").reused == fed


def test_a_failed_turn_leaves_the_conversation_as_it_was(model_folder: Path) -> None:
    talk: Any = Conversation(OnnxModel(model_folder), ChatTokenizer(model_folder), eos_ids={7}, max_new_tokens=4)
    talk.ask("Hello.")
    before = list(talk.messages)
    with pytest.raises(PromptError, match="expected at most 2048"):
        talk.ask("word " * 3000)
    assert talk.messages == before
    talk.ask("Still there?")
    assert len(talk.messages) == 4


def test_streaming_shows_no_stop_token(model_folder: Path) -> None:
    model, tokenizer = OnnxModel(model_folder), ChatTokenizer(model_folder)
    tokens = tokenizer.encode("The river")
    greedy = stream(model, tokenizer, tokens, max_new_tokens=3, on_text=lambda _: None).tokens
    shown: list[str] = []
    stopped = stream(model, tokenizer, tokens, max_new_tokens=9, on_text=shown.append, eos_ids={greedy[0]})
    assert (stopped.stop, stopped.tokens, shown) == (Stop.EOS, greedy[:1], [])


def test_importing_generation_is_light() -> None:
    import subprocess
    import sys

    code = "import lfm2export.generation.chat, sys; print({'torch', 'transformers', 'onnxruntime'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
