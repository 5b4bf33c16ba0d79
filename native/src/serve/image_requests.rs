//! `POST /v1/images/generations`, `/v1/images/edits` and `/v1/images/variations`.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mgm::diffusion::limits::{
    DEFAULT_GUIDANCE_SCALE, DEFAULT_NUM_INFERENCE_STEPS, GUIDANCE_SCALE, MAX_NUM_INFERENCE_STEPS,
};
use mgm::diffusion::png_metadata::ImageSettings;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{sleep, timeout_at};

use super::caller::{Caller, on_blocking_thread};
use super::error::ApiError;
use super::fields::{Fields, unexpected};
use super::image_model::{ImageServed, ImageSpec, ImageUpdate, InitialImage};
use super::models::check_model_id;
use super::multipart;
use super::reply::{json_response, unix_time, with_ignored};
use super::sse::{self, Events, Gone, PING_AFTER};
use super::state::Server;
use crate::seed;

/// Images of a request at most.
const MAX_IMAGES: i64 = 4;
/// Previews of an image at most.
const MAX_PREVIEWS: i64 = 3;
/// Pixels a side at most, and what sides are multiples of.
const MAX_SIDE: usize = 2048;
const SIDE_UNIT: usize = 8;
/// Bytes of a prompt at most. Text encoders read about 300 characters of it, or more with weights.
const MAX_PROMPT: usize = 32 << 10;

/// Fields that have no effect here.
const WITHOUT_EFFECT: [&str; 8] =
    ["quality", "style", "background", "user", "moderation", "output_compression", "input_fidelity", "partial_images"];
/// Fields of forms that are texts, whatever they look like.
const TEXTS: [&str; 5] = ["prompt", "negative_prompt", "model", "size", "user"];

/// Which request it is, by the names of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Generation,
    Edit,
    Variation,
}

impl Kind {
    fn events(self) -> &'static str {
        if self == Self::Generation { "image_generation" } else { "image_edit" }
    }
}

/// A request that was read.
struct Read {
    spec: ImageSpec,
    kind: Kind,
    stream: bool,
    ignored: Vec<String>,
}

pub async fn generate(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let model = image_model(&server)?;
    let body = server.bodies.read_json(&headers, body).await?;
    let (reading, described) = (server.clone(), model.clone());
    let read = on_blocking_thread(move || {
        let fields = Fields::parse(&body.bytes)?;
        read_fields(fields, &reading, &described, Kind::Generation, None)
    });
    respond(&server, &model, read.await?, caller.deadline).await
}

pub async fn edit(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    change(&server, &caller, &headers, body, Kind::Edit).await
}

pub async fn vary(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    change(&server, &caller, &headers, body, Kind::Variation).await
}

/// The image model of a server that takes requests.
fn image_model(server: &Server) -> Result<Arc<ImageServed>, ApiError> {
    let model = server.image_model().cloned().ok_or_else(ApiError::no_image_model)?;
    // What the language model takes of the memory is known when it is loaded.
    server.served()?;
    Ok(model)
}

/// Answers a form with an image.
async fn change(
    server: &Arc<Server>,
    caller: &Caller,
    headers: &HeaderMap,
    body: Body,
    kind: Kind,
) -> Result<Response, ApiError> {
    let model = image_model(server)?;
    server.access.check_form_origin(headers)?;
    let body = server.bodies.read_form(headers, body).await?;
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let form = on_blocking_thread(move || read_form(&content_type, &body.bytes)).await?;
    let Form { mut fields, image, mask } = form;
    let strength = fields.number("strength", |value| value > 0.0 && value <= 1.0, "a number above 0, up to 1")?;
    let image = image.ok_or_else(|| ApiError::invalid_value("image", "image is missing, expected an image file"))?;
    if kind == Kind::Variation && mask.is_some() {
        return Err(ApiError::unsupported_field("mask", "variations have no mask: use /v1/images/edits"));
    }
    let image = server.images.image("image", image).await?;
    let mask = match mask {
        Some(mask) => Some(server.images.mask("mask", mask).await?),
        None => None,
    };
    let read = read_fields(fields, server, &model, kind, Some(InitialImage { image, mask, strength }))?;
    respond(server, &model, read, caller.deadline).await
}

/// The fields and files of a form.
struct Form {
    fields: Fields,
    image: Option<Vec<u8>>,
    mask: Option<Vec<u8>>,
}

