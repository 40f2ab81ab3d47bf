//! The program as a process: exit statuses, and readers that go away.

use std::process::{Command, Stdio};

fn offloadctl() -> Command {
    Command::new(env!("CARGO_BIN_EXE_offloadctl"))
}

#[test]
fn it_says_its_version_and_what_is_wrong_with_how_it_is_called() {
    let output = offloadctl().arg("--version").output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"offloadctl "));
    let output = offloadctl().args(["-t", "/nonexistent/ctl", "version"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), b"".as_slice()));
    assert!(String::from_utf8(output.stderr).unwrap().contains("is the daemon running?"));
    assert_eq!(offloadctl().arg("--bogus").output().unwrap().status.code(), Some(1));
}

#[test]
fn it_is_quiet_when_its_reader_has_gone() {
    let mut process =
        offloadctl().args(["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(process.stdout.take());
    let output = process.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn colours_are_for_those_who_want_them() {
    let help = |color: &str| {
        let output = offloadctl().args(["--color", color, "-t", "/nonexistent/ctl", "version"]).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(!help("never").contains('\u{1b}') && !help("auto").contains('\u{1b}'));
}
