//! Questions to a model.

use std::sync::atomic::{AtomicBool, Ordering};

use mgm::Error;
use mgm::image::Rgb8;
use mgm::ops::Sampling;
use mgm::session::{AnswerOptions, Chat, Event, FinishReason};
use mgm::text::Turn;

use super::answers::Answer;
use super::dataset::{Picture, Question};

/// A model that answers one question after another, each in a conversation of its own.
pub struct Asker<'a> {
    chat: Chat,
    options: AnswerOptions,
    stop: &'a AtomicBool,
    /// The picture that was read last.
    last: Option<(Picture, Rgb8)>,
}

impl<'a> Asker<'a> {
    pub fn new(chat: Chat, max_new_tokens: u32, stop: &'a AtomicBool) -> Self {
        let max_new_tokens = max_new_tokens as usize;
        let options = AnswerOptions { sampling: Sampling::GREEDY, seed: 0, max_new_tokens, begun: Vec::new() };
        Self { chat, options, stop, last: None }
    }

    /// The answer to a question. What its prompt has in common with the last one, the picture above all, is not computed
    /// again.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if it was stopped.
    pub async fn ask(&mut self, question: &Question) -> mgm::Result<Answer> {
        let answer = |text: String, error| Answer {
            id: question.id.clone(),
            prompt: Some(question.prompt.clone()),
            text,
            error,
        };
        match self.text(question).await {
            Ok(text) => Ok(answer(text, None)),
            // The model's limits are part of what it is worth: the question counts as answered wrong.
            Err(error @ Error::PromptTooLong { .. }) => Ok(answer(String::new(), Some(error.to_string()))),
            Err(error) => Err(error),
        }
    }

    async fn text(&mut self, question: &Question) -> mgm::Result<String> {
        let images = self.images(question)?;
        let mut turns: Vec<Turn> = question
            .history
            .iter()
            .map(|(asked, answer)| Turn { question: asked.clone(), images: 0, answer: Some(answer.clone()) })
            .collect();
        // The picture comes with the first question of the conversation.
        let (of_history, of_question) = match turns.first_mut() {
            Some(first) => {
                first.images = images.len();
                (images.as_slice(), &[][..])
            }
            None => (&[][..], images.as_slice()),
        };
        let stop = self.stop;
        let mut on_event = |_: Event<'_>| !stop.load(Ordering::Relaxed);
        // Forgets the turns before, but neither what the cache holds nor the pictures.
        self.chat.restore(None, turns, of_history, &mut on_event).await?;
        let answer = self.chat.ask(&question.prompt, of_question, &self.options, &mut on_event).await?;
        match answer.finish_reason {
            FinishReason::Cancelled => Err(Error::Cancelled),
            FinishReason::Stop | FinishReason::Length => Ok(answer.text),
        }
    }

    fn images(&mut self, question: &Question) -> mgm::Result<Vec<Rgb8>> {
        let Some(picture) = &question.picture else { return Ok(Vec::new()) };
        let image = match self.last.take() {
            Some((last, image)) if last == *picture => image,
            _ => picture.read(question)?,
        };
        self.last = Some((picture.clone(), image.clone()));
        Ok(vec![image])
    }
}
