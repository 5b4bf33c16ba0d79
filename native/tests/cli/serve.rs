//! `mgm serve` over HTTP: answers, streams, errors, limits, keys, and the end.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::text;

#[path = "serve/tools.rs"]
mod tools;

/// Longer than anything takes here, on any machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// A server with Pocket.
pub struct Server {
    pub process: Child,
    address: String,
    pub key: Option<&'static str>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The values of a stream's events, without the last, which is `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let text = self.text();
        let mut events: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{text}");
        events.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
    }
}

impl Reply {
    /// The names and values of a stream's events, without the last, which is `[DONE]`.
    pub fn named_events(&self) -> Vec<(String, Value)> {
        let text = self.text();
        let events = text.split("\n\n").filter_map(|event| event.strip_prefix("event: ")?.split_once("\ndata: "));
        events.map(|(name, value)| (name.to_owned(), serde_json::from_str(value).expect("JSON"))).collect()
    }
}

/// A request whose answer is not read yet.
pub struct Pending(BufReader<TcpStream>);

impl Pending {
    /// Reads the answer to its end.
    pub fn reply(mut self) -> Reply {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a status line");
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status: {line:?}"));
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("a header");
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let mut reply = Reply { status, headers, body: Vec::new() };
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                let mut length = String::new();
                self.0.read_line(&mut length).expect("a chunk");
                let length = usize::from_str_radix(length.trim_end(), 16).expect("a chunk's length");
                let mut chunk = vec![0; length + 2];
                self.0.read_exact(&mut chunk).expect("a chunk");
                if length == 0 {
                    break;
                }
                reply.body.extend_from_slice(&chunk[..length]);
            }
        } else {
            self.0.read_to_end(&mut reply.body).expect("a body");
        }
        reply
    }

    /// Waits for text in the answer.
    pub fn wait_for(&mut self, wanted: &str) {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            assert!(self.0.read_line(&mut line).expect("a line") > 0, "the answer has no {wanted}");
        }
    }
}

impl Server {
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[])
    }

    /// The same with environment variables.
    pub fn start_with(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
        command.env_remove("MGM_MODELS").env_remove("MGM_API_KEY").args(["serve", "--port", "0"]).args(arguments);
        command.envs(variables.iter().copied());
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the binary runs");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a pipe")).read_line(&mut line).expect("the address");
        let address = line.trim_end().strip_prefix("http://").expect("an address").to_owned();
        Self { process, address, key: None }
    }

    /// Waits until the model is loaded.
    pub fn ready(self) -> Self {
        while self.get("/health").status != 200 {
            std::thread::sleep(Duration::from_millis(20));
        }
        self
    }

    fn raw(&self, request: &[u8]) -> Pending {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(request).expect("a request");
        Pending(BufReader::new(stream))
    }

    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Pending {
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        let has = |name: &str| headers.iter().any(|(found, _)| *found == name);
        if !has("host") {
            head += "host: localhost\r\n";
        }
        if let (Some(key), false) = (self.key, has("authorization")) {
            head += &format!("authorization: Bearer {key}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {}\r\n\r\n", body.len());
        self.raw(&[head.as_bytes(), body].concat())
    }

    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], b"").reply()
    }

    pub fn send(&self, path: &str, body: &Value) -> Pending {
        self.request("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(path, body).reply()
    }

    pub fn chat(&self, body: Value) -> Reply {
        self.post("/v1/chat/completions", &body)
    }

    /// A stream that takes long.
    pub fn long_stream(&self, max_tokens: u32) -> Pending {
        let messages = json!([{ "role": "user", "content": "What can you do?" }]);
        let body = json!({ "messages": messages, "stream": true, "ignore_eos": true, "max_tokens": max_tokens });
        self.send("/v1/chat/completions", &body)
    }

    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    pub fn wait_for_metric(&self, name: &str, value: u64) {
        while self.metric(name) != value {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status();
        assert!(status.expect("kill").success());
    }
}

pub fn user(content: &str) -> Value {
    json!([{ "role": "user", "content": content }])
}

/// The report of `mgm chat` about one answer.
fn mgm_chat(question: &str, more: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    command.env_remove("MGM_MODELS").args(["chat", "--json", "--temperature", "0", "--prompt", question]).args(more);
    let output = command.stdin(Stdio::null()).output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    report["turns"][0].clone()
}

/// The joined text and the last reason of each choice of a stream.
pub fn joined(events: &[Value]) -> Vec<(String, Value)> {
    let mut choices: Vec<(String, Value)> = Vec::new();
    for choice in events.iter().flat_map(|event| event["choices"].as_array().expect("choices")) {
        let index = choice["index"].as_u64().expect("an index") as usize;
        choices.resize(choices.len().max(index + 1), (String::new(), Value::Null));
        choices[index].0 += choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
        choices[index].1 = choice["finish_reason"].clone();
    }
    choices
}

#[test]
fn answers_are_those_of_mgm_chat() {
    let server = Server::start(&[]).ready();
    let question = "What can you do?";
    for (more, options, reason) in [
        (json!({}), &[][..], "stop"),
        (json!({ "max_tokens": 3 }), &["--max-new-tokens", "3"], "length"),
        (json!({ "stop": ["an", "zz"] }), &["--stop", "an", "--stop", "zz"], "stop"),
        (json!({ "logprobs": true, "top_logprobs": 2 }), &["--logprobs", "2"], "stop"),
    ] {
        let expected = mgm_chat(question, options);
        let mut body = json!({ "messages": user(question), "temperature": 0, "model": "pocket" });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let reply = server.chat(body.clone());
        let answer = reply.json();
        assert_eq!(reply.status, 200, "{answer}");
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], expected["text"], "{more}");
        assert_eq!(choice["finish_reason"], reason, "{more}");
        assert_eq!(answer["usage"]["prompt_tokens"], expected["prompt_tokens"]);
        assert_eq!(answer["usage"]["completion_tokens"], expected["token_ids"].as_array().expect("ids").len());
        let of_text = |entry: &&Value| !entry["bytes"].is_null();
        let logprobs: Vec<&Value> = expected["logprobs"].as_array().into_iter().flatten().filter(of_text).collect();
        let found = choice["logprobs"]["content"].as_array().map_or(&[][..], Vec::as_slice);
        assert_eq!(found.len(), logprobs.len(), "{more}");
        for (found, expected) in found.iter().zip(logprobs) {
            assert_eq!((&found["token"], &found["bytes"]), (&expected["token"], &expected["bytes"]));
            let number = |entry: &Value| entry["logprob"].as_f64().expect("a number");
            // A batch's products may be summed in another order.
            assert!((number(found) - number(expected)).abs() < 0.02, "{found}, expected {expected}");
            assert_eq!(found["top_logprobs"].as_array().map(Vec::len), Some(2));
        }

        body["stream"] = true.into();
        body["stream_options"] = json!({ "include_usage": true });
        let stream = server.chat(body);
        assert_eq!(stream.header("content-type"), Some("text/event-stream; charset=utf-8"));
        assert_eq!(stream.header("x-accel-buffering"), Some("no"));
        let mut events = stream.events();
        let usage = events.pop().expect("usage");
        assert_eq!(
            (&usage["choices"], &usage["usage"]["total_tokens"]),
            (&json!([]), &answer["usage"]["total_tokens"])
        );
        assert!(events.iter().all(|event| event["usage"].is_null()));
        assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
        assert_eq!(joined(&events), [(text(&expected["text"]).to_owned(), reason.into())], "{more}");
        let entries = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
        assert_eq!(entries.flatten().count(), found.len());
    }

    // Several answers, and a seed.
    let body = json!({ "messages": user(question), "n": 3, "temperature": 2, "seed": 7, "max_tokens": 12 });
    let texts = |reply: Reply| -> Vec<Value> {
        let choices = reply.json()["choices"].as_array().expect("choices").clone();
        choices.iter().map(|choice| choice["message"]["content"].clone()).collect()
    };
    let first = texts(server.chat(body.clone()));
    assert_eq!(first.len(), 3);
    assert!(first[0] != first[1] || first[1] != first[2], "{first:?}");
    let streamed = server.chat({
        let mut body = body;
        body["stream"] = true.into();
        body
    });
    let streamed: Vec<Value> = joined(&streamed.events()).into_iter().map(|(text, _)| text.into()).collect();
    assert_eq!(streamed, first);

    // A continued answer begins where it ended.
    let expected = mgm_chat(question, &[]);
    let (begun, rest) = text(&expected["text"]).split_once(' ').expect("two words");
    let messages = json!([{ "role": "user", "content": question }, { "role": "assistant", "content": begun }]);
    let continued = texts(server.chat(json!({ "messages": messages, "temperature": 0 })));
    assert_eq!(continued, [rest.trim()]);

    completions_continue_texts(&server);
    answers_have_the_wanted_form(&server);
    what_is_wrong_has_a_code(&server);
}

/// Whether a text has a form.
type Check<'a> = &'a dyn Fn(&str) -> bool;

fn answers_have_the_wanted_form(server: &Server) {
    let ask = |format: &Value, temperature: f64, stream: bool| {
        server.chat(json!({ "messages": user("What can you do?"), "temperature": temperature, "seed": 5, "n": 3, "stream": stream,
            "max_tokens": 400, "response_format": format }))
    };
    let schema = json!({ "type": "object", "properties": { "ok": { "type": "boolean" }, "colour": { "enum": ["red", "green"] },
        "count": { "type": "integer", "minimum": 0, "maximum": 12 } }, "required": ["ok", "colour", "count"],
        "additionalProperties": false });
    let has_form = |text: &str| {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        value["ok"].is_boolean()
            && [json!("red"), json!("green")].contains(&value["colour"])
            && value["count"].as_i64().is_some_and(|count| (0..=12).contains(&count))
            && value.as_object().is_some_and(|fields| fields.len() == 3)
    };
    let of_schema =
        json!({ "type": "json_schema", "json_schema": { "name": "thing", "schema": schema, "strict": true } });
    let is_color = |text: &str| ["red", "dark green", "blue!"].contains(&text);
    let is_number = |text: &str| {
        text.len() == 8
            && text.bytes().enumerate().all(|(at, byte)| if at == 3 { byte == b'-' } else { byte.is_ascii_digit() })
    };
    let cases: [(Value, Check<'_>); 5] = [
        (of_schema, &has_form),
        (json!({ "type": "json_object" }), &|text| {
            serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object())
        }),
        (json!({ "type": "choice", "choices": ["red", "dark green", "blue!"] }), &is_color),
        (json!({ "type": "regex", "pattern": "[0-9]{3}-[0-9]{4}" }), &is_number),
        (json!({ "type": "grammar", "grammar": "start: \"(\" item \")\"\nitem: \"x\" | start" }), &|text| {
            text.trim_start_matches('(').trim_end_matches(')') == "x"
        }),
    ];
    for (format, has_form) in cases {
        // Greedy, and far from what the model would write.
        for temperature in [0.0, 2.0] {
            let whole = ask(&format, temperature, false).json();
            let streamed = joined(&ask(&format, temperature, true).events());
            let choices = whole["choices"].as_array().unwrap_or_else(|| panic!("{format}: {whole}"));
            for (choice, (text, reason)) in choices.iter().zip(&streamed) {
                let content = choice["message"]["content"].as_str().expect("a text");
                // An object may have members until the answer is cut off; what ends by itself has the form.
                assert!(choice["finish_reason"] == "length" || has_form(content), "{format}: {content:?}");
                assert!(format["type"] == "json_object" || choice["finish_reason"] == "stop", "{format}: {content:?}");
                assert_eq!((content, &choice["finish_reason"]), (text.as_str(), reason), "{format}");
            }
        }
    }
    // vLLM's field; and a schema that is not strict.
    let reply =
        server.post("/v1/completions", &json!({ "prompt": "The colour is", "guided_choice": ["red", "green"] }));
    assert!([json!("red"), json!("green")].contains(&reply.json()["choices"][0]["text"]), "{}", reply.text());
    let lenient = json!({ "type": "json_schema", "json_schema": { "schema": { "type": "array", "items": { "type": "null" }, "maxItems": 2,
        "uniqueItems": true } } });
    let reply = ask(&lenient, 1.0, false);
    assert!(reply.header("x-mgm-ignored").is_some_and(|names| names.contains("uniqueItems")), "{:?}", reply.headers);
    for (format, code, word) in [
        (
            json!({ "type": "json_schema", "json_schema": { "schema": { "properties": { "a": { "not": {} } } }, "strict": true } }),
            "invalid_schema",
            "/properties/a",
        ),
        (json!({ "type": "json_schema", "json_schema": { "schema": 7 } }), "invalid_value", "schema"),
        (json!({ "type": "regex", "pattern": "(" }), "invalid_value", "regular expression"),
        (json!({ "type": "grammar", "grammar": "begin: \"x\"" }), "invalid_value", "grammar"),
        (json!({ "type": "grammar", "grammar": "x".repeat(1 << 21) }), "grammar_too_complex", "bytes"),
        (json!({ "type": "yaml" }), "invalid_value", "json_schema"),
    ] {
        let reply = ask(&format, 0.0, false);
        let error = &reply.json()["error"];
        assert_eq!(
            (reply.status, &error["code"], &error["param"]),
            (400, &code.into(), &"response_format".into()),
            "{error}"
        );
        assert!(text(&error["message"]).contains(word), "{error}");
    }
    // Answers without a form are as before.
    let free = server.chat(json!({ "messages": user("What can you do?"), "temperature": 0 })).json();
    assert_eq!(free["choices"][0]["message"]["content"], mgm_chat("What can you do?", &[])["text"]);
}

fn completions_continue_texts(server: &Server) {
    // Pocket's template, written out.
    let whole = mgm_chat("What is your name?", &[]);
    let prompt = server.post("/tokenize", &json!({ "messages": user("What is your name?") })).json();
    assert_eq!(prompt["count"], whole["prompt_tokens"]);
    let ids = prompt["tokens"].clone();
    let text_of = |ids: &Value| server.post("/detokenize", &json!({ "tokens": ids })).json()["prompt"].clone();
    let content = text_of(&ids);
    let without_bos = json!({ "prompt": content, "add_special_tokens": false, "return_token_strs": true });
    let again = server.post("/tokenize", &without_bos).json();
    assert_eq!(again["token_strs"].as_array().map(Vec::len), again["tokens"].as_array().map(Vec::len));
    let body = json!({ "prompt": ids, "temperature": 0, "max_tokens": 64, "logprobs": 1 });
    let answer = server.post("/v1/completions", &body).json();
    assert_eq!(text(&answer["choices"][0]["text"]).trim(), text(&whole["text"]));
    let logprobs = &answer["choices"][0]["logprobs"];
    let tokens: Vec<&str> = logprobs["tokens"].as_array().expect("tokens").iter().map(text).collect();
    assert_eq!(tokens.concat().trim(), text(&whole["text"]));
    let several = json!({ "prompt": [ids, ids], "temperature": 0, "n": 2, "max_tokens": 64 });
    let several = server.post("/v1/completions", &several).json();
    let choices = several["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 4);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["text"]), (&json!(index), &answer["choices"][0]["text"]));
    }
    let streamed = json!({ "prompt": ids, "temperature": 0, "max_tokens": 64, "stream": true });
    let streamed = joined(&server.post("/v1/completions", &streamed).events());
    assert_eq!(streamed[0].0, text(&answer["choices"][0]["text"]));
}

fn what_is_wrong_has_a_code(server: &Server) {
    let error = |reply: Reply| {
        let error = reply.json()["error"].clone();
        assert!(error["message"].is_string() && error["type"].is_string() && error.get("param").is_some(), "{error}");
        assert!(reply.header("x-request-id").is_some());
        (reply.status, text(&error["code"]).to_owned(), error["param"].as_str().unwrap_or_default().to_owned())
    };
    let chat = |more: Value| {
        let mut body = json!({ "messages": user("a"), "max_tokens": 1 });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        server.chat(body)
    };
    for (more, code, param) in [
        (json!({ "temperature": -1 }), "invalid_value", "temperature"),
        (json!({ "temperature": 2.5 }), "invalid_value", "temperature"),
        (json!({ "temperature": "hot" }), "invalid_value", "temperature"),
        (json!({ "top_p": 0 }), "invalid_value", "top_p"),
        (json!({ "top_k": -2 }), "invalid_value", "top_k"),
        (json!({ "min_p": 2 }), "invalid_value", "min_p"),
        (json!({ "seed": 1.5 }), "invalid_value", "seed"),
        (json!({ "n": 0 }), "invalid_value", "n"),
        (json!({ "n": 1000 }), "invalid_value", "n"),
        (json!({ "max_tokens": 0 }), "invalid_value", "max_tokens"),
        (json!({ "max_completion_tokens": -1 }), "invalid_value", "max_completion_tokens"),
        (json!({ "stop": "" }), "invalid_value", "stop"),
        (json!({ "stop": vec!["a"; 17] }), "invalid_value", "stop"),
        (json!({ "stop": "a".repeat(257) }), "invalid_value", "stop"),
        (json!({ "stop_token_ids": [4_000_000_000u32] }), "invalid_value", "stop_token_ids"),
        (json!({ "frequency_penalty": 3 }), "invalid_value", "frequency_penalty"),
        (json!({ "logit_bias": { "x": 1 } }), "invalid_value", "logit_bias"),
        (json!({ "logit_bias": { "1": 101 } }), "invalid_value", "logit_bias"),
        (json!({ "top_logprobs": 3 }), "invalid_value", "top_logprobs"),
        (json!({ "logprobs": true, "top_logprobs": 21 }), "invalid_value", "top_logprobs"),
        (json!({ "stream": "yes" }), "invalid_value", "stream"),
        (json!({ "stream_options": {} }), "invalid_value", "stream_options"),
        (json!({ "messages": [] }), "invalid_value", "messages"),
        (json!({ "messages": null }), "invalid_value", "messages"),
        (json!({ "messages": [{ "role": "user", "content": null }] }), "invalid_value", "messages[0].content"),
        (json!({ "tools": [{ "type": "function" }] }), "invalid_value", "tools[0].function"),
        (json!({ "modalities": ["text", "audio"] }), "unsupported_field", "modalities"),
        (json!({ "functions": [{}] }), "unsupported_field", "functions"),
        (json!({ "messages": user(&"word ".repeat(9000)) }), "context_length_exceeded", "messages"),
    ] {
        assert_eq!(error(chat(more.clone())), (400, code.to_owned(), param.to_owned()), "{more}");
    }
    assert_eq!(error(chat(json!({ "model": "gpt-5" }))), (404, "model_not_found".to_owned(), "model".to_owned()));
    for (more, ignored) in [
        (
            json!({ "user": "me", "metadata": {}, "tools": [], "seed": null, "response_format": { "type": "text" } }),
            None,
        ),
        (json!({ "frobnicate": 1, "foo": null, "bar\r\nx": 1 }), Some("frobnicate")),
    ] {
        let reply = chat(more);
        assert_eq!((reply.status, reply.header("x-mgm-ignored")), (200, ignored), "{}", reply.text());
    }

    // Bodies and headers that no client sends.
    let path = "/v1/chat/completions";
    let raw =
        |content_type: &str, body: &[u8]| server.request("POST", path, &[("content-type", content_type)], body).reply();
    let deep = format!("{{\"messages\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for body in [
        "",
        "{",
        "[]",
        "nul",
        "\u{0}",
        "{\"a\":1e999}",
        &deep,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"\\ud800\"}]}",
    ] {
        let (status, code, _) = error(raw("application/json", body.as_bytes()));
        assert_eq!((status, code.as_str()), (400, "invalid_json"), "{}", &body[..body.len().min(40)]);
    }
    assert_eq!(error(raw("application/json", b"{\"a\":\"\xff\"}")).1, "invalid_json");
    for content_type in ["text/plain", "", "application/jsonx", "application/x-www-form-urlencoded"] {
        let (status, code, _) = error(raw(content_type, b"{}"));
        assert_eq!((status, code.as_str()), (415, "unsupported_media_type"), "{content_type}");
    }
    let large = vec![b' '; 33 << 20];
    assert_eq!(error(raw("application/json", &large)).0, 413);
    let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let mut chunked = head.into_bytes();
    chunked.extend(chunk(b"{\"messages\": 3"));
    chunked.extend(chunk(b"}"));
    chunked.extend(b"0\r\n\r\n");
    assert_eq!(error(server.raw(&chunked).reply()).1, "invalid_value");
    assert_eq!(error(server.get("/v1/nothing")), (404, "not_found".to_owned(), String::new()));
    assert_eq!(error(server.get(path)), (405, "method_not_allowed".to_owned(), String::new()));
    for request in ["GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n"] {
        let mut answer = String::new();
        let _ = server.raw(request.as_bytes()).0.read_to_string(&mut answer);
        assert!(!answer.contains(" 500 "), "{request:?}: {answer}");
    }
    let headers = [("content-type", "application/json"), ("x-mgm-timeout-ms", "0")];
    let late = server.request("POST", path, &headers, json!({ "messages": user("a") }).to_string().as_bytes()).reply();
    assert_eq!(late.header("x-should-retry"), Some("false"));
    assert_eq!(error(late), (504, "deadline_exceeded".to_owned(), String::new()));
    let named = server.request("GET", "/v1/models", &[("x-request-id", "abc_1")], b"").reply();
    assert_eq!(named.header("x-request-id"), Some("abc_1"));
    let model = named.json()["data"][0].clone();
    assert_eq!(
        (&model["id"], &model["object"], &model["owned_by"]),
        (&json!("pocket"), &json!("model"), &json!("mgm"))
    );
    assert_eq!(server.get("/v1/models/pocket").json(), model);
    assert_eq!(error(server.get("/v1/models/other/model")).1, "model_not_found");
}

#[test]
fn keys_hosts_and_origins_are_checked() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "second-key\n\n").expect("a file");
    let file = file.path().to_str().expect("UTF-8");
    let mut server =
        Server::start(&["--api-key", "first-key", "--api-key-file", file, "--cors", "https://page.example"]).ready();
    server.key = Some("first-key");
    let health = server.request("GET", "/health", &[("authorization", "")], b"").reply();
    assert_eq!(health.status, 200, "needs no key");
    for path in ["/v1/models", "/metrics", "/tokenize", "/nothing", "/v1/chat/completions"] {
        for key in ["", "Bearer", "Bearer first-ke", "Bearer first-key2", "Basic first-key"] {
            let reply = server.request("GET", path, &[("authorization", key)], b"").reply();
            assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some("Bearer")), "{path} {key}");
            assert_eq!(reply.json()["error"]["code"], "invalid_api_key");
        }
    }
    for header in [("authorization", "Bearer second-key"), ("x-api-key", "second-key")] {
        server.key = None;
        assert_eq!(server.request("GET", "/v1/models", &[header], b"").reply().status, 200);
    }
    server.key = Some("first-key");
    for host in ["evil.example", "", "localhost.evil.example"] {
        let reply = server.request("GET", "/health", &[("host", host)], b"").reply();
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (403, &json!("host_not_allowed")), "{host}");
    }
    let preflight = |origin: &str| {
        let headers = [("origin", origin), ("access-control-request-method", "POST"), ("authorization", "")];
        server.request("OPTIONS", "/v1/chat/completions", &headers, b"").reply()
    };
    let allowed = preflight("https://page.example");
    let origin = allowed.header("access-control-allow-origin");
    assert_eq!((allowed.status, origin), (204, Some("https://page.example")));
    let refused = preflight("https://other.example");
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, None));

    // The prefix cache is each key's own.
    let prompt: Vec<u32> = (0..64).map(|index| 10 + index % 7).collect();
    let mut cached = |key| {
        server.key = Some(key);
        let reply = server.post("/v1/completions", &json!({ "prompt": prompt, "max_tokens": 1 })).json();
        reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number")
    };
    let found = ["first-key", "first-key", "second-key", "second-key"].map(&mut cached);
    assert!(found[0] == 0 && found[1] >= 48 && found[2] == 0 && found[3] >= 48, "{found:?}");

    let output = Command::new(env!("CARGO_BIN_EXE_mgm")).args(["serve", "--host", "0.0.0.0"]).output().expect("runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && errors.contains("--insecure"), "{errors}");
}

#[test]
fn too_many_requests_are_refused_and_a_client_that_leaves_frees_its_place() {
    let server = Server::start(&["--parallel", "1", "--queue", "1"]).ready();
    let mut running = server.long_stream(4000);
    running.wait_for("\"content\":\"");
    server.wait_for_metric("mgm_running ", 1);
    let waiting = server.long_stream(4000);
    server.wait_for_metric("mgm_queue ", 1);
    let refused = server.chat(json!({ "messages": user("a") }));
    let seconds: u64 = refused.header("retry-after").and_then(|value| value.parse().ok()).expect("seconds");
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (429, &json!("rate_limit_error")));
    assert!((1..=60).contains(&seconds));
    assert_eq!(server.metric("mgm_rejected_total{reason=\"queue_full\"} "), 1);

    // The one that waits goes, then the one that is computed.
    drop(waiting);
    server.wait_for_metric("mgm_cancelled_total ", 1);
    server.wait_for_metric("mgm_queue ", 0);
    assert_eq!(server.metric("mgm_running "), 1);
    drop(running);
    server.wait_for_metric("mgm_cancelled_total ", 2);
    server.wait_for_metric("mgm_running ", 0);
    let reply = server.chat(json!({ "messages": user("What is your name?"), "temperature": 0 }));
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "My name is Pocket.");
}

#[test]
fn a_server_that_ends_finishes_its_answers() {
    let mut server = Server::start(&["--drain-timeout", "300"]);
    // It answers at once, whatever loading takes.
    let health = server.get("/health");
    if health.status == 503 {
        assert_eq!(health.json()["status"], "loading");
        assert!(health.header("retry-after").is_some());
    }
    assert_eq!(server.get("/health/live").status, 200);
    server = server.ready();
    let mut stream = server.long_stream(300);
    stream.wait_for("\"content\":\"");
    server.signal("TERM");
    while server.get("/health").status != 503 {}
    assert_eq!(server.get("/health").json()["status"], "draining");
    let refused = loop {
        let reply = server.chat(json!({ "messages": user("a"), "max_tokens": 1 }));
        if reply.status != 200 {
            break reply;
        }
    };
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("draining")));
    let events = {
        let mut rest = String::new();
        stream.0.read_to_string(&mut rest).expect("the rest of a stream");
        rest
    };
    assert!(events.contains("\"finish_reason\":\"length\"") && events.contains("[DONE]"), "{events}");
    assert_eq!(server.process.wait().expect("the end").code(), Some(0));
}
