//! Tools that answers may call: the request's fields, and how they constrain answers.

use std::collections::HashSet;
use std::sync::Arc;

use mgm_grammar::Format;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, unexpected};
use super::response_format::keywords;
use super::served::Served;
use crate::constraint::{AnswerConstraint, Constraints};
use crate::tools::{CallTrigger, Place, Tool, ToolStyle, calls};

/// The longest name of a tool.
const MAX_NAME: usize = 64;

/// Which tools an answer calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// Any, or none.
    Auto,
    /// One at least.
    Required,
}

/// The fields of tools.
#[derive(Debug, Clone, PartialEq)]
pub struct Tools {
    /// As the request has them, for the prompt.
    pub described: Vec<Value>,
    tools: Vec<Tool>,
    /// Those that may be called, by index.
    callable: Vec<usize>,
    choice: Choice,
    parallel: bool,
}

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`. `None` if no tool may be called.
    ///
    /// # Errors
    /// `invalid_value`, `unsupported_field`.
    pub fn parse(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        let list = match fields.take("tools") {
            None => Vec::new(),
            Some(Value::Array(list)) => list,
            Some(value) => return Err(unexpected("tools", &value, "a list of tools")),
        };
        let parallel = match fields.take("parallel_tool_calls") {
            None => true,
            Some(Value::Bool(flag)) => flag,
            Some(value) => return Err(unexpected("parallel_tool_calls", &value, "true or false")),
        };
        let choice = fields.take("tool_choice");
        let mut names = HashSet::new();
        let tools = list.iter().enumerate().map(|(index, value)| {
            let tool = parse_tool(value, &format!("tools[{index}]"))?;
            match names.insert(tool.name.clone()) {
                true => Ok(tool),
                false => Err(ApiError::invalid_value(
                    format!("tools[{index}].function.name"),
                    format!("two tools have the name {:?}", tool.name),
                )),
            }
        });
        let tools: Vec<Tool> = tools.collect::<Result<_, _>>()?;
        let all: Vec<usize> = (0..tools.len()).collect();
        let (choice, callable) = match choice {
            Some(Value::String(choice)) if choice == "none" => return Ok(None),
            None => (Choice::Auto, all),
            Some(Value::String(choice)) if choice == "auto" => (Choice::Auto, all),
            Some(Value::String(choice)) if choice == "required" => (Choice::Required, all),
            Some(value) => chosen(&value, &tools)?,
        };
        if tools.is_empty() {
            return match choice {
                Choice::Auto => Ok(None),
                Choice::Required => Err(ApiError::invalid_value("tool_choice", "tool_choice needs tools")),
            };
        }
        Ok(Some(Self { described: list, tools, callable, choice, parallel }))
    }

    /// What makes answers call tools as they should: with `format`, the form of an answer that is no call. Appends what
    /// is left out of schemas that are not strict to `ignored`.
    ///
    /// # Errors
    /// `invalid_schema` with the tool, `grammar_too_complex`, `unsupported_field`.
    pub fn constraint(
        &self,
        served: &Served,
        style: &ToolStyle,
        format: Option<Format>,
        ignored: &mut Vec<String>,
    ) -> Result<AnswerConstraint, ApiError> {
        let constraints =
            served.constraints().map_err(|error| ApiError::unsupported_field("tools", error.to_string()))?;
        for index in &self.callable {
            let Tool { name, parameters, strict } = &self.tools[*index];
            let param = format!("tools[{index}].function.parameters");
            let schema = Format::JsonSchema { schema: parameters.clone(), strict: *strict };
            let (_, left_out) =
                constraints.matcher(schema, true).map_err(|error| ApiError::of_tool(&param, name, &error))?;
            ignored.extend(left_out.iter().flat_map(|what| keywords(what)).map(|keyword| format!("{param}.{keyword}")));
        }
        self.compile(constraints, served, style, format).map_err(|error| ApiError::of_grammar("tools", &error))
    }

    fn compile(
        &self,
        constraints: &Constraints,
        served: &Served,
        style: &ToolStyle,
        format: Option<Format>,
    ) -> Result<AnswerConstraint, mgm_grammar::Error> {
        let callable: Vec<&Tool> = self.callable.iter().map(|index| &self.tools[*index]).collect();
        let grammar = |place| calls(style, &callable, self.parallel, place);
        let matcher =
            |format, is_continuation| constraints.matcher(format, is_continuation).map(|(matcher, _)| matcher);
        Ok(match (self.choice, format) {
            (Choice::Required, _) => AnswerConstraint::Grammar(Box::new(matcher(grammar(Place::Call)?, true)?)),
            (Choice::Auto, Some(format)) => {
                let format = Format::AnyOf(vec![grammar(Place::Call)?, format]);
                AnswerConstraint::Grammar(Box::new(matcher(format, false)?))
            }
            (Choice::Auto, None) => {
                let (from_text, after) =
                    (matcher(grammar(Place::Text)?, true)?, matcher(grammar(Place::Opening)?, true)?);
                let others = constraints.no_text();
                AnswerConstraint::Calls(Box::new(CallTrigger::new(
                    Arc::new(served.text.clone()),
                    *style,
                    others,
                    from_text,
                    after,
                )))
            }
        })
    }
}

fn parse_tool(value: &Value, param: &str) -> Result<Tool, ApiError> {
    let Value::Object(fields) = value else { return Err(unexpected(param, value, "an object with a function")) };
    match fields.get("type").and_then(Value::as_str) {
        Some("function") => {}
        Some(kind) => {
            let message = format!("tools of the type {kind:?} are not supported: describe functions");
            return Err(ApiError::unsupported_field(param, message));
        }
        None => return Err(unexpected(param, value, "an object with the type \"function\"")),
    }
    let function = format!("{param}.function");
    let Some(Value::Object(fields)) = fields.get("function") else {
        return Err(ApiError::invalid_value(
            &function,
            format!("{function} is missing, expected an object with a name"),
        ));
    };
    let at = |name: &str| format!("{function}.{name}");
    let name = fields.get("name").cloned().unwrap_or_default();
    let is_name = |name: &&str| {
        (1..=MAX_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    let expected = format!("1 to {MAX_NAME} of the characters a-z, A-Z, 0-9, _ and -");
    let name = name.as_str().filter(is_name).ok_or_else(|| unexpected(&at("name"), &name, &expected))?.to_owned();
    match fields.get("description") {
        None | Some(Value::Null | Value::String(_)) => {}
        Some(value) => return Err(unexpected(&at("description"), value, "a text")),
    }
    let strict = match fields.get("strict") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(strict)) => *strict,
        Some(value) => return Err(unexpected(&at("strict"), value, "true or false")),
    };
    let parameters = match fields.get("parameters") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(schema)) => schema.clone(),
        Some(value) => return Err(unexpected(&at("parameters"), value, "a JSON schema of an object")),
    };
    let parameters = object_schema(parameters).ok_or_else(|| {
        let message = format!("{} describes no object, expected a schema with the type \"object\"", at("parameters"));
        ApiError::invalid_value(at("parameters"), message)
    })?;
    Ok(Tool { name, parameters, strict })
}

/// The schema of arguments, which are an object. `None` if it describes something else.
fn object_schema(mut schema: Map<String, Value>) -> Option<Value> {
    let has_content = ["$ref", "anyOf", "oneOf", "allOf"].iter().any(|keyword| schema.contains_key(*keyword));
    match schema.get("type") {
        Some(kind) => (kind == "object").then_some(())?,
        None => drop(schema.insert("type".to_owned(), "object".into())),
    }
    let has_properties = schema.get("properties").is_some_and(|properties| properties != &json!({}));
    let is_open = ["additionalProperties", "patternProperties"].iter().any(|keyword| schema.contains_key(*keyword));
    if !has_properties && !has_content && !is_open {
        // A tool without parameters.
        schema.insert("additionalProperties".to_owned(), false.into());
    }
    Some(schema.into())
}

/// A `tool_choice` that names tools.
fn chosen(value: &Value, tools: &[Tool]) -> Result<(Choice, Vec<usize>), ApiError> {
    let expected = "\"none\", \"auto\", \"required\", or an object with the type \"function\" and the name of a tool";
    let invalid = || unexpected("tool_choice", value, expected);
    let find = |named: &Value| {
        let name = named.get("function").and_then(|function| function.get("name")).and_then(Value::as_str);
        let name = name.ok_or_else(invalid)?;
        tools.iter().position(|tool| tool.name == name).ok_or_else(|| {
            ApiError::invalid_value("tool_choice", format!("tool_choice names {name:?}, and no tool has that name"))
        })
    };
    match value.get("type").and_then(Value::as_str) {
        Some("function") => Ok((Choice::Required, vec![find(value)?])),
        Some("allowed_tools") => {
            let allowed = value.get("allowed_tools").ok_or_else(invalid)?;
            let choice = match allowed.get("mode").and_then(Value::as_str) {
                Some("auto") => Choice::Auto,
                Some("required") => Choice::Required,
                _ => return Err(invalid()),
            };
            let list = allowed.get("tools").and_then(Value::as_array).filter(|list| !list.is_empty());
            let callable: Vec<usize> = list.ok_or_else(invalid)?.iter().map(find).collect::<Result<_, _>>()?;
            Ok((choice, callable))
        }
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: Value) -> Result<Option<Tools>, ApiError> {
        Tools::parse(&mut Fields::parse(body.to_string().as_bytes()).expect("fields"))
    }

    fn tool(name: &str) -> Value {
        json!({ "type": "function", "function": { "name": name } })
    }

    #[test]
    fn choices_select_tools() {
        let of = |choice: Value| -> Result<_, ApiError> {
            let tools = parse(json!({ "tools": [tool("a"), tool("b")], "tool_choice": choice }))?;
            Ok(tools.map(|tools| (tools.choice, tools.callable)))
        };
        assert_eq!(of(Value::Null), Ok(Some((Choice::Auto, vec![0, 1]))));
        assert_eq!(of(json!("auto")), Ok(Some((Choice::Auto, vec![0, 1]))));
        assert_eq!(of(json!("none")), Ok(None));
        assert_eq!(of(json!("required")), Ok(Some((Choice::Required, vec![0, 1]))));
        assert_eq!(of(tool("b")), Ok(Some((Choice::Required, vec![1]))));
        let allowed = json!({ "type": "allowed_tools", "allowed_tools": { "mode": "auto", "tools": [tool("b")] } });
        assert_eq!(of(allowed), Ok(Some((Choice::Auto, vec![1]))));
        for wrong in [json!("any"), json!(1), json!({}), tool("c"), json!({ "type": "function" })] {
            assert_eq!(of(wrong.clone()).expect_err("an error").code(), "invalid_value", "{wrong}");
        }
        assert_eq!(parse(json!({ "tool_choice": "auto" })), Ok(None));
        assert_eq!(parse(json!({ "tool_choice": "required" })).expect_err("no tools").code(), "invalid_value");
    }

    #[test]
    fn malformed_tools_are_named() {
        let param = |tools: Value| {
            let error: Value =
                serde_json::from_str(&parse(json!({ "tools": tools })).expect_err("an error").to_json()).expect("JSON");
            error["error"]["param"].as_str().map(str::to_owned).unwrap_or_default()
        };
        let function = |function: Value| json!([tool("a"), { "type": "function", "function": function }]);
        assert_eq!(param(json!(1)), "tools");
        assert_eq!(param(json!([1])), "tools[0]");
        assert_eq!(param(json!([{ "type": "custom" }])), "tools[0]");
        assert_eq!(param(function(Value::Null)), "tools[1].function");
        assert_eq!(param(function(json!({ "name": "a b" }))), "tools[1].function.name");
        assert_eq!(param(function(json!({ "name": "a" }))), "tools[1].function.name");
        assert_eq!(param(function(json!({ "name": "b", "strict": 1 }))), "tools[1].function.strict");
        let list = json!({ "name": "b", "parameters": { "type": "array" } });
        assert_eq!(param(function(list)), "tools[1].function.parameters");
    }

    #[test]
    fn tools_without_parameters_take_an_empty_object() {
        let of = |parameters: Value| {
            let function = json!({ "name": "a", "parameters": parameters });
            let tools = parse(json!({ "tools": [{ "type": "function", "function": function }] }));
            tools.expect("tools").expect("a tool").tools[0].parameters.clone()
        };
        let empty = json!({ "type": "object", "additionalProperties": false });
        assert_eq!(of(Value::Null), empty);
        assert_eq!(of(json!({})), empty);
        let open = json!({ "type": "object", "additionalProperties": true });
        assert_eq!(of(open.clone()), open);
    }
}
