//! A question with its images, options and callbacks.

use std::future::IntoFuture;
use std::ops::ControlFlow;

use super::{Answer, AnswerOptions, Chat, Event, ImageSource, PreparedQuestion};
use crate::Result;
use crate::io::LocalFuture;
use crate::language::AnyConstraint;
#[cfg(not(target_arch = "wasm32"))]
use crate::language::Constraint;
use crate::ops::Sampling;

type TextCallback<'a> = Box<dyn FnMut(&str) + 'a>;
type EventCallback<'a> = Box<dyn FnMut(Event<'_>) -> ControlFlow<()> + 'a>;

/// A question to a [`Chat`]. Await it for the [`Answer`].
///
/// If it fails, or its future is dropped, the conversation stays as it was before the question.
#[must_use = "a question is asked when it is awaited"]
pub struct Ask<'a> {
    chat: &'a mut Chat,
    question: String,
    images: Vec<Box<dyn ImageSource + 'a>>,
    options: AnswerOptions,
    constraint: Option<AnyConstraint>,
    on_text: Option<TextCallback<'a>>,
    on_event: Option<EventCallback<'a>>,
}

impl Chat {
    /// A question about the images added to it and about those of earlier turns. It is asked when the [`Ask`] is
    /// awaited.
    pub fn ask(&mut self, question: impl Into<String>) -> Ask<'_> {
        let (options, question) = (AnswerOptions::default(), question.into());
        Ask { chat: self, question, images: Vec::new(), options, constraint: None, on_text: None, on_event: None }
    }
}

impl<'a> Ask<'a> {
    /// Adds an image before the question.
    pub fn image(mut self, image: impl ImageSource + 'a) -> Self {
        self.images.push(Box::new(image));
        self
    }

    /// Adds images before the question.
    pub fn images<I: ImageSource + 'a>(mut self, images: impl IntoIterator<Item = I>) -> Self {
        self.images.extend(images.into_iter().map(|image| Box::new(image) as Box<dyn ImageSource + 'a>));
        self
    }

    /// Sets all options at once.
    pub fn options(self, options: &AnswerOptions) -> Self {
        Self { options: options.clone(), ..self }
    }

    /// Sets the maximum number of tokens to generate.
    pub fn max_new_tokens(mut self, max_new_tokens: usize) -> Self {
        self.options.max_new_tokens = max_new_tokens;
        self
    }

    /// Sets how tokens are chosen.
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.options.sampling = sampling;
        self
    }

    /// Sets the sampling temperature; 0 always takes the most likely token. Default: 0 (greedy); the command line and
    /// the npm package use the reference's 0.2.
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.options.sampling.temperature = temperature;
        self
    }

    /// Samples among the k most likely tokens; 0 among all.
    pub fn top_k(mut self, top_k: u32) -> Self {
        self.options.sampling.top_k = top_k;
        self
    }

    /// Samples among the most likely tokens that together have probability `top_p`.
    pub fn top_p(mut self, top_p: f32) -> Self {
        self.options.sampling.top_p = top_p;
        self
    }

    /// Sets the seed of the sampling.
    pub fn seed(mut self, seed: u64) -> Self {
        self.options.seed = seed;
        self
    }

    /// Ends the answer before the first occurrence of one of these strings.
    pub fn stop<S: Into<String>>(mut self, stop: impl IntoIterator<Item = S>) -> Self {
        self.options.stop = stop.into_iter().map(Into::into).collect();
        self
    }

    /// Generates several answers ([`AnswerOptions::n`]).
    pub fn n(mut self, n: usize) -> Self {
        self.options.n = n;
        self
    }

    /// Continues an answer after these tokens ([`AnswerOptions::resume_from`]).
    pub fn resume_from(mut self, token_ids: Vec<u32>) -> Self {
        self.options.resume_from = vec![token_ids];
        self
    }

    /// Sets what the answer may be, such as JSON of a schema: each answer gets a copy. The package `mgm-grammar`
    /// compiles such constraints.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn constraint(self, constraint: impl Constraint + 'static) -> Self {
        Self { constraint: Some(Box::new(constraint)), ..self }
    }

    /// Streams the answer's text.
    pub fn on_text(self, on_text: impl FnMut(&str) + 'a) -> Self {
        Self { on_text: Some(Box::new(on_text)), ..self }
    }

    /// Receives all events. [`ControlFlow::Break`] ends the answer where it is; before the first token it cancels the
    /// question.
    pub fn on_event(self, on_event: impl FnMut(Event<'_>) -> ControlFlow<()> + 'a) -> Self {
        Self { on_event: Some(Box::new(on_event)), ..self }
    }

    /// Encodes the images and builds the prompt, to answer the question with others at once
    /// ([`Model::answer_batch`](super::Model::answer_batch)). The conversation does not change.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`](crate::Error::PromptTooLong) if it does not fit the context;
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for images to a model without vision;
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub async fn prepare(self) -> Result<PreparedQuestion> {
        let Self { chat, question, images, options, on_text, on_event, .. } = self;
        chat.prepare(&question, &references(&images), options.max_new_tokens, &mut dispatch(on_text, on_event)).await
    }
}

impl<'a> IntoFuture for Ask<'a> {
    type Output = Result<Answer>;
    type IntoFuture = LocalFuture<'a, Result<Answer>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self { chat, question, images, options, constraint, on_text, on_event } = self;
            let wanted = (&options, constraint.as_ref());
            chat.answer(&question, &references(&images), wanted, &mut dispatch(on_text, on_event)).await
        })
    }
}

fn references<'i>(images: &'i [Box<dyn ImageSource + '_>]) -> Vec<&'i dyn ImageSource> {
    images.iter().map(|image| &**image as &dyn ImageSource).collect()
}

/// One event handler of the two callbacks.
fn dispatch<'a>(
    mut on_text: Option<TextCallback<'a>>,
    mut on_event: Option<EventCallback<'a>>,
) -> impl FnMut(Event<'_>) -> ControlFlow<()> + 'a {
    move |event| {
        if let (Some(on_text), Event::Text { text }) = (&mut on_text, event) {
            on_text(text);
        }
        match &mut on_event {
            Some(on_event) => on_event(event),
            None => ControlFlow::Continue(()),
        }
    }
}
