//! `POST /v1/embeddings` of `mgm serve`.
#![cfg(unix)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::common::text;
use crate::serve::Server;

fn vectors(response: &Value) -> Vec<Vec<f64>> {
    let data = response["data"].as_array().unwrap_or_else(|| panic!("no data: {response}"));
    let vector =
        |entry: &Value| entry["embedding"].as_array().expect("a vector").iter().filter_map(Value::as_f64).collect();
    data.iter().map(vector).collect()
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Checks embeddings of texts and of their tokens, in both formats.
pub fn check(server: &Server) {
    let embed = |body: &Value| server.post("/v1/embeddings", body);
    let long = "A blue shark and a red car. ".repeat(30);
    let texts = ["What is your name?", "What is your name", long.as_str()];
    let reply = embed(&json!({ "input": texts, "model": "pocket", "user": "me" }));
    let response = reply.json();
    assert_eq!((reply.status, reply.header("x-mgm-ignored")), (200, None), "{response}");
    let found = vectors(&response);
    let width = found[0].len();
    assert!(found.iter().all(|vector| vector.len() == width && (product(vector, vector) - 1.0).abs() < 1e-4));
    let similarity = |a: usize, b: usize| product(&found[a], &found[b]);
    assert!(
        similarity(0, 1) > similarity(0, 2) && similarity(0, 1) < 0.99999,
        "{} {}",
        similarity(0, 1),
        similarity(0, 2)
    );
    // The tokens of a text, alone, as base64.
    let mut tokens = 0;
    for (expected, text_of) in found.iter().zip(texts) {
        let ids = server.post("/tokenize", &json!({ "prompt": text_of })).json();
        tokens += ids["count"].as_u64().expect("a number");
        let body = json!({ "input": ids["tokens"], "encoding_format": "base64", "dimensions": width });
        let alone = embed(&body).json();
        let bytes = STANDARD.decode(text(&alone["data"][0]["embedding"])).expect("base64");
        let values: Vec<f64> = bytes.as_chunks().0.iter().map(|value| f64::from(f32::from_le_bytes(*value))).collect();
        // Slices of other lengths may sum in another order.
        assert!(product(&values, expected) > 0.999, "{text_of}");
    }
    assert_eq!(response["usage"], json!({ "prompt_tokens": tokens, "total_tokens": tokens }));
    assert_eq!((&response["object"], &response["data"][2]["index"]), (&json!("list"), &json!(2)));
    for (body, code, param) in [
        (json!({}), "invalid_value", "input"),
        (json!({ "input": [] }), "invalid_value", "input"),
        (json!({ "input": [[]] }), "invalid_value", "input"),
        (json!({ "input": { "a": 1 } }), "invalid_value", "input"),
        (json!({ "input": vec!["a"; 257] }), "invalid_value", "input"),
        (json!({ "input": [4_000_000_000u32] }), "invalid_value", "input"),
        (json!({ "input": "word ".repeat(9000) }), "context_length_exceeded", "input"),
        (json!({ "input": "a", "encoding_format": "int8" }), "invalid_value", "encoding_format"),
        (json!({ "input": "a", "dimensions": 3 }), "unsupported_field", "dimensions"),
    ] {
        let reply = embed(&body);
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, &error["code"], &error["param"]), (400, &json!(code), &json!(param)));
    }
}
