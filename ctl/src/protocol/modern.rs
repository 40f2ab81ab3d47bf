//! [`Calls`]: requests of JSON-RPC 2.0, which may come on the same connection as those of 1.0.
//!
//! An object is one if its member `jsonrpc` is `"2.0"`; an array is a batch if its first element is such an object. Answers are
//! objects of 2.0 then, with errors as objects; those of a batch come as one array, in the order of the calls.
//! See <https://www.jsonrpc.org/specification>.

use serde::Serialize;
use serde_json::{Map, Value};

use super::has_nul;

/// What one text of JSON-RPC 2.0 asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Calls {
    Single(Element),
    /// Not empty.
    Batch(Vec<Element>),
}

/// A call, or what is none and gets an error for an answer.
pub type Element = Result<Call, Invalid>;

/// A call of JSON-RPC 2.0.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// A string, a number or `null`; without one it is a notification, which is carried out and not answered.
    pub id: Option<Value>,
    pub method: String,
    /// Commands take strings only; whoever runs the command checks that.
    pub params: Vec<Value>,
}

/// What is no call, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Invalid {
    /// `null` if it has none that could be one.
    pub id: Value,
    pub error: Error,
}

/// The error object of an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Error {
    /// Of the specification's list; from -32000 downwards the server's own.
    pub code: i64,
    pub message: String,
}

/// The object is no valid request.
pub const INVALID_REQUEST: i64 = -32600;
/// There is no such command.
pub const METHOD_NOT_FOUND: i64 = -32601;
/// Arguments are too few, too many, or no strings.
pub const INVALID_PARAMS: i64 = -32602;
/// The command was tried and failed.
pub const FAILED: i64 = -32000;
/// The client may not call this command.
pub const NOT_ALLOWED: i64 = -32001;

impl Calls {
    /// Reads one whole text; `None` if it is no JSON-RPC 2.0 at all.
    pub fn decode(text: &[u8]) -> Option<Calls> {
        match serde_json::from_slice(text).ok()? {
            Value::Object(object) if is_modern(&object) => Some(Calls::Single(element(object))),
            Value::Array(elements) if elements.first().and_then(Value::as_object).is_some_and(is_modern) => {
                let read = |value| match value {
                    Value::Object(object) if is_modern(&object) => element(object),
                    _ => Err(invalid(Value::Null, "expected an object with \"jsonrpc\":\"2.0\"")),
                };
                Some(Calls::Batch(elements.into_iter().map(read).collect()))
            }
            _ => None,
        }
    }
}

fn is_modern(object: &Map<String, Value>) -> bool {
    object.get("jsonrpc").is_some_and(|version| version == "2.0")
}

fn element(mut object: Map<String, Value>) -> Element {
    let id = object.remove("id");
    let echoed = match &id {
        None | Some(Value::Null | Value::Number(_) | Value::String(_)) => id.clone().unwrap_or(Value::Null),
        Some(_) => return Err(invalid(Value::Null, "\"id\": expected a string, a number or null")),
    };
    let Some(Value::String(method)) = object.remove("method") else {
        return Err(invalid(echoed, "\"method\": expected a string"));
    };
    let params = match object.remove("params") {
        None => Vec::new(),
        Some(Value::Array(params)) => params,
        Some(_) => {
            let error = Error { code: INVALID_PARAMS, message: "\"params\": expected an array of strings".into() };
            return Err(Invalid { id: echoed, error });
        }
    };
    if method.contains('\0') || has_nul(&echoed) || params.iter().any(has_nul) {
        return Err(invalid(Value::Null, "a string holds a NUL character"));
    }
    Ok(Call { id, method, params })
}

fn invalid(id: Value, message: &str) -> Invalid {
    Invalid { id, error: Error { code: INVALID_REQUEST, message: message.into() } }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn single(text: &str) -> Element {
        match Calls::decode(text.as_bytes()) {
            Some(Calls::Single(element)) => element,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_call_may_lack_id_and_arguments() {
        let call = |id: Option<Value>| Ok(Call { id, method: "m".into(), params: Vec::new() });
        assert_eq!(single(r#"{"jsonrpc":"2.0","method":"m"}"#), call(None));
        assert_eq!(single(r#"{"jsonrpc":"2.0","method":"m","id":null,"params":[]}"#), call(Some(Value::Null)));
        assert_eq!(single(r#"{"jsonrpc":"2.0","method":"m","id":"x","extra":1}"#), call(Some(json!("x"))));
    }

    #[test]
    fn what_is_no_call_is_told_with_its_id_if_it_has_one() {
        for (text, id, code) in [
            (r#"{"jsonrpc":"2.0","id":7}"#, json!(7), INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":7,"method":1}"#, json!(7), INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":[7],"method":"m"}"#, json!(null), INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":7,"method":"m","params":{"a":"b"}}"#, json!(7), INVALID_PARAMS),
            (r#"{"jsonrpc":"2.0","id":7,"method":"m","params":["\u0000"]}"#, json!(null), INVALID_REQUEST),
        ] {
            let refused = single(text).unwrap_err();
            assert_eq!((refused.id, refused.error.code), (id, code), "{text}");
        }
    }

    #[test]
    fn an_array_is_a_batch_if_it_begins_with_a_call() {
        let batch = Calls::decode(br#"[{"jsonrpc":"2.0","id":1,"method":"m"},1,{"id":2,"method":"m","params":[]}]"#);
        let Some(Calls::Batch(elements)) = batch else { panic!("{batch:?}") };
        assert_eq!(elements.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, false]);
        for text in ["[]", "[1]", r#"[{"id":2,"method":"m","params":[]}]"#, r#"{"jsonrpc":2.0}"#, "{}", "nonsense"] {
            assert_eq!(Calls::decode(text.as_bytes()), None, "{text}");
        }
    }
}
