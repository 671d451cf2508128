//! Bytes of a body that wait to be taken, in the order in which they came. Small parts are joined, because each part
//! of its own costs a hundred bytes or more, and keeps alive the whole buffer that it was read into.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Parts of a body.
#[derive(Debug, Default)]
pub struct Joined {
    parts: VecDeque<Bytes>,
    /// Bytes of content in `parts`.
    length: usize,
    /// The small parts that came last.
    tail: BytesMut,
}

impl Joined {
    /// Appends a part.
    pub fn push(&mut self, data: Bytes) {
        if data.len() >= LARGE || self.tail.len() + data.len() > MAX_TAIL {
            self.seal();
        }
        if data.len() >= LARGE {
            self.length += data.len();
            self.parts.push_back(data);
        } else {
            self.tail.extend_from_slice(&data);
        }
    }

    /// Takes out what came first, with all that was joined to it.
    pub fn pop(&mut self) -> Option<Bytes> {
        let Some(part) = self.parts.pop_front() else {
            return (!self.tail.is_empty()).then(|| std::mem::take(&mut self.tail).freeze());
        };
        self.length -= part.len();
        if self.parts.is_empty() {
            self.parts = VecDeque::new();
        }
        Some(part)
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.tail.is_empty()
    }

    /// Bytes of memory that this takes.
    pub fn memory(&self) -> usize {
        self.length + self.parts.capacity() * size_of::<Bytes>() + self.tail.capacity()
    }

    /// Closes the tail: later data starts a new part. Returns the number of parts.
    pub fn seal(&mut self) -> usize {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail).freeze();
            self.length += tail.len();
            self.parts.push_back(tail);
        }
        self.parts.len()
    }

    /// A part of what is sealed.
    pub fn part(&self, index: usize) -> Option<Bytes> {
        self.parts.get(index).cloned()
    }
}

/// Bytes of a part that is kept as it came. Less would keep alive a read buffer that is several times as long.
const LARGE: usize = 4 * 1024;
/// Bytes that are joined at most: what is written at once.
const MAX_TAIL: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_out_in_order_whatever_their_size() {
        for sizes in [&[1][..], &[7, 5000], &[LARGE - 1, LARGE, 1], &[100_000], &[0, 3]] {
            let mut joined = Joined::default();
            let (mut pushed, mut popped) = (Vec::new(), Vec::new());
            for round in 0..1000_usize {
                let data = vec![round.to_le_bytes()[0]; sizes[round % sizes.len()]];
                pushed.extend_from_slice(&data);
                joined.push(data.into());
                if round % 100 == 0 {
                    popped.extend(joined.pop().unwrap_or_default());
                }
            }
            while let Some(data) = joined.pop() {
                popped.extend(data);
            }
            assert!(pushed == popped && joined.is_empty(), "{sizes:?}");
            assert!(joined.memory() <= MAX_TAIL, "{sizes:?}");
        }
    }

    #[test]
    fn single_bytes_cost_little_more_than_themselves() {
        let mut joined = Joined::default();
        for _ in 0..200_000 {
            joined.push(Bytes::from_static(b"x"));
        }
        assert!(joined.memory() < 300_000, "{}", joined.memory());
    }
}
