//! `vlog/*`: what is logged, and where.

use serde_json::{Value, json};

use crate::control::{Answer, Command, CommandError, Right};
use crate::telemetry::log;

/// The commands; they need no context.
pub static COMMANDS: &[Command<()>] = &[
    Command {
        name: "vlog/list",
        usage: "",
        help: "Lists the least severe level that each module logs to each destination.",
        args: 0..=0,
        right: Right::Read,
        run: |(), _| Box::pin(async { Ok(Answer::of(log::levels())) }),
    },
    Command {
        name: "vlog/list-pattern",
        usage: "",
        help: "Shows how a line looks at each destination, in the notation of ovs-appctl(8).",
        args: 0..=0,
        right: Right::Read,
        run: |(), _| {
            Box::pin(async {
                let [console, file] = log::patterns();
                let table =
                    [("console", console), ("file", file)].map(|(name, p)| format!("{name:<8}  {p}\n")).concat();
                let text = format!("          format\n          ------\n{table}");
                Ok(Answer::new(text, json!({ "console": console, "file": file })))
            })
        },
    },
    Command {
        name: "vlog/set",
        usage: "{[MODULE][:DESTINATION][:LEVEL]}...",
        help: "Sets what MODULE (any, if left out) logs to DESTINATION (console or file; both, if left out): LEVEL and what is more severe.\n  \
               Levels are off, emer, err, warn, info and dbg, which is meant if it is left out.",
        args: 1..=usize::MAX,
        right: Right::Admin,
        run: |(), args| {
            Box::pin(async move {
                log::set(&args)?;
                Ok(Answer::nothing())
            })
        },
    },
    Command {
        name: "vlog/reopen",
        usage: "",
        help: "Opens the log file by its name again, after somebody has moved the old one away or vlog/close has closed it.",
        args: 0..=0,
        right: Right::Admin,
        run: |(), _| {
            Box::pin(async {
                log::reopen()?;
                Ok(Answer::nothing())
            })
        },
    },
    Command {
        name: "vlog/close",
        usage: "",
        help: "Closes the log file until vlog/reopen; lines for it are lost meanwhile.",
        args: 0..=0,
        right: Right::Admin,
        run: |(), _| {
            Box::pin(async {
                log::close();
                Ok(Answer::nothing())
            })
        },
    },
    Command {
        name: "vlog/enable-rate-limit",
        usage: "[MODULE]...",
        help: "Keeps back what MODULE (all, if left out) logs beyond 1,000 lines at once and 100 a second, which is the default.",
        args: 0..=usize::MAX,
        right: Right::Admin,
        run: |(), args| Box::pin(async move { limit_rate(true, &args) }),
    },
    Command {
        name: "vlog/disable-rate-limit",
        usage: "[MODULE]...",
        help: "Lets MODULE (all, if left out) log as many lines as it may.",
        args: 0..=usize::MAX,
        right: Right::Admin,
        run: |(), args| Box::pin(async move { limit_rate(false, &args) }),
    },
];

fn limit_rate(enabled: bool, modules: &[String]) -> Result<Answer, CommandError> {
    let limited: serde_json::Map<String, Value> =
        log::limit_rate(enabled, modules)?.into_iter().map(|(module, on)| (module.to_owned(), on.into())).collect();
    Ok(Answer::new("", limited.into()))
}
