//! The last requests that the app, or hostward itself, failed: for `/status`.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use crate::clock;

/// The last failures, the newest first.
#[derive(Debug, Default)]
pub struct Recent(Mutex<VecDeque<Failed>>);

/// One request that failed.
#[derive(Clone, Debug, Serialize)]
pub struct Failed {
    /// When.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// The `msg` of its event.
    pub msg: &'static str,
    /// The log's word for it.
    pub error: &'static str,
    /// What the client got.
    pub status: u16,
    /// The host that was asked for.
    pub host: String,
    /// Without the query.
    pub path: String,
    /// As the client and the app know it.
    pub request_id: String,
}

impl Recent {
    /// Remembers a failure, and forgets the oldest.
    pub fn push(&self, failed: Failed) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.truncate(MOST - 1);
        all.push_front(failed);
    }

    /// All that is remembered.
    pub fn list(&self) -> Vec<Failed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(clock::printable(*time)))
}

const MOST: usize = 20;
