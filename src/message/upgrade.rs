//! Upgrades: what was asked, and whether the answer agrees. Only WebSocket goes through; any other upgrade,
//! `h2c` above all, would tunnel requests that nobody judged.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Version};

/// Whether a request asks for a WebSocket: RFC 6455 §4.1, a GET of HTTP/1.1 with `Upgrade: websocket` and
/// `upgrade` among its connection options.
pub fn asks_for_websocket(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    // The map has no `Upgrade` for nearly every request: one look-up.
    headers.contains_key(header::UPGRADE)
        && method == Method::GET
        // A body in front of the tunnel would be taken for the tunnel's first bytes.
        && !headers.contains_key(header::TRANSFER_ENCODING)
        && headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0")
        && version == Version::HTTP_11
        && is_websocket(headers)
        && has_upgrade_option(headers)
}

/// Whether a 101 agrees to what [`asks_for_websocket`] found: RFC 6455 §4.2.2.
pub fn agrees_to_websocket(headers: &HeaderMap) -> bool {
    is_websocket(headers) && has_upgrade_option(headers)
}

/// Writes the two fields that ask for a WebSocket, or agree to one, after the strip.
pub fn write_websocket(headers: &mut HeaderMap) {
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
}

fn is_websocket(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(header::UPGRADE).iter();
    // A list would leave the choice to the app: one protocol, on one line.
    matches!((lines.next(), lines.next()), (Some(line), None) if line.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn has_upgrade_option(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    fn asks(lines: &[(header::HeaderName, &'static str)]) -> bool {
        asks_for_websocket(&Method::GET, Version::HTTP_11, &map(lines))
    }

    #[test]
    fn a_websocket_is_asked_for_with_both_fields() {
        use header::{CONNECTION, UPGRADE};
        assert!(asks(&[(UPGRADE, "websocket"), (CONNECTION, "Upgrade")]));
        assert!(asks(&[(UPGRADE, "WebSocket"), (CONNECTION, "keep-alive"), (CONNECTION, "x, upgrade")]));
        assert!(!asks(&[(UPGRADE, "websocket")]));
        assert!(!asks(&[(CONNECTION, "upgrade")]));
        assert!(!asks(&[(UPGRADE, "h2c"), (CONNECTION, "upgrade")]));
        assert!(!asks(&[(UPGRADE, "websocket, h2c"), (CONNECTION, "upgrade")]));
        assert!(!asks(&[(UPGRADE, "websocket"), (UPGRADE, "h2c"), (CONNECTION, "upgrade")]));
        assert!(!asks(&[(UPGRADE, "websocket"), (CONNECTION, "upgrade"), (header::TRANSFER_ENCODING, "chunked")]));
        assert!(!asks(&[(UPGRADE, "websocket"), (CONNECTION, "upgrade"), (header::CONTENT_LENGTH, "1")]));
        let both = map(&[(UPGRADE, "websocket"), (CONNECTION, "upgrade")]);
        assert!(!asks_for_websocket(&Method::POST, Version::HTTP_11, &both));
        assert!(!asks_for_websocket(&Method::GET, Version::HTTP_10, &both));
    }
}
