//! Rule texts: whatever comes in, there is an answer; and what is printed of a rule reads back as the same rule.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offloadd::slowpath::text::{format_rule, parse_filter, parse_rule};

fuzz_target!(|text: &str| {
    if let Ok(rule) = parse_rule(text, &()) {
        let printed = format_rule(&rule, &());
        assert_eq!(parse_rule(&printed, &()), Ok(rule), "{printed}");
    }
    let _ = parse_filter(text, false, &());
});
