//! Any text is read or refused, and what is read is printed and read back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offloadd::flow::text::{format_actions, format_match, language, parse_actions, parse_flow};

fuzz_target!(|text: &str| {
    if let Ok(flow) = parse_flow(text, &()) {
        for verbose in [false, true] {
            let printed = format_match(&flow.matching, verbose, &());
            let again = parse_flow(&printed, &()).expect("what is printed can be read");
            assert_eq!(again.matching, flow.matching, "{printed}");
        }
    }
    if let Ok(actions) = parse_actions(text, &()) {
        let printed = format_actions(&actions, &());
        assert_eq!(parse_actions(&printed, &()), Ok(actions), "{printed}");
    }
    // The whole language, of which the datapath has a part.
    for parse in [language::parse_keys, language::parse_actions] {
        if let Ok(nodes) = parse(text) {
            let printed = language::print(&nodes);
            assert_eq!(parse(&printed).map(|nodes| language::print(&nodes)), Ok(printed.clone()), "{text}");
            let _ = language::json(&nodes).to_string();
        }
    }
});
