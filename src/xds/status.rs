//! to be replaced
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    NotSent,
    Stale,
    Synced,
    Error,
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeStatus {
    pub state: State,
    pub version: Option<String>,
    pub subscribed: usize,
    pub error: Option<String>,
}
