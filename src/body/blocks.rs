//! Bytes of a body in memory, in the order they came, every one of them within the process's [`Budget`].
//!
//! What hyper hands out are slices of its read buffers, and one byte of a slow client would keep a whole buffer
//! alive: so they are copied into blocks that grow with the body.
//!
//! [`Budget`]: crate::io::memory::Budget

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::io::memory::Held;

/// A part of a body.
#[derive(Debug)]
pub(super) struct Blocks {
    full: VecDeque<Bytes>,
    open: BytesMut,
    /// Bytes of content.
    length: usize,
    /// For the blocks' capacity, which is more.
    held: Held,
    /// For everything that is still to come.
    reserve: Option<Held>,
}

impl Blocks {
    /// None yet; they will be paid for with `held`.
    pub(super) fn new(held: Held) -> Self {
        Self { full: VecDeque::new(), open: BytesMut::new(), length: 0, held, reserve: None }
    }

    /// Bytes of content.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no content.
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends a copy. False, and nothing appended, when there is no room for it.
    pub(super) fn push(&mut self, data: &[u8]) -> bool {
        let lacking = self.lacking(data);
        if lacking > 0 && self.reserve.is_none() && !(self.held.budget().is_below(BODIES) && self.held.take(lacking)) {
            return false;
        }
        self.append(data, lacking);
        true
    }

    /// Appends a copy as soon as there is room for it.
    pub(super) async fn push_when_there_is_room(&mut self, data: &[u8]) {
        // Not in the queue of those that wait for memory: small requests come first.
        let budget = self.held.budget().clone();
        let _waiting = budget.body_waits();
        while !self.push(data) {
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Takes `reserve` for whatever is still to come, so that room isn't asked for any more.
    pub(super) fn rely_on(&mut self, reserve: Held) {
        self.reserve = Some(reserve);
    }

    /// Appends what is about to leave, without asking for room.
    pub(super) fn push_uncounted(&mut self, data: Bytes) {
        self.length += data.len();
        let last = std::mem::take(&mut self.open).freeze();
        self.full.extend([last, data].into_iter().filter(|block| !block.is_empty()));
    }

    /// Takes out what came first.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let block = self.full.pop_front().or_else(|| {
            let last = std::mem::take(&mut self.open);
            (!last.is_empty()).then(|| last.freeze())
        })?;
        self.length -= block.len();
        // As good as gone: whoever takes it is about to write it.
        self.held.give_back(block.len());
        Some(block)
    }

    /// The capacity of the next block, if `data` needs one.
    fn lacking(&self, data: &[u8]) -> usize {
        let room = self.open.capacity() - self.open.len();
        if data.len() <= room { 0 } else { self.length.clamp(LEAST, MOST).max(data.len() - room) }
    }

    fn append(&mut self, data: &[u8], lacking: usize) {
        self.length += data.len();
        let room = self.open.capacity() - self.open.len();
        let (first, rest) = data.split_at(room.min(data.len()));
        self.open.extend_from_slice(first);
        if lacking > 0 {
            let full = std::mem::replace(&mut self.open, BytesMut::with_capacity(lacking));
            if !full.is_empty() {
                self.full.push_back(full.freeze());
            }
            self.open.extend_from_slice(rest);
        }
    }
}

/// Bytes of the first block. A thousand clients that send a byte a second are a mebibyte.
const LEAST: usize = 1024;
/// Percent of the memory budget that bodies may take: what is left is for other requests.
const BODIES: usize = 60;
/// How often to look for memory.
const RETRY: Duration = Duration::from_millis(20);
/// Bytes of the longest block: what is written at once.
const MOST: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::memory::Budget;

    #[test]
    fn bytes_come_out_in_order_and_give_their_room_back() {
        let budget = Budget::new(1 << 20);
        for step in [1, 7, 1000, 1024, 1025, 70_000] {
            let body: Vec<u8> = (0..100_000_u32).map(|number| number.to_le_bytes()[0]).collect();
            let mut blocks = Blocks::new(budget.hold());
            for part in body.chunks(step) {
                assert!(blocks.push(part));
            }
            assert_eq!(blocks.len(), body.len());
            let mut out = Vec::new();
            while let Some(block) = blocks.pop() {
                out.extend_from_slice(&block);
            }
            assert!(out == body && blocks.is_empty(), "{step}");
            drop(blocks);
            assert!(budget.hold().take(1 << 20), "{step}");
        }
    }

    #[test]
    fn single_bytes_cost_little_more_than_themselves() {
        let budget = Budget::new(150_000);
        let mut blocks = Blocks::new(budget.hold());
        for _ in 0..70_000 {
            assert!(blocks.push(b"x"));
        }
        // And there is an end to it.
        let more = (0..200_000).take_while(|_| blocks.push(b"x")).count();
        assert!(more < 80_000, "{more}");
        assert_eq!(blocks.len(), 70_000 + more);
    }
}
