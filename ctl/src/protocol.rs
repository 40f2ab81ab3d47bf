//! [`Message`]: the requests and replies that daemon and client exchange.
//!
//! JSON-RPC 1.0, as Open vSwitch's daemons and clients speak it: an object has no members but `id`, `method`, `params`, `result`
//! and `error`; a member that is `null` counts as absent. Which members are there says what the object is:
//!
//! | | `id` | `method` | `params` | `result` | `error` |
//! |---|---|---|---|---|---|
//! | request | any | string | array | | |
//! | notification | | string | array | | |
//! | reply | the request's | | | any | |
//! | error reply | the request's | | | | any, a string by custom |
//!
//! JSON-RPC 2.0 is understood beside it: see [`modern`].

pub mod modern;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One object of the stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    Request(Request),
    Notification {
        method: String,
        params: Vec<Value>,
    },
    Reply(Reply),
    /// One call of JSON-RPC 2.0, or a batch of them.
    Modern(modern::Calls),
}

/// A call that wants a reply with the same `id`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Request {
    /// Any JSON value but `null`.
    pub id: Value,
    pub method: String,
    /// Commands take strings only; whoever runs the command checks that.
    pub params: Vec<Value>,
}

/// What came of the request with the same `id`.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub id: Value,
    /// The result, never `null`; or the error, a string by custom.
    pub outcome: Result<Value, Value>,
}

/// What is wrong with an object that is neither request nor reply.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    #[error("not a message: {0}")]
    Members(#[from] serde_json::Error),
    #[error("neither a request (id, method, params), nor a reply (id, and one of result and error)")]
    Shape,
    #[error("a string holds a NUL character")]
    Nul,
}

/// All members that a message may have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    id: Option<Value>,
    method: Option<String>,
    params: Option<Vec<Value>>,
    result: Option<Value>,
    error: Option<Value>,
}

/// How a reply is written: always with both `result` and `error`, one of them `null`, as JSON-RPC 1.0 wants it.
#[derive(Serialize)]
struct ReplyMembers<'a> {
    id: &'a Value,
    result: Option<&'a Value>,
    error: Option<&'a Value>,
}

impl Message {
    /// Reads one whole object, or array of JSON-RPC 2.0.
    pub fn decode(text: &[u8]) -> Result<Message, Malformed> {
        let members: Members = match serde_json::from_slice(text) {
            Ok(members) => members,
            Err(error) => return modern::Calls::decode(text).map(Message::Modern).ok_or(Malformed::Members(error)),
        };
        match members {
            Members { id: Some(id), method: Some(method), params: Some(params), result: None, error: None } => {
                if method.contains('\0') || has_nul(&id) || params.iter().any(has_nul) {
                    return Err(Malformed::Nul);
                }
                Ok(Message::Request(Request { id, method, params }))
            }
            Members { id: None, method: Some(method), params: Some(params), result: None, error: None } => {
                Ok(Message::Notification { method, params })
            }
            Members { id: Some(id), method: None, params: None, result: Some(result), error: None } => {
                Ok(Message::Reply(Reply { id, outcome: Ok(result) }))
            }
            Members { id: Some(id), method: None, params: None, result: None, error: Some(error) } => {
                Ok(Message::Reply(Reply { id, outcome: Err(error) }))
            }
            _ => Err(Malformed::Shape),
        }
    }
}

impl Request {
    /// The call of `method` with strings as arguments.
    pub fn new(id: u64, method: &str, args: &[String]) -> Request {
        Request { id: id.into(), method: method.into(), params: args.iter().map(|arg| arg.as_str().into()).collect() }
    }

    /// The object as bytes.
    pub fn encode(&self) -> Vec<u8> {
        to_bytes(self)
    }
}

impl Reply {
    /// The object as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (result, error) = match &self.outcome {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        to_bytes(&ReplyMembers { id: &self.id, result, error })
    }
}

fn to_bytes(message: &impl Serialize) -> Vec<u8> {
    // Writing to memory cannot fail, and neither type holds what JSON lacks (maps with keys other than strings).
    serde_json::to_vec(message).expect("messages are plain JSON values")
}

/// Whether some string in `value` holds U+0000, which no C program could read. Recursion is bounded by the parser's own limit.
pub(crate) fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(map) => map.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_may_have_any_id_but_null() {
        for id in ["0", "-1", "1.5", "\"x\"", "[1]", "{\"a\":null}", "true"] {
            let text = format!("{{\"id\":{id},\"method\":\"m\",\"params\":[\"a\"],\"result\":null,\"error\":null}}");
            match Message::decode(text.as_bytes()) {
                Ok(Message::Request(request)) => assert_eq!(request.id.to_string(), id),
                other => panic!("{id}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_request_is_told_apart() {
        let decode = |text: &str| Message::decode(text.as_bytes());
        assert!(matches!(decode(r#"{"method":"m","params":[]}"#), Ok(Message::Notification { .. })));
        assert!(matches!(decode(r#"{"id":null,"method":"m","params":[]}"#), Ok(Message::Notification { .. })));
        assert!(matches!(decode(r#"{"id":0,"result":"x"}"#), Ok(Message::Reply(Reply { outcome: Ok(_), .. }))));
        assert!(matches!(decode(r#"{"id":0,"error":"x"}"#), Ok(Message::Reply(Reply { outcome: Err(_), .. }))));
        for malformed in [
            r#"{"id":0,"method":"m"}"#,
            r#"{"id":0,"method":"m","params":{}}"#,
            r#"{"id":0,"method":1,"params":[]}"#,
            r#"{"jsonrpc":"1.0","id":0,"method":"m","params":[]}"#,
            r#"[{"id":0,"method":"m","params":[]}]"#,
            r#"{"id":0,"method":"m\u0000","params":[]}"#,
            r#"{"id":0,"method":"m","params":[["a\u0000"]]}"#,
            r#"{"id":0,"result":null,"error":null}"#,
            r#"{"id":0,"result":1,"error":"x"}"#,
            r#"{"result":"x"}"#,
            "{}",
        ] {
            assert!(decode(malformed).is_err(), "{malformed}");
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        let request = Request::new(7, "dpctl/add-flow", &["a b".into(), "\"\n\u{fc}".into()]);
        assert_eq!(Message::decode(&request.encode()).unwrap(), Message::Request(request));
        for outcome in [Ok(json!("text")), Ok(json!({})), Err(json!("no such port"))] {
            let reply = Reply { id: json!([1]), outcome };
            assert_eq!(Message::decode(&reply.encode()).unwrap(), Message::Reply(reply));
        }
        let reply = Reply { id: json!(0), outcome: Err(json!("no")) };
        assert_eq!(reply.encode(), br#"{"id":0,"result":null,"error":"no"}"#);
    }
}
