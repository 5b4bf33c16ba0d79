//! Connections: how many, and how long a client may take to send the head of a request.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::router::Client;

/// Connections at a time. More wait in the system's queue.
const MAX_CONNECTIONS: usize = 512;
/// For the head of a request, and for the next one on the same connection.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// For the last bytes of answers, when the server ends.
const CLOSING_TIME: Duration = Duration::from_secs(2);
/// After the system refused a connection, such as for want of file descriptors.
const RECOVERY_TIME: Duration = Duration::from_millis(50);

/// Listens on the first of the addresses that is free.
///
/// # Errors
/// Those of the system for the last address.
pub async fn listen(addresses: &[SocketAddr]) -> io::Result<TcpListener> {
    TcpListener::bind(addresses).await
}

/// Answers requests until `end` is done; then lets connections finish what they send.
pub async fn serve(listener: TcpListener, router: Router, end: impl Future<Output = ()>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
    let accept = async {
        // The semaphore is never closed.
        while let Ok(permit) = connections.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, client)) => {
                    // Events of a stream are small and must not wait for each other.
                    let _ = stream.set_nodelay(true);
                    let router = TowerToHyperService::new(router.clone());
                    let service = service_fn(move |mut request: Request<Incoming>| {
                        request.extensions_mut().insert(Client(client.ip()));
                        router.call(request)
                    });
                    let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
                    tokio::spawn(async move {
                        // What goes wrong with a connection concerns its client only.
                        let _ = connection.await;
                        drop(permit);
                    });
                }
                Err(_) => sleep(RECOVERY_TIME).await,
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = end => {}
    }
    drop(listener);
    let _ = timeout(CLOSING_TIME, graceful.shutdown()).await;
}