fn read_form(content_type: &str, body: &[u8]) -> Result<Form, ApiError> {
    let (mut fields, mut image, mut mask) = (Map::new(), None, None);
    for part in multipart::parse(content_type, body)? {
        // Lists of images have this name.
        let name = if part.name == "image[]" { "image" } else { part.name.as_str() };
        let file = match name {
            "image" => &mut image,
            "mask" => &mut mask,
            name => {
                let text = str::from_utf8(part.bytes)
                    .map_err(|_| ApiError::invalid_value(name, format!("{name} is not UTF-8")))?;
                let number = serde_json::from_str::<Value>(text).ok();
                let number = number.filter(|value| !TEXTS.contains(&name) && (value.is_number() || value.is_boolean()));
                fields.insert(name.to_owned(), number.unwrap_or_else(|| text.into()));
                continue;
            }
        };
        if !part.is_file {
            return Err(ApiError::invalid_value(name, format!("{name} is a text, expected an image file")));
        }
        if file.replace(part.bytes.to_vec()).is_some() {
            return Err(ApiError::unsupported_field(name, format!("there are several files {name}: send one")));
        }
    }
    Ok(Form { fields: Fields::new(fields), image, mask })
}

fn read_fields(
    mut fields: Fields,
    server: &Server,
    model: &ImageServed,
    kind: Kind,
    initial: Option<InitialImage>,
) -> Result<Read, ApiError> {
    check_model_id(&mut fields, server, &model.id)?;
    let prompt = match fields.text("prompt")? {
        Some(prompt) if prompt.len() <= MAX_PROMPT => prompt,
        None if kind == Kind::Variation => String::new(),
        Some(_) => {
            return Err(ApiError::invalid_value("prompt", format!("the prompt has more than {MAX_PROMPT} bytes")));
        }
        None => return Err(ApiError::invalid_value("prompt", "prompt is missing, expected a text")),
    };
    let negative_prompt = fields.text("negative_prompt")?;
    if negative_prompt.as_ref().is_some_and(|prompt| prompt.len() > MAX_PROMPT) {
        let message = format!("the negative prompt has more than {MAX_PROMPT} bytes");
        return Err(ApiError::invalid_value("negative_prompt", message));
    }
    let steps = fields.integer("steps", 1..=MAX_NUM_INFERENCE_STEPS as i64)?;
    let guidance =
        fields.number("guidance", |value| GUIDANCE_SCALE.contains(&(value as f32)), "a number from 0 to 1000")?;
    let scheduler = match fields.text("scheduler")? {
        Some(name) => {
            let parsed =
                name.parse().map_err(|error: mgm::Error| ApiError::invalid_value("scheduler", error.to_string()));
            Some(parsed?)
        }
        None => None,
    };
    let size = match fields.take("size") {
        None => None,
        Some(Value::String(size)) if size == "auto" => None,
        Some(value) => Some(parse_size(&value)?),
    };
    let format = fields.text("response_format")?;
    if format.is_some_and(|format| format != "b64_json") {
        let message = "images are in the answer: response_format can be \"b64_json\"";
        return Err(ApiError::unsupported_field("response_format", message));
    }
    if fields.text("output_format")?.is_some_and(|format| format != "png") {
        return Err(ApiError::unsupported_field("output_format", "images are PNG files: output_format can be \"png\""));
    }
    let stream = fields.flag("stream")?;
    let previews = match stream {
        true => fields.integer("partial_images", 0..=MAX_PREVIEWS)?.unwrap_or(0),
        false => 0,
    };
    let spec = ImageSpec {
        prompt,
        negative_prompt,
        steps: steps.map_or(DEFAULT_NUM_INFERENCE_STEPS, |steps| steps as usize),
        guidance_scale: guidance.unwrap_or(DEFAULT_GUIDANCE_SCALE),
        scheduler,
        // 32 bits, as `mgm generate` draws them: other programs' seeds are that short.
        seed: fields.integer("seed", i64::MIN..=i64::MAX)?.map_or_else(|| seed::random() >> 32, |seed| seed as u64),
        count: fields.integer("n", 1..=MAX_IMAGES)?.unwrap_or(1) as u64,
        size,
        initial,
        previews: previews as usize,
    };
    fields.accept(&WITHOUT_EFFECT);
    Ok(Read { spec, kind, stream, ignored: fields.rest() })
}

fn parse_size(value: &Value) -> Result<(usize, usize), ApiError> {
    let side = |text: &str| {
        let side = text.parse::<usize>().ok();
        side.filter(|side| (SIDE_UNIT..=MAX_SIDE).contains(side) && side.is_multiple_of(SIDE_UNIT))
    };
    let sides = value.as_str().and_then(|text| text.split_once('x')).map(|(width, height)| (side(width), side(height)));
    match sides {
        Some((Some(width), Some(height))) => Ok((width, height)),
        _ => {
            let expected = format!(
                "\"auto\", or width and height such as \"1024x1024\", multiples of {SIDE_UNIT} up to {MAX_SIDE}"
            );
            Err(unexpected("size", value, &expected))
        }
    }
}

