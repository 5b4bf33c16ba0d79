//! A model in a multi-threaded async program. Models are not `Send`, so one thread owns the model and a channel carries
//! questions to it and answers back. `cargo run --release --example async_server`

use std::thread;

use mgm::{Gpu, Model, Result};
use tokio::sync::{mpsc, oneshot};

struct Question {
    text: String,
    reply: oneshot::Sender<Result<String>>,
}

/// Loads the model on a thread of its own, which answers until the last sender is dropped.
fn start() -> (mpsc::Sender<Question>, thread::JoinHandle<Result<()>>) {
    let (sender, mut questions) = mpsc::channel::<Question>(16);
    let worker = thread::spawn(move || {
        pollster::block_on(async {
            let gpu = Gpu::open(&Default::default()).await?;
            let model = Model::from_path(&gpu, "models/pocket").await?;
            while let Some(Question { text, reply }) = questions.recv().await {
                let answer = model.chat().ask(text).max_new_tokens(64).await;
                // The client may have gone.
                let _ = reply.send(answer.map(|answer| answer.text));
            }
            Ok(())
        })
    });
    (sender, worker)
}

#[tokio::main]
async fn main() -> Result<()> {
    let (model, worker) = start();
    // Two clients at once, as two requests to a server.
    let clients = ["Can you read?", "Can you draw?"].map(|text| {
        let model = model.clone();
        tokio::spawn(async move {
            let (reply, answer) = oneshot::channel();
            model.send(Question { text: text.to_owned(), reply }).await.ok()?;
            answer.await.ok()
        })
    });
    for client in clients {
        if let Ok(Some(answer)) = client.await {
            println!("{}", answer?);
        }
    }
    drop(model);
    worker.join().expect("the worker does not panic")
}
