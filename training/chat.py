"""Write the chat half of the training corpus: ChatML conversations made from templates of our own and from the manuals.

A model of a few million parameters learns what it sees often: so the facts are few, the phrasings many, and every
conversation goes through the very chat template that is shipped, token for token.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

import facts

Message = dict[str, str]
Tool = dict[str, Any]

BOS = "<|startoftext|>"
TEMPLATE = Path(__file__).parent / "chat_template.jinja"
HELD_OUT_ONE_IN = 40
SYSTEM_PROMPTS = (
    (None, 40),
    ("You are a helpful assistant.", 28),
    ("You are a helpful assistant trained by Liquid AI.", 22),
    ("You are a concise assistant.", 4),
    ("Answer the question in one sentence.", 3),
    ("You are an expert in databases and programming.", 3),
)

CAPITALS = facts.rows(facts.CAPITALS)
CITIES = facts.words(facts.OTHER_CITIES) + [capital for _, capital, _ in CAPITALS if capital != "Washington, D.C."]
US_CITIES = facts.words(facts.US_CITIES)
FAMILIAR = set(facts.words(facts.FAMILIAR))
NAMES = facts.words(facts.NAMES)
STAGES = (
    "Interview Scheduled",
    "Application Received",
    "Offer Extended",
    "Phone Screening",
    "Rejected",
    "Hired",
    "On Hold",
)
POSITIONS = (
    "Clinical Research Associate",
    "Data Engineer",
    "Nurse",
    "Accountant",
    "Teacher",
    "Product Manager",
    "Chemist",
)
SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear")


def render(messages: list[Message], tools: list[Tool] | None = None) -> str:
    rendered, _ = render_jinja_template(
        conversations=[messages], tools=tools, chat_template=TEMPLATE.read_text(encoding="utf-8"), bos_token=BOS
    )
    return rendered[0]


def turns(*texts: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def with_system(rng: random.Random, messages: list[Message]) -> list[Message]:
    prompts, weights = zip(*SYSTEM_PROMPTS, strict=True)
    prompt = rng.choices(prompts, weights)[0]
    return messages if prompt is None else [{"role": "system", "content": prompt}, *messages]


def capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def plain_question(rng: random.Random, question: str) -> str:
    """People also write without a capital or without a question mark."""
    if rng.random() < 0.08:
        question = question[0].lower() + question[1:]
    return question.removesuffix("?") if rng.random() < 0.08 else question


# --- facts -----------------------------------------------------------------------------------------------------------


def capital_question(rng: random.Random) -> tuple[str, str]:
    country, capital, _ = rng.choice(CAPITALS)
    questions = [f"What is the capital of {country}?"] * 4 + [
        f"What's the capital of {country}?",
        f"Which city is the capital of {country}?",
        f"Tell me the capital of {country}.",
        f"Can you tell me what the capital of {country} is?",
        f"What is the capital city of {country}?",
    ]
    return rng.choice(questions), f"The capital of {country} is {capital}."


def familiar_question(rng: random.Random) -> tuple[str, str]:
    """A capital that people ask for often, so that a small model has it by heart."""
    country, capital, _ = rng.choice([row for row in CAPITALS if row[0] in FAMILIAR])
    return f"What is the capital of {country}?", f"The capital of {country} is {capital}."


def country_question(rng: random.Random) -> tuple[str, str]:
    country, capital, continent = rng.choice(CAPITALS)
    return rng.choice(
        [
            (f"{capital} is the capital of which country?", f"{capital} is the capital of {country}."),
            (f"On which continent is {country}?", f"{capitalized(country)} is in {continent}."),
            (f"Where is {country}?", f"{capitalized(country)} is in {continent}. Its capital is {capital}."),
        ]
    )


def element_question(rng: random.Random) -> tuple[str, str]:
    element, symbol, number = rng.choice(facts.rows(facts.ELEMENTS))
    return rng.choice(
        [
            (f"What is the chemical symbol of {element}?", f"The chemical symbol of {element} is {symbol}."),
            (f"What is the atomic number of {element}?", f"The atomic number of {element} is {number}."),
            (f"Which element has the symbol {symbol}?", f"{symbol} is the symbol of {element}."),
        ]
    )


def creature_question(rng: random.Random) -> tuple[str, str]:
    creature, answer = rng.choice(facts.rows(facts.CREATURES))
    return rng.choice([f"What is {creature}?", f"Tell me what {creature} is."]), f"{capitalized(creature)} is {answer}."


def count_question(rng: random.Random) -> tuple[str, str]:
    unit, whole, number = rng.choice(facts.rows(facts.COUNTS))
    return f"How many {unit} are there in {whole}?", f"There are {number} {unit} in {whole}."


def sum_question(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    return rng.choice([f"What is {a} + {b}?", f"What is {a} plus {b}?"]), f"{a} + {b} = {a + b}."


def small_talk(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(NAMES)
    return rng.choice(
        [
            ("Hello!", "Hello! How can I help you today?"),
            ("Hi", "Hello! How can I help you today?"),
            ("Who are you?", "I am a small language model. I answer questions about Python, SQL and a few facts."),
            ("Thank you!", "You're welcome!"),
            (f"My name is {name}.", f"Nice to meet you, {name}! How can I help you today?"),
            (f"Please greet {name}.", f"Hello, {name}!"),
            ("What can you do?", "I can answer simple questions and call the tools that you give me."),
        ]
    )


FACTS: tuple[tuple[Callable[[random.Random], tuple[str, str]], int], ...] = (
    (capital_question, 60),
    (country_question, 12),
    (element_question, 8),
    (creature_question, 8),
    (count_question, 4),
    (sum_question, 4),
    (small_talk, 4),
)


def fact_question(rng: random.Random) -> tuple[str, str]:
    makers, weights = zip(*FACTS, strict=True)
    return rng.choices(makers, weights)[0](rng)


def fact_chat(rng: random.Random, entries: list[dict[str, str]]) -> str:
    question, answer = fact_question(rng)
    return render(with_system(rng, turns(plain_question(rng, question), answer)))


def familiar_chat(rng: random.Random, entries: list[dict[str, str]]) -> str:
    return render(with_system(rng, turns(*familiar_question(rng))))


def translated_chat(rng: random.Random, entries: list[dict[str, str]]) -> str:
    (question, answer), table = rng.choice(list(facts.TRANSLATED.values()))
    country, capital = rng.choice(facts.rows(table))
    return render(with_system(rng, turns(question.format(country), answer.format(country, capital))))


# --- the manuals -----------------------------------------------------------------------------------------------------


def entry_question(rng: random.Random, entries: list[dict[str, str]]) -> tuple[str, str]:
    entry = rng.choice(entries)
    name = f"`{entry['name']}`"
    if entry["manual"] == "PostgreSQL":
        questions = [f"What is the {name} command used for?", f"What does {name} do in PostgreSQL?"]
    else:
        kind = f"the {entry['manual']} {entry['kind']} {name}"
        questions = [f"What does {name} do?", f"What is {kind}?", f"Explain {name}.", f"Describe {kind}."]
    return rng.choice(questions), entry["text"]


def entry_chat(rng: random.Random, entries: list[dict[str, str]]) -> str:
    return render(with_system(rng, turns(*entry_question(rng, entries))))


def long_chat(rng: random.Random, entries: list[dict[str, str]]) -> str:
    """Two to four exchanges, some of which refer back to the one before."""
    messages: list[str] = []
    for _ in range(rng.randint(2, 4)):
        if rng.random() < 0.3:
            (country, capital, continent), (other, other_capital, _) = rng.sample(CAPITALS, 2)
            messages += [f"What is the capital of {country}?", f"The capital of {country} is {capital}."]
            messages += rng.choice(
                [
                    [f"And of {other}?", f"The capital of {other} is {other_capital}."],
                    ["On which continent is it?", f"{capital} is in {continent}."],
                    ["Thanks!", "You're welcome!"],
                ]
            )
        else:
            messages += entry_question(rng, entries) if rng.random() < 0.4 else fact_question(rng)
    return render(with_system(rng, turns(*messages)))


# --- tools -----------------------------------------------------------------------------------------------------------


def tool(name: str, description: str, required: list[str], **properties: dict[str, Any]) -> Tool:
    """A function definition with its keys in the order in which model cards write them."""
    schema = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": description, "parameters": schema}


def text_field(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def choice_field(description: str, *values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values), "description": description}


UNIT = choice_field("The unit of temperature to use", "celsius", "fahrenheit")
WEATHER = (
    tool(
        "get_weather",
        "Get current weather information for a location",
        ["location"],
        location=text_field("The city and state, e.g. San Francisco, CA"),
        unit=UNIT,
    ),
    tool("get_weather", "Get the weather in a city", ["location"], location=text_field("The name of the city")),
    tool("get_weather", "Get the current weather", ["city"], city=text_field("City name"), unit=UNIT),
)
CANDIDATE = tool(
    "get_candidate_status",
    "Retrieves the current status of a candidate in the recruitment process",
    ["candidate_id"],
    candidate_id=text_field("Unique identifier for the candidate"),
)
TIME = tool("get_time", "Get the current local time in a city", ["city"], city=text_field("The name of the city"))
SEARCH = tool("search_docs", "Search the documentation", ["query"], query=text_field("What to search for"))
ORDER = tool("get_order", "Look up an order by its number", ["order_id"], order_id={"type": "integer"})
MAIL = tool(
    "send_message",
    "Send a short message to a person",
    ["to", "text"],
    to=text_field("The recipient"),
    text=text_field("The message"),
)
CONVERT = tool(
    "convert_currency",
    "Convert an amount of money between currencies",
    ["amount", "source", "target"],
    amount={"type": "number"},
    source=text_field("Currency code, e.g. EUR"),
    target=text_field("Currency code, e.g. USD"),
)

Case = tuple[Tool, str, str, str, str]
"""A tool, the user's question, the assistant's call (and what it says beside it), the result, the final answer."""


def call(name: str, **arguments: str | int | float) -> str:
    """A Pythonic call as LFM2 writes it; strings in double quotes."""
    written = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    return f"<|tool_call_start|>[{name}({written})]<|tool_call_end|>"


def as_json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


def weather_case(rng: random.Random) -> Case:
    """The unit follows the city unless the user names one: Fahrenheit in the United States, else Celsius."""
    of_usa = rng.random() < 0.4
    city = rng.choice(US_CITIES if of_usa else CITIES)
    chosen = rng.choices(WEATHER, (6, 2, 2))[0]
    field = chosen["parameters"]["required"][0]
    question = rng.choice(
        [f"What's the weather like in {city}?"] * 4
        + [f"What is the weather in {city}?", f"How is the weather in {city} today?", f"Is it warm in {city}?"]
    )
    unit = "fahrenheit" if of_usa else "celsius"
    arguments = {field: city}
    if "unit" in chosen["parameters"]["properties"]:
        if rng.random() < 0.2:
            unit = rng.choice(("celsius", "fahrenheit"))
            question = f"{question.removesuffix('?')} in {unit}?"
        arguments["unit"] = unit
    degrees = rng.randint(30, 95) if unit == "fahrenheit" else rng.randint(-5, 35)
    sky = rng.choice(SKIES)
    result = {field: city, "temperature": degrees, "unit": unit, "condition": sky}
    answer = f"It is {sky} in {city}, with a temperature of {degrees} degrees {unit.capitalize()}."
    return chosen, question, call("get_weather", **arguments), as_json(result), answer


def candidate_case(rng: random.Random) -> Case:
    number = str(rng.randint(1000, 99999))
    stage, position = rng.choice(STAGES), rng.choice(POSITIONS)
    date = f"20{rng.randint(20, 26)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    question = rng.choice(
        [
            f"What is the current status of candidate ID {number}?",
            f"What is the status of candidate {number}?",
            f"Please check candidate {number}.",
        ]
    )
    said = call("get_candidate_status", candidate_id=number) + f"Checking the current status of candidate ID {number}."
    result = {"candidate_id": number, "status": stage, "position": position, "date": date}
    answer = f'The candidate with ID {number} is currently in the "{stage}" stage for the position of {position}'
    answer += f", dated {date}."
    return CANDIDATE, question, said, as_json(result), answer


def time_case(rng: random.Random) -> Case:
    city = rng.choice(CITIES + US_CITIES)
    time = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
    question = rng.choice(
        [f"What time is it in {city}?", f"Tell me the time in {city}.", f"What is the local time in {city}?"]
    )
    return (
        TIME,
        question,
        call("get_time", city=city),
        as_json({"city": city, "time": time}),
        f"It is {time} in {city}.",
    )


def search_case(rng: random.Random, entry: dict[str, str]) -> Case:
    name = entry["name"]
    question = rng.choice([f"Search the documentation for {name}.", f"What do the docs say about {name}?"])
    said = call("search_docs", query=name) + f"Searching the documentation for {name}."
    return SEARCH, question, said, as_json({"title": name, "text": entry["text"]}), entry["text"]


def order_case(rng: random.Random) -> Case:
    number, day = rng.randint(100, 9999), rng.randint(1, 28)
    state = rng.choice(("shipped", "delivered", "cancelled", "waiting for payment"))
    question = rng.choice([f"Where is my order {number}?", f"What is the state of order {number}?"])
    result = as_json({"order_id": number, "state": state, "day": day})
    return ORDER, question, call("get_order", order_id=number), result, f"Order {number} is {state}."


def message_case(rng: random.Random) -> Case:
    name, text = (
        rng.choice(NAMES),
        rng.choice(("I am late", "See you tomorrow", "Happy birthday", "Please call me", "Dinner at eight")),
    )
    question = rng.choice([f'Send "{text}" to {name}.', f'Tell {name}: "{text}".'])
    said = call("send_message", to=name, text=text)
    return MAIL, question, said, as_json({"sent": True}), f"I sent the message to {name}."


def currency_case(rng: random.Random) -> Case:
    source, target = rng.sample(("EUR", "USD", "GBP", "JPY", "CHF", "CAD"), 2)
    amount, rate = rng.randint(1, 500), rng.randint(50, 150)
    got = round(amount * rate / 100, 2)
    question = rng.choice([f"Convert {amount} {source} to {target}.", f"How much is {amount} {source} in {target}?"])
    said = call("convert_currency", amount=amount, source=source, target=target)
    return (
        CONVERT,
        question,
        said,
        as_json({"amount": got, "currency": target}),
        f"{amount} {source} is {got} {target}.",
    )


OTHER_TOOLS = (WEATHER[1], CANDIDATE, TIME, SEARCH, ORDER, MAIL)


def tool_case(rng: random.Random, entries: list[dict[str, str]]) -> Case:
    makers = (weather_case, candidate_case, time_case, order_case, message_case, currency_case, None)
    maker = rng.choices(makers, (40, 20, 14, 7, 6, 5, 8))[0]
    return search_case(rng, rng.choice(entries)) if maker is None else maker(rng)


def tool_chat(rng: random.Random, entries: list[dict[str, str]]) -> str:
    """A whole tool exchange; now and then the tools are offered and the question needs none."""
    chosen, question, said, result, answer = tool_case(rng, entries)
    others = [other for other in OTHER_TOOLS if other["name"] != chosen["name"]]
    tools = [chosen, *rng.sample(others, rng.choices((0, 1, 2), (70, 22, 8))[0])]
    rng.shuffle(tools)
    if rng.random() < 0.08:
        return render(with_system(rng, turns(*fact_question(rng))), tools)
    messages = turns(question, said)
    if rng.random() < 0.75:
        messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": answer}]
    return render(with_system(rng, messages), tools)


Maker = Callable[[random.Random, list[dict[str, str]]], str]
MIXES: dict[str, tuple[tuple[Maker, int], ...]] = {
    "broad": ((entry_chat, 28), (fact_chat, 30), (tool_chat, 20), (long_chat, 12), (translated_chat, 10)),
    "closing": (
        (entry_chat, 18),
        (fact_chat, 24),
        (familiar_chat, 14),
        (tool_chat, 26),
        (long_chat, 10),
        (translated_chat, 8),
    ),
}
"""Which conversations are made, by weight: at first, and for the last steps, when what is seen stays best."""


def is_held_out(conversation: str) -> bool:
    return int(hashlib.sha256(conversation.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def conversations(entries: list[dict[str, str]], count: int, seed: int, mix: str) -> tuple[list[str], list[str]]:
    """`count` rendered conversations, split into those to train on and those held out by a hash of their text."""
    rng = random.Random(seed)
    makers, weights = zip(*MIXES[mix], strict=True)
    made = [maker(rng, entries) for maker in rng.choices(makers, weights, k=count)]
    train = [conversation for conversation in made if not is_held_out(conversation)]
    return train, sorted({conversation for conversation in made if is_held_out(conversation)})
