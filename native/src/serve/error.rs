//! Errors as OpenAI's API reports them: a status, and a body that its clients parse.

use axum::http::header::{HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::reply::json_response;

/// OpenAI's clients retry 408, 409, 429 and 5xx twice unless this header forbids it.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Whether a client should ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// As the client sees fit.
    Unspecified,
    /// After this number of seconds.
    After(u64),
    /// The same request would fail again, or cost as much again.
    Never,
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// The field of the request, such as `messages[0].content`.
    param: Option<String>,
    retry: Retry,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Serialize)]
struct ErrorFields<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry: Retry::Unspecified }
    }

    fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// The body is not a JSON object.
    pub fn invalid_json(message: impl Into<String>) -> Self {
        Self::bad_request("invalid_json", message)
    }

    /// The field `param` has a value that it cannot have.
    pub fn invalid_value(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::bad_request("invalid_value", message).at(param)
    }

    /// The field `param` would change the answer, and this server does not support it.
    pub fn unsupported_field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::bad_request("unsupported_field", message).at(param)
    }

    /// The field `param` has no image that can be decoded.
    pub fn invalid_image(param: &str, message: impl Into<String>) -> Self {
        Self::bad_request("invalid_image", message).at(param)
    }

    /// The field `param` names an image by a URL that this server does not read.
    pub fn image_url_not_allowed(param: &str, message: impl Into<String>) -> Self {
        Self::bad_request("image_url_not_allowed", message).at(param)
    }

    /// The image in the field `param` is one too many.
    pub fn too_many_images(param: &str, message: impl Into<String>) -> Self {
        Self::bad_request("too_many_images", message).at(param)
    }

    /// The body is not a form.
    pub fn invalid_form(message: impl Into<String>) -> Self {
        Self::bad_request("invalid_form", message)
    }

    /// What an answer must look like cannot be compiled.
    pub fn of_grammar(param: &'static str, error: &mgm_grammar::Error) -> Self {
        // LangChain knows an unsupported schema by these words.
        Self::of_schema(param, param, error)
    }

    /// The parameters of a tool cannot be compiled.
    pub fn of_tool(param: &str, name: &str, error: &mgm_grammar::Error) -> Self {
        Self::of_schema(param, &format!("function '{name}'"), error)
    }

    fn of_schema(param: &str, what: &str, error: &mgm_grammar::Error) -> Self {
        let code = match error {
            mgm_grammar::Error::TooComplex(_) => "grammar_too_complex",
            mgm_grammar::Error::Schema { .. } => "invalid_schema",
            _ => "invalid_value",
        };
        let message = error.to_string().replacen("Invalid schema", &format!("Invalid schema for {what}"), 1);
        Self::bad_request(code, message).at(param)
    }

    /// The prompt is too long. Clients recognise the message.
    pub fn context_length_exceeded(context: usize, prompt: usize, image_tokens: usize) -> Self {
        Self::bad_request(
            "context_length_exceeded",
            format!(
                "This model's maximum context length is {context} tokens: the prompt is too long, it takes {prompt} \
                 ({image_tokens} of images)"
            ),
        )
        .at("messages")
    }

    /// No key, or a wrong one.
    pub fn invalid_api_key() -> Self {
        let message = "Incorrect API key provided: send one of the server's keys as `Authorization: Bearer KEY`";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
    }

    /// The request names another host: probably a page of another origin, by DNS rebinding.
    pub fn host_not_allowed(host: &str) -> Self {
        let message = format!(
            "the request is for the host {host:?}, expected localhost, a loopback address or a host of --allow-host"
        );
        Self::new(StatusCode::FORBIDDEN, "host_not_allowed", message)
    }

    /// No such path.
    pub fn not_found(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {path}"))
    }

    /// No such model.
    pub fn model_not_found(found: &str, served: &str) -> Self {
        let message = format!("the model {found:?} does not exist; this server has {served:?}");
        Self::new(StatusCode::NOT_FOUND, "model_not_found", message).at("model")
    }

    /// No image model.
    pub fn no_image_model() -> Self {
        let message = "this server generates no images: start it with --image-model MODEL";
        Self::new(StatusCode::NOT_FOUND, "model_not_found", message).at("model")
    }

    /// A page of another origin sends a form, for which browsers ask no permission.
    pub fn origin_not_allowed() -> Self {
        let message = "the request comes from a page of another origin, which --cors does not name";
        Self::new(StatusCode::FORBIDDEN, "origin_not_allowed", message)
    }

    /// A path with another method.
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take this method")
    }

    /// The body did not arrive in time.
    pub fn body_timeout(seconds: u64) -> Self {
        let message = format!("the body did not arrive within {seconds} s");
        Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
    }

    /// The body is larger than `limit` bytes.
    pub fn body_too_large(limit: u64) -> Self {
        let message = format!("the body has more than {limit} bytes, the limit of --max-body");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }

    /// The body is not declared as `expected`. A page of another origin cannot declare JSON without a preflight
    /// request.
    pub fn unsupported_media_type(expected: &str) -> Self {
        let message = format!("expected a body with Content-Type: {expected}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    /// As many requests wait as may.
    pub fn queue_full(waiting: usize, seconds: u64) -> Self {
        let message = format!("{waiting} requests are waiting, the most that may: try again in {seconds} s");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message).after(seconds)
    }

    /// A failure of the server itself.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message).never()
    }

    fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    /// The model is not loaded yet.
    pub fn model_loading(seconds: u64) -> Self {
        Self::unavailable("model_loading", "the model is being loaded").after(seconds)
    }

    /// The device was lost, and the model is being loaded to another.
    pub fn recovering() -> Self {
        Self::unavailable("recovering", "the GPU device was lost: the model is being loaded again").after(5)
    }

    /// The server is about to end.
    pub fn draining() -> Self {
        Self::unavailable("draining", "the server is shutting down").after(1)
    }

    /// The device has too little memory.
    pub fn out_of_memory(message: impl Into<String>) -> Self {
        Self::unavailable("out_of_memory", message).after(5)
    }

    /// The device is gone.
    pub fn device_lost(message: impl Into<String>) -> Self {
        Self::unavailable("device_lost", message).never()
    }

    /// The request took too long.
    pub fn deadline_exceeded() -> Self {
        let message = "the request was not answered in time (--timeout, or x-mgm-timeout-ms)";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", message).never()
    }

    /// What the engine reports about a request.
    pub fn of_engine(error: &mgm::Error) -> Self {
        match error {
            mgm::Error::OutOfMemory { .. } => Self::out_of_memory(error.to_string()),
            mgm::Error::DeviceLost(_) => Self::device_lost(error.to_string()),
            mgm::Error::PromptTooLong { tokens, limit } => Self::context_length_exceeded(*limit, *tokens, 0),
            mgm::Error::InvalidArgument(message) => Self::bad_request("invalid_value", message.clone()),
            error => Self::internal(error.to_string()),
        }
    }

    /// The client does not read its stream.
    pub fn slow_reader() -> Self {
        Self::internal("the answer was cancelled: 1 MiB of it was not read")
    }

    /// The same about another field, if it is about one.
    pub fn map_param(self, map: impl FnOnce(&str) -> String) -> Self {
        Self { param: self.param.as_deref().map(map), ..self }
    }

    fn at(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    fn after(self, seconds: u64) -> Self {
        Self { retry: Retry::After(seconds), ..self }
    }

    fn never(self) -> Self {
        Self { retry: Retry::Never, ..self }
    }

    #[cfg(test)]
    pub fn code(&self) -> &'static str {
        self.code
    }

    fn body(&self) -> ErrorBody<'_> {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let Self { message, param, code, .. } = self;
        ErrorBody { error: ErrorFields { message, kind, param: param.as_deref(), code } }
    }

    /// The body, as the event of a stream.
    pub fn to_json(&self) -> String {
        // A struct of texts is always JSON.
        serde_json::to_string(&self.body()).unwrap_or_default()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut headers = HeaderMap::new();
        match self.retry {
            Retry::After(seconds) => drop(headers.insert(RETRY_AFTER, seconds.into())),
            Retry::Never => drop(headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"))),
            Retry::Unspecified => {}
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        (self.status, headers, json_response(&self.body())).into_response()
    }
}
