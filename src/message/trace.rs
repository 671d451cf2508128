//! Trace headers: what AWS X-Ray and Application Load Balancers write, as W3C Trace Context has it.

use bytes::Bytes;
use http::HeaderValue;

/// The `traceparent` of the trace that an `X-Amzn-Trace-Id` names: `Root=1-<8 digits>-<24 digits>`, and perhaps
/// `Parent=<16 digits>` and `Sampled=0` or `1`. `None` when it names no trace. `make_parent` is asked for a parent when
/// there is none.
pub fn traceparent(trace_id: &[u8], make_parent: impl FnOnce() -> u64) -> Option<HeaderValue> {
    let text = std::str::from_utf8(trace_id).ok()?;
    let (mut root, mut parent, mut sampled) = (None, None, None);
    for (key, value) in text.split(';').filter_map(|pair| pair.split_once('=')) {
        let known = match key.trim_ascii() {
            "Root" => &mut root,
            "Parent" => &mut parent,
            "Sampled" => &mut sampled,
            _ => continue,
        };
        // With two of one kind it is unclear which is meant.
        if known.replace(value.trim_ascii()).is_some() {
            return None;
        }
    }
    let (time, unique) = root?.strip_prefix("1-")?.split_once('-')?;
    if !is_hex(time, 8) || !is_hex(unique, 24) || is_zero(time) && is_zero(unique) {
        return None;
    }
    // W3C Trace Context §3.2.2.4: "All bytes as zero (0000000000000000) is considered an invalid value."
    let parent = parent.filter(|parent| is_hex(parent, 16) && !is_zero(parent));
    let parent = parent.map_or_else(|| format!("{:016x}", make_parent().max(1)), str::to_owned);
    let flags = if sampled == Some("1") { "01" } else { "00" };
    let mut value = format!("00-{time}{unique}-{parent}-{flags}");
    // W3C Trace Context §3.2.2.3: the ids are of lower-case digits.
    value.make_ascii_lowercase();
    HeaderValue::from_maybe_shared(Bytes::from(value)).ok()
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_zero(text: &str) -> bool {
    text.bytes().all(|byte| byte == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_keeps_its_id_its_parent_and_whether_it_is_sampled() {
        const ID: &str = "67891233abcdef012345678912345678";
        for (given, parent, flags) in [
            ("Root=1-67891233-abcdef012345678912345678", "0000000000000007", "00"),
            ("Root=1-67891233-ABCDEF012345678912345678;Sampled=1", "0000000000000007", "01"),
            (
                "Self=1-1-2;Root=1-67891233-abcdef012345678912345678;Parent=53995C3F42CD8AD8;Sampled=1",
                "53995c3f42cd8ad8",
                "01",
            ),
            ("Root=1-67891233-abcdef012345678912345678; Parent=53995c3f42cd8ad8; Sampled=0", "53995c3f42cd8ad8", "00"),
            ("Root=1-67891233-abcdef012345678912345678;Parent=x;Sampled=?;Lineage=a:1", "0000000000000007", "00"),
            ("Root=1-67891233-abcdef012345678912345678;Parent=0000000000000000", "0000000000000007", "00"),
        ] {
            let expected = format!("00-{ID}-{parent}-{flags}");
            assert_eq!(traceparent(given.as_bytes(), || 7).unwrap(), expected, "{given}");
        }
        assert!(traceparent(b"Root=1-67891233-abcdef012345678912345678", || 0).unwrap() != "");
    }

    #[test]
    fn what_names_no_trace_gives_none() {
        for given in [
            "",
            "Root=",
            "Self=1-67891233-abcdef012345678912345678",
            "Root=67891233-abcdef012345678912345678",
            "Root=2-67891233-abcdef012345678912345678",
            "Root=1-6789123-abcdef012345678912345678",
            "Root=1-67891233-abcdef01234567891234567",
            "Root=1-67891233-abcdef01234567891234567g",
            "Root=1-00000000-000000000000000000000000",
            "Root=1-67891233-abcdef012345678912345678;Root=1-67891233-abcdef012345678912345679",
            "Root=1-67891233-abcdef012345678912345678-1",
            "Root=1-67891233-abcdef012345\u{e9}78912345678",
        ] {
            assert_eq!(traceparent(given.as_bytes(), || 7), None, "{given}");
        }
    }
}
