//! `mgm serve`: OpenAI's HTTP API over an engine that computes many requests at once.

mod access;
mod answer;
mod body;
mod caller;
mod chat;
mod command;
mod completion;
mod completions;
mod connection;
mod decoding;
mod embedder;
mod embeddings;
mod engine_thread;
mod error;
mod exposition;
mod fields;
mod health;
mod image_loader;
mod image_model;
mod image_requests;
mod image_thread;
mod image_url;
mod logprobs;
mod mailbox;
mod messages;
mod metrics;
mod models;
mod multipart;
mod options;
mod prompt;
mod reply;
mod response_format;
mod responses;
mod router;
mod served;
mod slots;
mod sse;
mod state;
mod tokenize;
mod tools;
mod usage;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use access::Access;
use image_thread::ImageThread;
pub use options::ServeArgs;
use state::{Draining, Server};

use crate::load::checkpoint_path;
use crate::{CliError, interrupt};

/// Threads that read requests and write answers. The engine has its own.
const WORKERS: usize = 2;
/// Threads that tokenise prompts.
const BLOCKING_THREADS: usize = 4;
/// For the threads of the models, when the program ends: a slice of work.
const ENGINE_TIME: Duration = Duration::from_secs(5);

pub fn run(arguments: ServeArgs) -> Result<(), CliError> {
    // What is wrong with the arguments is reported before anything takes time.
    checkpoint_path(&arguments.checkpoint)?;
    let keys = arguments.settings.keys()?;
    let (addresses, is_loopback) = arguments.settings.addresses(!keys.is_empty())?;
    let hosts = is_loopback.then(|| arguments.settings.allow_host.clone());
    let access = Access::new(&keys, hosts, arguments.settings.cors.clone());
    let images = match arguments.image_model() {
        Some(model) => Some(image_thread::start(model, arguments.device.options(), arguments.settings.queue)?),
        None => None,
    };
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(arguments, access, &addresses, images));
    runtime.shutdown_background();
    result
}

async fn serve(
    arguments: ServeArgs,
    access: Access,
    addresses: &[SocketAddr],
    images: Option<ImageThread>,
) -> Result<(), CliError> {
    let (host, port) = (&arguments.settings.host, arguments.settings.port);
    let listener = connection::listen(addresses).await.map_err(|error| mgm::Error::Io {
        file: format!("{host}:{port}"),
        kind: error.kind(),
        reason: format!("listening failed: {error}"),
    })?;
    writeln!(std::io::stdout(), "http://{}", listener.local_addr()?)?;
    std::io::stdout().flush()?;

    let (commands, received) = mpsc::channel();
    let image_model = images.as_ref().map(|images| images.model.clone());
    let server = Arc::new(Server::new(arguments.settings.clone(), access, commands, image_model));
    let image_thread = images.map(|images| images.begin(&server));
    let (ended, mut engine) = oneshot::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let thread = engine_thread::start(arguments, server.clone(), received, stop.clone(), ended)?;
    let mut failure = None;
    let end = async {
        tokio::select! {
            () = signal() => {}
            // Without a model there is nothing to serve.
            result = &mut engine => {
                failure = result.ok().and_then(Result::err);
                return;
            }
        }
        tokio::spawn(async {
            signal().await;
            std::process::exit(interrupt::INTERRUPTED.into());
        });
        stop.store(true, Ordering::Relaxed);
        drain(&server).await;
    };
    connection::serve(listener, router::router(&server), end).await;
    server.stop();
    // The device must not be in use when the program ends.
    let joined = tokio::task::spawn_blocking(move || {
        [Some(thread), image_thread].into_iter().flatten().for_each(|thread| drop(thread.join()));
    });
    let _ = timeout(ENGINE_TIME, joined).await;
    failure.map_or(Ok(()), Err)
}

/// Refuses new requests, after a time in which load balancers notice it, and waits for those under way.
async fn drain(server: &Server) {
    note!("mgm: shutting down; a second signal ends the program at once");
    let settings = &server.settings;
    server.set_draining(Draining::Announced);
    sleep(Duration::from_secs(settings.drain_delay)).await;
    server.set_draining(Draining::Refusing);
    let _ = timeout(Duration::from_secs(settings.drain_timeout), server.idle()).await;
    // What is left ends with an error.
    server.stop();
}

/// Waits for Ctrl-C, or for the signal of a supervisor.
async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};

        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    // A system without signals is ended otherwise.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
