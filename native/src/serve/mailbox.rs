//! What the engine's thread sends to a request. Neither waits for the other.

use std::sync::{Mutex, MutexGuard, PoisonError};

use mgm::engine::{Event, TokenLogprobs};
use tokio::sync::Notify;

use super::error::ApiError;

/// Bytes that a request may leave unread.
const MAX_UNREAD: usize = 1 << 20;

/// What a request has not read yet.
#[derive(Debug, Default)]
pub struct Mail {
    pub events: Vec<Event>,
    /// Why there will be no more.
    pub failed: Option<ApiError>,
    bytes: usize,
}

/// Mail of one request.
#[derive(Debug, Default)]
pub struct Mailbox {
    mail: Mutex<Mail>,
    arrived: Notify,
}

impl Mailbox {
    fn mail(&self) -> MutexGuard<'_, Mail> {
        // No code panics while it has the lock.
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event. Returns whether the request reads its mail.
    pub fn send(&self, event: Event) -> bool {
        let mut mail = self.mail();
        mail.bytes += size(&event);
        mail.events.push(event);
        let fits = mail.bytes <= MAX_UNREAD;
        drop(mail);
        self.arrived.notify_one();
        fits
    }

    /// Ends all answers of the request.
    pub fn fail(&self, error: ApiError) {
        self.mail().failed.get_or_insert(error);
        self.arrived.notify_one();
    }

    /// Waits for mail and takes all of it.
    pub async fn take(&self) -> Mail {
        loop {
            {
                let mut mail = self.mail();
                if !mail.events.is_empty() || mail.failed.is_some() {
                    return std::mem::take(&mut *mail);
                }
            }
            self.arrived.notified().await;
        }
    }
}

/// Bytes that an event takes.
fn size(event: &Event) -> usize {
    let Event::Delta { ids, text, logprobs, .. } = event else { return size_of::<Event>() };
    let tokens: usize = logprobs.iter().map(|token| 1 + token.top.len()).sum();
    size_of::<Event>() + size_of_val(ids.as_slice()) + text.len() + tokens * size_of::<TokenLogprobs>()
}
