//! A client may send any bytes: the server answers with whole JSON values or closes the connection, and goes on serving.
#![no_main]

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use offloadd::control::{Answer, Command, CommandError, Endpoint, Limits, Part, Registry, Right, Server};
use serde_json::{Value, json};

/// Longer inputs would fill the socket's buffer, which nobody empties while we write.
const MOST: usize = 16 * 1024;

static COMMANDS: &[Command<()>] = &[
    Command {
        name: "e",
        usage: "[WORD]...",
        help: "Says the words.",
        args: 0..=9,
        right: Right::Read,
        run: |(), args| Box::pin(async move { Ok(Answer::new(args.join(" "), json!(args))) }),
    },
    Command {
        name: "p",
        usage: "",
        help: "Says something in two parts.",
        args: 0..=0,
        right: Right::Read,
        run: |(), _| {
            Box::pin(async {
                Ok(Answer::paged(|format| {
                    let part = move || {
                        let mut part = Part::new(format);
                        part.text(|out| out.push_str("\"line\"\n"));
                        part.row(&[1]).map(|()| part)
                    };
                    Box::pin(async move { Ok(part()?.then(Box::pin(async move { part() }))) })
                }))
            })
        },
    },
    Command {
        name: "f",
        usage: "",
        help: "Fails.",
        args: 0..=0,
        right: Right::Read,
        run: |(), _| Box::pin(async { Err(CommandError::new("no")) }),
    },
];

thread_local! {
    static SERVER: RefCell<(Server, PathBuf)> = RefCell::new({
        let path = std::env::temp_dir().join(format!("offloadd-fuzz.{}.ctl", std::process::id()));
        let endpoint = Endpoint::bind(&path, None, Limits { request: 4096, ..Limits::default() }).unwrap();
        let mut registry = Registry::new("fuzzd 1");
        registry.add(COMMANDS, ());
        (endpoint.serve(registry), path)
    });
}

fuzz_target!(|bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(MOST)];
    SERVER.with_borrow_mut(|(server, path)| {
        let said = exchange(server, path, bytes);
        // A connection may be closed in the middle of an input, but never in the middle of an answer.
        let values: Result<Vec<Value>, _> = serde_json::Deserializer::from_slice(&said).into_iter().collect();
        values.unwrap_or_else(|error| panic!("{error}: {}", said.escape_ascii()));
        let alive = exchange(server, path, br#"{"id":0,"method":"version","params":[]}"#);
        assert_eq!(alive, b"{\"id\":0,\"result\":\"fuzzd 1\\n\",\"error\":null}");
    });
});

/// All that the server says to a client which sends `bytes` and then no more.
fn exchange(server: &mut Server, path: &PathBuf, bytes: &[u8]) -> Vec<u8> {
    let mut client = UnixStream::connect(path).unwrap();
    client.set_nonblocking(true).unwrap();
    client.write_all(bytes).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (mut said, mut piece) = (Vec::new(), [0; 4096]);
    for _ in 0..100_000 {
        server.turn(Some(Duration::ZERO)).unwrap();
        match client.read(&mut piece) {
            Ok(0) => return said,
            Ok(length) => said.extend(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return said,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the server neither answers nor closes");
}
