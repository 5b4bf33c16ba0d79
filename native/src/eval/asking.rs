//! Questions to a model.

use std::sync::atomic::{AtomicBool, Ordering};

use mgm::Error;
use mgm::image::Rgb8;
use mgm::session::{Chat, Event, Request, pictures};
use mgm::text::Turn;

use super::answers::Answer;
use super::dataset::{Picture, Question};

/// A model that answers questions, each in a conversation of its own.
pub struct Asker<'a> {
    chat: Chat,
    max_new_tokens: usize,
    stop: &'a AtomicBool,
    /// Questions that the device can take at a time.
    most: usize,
    /// The picture that was read last.
    last: Option<(Picture, Rgb8)>,
}

impl<'a> Asker<'a> {
    pub fn new(chat: Chat, max_new_tokens: u32, stop: &'a AtomicBool) -> Self {
        Self { chat, max_new_tokens: max_new_tokens as usize, stop, most: usize::MAX, last: None }
    }

    /// The answers to questions. A picture that several are about is looked at once, and what their prompts have in common
    /// is read once.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if it was stopped.
    pub async fn ask(&mut self, questions: &[&Question]) -> mgm::Result<Vec<Answer>> {
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
        let mut places = Vec::new();
        for (place, question) in questions.iter().enumerate() {
            match self.request(question).await {
                Ok(request) => {
                    requests.push(request);
                    places.push(place);
                }
                // The model's limits are part of what it is worth: the question counts as answered wrong.
                Err(error @ Error::PromptTooLong { .. }) => answers[place].error = Some(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        for (place, text) in places.into_iter().zip(self.texts(&requests).await?) {
            answers[place].text = text;
        }
        Ok(answers)
    }

    /// The answers' texts; in smaller batches where memory is short.
    async fn texts(&mut self, requests: &[Request]) -> mgm::Result<Vec<String>> {
        let mut texts = Vec::new();
        while texts.len() < requests.len() {
            let left = &requests[texts.len()..];
            let some = &left[..left.len().min(self.most)];
            let mut go_on = || !self.stop.load(Ordering::Relaxed);
            match self.chat.model().answer_all(some, self.max_new_tokens, &mut go_on).await {
                Ok(answers) => texts.extend(answers.into_iter().map(|answer| answer.text)),
                Err(Error::OutOfMemory { .. }) if some.len() > 1 => self.most = some.len() / 2,
                Err(error) => return Err(error),
            }
        }
        Ok(texts)
    }

    async fn request(&mut self, question: &Question) -> mgm::Result<Request> {
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
        // Forgets the turns before, but not their picture.
        self.chat.restore(None, turns, &pictures(of_history), &mut on_event).await?;
        self.chat.request(&question.prompt, of_question, self.max_new_tokens, &mut on_event).await
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
