//! A model in a multi-threaded async program. Models are not `Send`, so one thread owns the model. A channel carries
//! questions to it, each with a channel for the parts of its answer; dropping the receiver of the parts cancels the
//! answer. `cargo run --release --example async_server`

use std::ops::ControlFlow;
use std::thread;

use mgm::{Event, FinishReason, Gpu, Image, Model, Result};
use tokio::sync::{mpsc, oneshot};

struct Question {
    image: Image,
    text: String,
    /// Receives the answer's text as it is generated.
    parts: mpsc::UnboundedSender<String>,
    /// Receives the reason why the answer ended, or the error.
    end: oneshot::Sender<Result<FinishReason>>,
}

/// Loads the model on a thread of its own, which answers until the last sender is dropped.
fn start() -> (mpsc::Sender<Question>, thread::JoinHandle<Result<()>>) {
    let (sender, mut questions) = mpsc::channel::<Question>(16);
    let worker = thread::spawn(move || {
        pollster::block_on(async {
            let gpu = Gpu::open(&Default::default()).await?;
            let model = Model::from_path(&gpu, "models/pocket").await?;
            while let Some(Question { image, text, parts, end }) = questions.recv().await {
                let stream = |event: Event<'_>| {
                    if let Event::Text { text } = event {
                        let _ = parts.send(text.to_owned());
                    }
                    // The client may have gone. Events arrive during the encoding of the image too.
                    if parts.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                let answer = model.chat().ask(text).image(image).max_new_tokens(64).on_event(stream).await;
                let _ = end.send(answer.map(|answer| answer.finish_reason));
            }
            Ok(())
        })
    });
    (sender, worker)
}

/// Asks a question and reads at most `limit` parts of the answer. `None` if the worker has failed.
async fn ask(model: mpsc::Sender<Question>, image: Image, text: &str, limit: usize) -> Result<Option<String>> {
    let (parts, mut received) = mpsc::unbounded_channel();
    let (end, ended) = oneshot::channel();
    if model.send(Question { image, text: text.to_owned(), parts, end }).await.is_err() {
        return Ok(None);
    }
    let mut answer = String::new();
    for _ in 0..limit {
        let Some(part) = received.recv().await else { break };
        answer += &part;
    }
    drop(received);
    let Ok(reason) = ended.await else { return Ok(None) };
    Ok(Some(format!("{answer} [{}]", reason?)))
}

#[tokio::main]
async fn main() -> Result<()> {
    let (model, worker) = start();
    let image = Image::open("pocket/examples/shark.png")?;
    // Two clients at once, as two requests to a server. The second one leaves after one part of its answer.
    let clients = [("Describe the image.", usize::MAX), ("What colour is the cheese?", 1)]
        .map(|(text, limit)| tokio::spawn(ask(model.clone(), image.clone(), text, limit)));
    for client in clients {
        if let Ok(answer) = client.await
            && let Some(answer) = answer?
        {
            println!("{answer}");
        }
    }
    drop(model);
    worker.join().expect("the worker does not panic")
}
