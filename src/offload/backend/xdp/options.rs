//! [`Options`]: what can be chosen of the XDP device.

use super::super::OpenError;

/// What can be chosen of the XDP device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Rules that fit, 1 to 4,194,304. Each takes about 300 bytes of kernel memory, and 32 for each processor.
    pub rules: usize,
    /// Whether rules may forward packets by themselves, not only mark them.
    pub full: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { rules: 1 << 17, full: false }
    }
}

impl Options {
    /// Reads `option=value` pairs; of two of the same kind the last counts.
    ///
    /// # Errors
    /// Names the option that is not understood, and what would be.
    pub fn parse(pairs: &[(String, String)]) -> Result<Options, OpenError> {
        let mut options = Options::default();
        for (option, value) in pairs {
            options.set(option, value).map_err(|expected| OpenError::Option {
                kind: "xdp",
                option: option.clone(),
                value: value.clone(),
                expected,
            })?;
        }
        Ok(options)
    }

    fn set(&mut self, option: &str, value: &str) -> Result<(), String> {
        match option {
            "rules" | "capacity" => {
                let rules = value.parse().ok().filter(|rules| (1..=1 << 22).contains(rules));
                self.rules = rules.ok_or("a number from 1 to 4194304 is needed")?;
            }
            "level" => {
                self.full = match value {
                    "mark" => false,
                    "full" => true,
                    _ => return Err("mark or full is needed".to_owned()),
                };
            }
            _ => return Err("unknown option (known: rules, level)".to_owned()),
        }
        Ok(())
    }
}
