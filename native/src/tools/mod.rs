//! Tools that answers may call: how models write calls, grammars of calls, and calls in an answer's text.

mod calls;
mod format;
mod grammar;
mod parser;
mod trigger;

pub use calls::{CallDelta, CallReader, whole_calls};
pub use format::{ToolStyle, description, python_json};
pub use grammar::{Place, Tool, calls};
pub use trigger::{CallTrigger, engine_error};
