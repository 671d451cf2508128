//! HTTP/2 frames as they pass by, without their content: enough to tell a client that asks from one that only
//! keeps us busy, and to know that a request head has begun.

/// Follows a client's bytes from the end of its preface on.
#[derive(Debug, Default)]
pub struct Meter {
    header: [u8; HEADER],
    /// How much of `header` has come.
    come: usize,
    /// Bytes of the current frame's payload that have not come.
    left: usize,
    /// Whether a header block has begun and not ended.
    in_head: bool,
    /// The last stream that was opened, and whether the current header block is another one of an open stream.
    last_stream: u32,
    in_trailers: bool,
}

/// What frames cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Window updates: they answer what was sent, one by one or not.
    pub updates: u64,
    /// Everything else.
    pub other: u64,
    /// Bytes of trailer sections, encoded.
    pub trailers: usize,
}

impl Meter {
    /// Looks at new bytes and says what their frames cost.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Cost {
        let mut cost = Cost::default();
        while !bytes.is_empty() {
            if self.left > 0 {
                let some = self.left.min(bytes.len());
                self.left -= some;
                bytes = &bytes[some..];
                continue;
            }
            let some = (HEADER - self.come).min(bytes.len());
            self.header[self.come..self.come + some].copy_from_slice(&bytes[..some]);
            self.come += some;
            bytes = &bytes[some..];
            if self.come == HEADER {
                self.come = 0;
                self.begin(&mut cost);
            }
        }
        cost
    }

    /// Whether a request head is on its way.
    pub fn is_in_head(&self) -> bool {
        self.in_head || (self.left > 0 && matches!(self.header[3], HEADERS | CONTINUATION))
    }

    fn begin(&mut self, cost: &mut Cost) {
        let [a, b, c, kind, flags, stream @ ..] = self.header;
        self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        cost.other += match kind {
            DATA if self.left == 0 && flags & END_STREAM == 0 => COSTLY,
            DATA => 0,
            HEADERS | CONTINUATION => {
                self.in_head = flags & END_HEADERS == 0;
                if kind == HEADERS {
                    // RFC 9113 §5.1.1: the identifier of a new stream "MUST be numerically greater than all streams that
                    // the initiating endpoint has opened".
                    let stream = u32::from_be_bytes(stream);
                    self.in_trailers = stream <= self.last_stream;
                    self.last_stream = self.last_stream.max(stream);
                }
                if self.in_trailers {
                    cost.trailers += self.left;
                }
                u64::from(kind == CONTINUATION)
            }
            WINDOW_UPDATE => {
                cost.updates += 1;
                0
            }
            // The answer to a frame of ours.
            SETTINGS | PING if flags & ACK != 0 => 1,
            _ => COSTLY,
        };
    }
}

/// Bytes of a frame's header: RFC 9113 §4.1.
const HEADER: usize = 9;
/// What a frame costs that has to be answered or undoes work, and brings nothing.
pub const COSTLY: u64 = 10;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let bytes = [
            frame(SETTINGS, 0, &[0; 6]),
            frame(HEADERS, END_HEADERS, b"abc"),
            frame(DATA, 0, b"data"),
            frame(DATA, 0, b""),
            frame(DATA, END_STREAM, b""),
            frame(PING, ACK, &[0; 8]),
            frame(PING, 0, &[0; 8]),
            frame(3, 0, &[0; 4]),
            frame(WINDOW_UPDATE, 0, &[0; 4]),
        ]
        .concat();
        for size in [1, 2, 7, 9, 10, bytes.len()] {
            let mut meter = Meter::default();
            let costs = bytes.chunks(size).map(|chunk| meter.feed(chunk));
            let (updates, other) = costs.fold((0, 0), |sum, cost| (sum.0 + cost.updates, sum.1 + cost.other));
            assert_eq!((updates, other), (1, 4 * COSTLY + 1), "cut after {size}");
            assert!(!meter.is_in_head());
        }
    }

    #[test]
    fn a_second_header_block_of_a_stream_is_a_trailer_section() {
        let on = |stream: u8, mut frame: Vec<u8>| {
            frame[8] = stream;
            frame
        };
        let mut meter = Meter::default();
        let mut trailers =
            |stream, kind, payload: &[u8]| meter.feed(&on(stream, frame(kind, END_HEADERS, payload))).trailers;
        assert_eq!(trailers(1, HEADERS, b"abc"), 0);
        assert_eq!(trailers(3, HEADERS, b"abc"), 0);
        assert_eq!(trailers(1, HEADERS, b"abcd"), 4);
        assert_eq!(trailers(1, CONTINUATION, b"ab"), 2);
        assert_eq!(trailers(5, HEADERS, b"abc"), 0);
        assert_eq!(trailers(5, CONTINUATION, b"abc"), 0);
    }

    #[test]
    fn a_head_is_under_way_until_its_last_byte() {
        let mut meter = Meter::default();
        for (bytes, in_head) in [
            (&frame(HEADERS, 0, b"abc")[..], true),
            (&frame(CONTINUATION, 0, b"abc")[..10], true),
            (&b"bc"[..], true),
            (&frame(CONTINUATION, END_HEADERS, b"abc")[..11], true),
            (&b"c"[..], false),
        ] {
            meter.feed(bytes);
            assert_eq!(meter.is_in_head(), in_head, "{bytes:?}");
        }
    }
}
