//! Tools of `mgm serve`. Pocket was not trained for them: grammars make it call them.

use serde_json::{Value, json};

use super::{Reply, Server, user};

fn tool(name: &str, parameters: Value) -> Value {
    json!({ "type": "function", "function": { "name": name, "description": "A tool.", "parameters": parameters } })
}

fn weather() -> Value {
    let properties = json!({ "city": { "enum": ["Paris", "São Paulo"] }, "days": { "type": "integer", "minimum": 1, "maximum": 7 } });
    json!({ "type": "object", "properties": properties, "required": ["city", "days"], "additionalProperties": false })
}

fn is_weather(arguments: &Value) -> bool {
    let city = [json!("Paris"), json!("São Paulo")].contains(&arguments["city"]);
    city && arguments["days"].as_i64().is_some_and(|days| (1..=7).contains(&days))
        && arguments.as_object().is_some_and(|fields| fields.len() == 2)
}

/// The name and the arguments of each call of a message.
fn calls(message: &Value) -> Vec<(String, Value)> {
    let calls = message["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
    let call = |call: &Value| {
        assert!(call["id"].as_str().is_some_and(|id| id.starts_with("call_")) && call["type"] == "function", "{call}");
        let text = |key: &str| call["function"][key].as_str().unwrap_or_else(|| panic!("{call}")).to_owned();
        let arguments = text("arguments");
        (text("name"), serde_json::from_str(&arguments).unwrap_or_else(|error| panic!("{error}: {arguments}")))
    };
    calls.iter().map(call).collect()
}

/// The message that a stream adds up to, as OpenAI's clients add it, and its reason to end.
fn streamed(reply: &Reply) -> (Value, Value) {
    let (mut content, mut calls, mut reason) = (String::new(), Vec::<Value>::new(), Value::Null);
    for event in reply.events() {
        let choice = &event["choices"][0];
        content += choice["delta"]["content"].as_str().unwrap_or_default();
        for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = delta["index"].as_u64().expect("an index") as usize;
            if index == calls.len() {
                assert!(delta["id"].is_string() && delta["function"]["name"].is_string(), "{delta}");
                assert_eq!(delta["function"]["arguments"], "");
                calls.push(delta.clone());
            } else {
                assert!(delta["id"].is_null() && delta["function"]["name"].is_null(), "{delta}");
                let more = delta["function"]["arguments"].as_str().expect("arguments");
                let arguments = calls[index]["function"]["arguments"].as_str().expect("arguments").to_owned() + more;
                calls[index]["function"]["arguments"] = arguments.into();
            }
        }
        reason = choice["finish_reason"].clone();
    }
    (json!({ "content": content, "tool_calls": calls }), reason)
}

