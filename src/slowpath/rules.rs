//! stub
#[derive(Debug, Default)]
pub struct RuleStats {}
