//! Asks a model the questions of a dataset in batches.

use std::sync::atomic::AtomicBool;

use mgm::Error;
use mgm::image::{Image, ImageDecoding};
use mgm::session::{Chat, Event, PreparedQuestion, image_sources};
use mgm::text::Turn;

use super::answers::Answer;
use super::dataset::{ImageSource, Question};
use crate::interrupt::continue_unless;

/// A model that answers questions, each in its own conversation.
pub struct BatchRunner<'a> {
    chat: Chat,
    max_new_tokens: usize,
    decoding: ImageDecoding,
    stop: &'a AtomicBool,
    /// Maximum batch size; reduced when the device is out of memory.
    max_batch: usize,
    /// The most recently decoded image.
    last_image: Option<(ImageSource, Image)>,
}

impl<'a> BatchRunner<'a> {
    pub fn new(chat: Chat, max_new_tokens: u32, decoding: ImageDecoding, stop: &'a AtomicBool) -> Self {
        Self { chat, max_new_tokens: max_new_tokens as usize, decoding, stop, max_batch: usize::MAX, last_image: None }
    }

    /// Uses a conversation on another device.
    pub fn move_to(&mut self, chat: Chat) {
        self.chat = chat;
    }

    /// Answers questions. An image that several questions share is encoded once, and a common prefix of their prompts
    /// is prefilled once.
    ///
    /// # Errors
    /// [`Error::Cancelled`] after a stop; those of the model.
    pub async fn answer(&mut self, questions: &[&Question]) -> mgm::Result<Vec<Answer>> {
        let mut answers: Vec<Answer> = questions
            .iter()
            .map(|question| Answer {
                id: question.id.clone(),
                prompt: Some(question.prompt.clone()),
                text: String::new(),
                error: None,
            })
            .collect();
        let mut requests = Vec::new();
        let mut indices = Vec::new();
        for (index, question) in questions.iter().enumerate() {
            match self.request(question).await {
                Ok(request) => {
                    requests.push(request);
                    indices.push(index);
                }
                // A question that doesn't fit into the context is scored as wrong.
                Err(error @ Error::PromptTooLong { .. }) => answers[index].error = Some(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        for (index, text) in indices.into_iter().zip(self.texts(&requests).await?) {
            answers[index].text = text;
        }
        Ok(answers)
    }

    /// Generates the answers' texts, in smaller batches if the device is out of memory.
    async fn texts(&mut self, requests: &[PreparedQuestion]) -> mgm::Result<Vec<String>> {
        let mut texts = Vec::new();
        while texts.len() < requests.len() {
            let remaining = &requests[texts.len()..];
            let batch = &remaining[..remaining.len().min(self.max_batch)];
            let mut go_on = || continue_unless(self.stop);
            match self.chat.model().answer_batch(batch, self.max_new_tokens, &mut go_on).await {
                Ok(answers) => texts.extend(answers.into_iter().map(|answer| answer.text)),
                Err(Error::OutOfMemory { .. }) if batch.len() > 1 => self.max_batch = batch.len() / 2,
                Err(error) => return Err(error),
            }
        }
        Ok(texts)
    }

    async fn request(&mut self, question: &Question) -> mgm::Result<PreparedQuestion> {
        let images = self.images(question)?;
        let mut turns: Vec<Turn> =
            question.history.iter().map(|(asked, answer)| Turn::new(asked, 0).with_answer(answer)).collect();
        // The image belongs to the first question of the conversation.
        let (history_images, question_images) = match turns.first_mut() {
            Some(first) => {
                first.images = images.len();
                (images.as_slice(), &[][..])
            }
            None => (&[][..], images.as_slice()),
        };
        let stop = self.stop;
        let mut on_event = |_: Event<'_>| continue_unless(stop);
        // Replaces the previous turns; the chat still caches their encoded image.
        self.chat.restore(None, turns, &image_sources(history_images), &mut on_event).await?;
        let ask = self.chat.ask(&question.prompt).images(question_images).max_new_tokens(self.max_new_tokens);
        ask.on_event(&mut on_event).prepare().await
    }

    fn images(&mut self, question: &Question) -> mgm::Result<Vec<Image>> {
        let Some(source) = &question.image else { return Ok(Vec::new()) };
        let image = match self.last_image.take() {
            Some((last, image)) if last == *source => image,
            _ => source.read(question, self.decoding)?,
        };
        self.last_image = Some((source.clone(), image.clone()));
        Ok(vec![image])
    }
}
