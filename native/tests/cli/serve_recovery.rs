//! `mgm serve` on a device that is lost.
#![cfg(unix)]

use serde_json::{Value, json};

use crate::serve::{Server, joined, user};

/// A question whose answer takes longer than devices last here.
fn question(stream: bool) -> Value {
    json!({ "messages": user("What can you do?"), "stream": stream, "ignore_eos": true, "max_tokens": 120, "temperature": 1, "seed": 3 })
}

#[test]
fn answers_continue_on_the_next_device_and_end_with_an_error_after_the_last() {
    let undisturbed = Server::start(&["--deterministic"]).ready();
    let expected = joined(&undisturbed.chat(question(true)).events())[0].0.clone();
    drop(undisturbed);
    assert!(expected.len() > 100, "{expected}");

    // The first two devices are lost in mid-answer.
    let server = Server::start_with(&["--deterministic"], &[("MGM_LOSE_DEVICE", "60,60")]).ready();
    let streams = [0, 1].map(|_| server.send("/v1/chat/completions", &question(true)));
    for stream in streams {
        assert_eq!(joined(&stream.reply().events())[0].0, expected);
    }
    assert_eq!(server.metric("mgm_device_lost_total "), 2);
    assert_eq!(server.get("/health").status, 200);
    drop(server);

    // A third within ten minutes ends the engine, and here the program.
    let lost = [("MGM_LOSE_DEVICE", "60,60,60,60,60")];
    let mut server = Server::start_with(&["--deterministic", "--exit-on-loss"], &lost).ready();
    let reply = server.chat(question(false));
    let error = reply.json()["error"].clone();
    assert_eq!((reply.status, &error["code"]), (503, &json!("device_lost")), "{error}");
    assert_eq!(reply.header("x-should-retry"), Some("false"));
    assert_eq!(server.process.wait().expect("the end").code(), Some(3));
}
