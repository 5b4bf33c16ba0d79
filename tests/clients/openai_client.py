"""OpenAI's Python client against `mgm serve` with Pocket. Usage: openai_client.py BASE_URL KEY IMAGE"""

import base64
import pathlib
import sys
import threading

import openai

base_url, key, image = sys.argv[1:]
image = pathlib.Path(image)
client = openai.OpenAI(base_url=base_url, api_key=key)
ask = {"model": "pocket", "messages": [{"role": "user", "content": "What is your name?"}], "temperature": 0}

whole = client.chat.completions.create(**ask)
assert whole.choices[0].message.content == "My name is Pocket.", whole
assert whole.choices[0].finish_reason == "stop", whole
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole

chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert text == whole.choices[0].message.content, text
assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens, chunks[-1]
assert all(chunk.choices for chunk in client.chat.completions.create(**ask, stream=True)), "usage only when asked"

best = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2).choices[0].logprobs.content
assert bytes(byte for token in best for byte in token.bytes).decode().strip() == text, best
assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in best), best

ids = client.post("/../tokenize", cast_to=dict, body={"messages": ask["messages"]})["tokens"]
completion = client.completions.create(model="pocket", prompt=ids, max_tokens=64, temperature=0)
assert completion.choices[0].text.strip() == text, completion
assert [model.id for model in client.models.list()] == ["pocket", "pocket-sdxl"]

response = client.responses.create(model="pocket", input="What is your name?", temperature=0)
assert response.status == "completed" and response.output_text == text, response
events = list(client.responses.create(model="pocket", input="What is your name?", temperature=0, stream=True))
assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text, events
assert events[-1].type == "response.completed" and events[-1].response.output_text == text, events[-1]

url = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What animal is this?"}]
seen = client.chat.completions.create(**{**ask, "messages": [{"role": "user", "content": parts}]})
assert image.stem in seen.choices[0].message.content, seen
draw = {"model": "pocket-sdxl", "prompt": "a red car", "extra_body": {"steps": 2, "seed": 7}}
drawn = [base64.b64decode(image.b64_json) for image in client.images.generate(**draw, n=2, size="64x64").data]
assert len(drawn) == 2 and all(png.startswith(b"\x89PNG") for png in drawn), drawn
events = list(client.images.generate(**draw, size="64x64", stream=True, partial_images=1))
types = [event.type for event in events]
assert types == ["image_generation.partial_image", "image_generation.completed"], types
assert base64.b64decode(events[1].b64_json) == drawn[0], "a seed gives one image"
edited = client.images.edit(image=image.open("rb"), **draw)
assert base64.b64decode(edited.data[0].b64_json).startswith(b"\x89PNG"), edited


def error(kind, **changes):
    try:
        client.with_options(max_retries=0).chat.completions.create(**{**ask, **changes})
    except openai.APIStatusError as found:
        assert type(found) is kind, found
        return found
    raise AssertionError(f"no error for {changes}")


assert error(openai.BadRequestError, temperature=3).param == "temperature"
assert error(openai.BadRequestError, messages=[]).code == "invalid_value"
assert error(openai.NotFoundError, model="other").code == "model_not_found"
parts[0]["image_url"]["url"] = "https://example.org/image.png"
refused = error(openai.BadRequestError, messages=[{"role": "user", "content": parts}])
assert refused.code == "image_url_not_allowed" and refused.param == "messages[0].content[0].image_url", refused
too_long = error(openai.BadRequestError, messages=[{"role": "user", "content": "word " * 9000}])
assert too_long.code == "context_length_exceeded" and "maximum context length" in too_long.message, too_long
try:
    openai.OpenAI(base_url=base_url, api_key="wrong").models.list()
    raise AssertionError("a wrong key is accepted")
except openai.AuthenticationError as found:
    assert found.code == "invalid_api_key", found

# One sequence is computed and one may wait (serve.sh). A third is refused until the client's own retries succeed.
long = {**ask, "stream": True, "max_tokens": 60, "extra_body": {"ignore_eos": True}}
streams = [client.chat.completions.create(**long) for _ in range(2)]
assert error(openai.RateLimitError).response.headers["retry-after"].isdigit()
readers = [threading.Thread(target=lambda stream=stream: list(stream)) for stream in streams]
for reader in readers:
    reader.start()
assert client.with_options(max_retries=60).chat.completions.create(**ask).choices[0].message.content == text
for reader in readers:
    reader.join()
print(f"openai-python {openai.__version__}: ok")
