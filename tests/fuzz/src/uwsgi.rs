//! A strict reader of uwsgi packets, written from uWSGI's document of its protocol: modifier 1, the size of what
//! follows, modifier 2, then names and values, each behind its length in two bytes, the lower one first.

use crate::http1::Read;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub variables: Vec<(Vec<u8>, Vec<u8>)>,
    pub body: Vec<u8>,
}

impl Packet {
    /// The value of a variable, which must not be there twice.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        let mut found = self.variables.iter().filter(|(given, _)| given == name.as_bytes());
        let value = found.next().map(|(_, value)| value.as_slice());
        assert!(found.next().is_none(), "two variables called {name}");
        value
    }
}

/// Reads one request, with its body.
pub fn packet(bytes: &[u8]) -> Read<Packet> {
    let Some((head, rest)) = bytes.split_first_chunk::<4>() else { return Read::Torn };
    if (head[0], head[3]) != (0, 0) {
        return Read::Bad("modifiers of another kind of packet");
    }
    let size = usize::from(head[1]) + 256 * usize::from(head[2]);
    let Some((mut rest, behind)) = rest.split_at_checked(size) else { return Read::Torn };
    let mut variables = Vec::new();
    while !rest.is_empty() {
        let (Some(name), Some(value)) = (text(&mut rest), text(&mut rest)) else {
            return Read::Bad("a variable that doesn't end with its packet");
        };
        variables.push((name, value));
    }
    let mut packet = Packet { variables, body: Vec::new() };
    let length = packet.value("CONTENT_LENGTH").unwrap_or_default();
    // 19 digits always fit.
    if !length.iter().all(u8::is_ascii_digit) || length.len() > 19 {
        return Read::Bad("a CONTENT_LENGTH that is no number");
    }
    let length = length.iter().fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
    let Some(body) = behind.get(..length) else { return Read::Torn };
    packet.body = body.to_vec();
    Read::Whole(packet, 4 + size + length)
}

fn text(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let (length, behind) = rest.split_first_chunk::<2>()?;
    let (text, behind) = behind.split_at_checked(usize::from(length[0]) + 256 * usize::from(length[1]))?;
    *rest = behind;
    Some(text.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_ends_where_it_says() {
        let variables = b"\x0e\0CONTENT_LENGTH\x01\x002\x01\0A\0\0";
        let good = [&[0, 24, 0, 0][..], variables, b"hi"].concat();
        assert!(matches!(packet(&good), Read::Whole(read, 30) if read.body == b"hi" && read.variables.len() == 2));
        assert_eq!(packet(&good[..29]), Read::Torn);
        assert!(matches!(packet(&[&[0, 23, 0, 0][..], variables].concat()), Read::Bad(_)));
        assert!(matches!(packet(&[&[1, 24, 0, 0][..], variables].concat()), Read::Bad(_)));
    }
}
