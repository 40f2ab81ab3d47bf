//! `time/*`: the clock in a test's hands. There only if the daemon was started with `--time-control`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::PATIENCE;
use crate::clock;
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right, deadline};
use crate::daemon::Daemon;

/// The furthest that one command sets the clock forward: a year.
const MAX_WARP: u64 = 366 * 24 * 3_600 * 1_000;

/// The most steps of one command.
const MAX_STEPS: u64 = 100_000;

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[
    Command {
        name: "time/stop",
        usage: "",
        help: "Stops the clock that flows, rules, stations and offload live by, for good. (For tests.)",
        args: 0..=0,
        right: Right::Admin,
        run: |_, _| {
            Box::pin(async {
                clock::stop();
                Ok(Answer::nothing())
            })
        },
    },
    Command {
        name: "time/warp",
        usage: "[LARGE_MS] MS",
        help: "Sets the clock forward by MS milliseconds, or by LARGE_MS in steps of MS; what falls due is done. (For tests.)",
        args: 1..=2,
        right: Right::Admin,
        run: |daemon, args| Box::pin(async move { warp(&daemon, &args).await }),
    },
];

async fn warp(daemon: &Arc<Daemon>, args: &[String]) -> Result<Answer, CommandError> {
    let ms = |text: &String| {
        let ms = text.parse::<u64>().ok().filter(|ms| (1..=MAX_WARP).contains(ms));
        ms.ok_or_else(|| CommandError::new(format!("{text:?}: expected milliseconds, 1 to {MAX_WARP}")))
    };
    let (total, step) = match args {
        [one] => (ms(one)?, ms(one)?),
        [large, one] => (ms(large)?, ms(one)?),
        _ => return Err(CommandError::new("usage: time/warp [LARGE_MS] MS")),
    };
    if total.div_ceil(step) > MAX_STEPS {
        return Err(CommandError::new(format!("that would be more than {MAX_STEPS} steps")));
    }
    let mut left = total;
    while left > 0 {
        let by = left.min(step);
        clock::warp(Duration::from_millis(by));
        left -= by;
        daemon.tick(Instant::now());
        daemon.switch.ring();
        daemon.switch.offload.poke();
        // Everybody has seen the new time, and done something about it.
        deadline(PATIENCE, daemon.switch.offload.caught_up()).await?;
        deadline(PATIENCE, daemon.switch.looks()).await?;
    }
    Ok(Answer::new("warped", json!({ "ms": total })))
}
