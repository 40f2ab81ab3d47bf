//! A server with a toy's commands on a socket of its own, driven by raw bytes, by our client, and by Open vSwitch's.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fs, io};

use futures_channel::oneshot;
use offloadctl::rundir::{PidfileError as Unreadable, Places, running};
use offloadctl::{Client, Exit};
use offloadd::control::commands::vlog;
use offloadd::control::pidfile::PidfileError;
use offloadd::control::{
    Answer, BindError, Command, CommandError, Endpoint, Format, Handle, Limits, Pages, Part, Pidfile, Progress,
    Registry, Reply, Right, Turn, deadline,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longer than anything here takes; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Toy {
    /// How many big answers, or parts of long ones, were made.
    big: AtomicUsize,
}

const BIG: usize = 1 << 20;

static COMMANDS: &[Command<Arc<Toy>>] = &[
    Command {
        name: "toy/echo",
        usage: "WORD [WORD]",
        help: "Says the words.",
        args: 1..=2,
        right: Right::Read,
        run: |_, args| Box::pin(async move { Ok(Answer::new(args.join(" "), json!(args))) }),
    },
    Command {
        name: "toy/fail",
        usage: "",
        help: "Fails.",
        args: 0..=0,
        right: Right::Read,
        run: |_, _| Box::pin(async { Err(CommandError::new("the toy is broken")) }),
    },
    Command {
        name: "toy/later",
        usage: "WORD",
        help: "Says the word from another thread.",
        args: 1..=1,
        right: Right::Read,
        run: |_, mut args| {
            let (answer, later) = oneshot::channel();
            thread::spawn(move || {
                thread::yield_now();
                let _ = answer.send(args.remove(0));
            });
            Box::pin(async move { Ok(said(deadline(PATIENCE, later).await??)) })
        },
    },
    Command {
        name: "toy/never",
        usage: "MS",
        help: "Gives up after MS milliseconds.",
        args: 1..=1,
        right: Right::Read,
        run: |_, args| {
            Box::pin(async move {
                let limit = Duration::from_millis(args[0].parse()?);
                deadline(limit, std::future::pending::<()>()).await?;
                Ok(Answer::nothing())
            })
        },
    },
    Command {
        name: "toy/big",
        usage: "",
        help: "Says a lot.",
        args: 0..=0,
        right: Right::Read,
        run: |toy, _| {
            toy.big.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Ok(said("x".repeat(BIG))) })
        },
    },
    Command {
        name: "toy/pages",
        usage: "PARTS BYTES [BROKEN]",
        help: "Says PARTS lines of BYTES each, one a part; the one numbered BROKEN fails.",
        args: 2..=3,
        right: Right::Read,
        run: |toy, args| {
            Box::pin(async move {
                let numbers: Vec<usize> = args.iter().map(|arg| arg.parse()).collect::<Result<_, _>>()?;
                let pages = Book { toy, parts: numbers[0], bytes: numbers[1], broken: numbers.get(2).copied() };
                Ok(Answer::paged(move |format| pages.from(0, format)))
            })
        },
    },
    Command {
        name: "toy/work",
        usage: "",
        help: "Takes its time, and tells how far it is.",
        args: 0..=0,
        right: Right::Write,
        run: |_, _| {
            let progress = Arc::new(Progress::default());
            progress.total.store(2, Ordering::Relaxed);
            progress.done.store(1, Ordering::Relaxed);
            let (done, working) = oneshot::channel();
            thread::spawn(move || {
                // Longer than the server waits between two looks at an unfinished command.
                thread::sleep(2 * offloadd::control::server::TICK);
                let _ = done.send(());
            });
            let reply: Reply = Box::pin(async move { Ok(working.await.map(|()| said("worked".into()))?) });
            Box::pin(async move { Ok(Answer::working(progress, reply)) })
        },
    },
    Command {
        name: "toy/nothing",
        usage: "",
        help: "Says nothing.",
        args: 0..=0,
        right: Right::Read,
        run: |_, _| Box::pin(async { Ok(Answer::nothing()) }),
    },
];

/// A long answer.
struct Book {
    toy: Arc<Toy>,
    parts: usize,
    bytes: usize,
    broken: Option<usize>,
}

