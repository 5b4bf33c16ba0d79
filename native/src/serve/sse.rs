//! Server-sent events: the bodies of streams.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse, Response};
use futures_util::stream::poll_fn;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::error::ApiError;

/// Silence after which a comment is sent: proxies end connections that are silent for longer.
pub const PING_AFTER: Duration = Duration::from_secs(10);
/// Events that wait for the client to read.
const EVENTS: usize = 64;
/// Proxies that buffer would hold events back.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The client went away, or does not read until the deadline.
#[derive(Debug)]
pub struct Gone;

/// Writes the events of a stream.
#[derive(Debug)]
pub struct Events {
    sender: mpsc::Sender<Bytes>,
    deadline: Instant,
}

/// A stream, and the answer that has it as its body.
pub fn stream(deadline: Instant) -> (Events, Response) {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(EVENTS);
    let body = Body::from_stream(poll_fn(move |context| {
        receiver.poll_recv(context).map(|event| event.map(Ok::<_, Infallible>))
    }));
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (ACCEL_BUFFERING, HeaderValue::from_static("no")),
    ];
    (Events { sender, deadline }, (headers, body).into_response())
}

impl Events {
    async fn write(&self, event: String) -> Result<(), Gone> {
        match timeout_at(self.deadline, self.sender.send(event.into())).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone),
        }
    }

    /// Sends a value.
    pub async fn send(&self, value: &impl Serialize) -> Result<(), Gone> {
        // Values that this program builds are always JSON.
        self.write(format!("data: {}\n\n", serde_json::to_string(value).unwrap_or_default())).await
    }

    /// Sends a value as an event with a name.
    pub async fn send_named(&self, name: &str, value: &impl Serialize) -> Result<(), Gone> {
        let data = serde_json::to_string(value).unwrap_or_default();
        self.write(format!("event: {name}\ndata: {data}\n\n")).await
    }

    /// Sends a comment, which clients skip.
    pub async fn ping(&self) -> Result<(), Gone> {
        self.write(": ping\n\n".to_owned()).await
    }

    /// Ends the stream.
    pub async fn done(self) -> Result<(), Gone> {
        self.write("data: [DONE]\n\n".to_owned()).await
    }

    /// Ends the stream with an error.
    pub fn fail(self, error: &ApiError) {
        // Past the deadline too, if the client still reads.
        let event = format!("data: {}\n\ndata: [DONE]\n\n", error.to_json());
        let _ = self.sender.try_send(event.into());
    }

    /// Waits until the client goes away.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }
}
