"""What transformers' apply_chat_template makes of the templates in tests/data/text/templates: expected.json there.

    python make_chat_templates.py

The templates follow those of the most used chat models in what they do and in the syntax that they use; they are written anew.
"""

import datetime
import json
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

OUT = Path(__file__).parent.parent / "data" / "text" / "templates"
NOW = datetime.datetime(2025, 3, 9, 14, 5, 7, tzinfo=datetime.timezone.utc)


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "Weather in a \"city\", in °C <now>",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "The city's name"}, "days": {"type": "integer", "enum": [1, 2.5, None, True]}}},
    },
}
OTHER = {"type": "function", "function": {"name": "noop", "description": "Nothing", "parameters": {"type": "object", "properties": {}, "required": []}}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Be brief.\nNo <html>. /no_think"}
CALL = assistant(None, tool_calls=[{"id": "abcdef123", "type": "function", "function": {"name": "get_weather", "arguments": {"days": 1, "city": "Zürich"}}}])
RESULT = {"role": "tool", "name": "get_weather", "content": "{\"degrees\": 7}", "tool_call_id": "abcdef123"}
CASES = {
    "question": {"messages": [user("Why?")]},
    "white space": {"messages": [user("  \n 1 < 2 & 'three' \u00e9\U0001f600 \n")]},
    "turns": {"messages": [user("One"), assistant(" First\n\n"), user("Two"), assistant("<think>\nhm\n</think>\n\nSecond"), user("Three\n")]},
    "system": {"messages": [SYSTEM, user("Why?"), assistant("So."), user("And?")]},
    "answered": {"messages": [user("Why?"), assistant("<think>\nhm\n</think>\n\nSo.")], "add_generation_prompt": False},
    "no thinking": {"messages": [user("Why?")], "enable_thinking": False},
    "thinking": {"messages": [user("Why?")], "enable_thinking": True},
    "tools": {"messages": [user("Weather?")], "tools": [TOOL, OTHER]},
    "tools and system": {"messages": [SYSTEM, user("Weather?")], "tools": [TOOL], "tools_in_user_message": False},
    "call": {"messages": [user("Weather?"), CALL, RESULT], "tools": [TOOL]},
    "documents": {"messages": [user("Sum up.")], "documents": [{"title": "A", "text": "Text of A"}, {"title": "B", "text": "Text\nof B"}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What? "}]}]},
    "two questions": {"messages": [user("One"), user("Two")]},
    "date": {"messages": [user("Why?")], "date_string": "1 Jan 2030"},
}


def main() -> None:
    chat_template_utils.datetime = Clock
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    lines = []
    for path in sorted(OUT.glob("*.jinja")):
        for name, case in CASES.items():
            if path.stem.startswith("python") and name != "system":
                continue
            # Other templates print Python's notation of the list.
            if name == "parts" and "is string" not in path.read_text() and "is not string" not in path.read_text():
                continue
            variables = {"add_generation_prompt": True} | case
            try:
                text = tokenizer.apply_chat_template(variables["messages"], chat_template=path.read_text(), tokenize=False, **{k: v for k, v in variables.items() if k != "messages"})
                expected = {"text": text}
            except Exception as error:
                # What a template refuses has its words; what Python cannot do has others.
                expected = {"error": str(error) if type(error).__name__ == "TemplateError" else None}
            lines.append(json.dumps([path.stem, name, json.dumps(variables, ensure_ascii=False), expected], ensure_ascii=False))
    (OUT / "expected.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