impl Book {
    /// What begins with the part numbered `next`.
    fn from(self, next: usize, format: Format) -> Pages {
        Box::pin(async move {
            if self.broken == Some(next) {
                return Err(CommandError::new("a page is missing"));
            }
            let mut part = Part::new(format);
            if next == self.parts {
                return Ok(part);
            }
            self.toy.big.fetch_add(1, Ordering::Relaxed);
            let line = "\"".repeat(self.bytes);
            part.text(|out| out.extend([&line, "\n"]));
            part.row(&line)?;
            Ok(part.then(self.from(next + 1, format)))
        })
    }
}

/// An answer that is the same in both forms.
fn said(text: String) -> Answer {
    Answer::new(text.clone(), json!(text))
}

/// A running server; it stops and removes its socket when dropped.
struct World {
    dir: TempDir,
    socket: PathBuf,
    toy: Arc<Toy>,
    stop: Arc<AtomicBool>,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl World {
    fn new() -> World {
        World::with(Limits::default())
    }

    fn with(limits: Limits) -> World {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("toyd.ctl");
        let endpoint = Endpoint::bind(&socket, None, limits).unwrap();
        let (toy, stop, handle) = (Arc::new(Toy::default()), Arc::new(AtomicBool::new(false)), endpoint.handle());
        let mut server = endpoint.serve(registry(toy.clone()));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                assert_eq!(server.turn(None).unwrap(), Turn::default());
            }
        });
        World { dir, socket, toy, stop, handle, thread: Some(thread) }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket, Some(Instant::now() + PATIENCE)).unwrap()
    }

    /// All that the server sends in return for `bytes`, until it closes the connection.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may close before all is written.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        match stream.read_to_string(&mut answer) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("{error}"),
            _ => answer,
        }
    }

    /// Runs `offloadctl` in this process: exit, standard output, standard error.
    fn offloadctl(&self, line: &str) -> (Exit, String, String) {
        let args = ["offloadctl", "-t", self.socket.to_str().unwrap()];
        run(args.into_iter().chain(line.split_whitespace()))
    }

    /// Runs Open vSwitch's client: exit status, standard output, standard error.
    fn ovs_appctl(&self, line: &str) -> Option<(i32, String, String)> {
        let mut process = Process::new("ovs-appctl");
        process.env("OVS_RUNDIR", self.dir.path()).args(line.split_whitespace());
        match process.output() {
            Ok(output) => {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                Some((output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr)))
            }
            Err(_) => {
                println!("skipped: ovs-appctl is not installed (Debian: openvswitch-common)");
                None
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.handle.wake();
        self.thread.take().unwrap().join().unwrap();
        assert!(!self.socket.exists(), "the socket goes with its server");
    }
}

fn registry(toy: Arc<Toy>) -> Registry {
    let mut registry = Registry::new("toyd 1.0");
    registry.add(COMMANDS, toy);
    registry.add(vlog::COMMANDS, ());
    registry
}

