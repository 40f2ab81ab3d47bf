//! `sim/fault`: what is made to go wrong with the device.

use std::sync::Arc;

use serde_json::json;

use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right};
use crate::daemon::Daemon;
use crate::offload::backend::Device;
use crate::offload::backend::chaos::Settings;

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[Command {
    name: "sim/fault",
    usage: "[KIND=VALUE… | clear | reset]",
    help: "Shows what is made to go wrong with a simulated device; sets some of it, takes all of it away (clear), or makes the device forget all its rules once (reset).",
    args: 0..=Settings::NAMES.len(),
    right: Right::Write,
    run: |daemon, args| {
        Box::pin(async move {
            let device = daemon.switch.device().ok_or_else(|| CommandError::new("there is no offload device"))?;
            fault(device, &args)
        })
    },
}];

fn fault(device: &dyn Device, args: &[String]) -> Result<Answer, CommandError> {
    let name = device.capabilities().name;
    let faults = device
        .faults()
        .ok_or_else(|| CommandError::new(format!("the device {name} cannot be made to go wrong; sim and chaos can")))?;
    match args {
        [] => return Ok(Answer::of(faults.settings())),
        [word] if word == "clear" => faults.clear(),
        [word] if word == "reset" => {
            return match device.reset() {
                true => {
                    Ok(Answer::new(format!("the device {name} has forgotten all its rules"), json!({ "reset": true })))
                }
                false => Err(CommandError::new(format!("the device {name} cannot be reset"))),
            };
        }
        _ => {
            let change = |arg: &'_ String| arg.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
            let changes: Option<Vec<_>> = args.iter().map(change).collect();
            let changes = changes.ok_or_else(|| {
                let known = Settings::NAMES.join(", ");
                CommandError::new(format!(
                    "{:?}: expected clear, reset, or KIND=VALUE with a KIND of {known}",
                    args.join(" ")
                ))
            })?;
            faults.set(changes.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
        }
    }
    Ok(Answer::of(faults.settings()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::answer::Format;
    use crate::flow::{Actions, Key, Mask, Match};
    use crate::offload::backend::{Install, open};
    use crate::offload::mark::Mark;
    use crate::offload::state::Level;
    use std::time::Instant;

    fn ask(device: &dyn Device, line: &str) -> Result<String, String> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let answer = fault(device, &args).map_err(|error| error.to_string())?;
        let json = answer.said(Format::Json).map_err(|error| error.to_string())?;
        Ok(json.to_string())
    }

    #[test]
    fn faults_of_a_plain_simulated_device_are_set_shown_and_cleared() {
        let device = open(&"sim".parse().unwrap(), Instant::now()).unwrap();
        let calm = ask(&*device, "").unwrap();
        let wrong = ask(&*device, "fail=20% hang=true").unwrap();
        assert!(wrong.contains("\"fail\":0.2") && wrong.contains("\"hang\":true"), "{wrong}");
        assert_eq!(ask(&*device, "").unwrap(), wrong);
        assert_eq!(ask(&*device, "clear").unwrap(), calm);
    }

    #[test]
    fn what_is_refused_is_named_with_what_would_be_accepted_and_changes_nothing() {
        let device = open(&"chaos,fail=1%".parse().unwrap(), Instant::now()).unwrap();
        let before = ask(&*device, "").unwrap();
        for (line, wrong) in [
            ("fail=2% smoke=1", "\"smoke\" is no fault; known: fail, delay"),
            ("fail=much", "fail=much: expected a share like 0.2 or 20%"),
            ("fail", "\"fail\": expected clear, reset, or KIND=VALUE with a KIND of fail, delay"),
            ("clear fail=2%", "\"clear fail=2%\": expected clear"),
        ] {
            let error = ask(&*device, line).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
        assert_eq!(ask(&*device, "").unwrap(), before);
    }

    #[test]
    fn a_reset_makes_the_device_forget_its_rules_and_says_so_in_its_generation() {
        let device = open(&"sim,capacity=1".parse().unwrap(), Instant::now()).unwrap();
        let mut backend = device.channel();
        let (matching, actions) = (Match::new(&Key::ZERO, &Mask::EMPTY), Actions::drop());
        let install = Install {
            matching: &matching,
            actions: &actions,
            mark: Mark::new(1).unwrap(),
            level: Level::Mark,
            in_port: None,
        };
        backend.put(install).unwrap();
        assert!(backend.put(install).is_err());
        let before = backend.generation();
        assert_eq!(ask(&*device, "reset").unwrap(), "{\"reset\":true}");
        assert_ne!(backend.generation(), before);
        assert!(backend.put(install).is_ok());
    }
}
