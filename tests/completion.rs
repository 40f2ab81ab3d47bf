//! Completion in a real bash, which asks a real daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::world::Stage;

#[test]
fn bash_completes_commands_ports_and_ufids() {
    let program = Path::new(env!("CARGO_BIN_EXE_offloadd")).with_file_name("offloadctl");
    if !program.exists() {
        return println!("skipped: {} was not built", program.display());
    }
    let world = Stage::new().start("--port alpha,type=sim --port beta,type=sim --offload sim");
    world.ctl(["dpctl/add-flow", "in_port(1),eth(),eth_type(0x0806)", "drop"]);
    let ufid = world.flows()[0]["ufid"].as_str().unwrap().to_owned();
    // The user's own daemon is another's; ours is named by a program in front of the real one.
    let bin = world.path("bin");
    fs::create_dir(&bin).unwrap();
    let shim = format!("#!/bin/sh\nexec {} -t {} \"$@\"\n", program.display(), world.path("ctl"));
    fs::write(format!("{bin}/offloadctl"), shim).unwrap();
    fs::set_permissions(format!("{bin}/offloadctl"), fs::Permissions::from_mode(0o755)).unwrap();
    let complete = |line: &str| {
        let script = format!(
            "eval \"$(offloadctl completions bash)\"; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; _offloadctl; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let path = format!("{bin}:{}", std::env::var("PATH").unwrap_or_default());
        let output = Command::new("bash").args(["--norc", "-c", &script]).env("PATH", path).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete("offloadctl dpctl/dump-f"), ["dpctl/dump-flows"]);
    assert_eq!(complete("offloadctl --pr"), ["--pretty"]);
    assert_eq!(complete("offloadctl dpctl/del-if a"), ["alpha"]);
    assert_eq!(complete("offloadctl netdev-dummy/receive b"), ["beta"]);
    assert_eq!(complete(&format!("offloadctl offload/explain {}", &ufid[..4])), [ufid.as_str()]);
    assert!(complete("offloadctl flow-flush --").contains(&"--offload".to_owned()));
}