/// Generates the images of a request that was read.
async fn respond(
    server: &Arc<Server>,
    model: &Arc<ImageServed>,
    read: Read,
    deadline: Instant,
) -> Result<Response, ApiError> {
    let Read { spec, kind, stream, ignored } = read;
    let permit = server.admit_image(model)?;
    let count = spec.count as usize;
    let mut updates = model.submit(spec);
    let response = if stream {
        let (events, response) = sse::stream(deadline.into());
        tokio::spawn(async move {
            // The end of the updates cancels a request whose client went away.
            let _ = send_events(kind.events(), count, updates, events, deadline).await;
            drop(permit);
        });
        response
    } else {
        let images = whole(count, &mut updates).await?;
        let size = images.first().map(|(_, settings)| size_of(settings));
        let data =
            images.into_iter().map(|(png, settings)| json!({ "b64_json": STANDARD.encode(png), "mgm": settings }));
        json_response(&json!({
            "created": unix_time(),
            "data": data.collect::<Vec<_>>(),
            "output_format": "png",
            "size": size,
        }))
    };
    Ok(with_ignored(response, &ignored))
}

/// Waits for all images.
async fn whole(
    count: usize,
    updates: &mut UnboundedReceiver<ImageUpdate>,
) -> Result<Vec<(Vec<u8>, Box<ImageSettings>)>, ApiError> {
    let mut images = Vec::with_capacity(count);
    while images.len() < count {
        match updates.recv().await {
            Some(ImageUpdate::Image { png, settings }) => images.push((png, settings)),
            Some(ImageUpdate::Preview { .. }) => {}
            Some(ImageUpdate::Failed(error)) => return Err(error),
            // The thread has ended.
            None => return Err(ApiError::draining()),
        }
    }
    Ok(images)
}

fn size_of(settings: &ImageSettings) -> String {
    format!("{}x{}", settings.width, settings.height)
}

/// Sends the events of a stream.
async fn send_events(
    prefix: &str,
    count: usize,
    mut updates: UnboundedReceiver<ImageUpdate>,
    events: Events,
    deadline: Instant,
) -> Result<(), Gone> {
    let mut done = 0;
    while done < count {
        let update = tokio::select! {
            update = timeout_at(deadline.into(), updates.recv()) => update,
            () = sleep(PING_AFTER) => {
                events.ping().await?;
                continue;
            }
            () = events.closed() => return Err(Gone),
        };
        let error = match update {
            Ok(Some(ImageUpdate::Preview { index, png })) => {
                let name = format!("{prefix}.partial_image");
                let event = json!({
                    "type": name,
                    "b64_json": STANDARD.encode(png),
                    "created_at": unix_time(),
                    "output_format": "png",
                    "partial_image_index": index,
                });
                events.send_named(&name, &event).await?;
                continue;
            }
            Ok(Some(ImageUpdate::Image { png, settings })) => {
                let name = format!("{prefix}.completed");
                let event = json!({
                    "type": name,
                    "b64_json": STANDARD.encode(png),
                    "created_at": unix_time(),
                    "size": size_of(&settings),
                    "output_format": "png",
                    "mgm": settings,
                });
                events.send_named(&name, &event).await?;
                done += 1;
                continue;
            }
            Ok(Some(ImageUpdate::Failed(error))) => error,
            Ok(None) => ApiError::draining(),
            Err(_) => ApiError::deadline_exceeded(),
        };
        events.fail(&error);
        return Ok(());
    }
    events.done().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_multiples_of_eight() {
        let size = |text: &str| parse_size(&text.into()).ok();
        assert_eq!(size("1024x768"), Some((1024, 768)));
        for wrong in
            ["", "x", "1024", "0x8", "8x0", "1020x1024", "2056x8", "-8x8", "8X8", "8x8x8", "99999999999999999999x8"]
        {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn fields_of_forms_are_texts_and_numbers() {
        let part = |name: &str, file: &str, value: &str| {
            format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{value}\r\n")
        };
        let form = |parts: &[String]| {
            let body = [parts.concat(), "--B--\r\n".to_owned()].concat();
            read_form("multipart/form-data; boundary=B", body.as_bytes())
        };
        let png = "; filename=\"a.png\"";
        let found = form(&[
            part("prompt", "", "7"),
            part("n", "", "2"),
            part("stream", "", "true"),
            part("image[]", png, "x"),
            part("mask", png, "y"),
        ]);
        let Form { mut fields, image, mask } = found.expect("a form");
        assert_eq!(fields.text("prompt"), Ok(Some("7".to_owned())));
        assert_eq!(fields.integer("n", 1..=4), Ok(Some(2)));
        assert_eq!(fields.flag("stream"), Ok(true));
        assert_eq!((image.as_deref(), mask.as_deref()), (Some(&b"x"[..]), Some(&b"y"[..])));
        let code = |parts: &[String]| form(parts).err().map(|error| error.code());
        assert_eq!(code(&[part("image", "", "x")]), Some("invalid_value"));
        assert_eq!(code(&[part("image", png, "x"), part("image", png, "y")]), Some("unsupported_field"));
    }
}
