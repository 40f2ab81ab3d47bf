//! Compiles the XDP programs with clang, and says by `cfg(xdp)` that they are there. Without clang the daemon is built without them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// In `src/xdp/bpf/`, `NAME.bpf.c` each.
const PROGRAMS: [&str; 3] = ["plain", "offload", "send"];

fn main() {
    println!("cargo::rerun-if-changed=src/xdp/bpf");
    println!("cargo::rerun-if-env-changed=BPF_CLANG");
    if env::var_os("CARGO_FEATURE_XDP").is_none() || env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() != Ok("little") {
        return;
    }
    let clang = env::var("BPF_CLANG").unwrap_or_else(|_| "clang".to_owned());
    if let Err(error) = Command::new(&clang).arg("--version").output() {
        println!("cargo::warning=built without XDP: cannot run {clang}: {error} (apt install clang)");
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for program in PROGRAMS {
        let source = format!("src/xdp/bpf/{program}.bpf.c");
        let output = compile(&clang, Path::new(&source), &out.join(format!("{program}.bpf.o")));
        assert!(output.status.success(), "{clang} on {source}:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    println!("cargo::rustc-cfg=xdp");
}

fn compile(clang: &str, source: &Path, object: &Path) -> Output {
    let machine = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    // Where this was built is nobody's business, and two builds in two places shall be alike.
    let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    Command::new(clang)
        .args(["-g", "-O2", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"])
        // Where Debian keeps the headers that differ between machines.
        .arg(format!("-I/usr/include/{machine}-linux-gnu"))
        .arg(format!("-ffile-prefix-map={here}=."))
        .arg("-c")
        .arg(source)
        .arg("-o")
        .arg(object)
        .output()
        .expect("it has run before")
}
