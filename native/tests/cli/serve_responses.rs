//! `POST /v1/responses` of `mgm serve`.
#![cfg(unix)]

use serde_json::{Value, json};

use crate::common::text;
use crate::serve::{Server, user};

/// Checks that responses are what chat completions answer. `image`: a data URL.
pub fn check(server: &Server, image: &str) {
    let question = "What can you do?";
    let answer = server.chat(json!({ "messages": user(question), "temperature": 0 })).json();
    let expected = text(&answer["choices"][0]["message"]["content"]).to_owned();
    let respond = |body: &Value| server.post("/v1/responses", body);
    let body = json!({ "input": question, "temperature": 0, "model": "pocket", "store": false, "truncation": "auto" });
    let reply = respond(&body);
    let response = reply.json();
    assert_eq!((reply.status, reply.header("x-mgm-ignored")), (200, None), "{response}");
    assert_eq!((&response["object"], &response["status"]), (&json!("response"), &json!("completed")));
    let message = &response["output"][0];
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
    let content = json!([{ "type": "output_text", "text": expected, "annotations": [], "logprobs": [] }]);
    assert_eq!(message["content"], content);
    assert_eq!(response["usage"]["input_tokens"], answer["usage"]["prompt_tokens"]);
    assert_eq!(response["usage"]["output_tokens"], answer["usage"]["completion_tokens"]);

    // The same as a list of items, streamed.
    let items = json!([{ "role": "user", "content": [{ "type": "input_text", "text": question }] }]);
    let events = respond(&json!({ "input": items, "temperature": 0, "stream": true })).named_events();
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let delta = "response.output_text.delta";
    let begin =
        ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"];
    let end =
        ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"];
    assert_eq!((&names[..4], &names[names.len() - 4..]), (&begin[..], &end[..]));
    assert!(names[4..names.len() - 4].iter().all(|name| *name == delta), "{names:?}");
    for (number, (name, event)) in events.iter().enumerate() {
        assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(number)));
    }
    let joined: String = events.iter().filter_map(|(_, event)| event["delta"].as_str()).collect();
    assert_eq!(joined, expected);
    let last = &events[events.len() - 1].1["response"];
    assert_eq!(last["output"][0]["content"], content);
    assert_eq!(last["usage"]["total_tokens"], answer["usage"]["total_tokens"]);

    // Instructions, a limit, a form and an image.
    let cut = respond(&json!({ "input": question, "max_output_tokens": 2, "instructions": "Be brief." })).json();
    assert_eq!((&cut["status"], &cut["instructions"]), (&json!("incomplete"), &json!("Be brief.")), "{cut}");
    assert_eq!(cut["incomplete_details"], json!({ "reason": "max_output_tokens" }));
    let schema = json!({ "type": "object", "properties": { "ok": { "type": "boolean" } }, "required": ["ok"], "additionalProperties": false });
    let format = json!({ "type": "json_schema", "name": "x", "schema": schema, "strict": true });
    let formed = respond(&json!({ "input": question, "text": { "format": format } })).json();
    let value: Value = serde_json::from_str(text(&formed["output"][0]["content"][0]["text"])).expect("JSON");
    assert!(value["ok"].is_boolean(), "{value}");
    let ask = |url: &str| {
        let parts =
            json!([{ "type": "input_image", "image_url": url }, { "type": "input_text", "text": "What is this?" }]);
        respond(
            &json!({ "input": [{ "role": "user", "content": parts }], "instructions": "x", "max_output_tokens": 3 }),
        )
    };
    let seen = ask(image).json();
    assert!(seen["usage"]["input_tokens_details"]["image_tokens"].as_u64() > Some(0), "{seen}");

    // Errors name the fields of this request.
    let error = ask("http://example.org/").json()["error"].clone();
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("image_url_not_allowed"), &json!("input[0].content[0].image_url"))
    );
    for (more, code, param) in [
        (json!({ "input": null }), "invalid_value", "input"),
        (json!({ "input": [7] }), "invalid_value", "input[0]"),
        (json!({ "max_output_tokens": 0 }), "invalid_value", "max_output_tokens"),
        (json!({ "text": { "format": { "type": "yaml" } } }), "invalid_value", "text.format"),
        (json!({ "previous_response_id": "resp_1" }), "unsupported_field", "previous_response_id"),
        (json!({ "background": true }), "unsupported_field", "background"),
        (json!({ "tools": [{ "type": "web_search" }] }), "unsupported_field", "tools"),
    ] {
        let mut body = json!({ "input": "a" });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let error = respond(&body).json()["error"].clone();
        assert_eq!((&error["code"], &error["param"]), (&json!(code), &json!(param)), "{error}");
    }
}