#[test]
fn answers_call_tools() {
    let server = Server::start(&[]).ready();
    let tools = json!([tool("weather", weather()), tool("time", Value::Null)]);
    let body = |choice: Value, temperature: f64| {
        json!({ "messages": user("How is the weather in Paris?"), "tools": tools, "tool_choice": choice,
            "temperature": temperature, "seed": 3, "max_tokens": 400 })
    };
    let named = json!({ "type": "function", "function": { "name": "weather" } });
    for (choice, names) in [(named, &["weather"][..]), (json!("required"), &["weather", "time"])] {
        for temperature in [0.0, 2.0] {
            let mut request = body(choice.clone(), temperature);
            request["parallel_tool_calls"] = false.into();
            let answer = server.chat(request.clone()).json();
            let (message, reason) = (&answer["choices"][0]["message"], &answer["choices"][0]["finish_reason"]);
            assert_eq!((&message["content"], reason), (&Value::Null, &json!("tool_calls")), "{answer}");
            let found = calls(message);
            let [(name, arguments)] = &found[..] else { panic!("{message}") };
            assert!(names.contains(&name.as_str()), "{name}");
            assert!(if name == "time" { *arguments == json!({}) } else { is_weather(arguments) }, "{message}");

            request["stream"] = true.into();
            let (message, reason) = streamed(&server.chat(request));
            assert_eq!((&message["content"], &reason), (&json!(""), &json!("tool_calls")));
            assert_eq!(calls(&message), found);
        }
    }

    // Any number of calls, each of which is whole.
    let answer = server.chat(body(json!("required"), 2.0)).json();
    let choice = &answer["choices"][0];
    if choice["finish_reason"] == "tool_calls" {
        let found = calls(&choice["message"]);
        let fits = |(name, arguments): &(String, Value)| name == "time" || is_weather(arguments);
        assert!(!found.is_empty() && found.iter().all(fits), "{answer}");
    }
    // Cut off.
    let mut request = body(json!("required"), 0.0);
    request["max_tokens"] = 12.into();
    assert_eq!(server.chat(request).json()["choices"][0]["finish_reason"], "length");

    // A call, or a text of the wanted form.
    let mut request = body(json!("auto"), 2.0);
    request["response_format"] = json!({ "type": "choice", "choices": ["sunny", "rainy"] });
    let answer = server.chat(request).json();
    let message = &answer["choices"][0]["message"];
    let is_text = message["content"] == "sunny" || message["content"] == "rainy";
    assert!(is_text != (answer["choices"][0]["finish_reason"] == "tool_calls"), "{answer}");

    // Free, and without tools.
    let text = |request: Value| server.chat(request).json()["choices"][0]["message"]["content"].clone();
    assert!(text(body(Value::Null, 0.0)).as_str().is_some_and(|text| !text.is_empty()));
    let mut plain = body(Value::Null, 0.0);
    plain.as_object_mut().expect("an object").remove("tools");
    assert_eq!(text(body(json!("none"), 0.0)), text(plain));

    // A conversation with calls.
    let call = json!({ "id": "call_1", "type": "function", "function": { "name": "time", "arguments": "{}" } });
    let messages = json!([
        { "role": "user", "content": "What is the time?" },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "call_1", "content": "noon" },
    ]);
    let reply = server.chat(json!({ "messages": messages, "tools": tools, "max_tokens": 8 }));
    assert_eq!(reply.status, 200, "{}", reply.text());

    what_is_wrong_is_named(&server);
}

fn what_is_wrong_is_named(server: &Server) {
    let error = |more: Value| {
        let mut body = json!({ "messages": user("a"), "max_tokens": 1 });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let reply = server.chat(body);
        let error = reply.json()["error"].clone();
        assert_eq!(reply.status, 400, "{error}");
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (text("code"), text("param"), text("message"))
    };
    let mut strict = tool("f", json!({ "type": "object", "properties": { "x": { "not": {} } } }));
    strict["function"]["strict"] = true.into();
    let (code, param, message) = error(json!({ "tools": [tool("g", Value::Null), strict] }));
    assert_eq!((code.as_str(), param.as_str()), ("invalid_schema", "tools[1].function.parameters"));
    assert!(message.starts_with("Invalid schema for function 'f' at /properties/x"), "{message}");
    // Without `strict` it is left out.
    let lenient = tool("f", json!({ "type": "object", "properties": { "x": { "not": {} } } }));
    let reply = server.chat(json!({ "messages": user("a"), "max_tokens": 1, "tools": [lenient] }));
    assert_eq!(reply.header("x-mgm-ignored"), Some("tools[0].function.parameters.not"), "{}", reply.text());

    for (body, code, param) in [
        (json!({ "tools": [{ "type": "custom", "custom": {} }] }), "unsupported_field", "tools[0]"),
        (json!({ "tools": [tool("f", Value::Null)], "tool_choice": "any" }), "invalid_value", "tool_choice"),
        (json!({ "tool_choice": "required" }), "invalid_value", "tool_choice"),
        (json!({ "functions": [{ "name": "f" }] }), "unsupported_field", "functions"),
    ] {
        let (found, at, _) = error(body);
        assert_eq!((found.as_str(), at.as_str()), (code, param));
    }
}