fn run<'a>(args: impl Iterator<Item = &'a str>) -> (Exit, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = offloadctl::run(args, &mut out, &mut err);
    (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// Parses concatenated replies.
fn replies(text: &str) -> Vec<Value> {
    serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().unwrap()
}

#[test]
fn pipelined_requests_are_answered_in_order_even_if_the_first_takes_longest() {
    let world = World::new();
    let answer = world.exchange(
        br#"{"id":1,"method":"toy/later","params":["a"]}{"id":"x","method":"toy/echo","params":["b","c"]}
            {"id":[-1.5],"method":"toy/fail","params":[]} {"id":0,"method":"nosuch","params":[]}"#,
    );
    let unknown = "\"nosuch\" is not a valid command (use \"list-commands\" to see a list of valid commands)\n";
    assert_eq!(
        replies(&answer),
        [
            json!({"id": 1, "result": "a\n", "error": null}),
            json!({"id": "x", "result": "b c\n", "error": null}),
            json!({"id": [-1.5], "result": null, "error": "the toy is broken\n"}),
            json!({"id": 0, "result": null, "error": unknown}),
        ]
    );
}

#[test]
fn a_request_may_arrive_in_pieces_that_split_characters() {
    let world = World::new();
    let mut stream = world.connect();
    for byte in "{\"id\":0,\"method\":\"toy/echo\",\"params\":[\"größe\"]}".as_bytes().chunks(1) {
        stream.write_all(byte).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, r#"{"id":0,"result":"größe\n","error":null}"#);
}

#[test]
fn what_is_no_request_closes_the_connection_without_a_word() {
    let world = World::new();
    for malformed in [
        r#"{"id":0,"method":"version"}"#,
        r#"{"id":0,"method":"version","params":{}}"#,
        r#"{"id":null,"method":"version","params":[]}"#,
        r#"{"method":"version","params":[]}"#,
        r#"{"jsonrpc":"1.0","id":0,"method":"version","params":[]}"#,
        r#"{"id":0,"method":"toy/echo","params":["\u0000"]}"#,
        r#"{"id":0,"result":"x","error":null}"#,
        r#"[{"id":0,"method":"version","params":[]}]"#,
        "0",
        "}{",
        "nonsense",
        "{\"id\":0,\"method\":\"\u{7}\"}",
    ] {
        assert_eq!(world.exchange(malformed.as_bytes()), "", "{malformed}");
        // It closes at once, and not only because we sent no more: a read ends though our side stays open.
        let mut stream = world.connect();
        stream.write_all(malformed.as_bytes()).unwrap();
        assert!(matches!(stream.read(&mut [0; 100]), Ok(0) | Err(_)), "{malformed}");
    }
    assert_eq!(world.exchange(b"{\"id\":0,\"method\":\"toy/echo\",\"params\":[\"\xff\"]}"), "");
    assert_eq!(world.client().call("version", &[]).unwrap(), "toyd 1.0\n");
}

#[test]
fn arguments_are_counted_and_must_be_strings() {
    let world = World::new();
    let error = |request: &str| replies(&world.exchange(request.as_bytes()))[0]["error"].clone();
    assert_eq!(
        error(r#"{"id":0,"method":"toy/echo","params":[]}"#),
        "\"toy/echo\" command requires at least 1 arguments\n"
    );
    assert_eq!(
        error(r#"{"id":0,"method":"toy/echo","params":["a","b","c"]}"#),
        "\"toy/echo\" command takes at most 2 arguments\n"
    );
    assert_eq!(
        error(r#"{"id":0,"method":"toy/echo","params":["a",1]}"#),
        "\"toy/echo\" command has non-string argument\n"
    );
}

#[test]
fn a_command_that_never_answers_is_given_up_at_its_deadline_and_holds_nobody_up() {
    let world = World::new();
    let mut waiting = world.connect();
    waiting.write_all(br#"{"id":0,"method":"toy/never","params":["300"]}"#).unwrap();
    assert_eq!(world.client().call("version", &[]).unwrap(), "toyd 1.0\n");
    waiting.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert_eq!(replies(&answer)[0]["error"], "no answer within 300ms\n");
}

#[test]
fn a_client_that_leaves_takes_its_unfinished_command_along() {
    let world = World::with(Limits { connections: 1, ..Limits::default() });
    let mut stream = world.connect();
    stream.write_all(br#"{"id":0,"method":"toy/never","params":["3600000"]}"#).unwrap();
    drop(stream);
    // Its place is free as soon as the server has seen it go.
    let start = Instant::now();
    while Client::connect(&world.socket, Some(start + PATIENCE)).unwrap().call("version", &[]).is_err() {
        assert!(start.elapsed() < PATIENCE, "the place is still taken");
        thread::yield_now();
    }
}

#[test]
fn an_oversized_request_closes_its_connection_only() {
    let world = World::with(Limits { request: 1000, ..Limits::default() });
    let request = |length: usize| {
        let text = format!("{{\"id\":0,\"method\":\"toy/echo\",\"params\":[\"{}\"]}}", "x".repeat(length));
        assert!(text.len() > length);
        text
    };
    let mut other = world.client();
    assert_eq!(other.call("version", &[]).unwrap(), "toyd 1.0\n");
    assert!(world.exchange(request(900).as_bytes()).contains("xxx"));
    assert_eq!(world.exchange(request(1000).as_bytes()), "");
    assert_eq!(world.exchange(request(100_000).as_bytes()), "");
    assert_eq!(world.exchange("{\"id\":".repeat(200).as_bytes()), "", "too deep");
    assert_eq!(other.call("version", &[]).unwrap(), "toyd 1.0\n");
}

#[test]
fn a_client_that_does_not_read_is_not_read_from_either() {
    let world = World::new();
    let mut stream = world.connect();
    // Write until the server has stopped reading and every buffer in between is full. Blanks make that a matter of few requests.
    let request = [&[b' '; 8192], br#"{"id":0,"method":"toy/big","params":[]}"#.as_slice()].concat();
    stream.set_nonblocking(true).unwrap();
    let (mut sent, mut part) = (0, 0);
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < Duration::from_millis(200) {
        match stream.write(&request[part..]) {
            Ok(length) => {
                part += length;
                if part == request.len() {
                    (sent, part) = (sent + 1, 0);
                }
                quiet_since = Instant::now();
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                // While it does not read from us, it serves others.
                assert_eq!(world.client().call("version", &[]).unwrap(), "toyd 1.0\n");
            }
        }
    }
    let started = world.toy.big.load(Ordering::Relaxed);
    assert!(sent > 10 && started <= 2, "{started} of {sent} answers of {BIG} bytes were made without a reader");

    // Once it reads, every request is answered; the one cut short is not one.
    stream.set_nonblocking(false).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut bytes = 0;
    let mut piece = vec![0; BIG];
    loop {
        match stream.read(&mut piece).unwrap() {
            0 => break,
            length => bytes += length,
        }
    }
    assert_eq!(world.toy.big.load(Ordering::Relaxed), sent);
    assert_eq!(bytes, sent * (BIG + r#"{"id":0,"result":"\n","error":null}"#.len()));
}

#[test]
fn answers_that_nobody_reads_have_a_common_bound() {
    let world = World::with(Limits { output: BIG + BIG / 2, ..Limits::default() });
    let mut lazy = world.connect();
    lazy.write_all(br#"{"id":0,"method":"toy/big","params":[]}"#).unwrap();
    let mut first = [0];
    lazy.read_exact(&mut first).unwrap(); // so the answer is made, and most of it still with the server
    match world.client().call("toy/big", &[]) {
        Err(error) => assert!(error.to_string().contains("are free for answers"), "{error}"),
        Ok(_) => panic!("two answers in memory that has room for one"),
    }
    drop(lazy);
    let start = Instant::now();
    while world.client().call("toy/big", &[]).is_err() {
        assert!(start.elapsed() < PATIENCE, "the room is still taken");
    }
}

#[test]
fn connections_are_limited_and_idle_ones_closed() {
    let world = World::with(Limits { connections: 2, idle: Duration::from_millis(300), ..Limits::default() });
    let (mut first, mut second) = (world.client(), world.client());
    first.call("version", &[]).unwrap();
    second.call("version", &[]).unwrap();
    let mut third = world.connect();
    assert_eq!(third.read(&mut [0; 10]).unwrap(), 0, "a third connection is closed at once");
    // Both others do nothing from now on; their places become free by that alone.
    let start = Instant::now();
    while Client::connect(&world.socket, Some(start + PATIENCE)).unwrap().call("version", &[]).is_err() {
        assert!(start.elapsed() < PATIENCE, "idle connections keep their places");
        thread::yield_now();
    }
    assert!(first.call("version", &[]).is_err());
}

#[test]
fn a_long_answer_comes_in_parts_and_is_one_value() {
    let world = World::new();
    let words = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
    let mut client = world.client();
    assert_eq!(client.call("toy/pages", &words("3 2")).unwrap(), "\"\"\n\"\"\n\"\"\n");
    assert_eq!(client.call("toy/pages", &words("0 2")).unwrap(), "");
    client.call("set-options", &words("--format json")).unwrap();
    assert_eq!(client.call("toy/pages", &words("3 1")).unwrap(), json!(["\"", "\"", "\""]));
    assert_eq!(client.call("toy/pages", &words("0 2")).unwrap(), json!([]));
    assert_eq!(
        world.exchange(br#"{"id":[7],"method":"toy/pages","params":["1","0"]}"#),
        "{\"id\":[7],\"result\":\"\\n\",\"error\":null}"
    );
}

#[test]
fn a_long_answer_that_breaks_off_never_looks_whole() {
    let world = World::new();
    let ask = |broken: &str| {
        let request = format!(r#"{{"id":0,"method":"toy/pages","params":["3","1","{broken}"]}}"#);
        world.exchange(format!("{request}{request}").as_bytes())
    };
    // Nothing was said yet: an error like any other, and the connection goes on.
    let error = json!({"id": 0, "result": null, "error": "a page is missing\n"});
    assert_eq!(replies(&ask("0")), [error.clone(), error]);
    // Something was said: the connection ends there.
    assert_eq!(ask("2"), "{\"id\":0,\"result\":\"\\\"\\n\\\"\\n");
}

#[test]
fn parts_are_made_as_the_client_reads_and_the_answer_may_be_longer_than_what_is_free_for_answers() {
    const PARTS: usize = 64;
    let world = World::with(Limits { output: BIG, ..Limits::default() });
    let mut stream = world.connect();
    let request = format!(r#"{{"id":0,"method":"toy/pages","params":["{PARTS}","{}"]}}"#, BIG / 2);
    stream.write_all(request.as_bytes()).unwrap();
    let mut first = [0];
    stream.read_exact(&mut first).unwrap();
    // Others are served, and what is not read is not made.
    for _ in 0..20 {
        assert_eq!(world.client().call("version", &[]).unwrap(), "toyd 1.0\n");
    }
    let made = world.toy.big.load(Ordering::Relaxed);
    assert!(made <= 3, "{made} parts of {BIG} bytes without a reader");
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len() + 1, r#"{"id":0,"result":"","error":null}"#.len() + PARTS * (BIG + 2));
}

#[test]
fn a_client_that_stops_reading_a_long_answer_is_left_in_the_end() {
    let world = World::with(Limits { connections: 1, idle: Duration::from_millis(200), ..Limits::default() });
    let mut lazy = world.connect();
    let request = format!(r#"{{"id":0,"method":"toy/pages","params":["1000","{BIG}"]}}"#);
    lazy.write_all(request.as_bytes()).unwrap();
    lazy.read_exact(&mut [0]).unwrap();
    let start = Instant::now();
    while Client::connect(&world.socket, Some(start + PATIENCE)).unwrap().call("version", &[]).is_err() {
        assert!(start.elapsed() < PATIENCE, "its place is still taken");
        thread::yield_now();
    }
}

#[test]
fn whoever_wants_to_know_is_told_how_far_a_long_command_is() {
    let world = World::new();
    let work = r#"{"id":0,"method":"toy/work","params":[]}"#;
    assert_eq!(replies(&world.exchange(work.as_bytes())), [json!({"id": 0, "result": "worked\n", "error": null})]);
    let asked = r#"{"id":1,"method":"set-options","params":["--progress"]}"#;
    assert_eq!(
        replies(&world.exchange(format!("{asked}{work}").as_bytes())),
        [
            json!({"id": 1, "result": "", "error": null}),
            json!({"id": null, "method": "progress", "params": [1, 2]}),
            json!({"id": 0, "result": "worked\n", "error": null}),
        ]
    );
}

#[test]
fn json_rpc_2_is_answered_in_kind() {
    let world = World::new();
    let answers = |text: &str| replies(&world.exchange(text.as_bytes()));
    let call = |id: &str, rest: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},{rest}}}"#);
    let ok = |id: Value, result: Value| json!({"jsonrpc": "2.0", "id": id, "result": result});
    let error = |id: Value, code: i64, message: &str| {
        let error = json!({"code": code, "message": message});
        json!({"jsonrpc": "2.0", "id": id, "error": error})
    };
    let unknown = "\"nosuch\" is not a valid command (use \"list-commands\" to see a list of valid commands)";
    for (text, wanted) in [
        (call("1", r#""method":"version""#), ok(json!(1), json!("toyd 1.0\n"))),
        (call("\"x\"", r#""method":"toy/pages","params":["2","0"]"#), ok(json!("x"), json!("\n\n"))),
        (call("null", r#""method":"toy/fail","params":[]"#), error(json!(null), -32000, "the toy is broken")),
        (call("1", r#""method":"nosuch""#), error(json!(1), -32601, unknown)),
        (
            call("1", r#""method":"toy/echo""#),
            error(json!(1), -32602, "\"toy/echo\" command requires at least 1 arguments"),
        ),
        (call("1", r#""method":7"#), error(json!(1), -32600, "\"method\": expected a string")),
    ] {
        assert_eq!(answers(&text), [wanted], "{text}");
    }
    // A notification is carried out, and has no answer; the old protocol goes on beside the new.
    let mixed = r#"{"jsonrpc":"2.0","method":"toy/big"}{"id":0,"method":"toy/echo","params":["a"]}"#;
    assert_eq!(answers(mixed), [json!({"id": 0, "result": "a\n", "error": null})]);
    assert_eq!(world.toy.big.load(Ordering::Relaxed), 3, "two parts, and the big one");
}

#[test]
fn batches_are_answered_as_one_array_in_order_and_have_a_bound() {
    let world = World::with(Limits { batch: 4, ..Limits::default() });
    let call = |id: usize, method: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":["1"]}}"#);
    let batch = |calls: &[String]| world.exchange(format!("[{}]", calls.join(",")).as_bytes());
    let notification = r#"{"jsonrpc":"2.0","method":"toy/later","params":["n"]}"#.to_owned();
    let answers = batch(&[call(1, "toy/later"), notification.clone(), call(2, "toy/echo"), "5".into()]);
    let [Value::Array(answers)] = &replies(&answers)[..] else { panic!("{answers}") };
    assert_eq!(answers.iter().map(|answer| &answer["id"]).collect::<Vec<_>>(), [&json!(1), &json!(2), &json!(null)]);
    assert_eq!((&answers[1]["result"], &answers[2]["error"]["code"]), (&json!("1\n"), &json!(-32600)));
    assert_eq!(batch(std::slice::from_ref(&notification)), "", "nothing to answer");
    assert_eq!(batch(&vec![call(1, "toy/echo"); 5]), "", "too many calls close the connection");
    assert_eq!(world.client().call("version", &[]).unwrap(), "toyd 1.0\n");
}

#[test]
fn json_is_chosen_per_connection() {
    let world = World::new();
    let mut client = world.client();
    let words = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
    assert_eq!(client.call("set-options", &words("--format json")).unwrap(), json!({}));
    assert_eq!(client.call("toy/echo", &words("a b")).unwrap(), json!(["a", "b"]));
    assert_eq!(client.call("version", &[]).unwrap(), json!({"name": "toyd", "version": "1.0"}));
    assert_eq!(client.call("list-commands", &[]).unwrap()["toy/echo"], "WORD [WORD]");
    assert_eq!(client.call("help", &words("toy/big")).unwrap()["right"], "read");
    assert_eq!(world.client().call("toy/echo", &words("a b")).unwrap(), "a b\n");
    assert_eq!(client.call("set-options", &words("--format=text")).unwrap(), "");
    assert_eq!(client.call("toy/echo", &words("a b")).unwrap(), "a b\n");
    for (wrong, wanted) in
        [("--format xml", "option format has invalid value xml\n"), ("--bogus", "or --progress, not \"--bogus\"\n")]
    {
        let error = client.call("set-options", &words(wrong)).unwrap_err().to_string();
        assert!(error.ends_with(wanted), "{error}");
    }
}

#[test]
fn offloadctl_prints_answers_and_tells_failures_apart() {
    let world = World::new();
    let socket = world.socket.to_str().unwrap();
    assert_eq!(world.offloadctl("version"), (Exit::Done, "toyd 1.0\n".into(), String::new()));
    assert_eq!(world.offloadctl("toy/nothing"), (Exit::Done, String::new(), String::new()));
    assert_eq!(world.offloadctl("toy/echo -f --pretty"), (Exit::Done, "-f --pretty\n".into(), String::new()));
    assert_eq!(world.offloadctl("-f json toy/echo a"), (Exit::Done, "[\"a\"]\n".into(), String::new()));
    assert_eq!(world.offloadctl("-f json --pretty toy/echo a").1, "[\n  \"a\"\n]\n");
    assert_eq!(
        world.offloadctl("toy/fail"),
        (Exit::Refused, String::new(), format!("the toy is broken\noffloadctl: {socket}: server returned an error\n"))
    );
    let failed = |line: &str| match world.offloadctl(line) {
        (Exit::Failed, out, err) if out.is_empty() => err,
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(failed("-T 1 toy/never 3600000"), format!("offloadctl: {socket}: no answer within the time limit\n"));
    assert!(failed("--pretty version").contains("--format json only"));
    assert!(failed("--bogus version").contains("--bogus"));

    let (exit, _, err) = run(["offloadctl", "-t", "/nonexistent/x.ctl", "version"].into_iter());
    assert_eq!(exit, Exit::Failed);
    assert!(
        err.starts_with("offloadctl: cannot connect to \"/nonexistent/x.ctl\": No such file")
            && err.lines().count() == 1
    );
    let (exit, out, _) = run(["offloadctl", "--help"].into_iter());
    assert!(
        exit == Exit::Done && out.contains("offloadctl dpif/offload-show") && out.contains("offloadctl flow-flush")
    );
}

#[test]
fn log_levels_change_at_run_time() {
    let world = World::new();
    let table = world.offloadctl("vlog/list").1;
    assert!(table.starts_with("                 console    syslog    file\n"), "{table}");
    assert_eq!(world.offloadctl("vlog/set poller:file:dbg worker:off"), (Exit::Done, String::new(), String::new()));
    let (exit, _, err) = world.offloadctl("vlog/set worker:dbg bogus");
    assert_eq!((exit, err.lines().next().unwrap()), (Exit::Refused, "no destination, level, or module \"bogus\""));
}

#[test]
fn a_socket_that_is_in_use_or_no_socket_is_left_alone() {
    let world = World::new();
    match Endpoint::bind(&world.socket, None, Limits::default()).map(|_| ()) {
        Err(error @ BindError::InUse { .. }) => {
            assert_eq!(error.to_string(), format!("another daemon answers on socket {:?}", world.socket));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.client().call("version", &[]).unwrap(), "toyd 1.0\n");

    let file = world.dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    assert!(matches!(Endpoint::bind(&file, None, Limits::default()).map(|_| ()), Err(BindError::NotASocket { .. })));
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    let missing = Endpoint::bind(world.dir.path().join("no/s"), None, Limits::default()).map(|_| ()).unwrap_err();
    assert!(matches!(missing, BindError::Socket { .. }), "{missing}");
    let long = Endpoint::bind(world.dir.path().join("x".repeat(200)), None, Limits::default()).map(|_| ()).unwrap_err();
    assert!(matches!(long, BindError::Socket { .. }), "{long}");
}

#[test]
fn a_dead_daemons_socket_is_replaced_and_only_our_own_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "std leaves the file");
    let endpoint = Endpoint::bind(&path, None, Limits::default()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "its owner's only, without a group");

    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(endpoint);
    assert!(path.exists(), "another's socket has taken the name");
}

#[test]
fn ovs_appctl_is_served_as_by_its_own_daemons() {
    let world = World::new();
    let target = world.socket.to_str().unwrap();
    let Some((status, out, _)) = world.ovs_appctl(&format!("-t {target} list-commands")) else { return };
    assert_eq!(status, 0);
    assert!(out.starts_with("The available commands are:\n  help                    [COMMAND]\n"), "{out}");
    assert!(out.contains("\n  toy/echo                WORD [WORD]\n"), "{out}");

    let appctl = |line: &str| world.ovs_appctl(&format!("-t {target} {line}")).unwrap();
    assert_eq!(appctl("version"), (0, "toyd 1.0\n".into(), String::new()));
    assert_eq!(appctl("toy/later x"), (0, "x\n".into(), String::new()));
    assert_eq!(appctl("toy/nothing"), (0, String::new(), String::new()));
    let (status, out, err) = appctl("toy/fail");
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(err.starts_with("the toy is broken\n") && err.contains("server returned an error"), "{err}");
    let (status, _, err) = appctl("nosuch");
    assert!(status == 2 && err.starts_with("\"nosuch\" is not a valid command (use \"list-commands\""), "{err}");
    let (status, _, err) = appctl("-T 1 toy/never 3600000");
    assert!(status != 0 && status != 2 && err.contains("Alarm clock"), "{status}: {err}");
    assert_eq!(appctl("version").0, 0);
}

#[test]
fn offloadctl_drives_a_daemon_of_open_vswitch() {
    let dir = tempfile::tempdir().unwrap();
    let (schema, database) = (dir.path().join("schema"), dir.path().join("db"));
    fs::write(&schema, r#"{"name":"T","version":"1.0.0","tables":{"t":{"columns":{"c":{"type":"string"}}}}}"#).unwrap();
    let created = Process::new("ovsdb-tool").arg("create").args([&database, &schema]).status();
    if !created.is_ok_and(|status| status.success()) {
        return println!("skipped: ovsdb-tool is not installed (Debian: openvswitch-common)");
    }
    let mut server = Process::new("/usr/sbin/ovsdb-server");
    server.env("OVS_RUNDIR", dir.path()).args(["--pidfile", "--no-chdir", "-vconsole:off"]).arg(&database);
    let mut server = Killed(server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());

    let mut places = Places::from_env();
    places.ovs = vec![dir.path().to_owned()];
    let start = Instant::now();
    let target = loop {
        match places.resolve(Some("ovsdb-server")) {
            Ok(target) if target.socket.exists() => break target,
            found => assert!(start.elapsed() < PATIENCE, "{found:?}"),
        }
        thread::yield_now();
    };
    let offloadctl = |line: &str| {
        let args = ["offloadctl", "-T", "20", "-t", target.socket.to_str().unwrap()];
        run(args.into_iter().chain(line.split_whitespace()))
    };
    let (exit, out, _) = offloadctl("version");
    assert!(exit == Exit::Done && out.starts_with("ovsdb-server (Open vSwitch)") && out.lines().count() == 1, "{out}");
    assert!(offloadctl("ovsdb-server/list-dbs").1.starts_with("T\n"));
    assert_eq!(offloadctl("vlog/set console:off"), (Exit::Done, String::new(), String::new()));
    let (exit, out, err) = offloadctl("nosuch");
    assert_eq!((exit, out.as_str(), err.lines().count()), (Exit::Refused, "", 2));
    assert_eq!(offloadctl("exit").0, Exit::Done);
    assert!(server.0.wait().unwrap().success());
    assert!(places.resolve(Some("ovsdb-server")).is_err(), "its pidfile is gone");
}

/// A process of its own with pidfile, socket and signals, like the daemon; see [`child_daemon`].
struct Daemon {
    process: Killed,
    says: BufReader<std::process::ChildStdout>,
}

impl Daemon {
    fn start(dir: &Path) -> Daemon {
        let mut process = Process::new(env::current_exe().unwrap())
            .args(["--exact", "control::child_daemon", "--ignored", "--nocapture"])
            .env("CONTROL_TEST_DIR", dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let says = BufReader::new(process.stdout.take().unwrap());
        Daemon { process: Killed(process), says }
    }

    /// Waits for a line that holds `word`.
    fn wait_for(&mut self, word: &str) -> String {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert!(self.says.read_line(&mut line).unwrap() > 0, "the child ended without saying {word:?}");
        }
        line
    }

    fn send(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

/// A child process that ends with its test, however that ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "the child process of other tests"]
fn child_daemon() {
    let Some(dir) = env::var_os("CONTROL_TEST_DIR").map(PathBuf::from) else { return };
    let pidfile = match Pidfile::create(dir.join("toyd.pid")) {
        Ok(pidfile) => pidfile,
        Err(error) => return println!("refused: {error}"),
    };
    let socket = dir.join(format!("toyd.{}.ctl", std::process::id()));
    let mut endpoint = Endpoint::bind(socket, None, Limits::default()).unwrap();
    endpoint.watch_signals().unwrap();
    let mut server = endpoint.serve(registry(Arc::default()));
    println!("ready");
    loop {
        let turn = server.turn(Some(PATIENCE)).unwrap();
        if turn.reload {
            println!("reloading");
        }
        if turn.stop {
            println!("stopping");
            break;
        }
    }
    drop(server);
    drop(pidfile);
    println!("gone");
}

#[test]
fn a_name_finds_a_living_daemon_which_signals_reach_and_nothing_is_left_of_it() {
    let world = World::new();
    let dir = world.dir.path();
    let mut daemon = Daemon::start(dir);
    daemon.wait_for("ready");
    let pidfile = dir.join("toyd.pid");
    assert_eq!(running(&pidfile).unwrap(), daemon.process.0.id());
    if let Some((status, out, err)) = world.ovs_appctl("-t toyd version") {
        assert_eq!((status, out.as_str()), (0, "toyd 1.0\n"), "{err}");
    }

    // A second one of the same name changes nothing.
    match Pidfile::create(&pidfile) {
        Err(error @ PidfileError::Running { .. }) => {
            assert!(error.to_string().starts_with("already running as process"))
        }
        other => panic!("{other:?}"),
    }
    let refusal = Daemon::start(dir).wait_for("refused: ");
    assert!(refusal.contains(&format!("already running as process {}", daemon.process.0.id())), "{refusal}");
    assert_eq!(running(&pidfile).unwrap(), daemon.process.0.id());

    daemon.send(rustix::process::Signal::HUP);
    daemon.wait_for("reloading");
    daemon.send(rustix::process::Signal::TERM);
    daemon.wait_for("stopping");
    daemon.wait_for("gone");
    assert!(daemon.process.0.wait().unwrap().success());
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["toyd.ctl"], "only this test's own socket is left");
}

#[test]
fn a_killed_daemons_pidfile_does_not_count_and_is_replaced() {
    let world = World::new();
    let mut first = Daemon::start(world.dir.path());
    first.wait_for("ready");
    let pid = first.process.0.id();
    drop(first);
    let pidfile = world.dir.path().join("toyd.pid");
    assert!(matches!(running(&pidfile), Err(Unreadable::NotRunning { pid: dead, .. }) if dead == pid));

    let mut second = Daemon::start(world.dir.path());
    second.wait_for("ready");
    assert_eq!(running(&pidfile).unwrap(), second.process.0.id());

    let other = world.dir.path().join("other");
    fs::write(&other, "precious").unwrap();
    assert!(matches!(Pidfile::create(&other), Err(PidfileError::NotAPidfile { .. })));
    assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
    assert!(!world.dir.path().join("other.tmp").exists());
}
