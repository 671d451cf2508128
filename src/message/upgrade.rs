//! Upgrades: what was asked, and whether the answer agrees. Only WebSocket goes through; any other upgrade,
//! `h2c` above all, would tunnel requests that nobody judged.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode, Version};

use crate::message::head::RequestHead;
use crate::message::lines::FieldLines;
use crate::message::names::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};

/// Whether a request asks for a WebSocket: RFC 6455 §4.1, a GET of HTTP/1.1 with `Upgrade: websocket` and
/// `upgrade` among its connection options.
pub fn asks_for_websocket(head: &RequestHead) -> bool {
    let fields = &head.fields;
    // Nearly no request has it: one look-up.
    fields.contains(UPGRADE)
        && head.method == Method::GET
        // A body in front of the tunnel would be taken for the tunnel's first bytes.
        && !fields.contains(TRANSFER_ENCODING)
        && fields.get(CONTENT_LENGTH).is_none_or(|length| length == b"0")
        && head.version == Version::HTTP_11
        && is_websocket(fields.get_all(UPGRADE))
        && has_upgrade_option(fields.get_all(CONNECTION))
}

/// Whether a 101 agrees to what [`asks_for_websocket`] found: RFC 6455 §4.2.2.
pub fn agrees_to_websocket(headers: &HeaderMap) -> bool {
    let lines = |name| headers.get_all(name).iter().map(HeaderValue::as_bytes);
    is_websocket(lines(header::UPGRADE)) && has_upgrade_option(lines(header::CONNECTION))
}

/// Writes the two fields that ask for a WebSocket, after the strip.
pub fn ask_for_websocket(fields: &mut FieldLines) {
    fields.insert(UPGRADE, WEBSOCKET);
    fields.insert(CONNECTION, UPGRADE_OPTION);
}

/// Writes the two fields that agree to one, after the strip.
pub fn agree_to_websocket(headers: &mut HeaderMap) {
    headers.insert(header::UPGRADE, WEBSOCKET);
    headers.insert(header::CONNECTION, UPGRADE_OPTION);
}

/// What an app's 426 offers: RFC 9110 §15.5.22, "The server MUST send an Upgrade header field in a 426 response". Empty for
/// any other status. To be asked before the strip.
pub fn offered<B>(response: &Response<B>) -> Vec<HeaderValue> {
    match response.status() {
        StatusCode::UPGRADE_REQUIRED => response.headers().get_all(header::UPGRADE).iter().cloned().collect(),
        _ => Vec::new(),
    }
}

/// Writes what was offered, after the strip. RFC 9110 §7.8: "A sender of Upgrade MUST also send an \"Upgrade\" connection
/// option". HTTP/2 has neither, and its own strip removes both.
pub fn offer(headers: &mut HeaderMap, offered: Vec<HeaderValue>) {
    if !offered.is_empty() {
        headers.insert(header::CONNECTION, UPGRADE_OPTION);
    }
    for protocols in offered {
        headers.append(header::UPGRADE, protocols);
    }
}

fn is_websocket<'a>(mut upgrade: impl Iterator<Item = &'a [u8]>) -> bool {
    // A list would leave the choice to the app: one protocol, on one line.
    matches!((upgrade.next(), upgrade.next()), (Some(line), None) if line.eq_ignore_ascii_case(b"websocket"))
}

fn has_upgrade_option<'a>(connection: impl Iterator<Item = &'a [u8]>) -> bool {
    let mut options = connection.flat_map(|line| line.split(|byte| *byte == b','));
    options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const UPGRADE_OPTION: HeaderValue = HeaderValue::from_static("upgrade");

#[cfg(test)]
mod tests {
    use super::*;

    fn get(lines: &[(header::HeaderName, &'static str)]) -> RequestHead {
        let mut head = RequestHead::from(http::Request::new(()).into_parts().0);
        for (name, value) in lines {
            head.fields.append(name.clone(), HeaderValue::from_static(value));
        }
        head
    }

    fn asks(lines: &[(header::HeaderName, &'static str)]) -> bool {
        asks_for_websocket(&get(lines))
    }

    #[test]
    fn only_a_426_offers_protocols() {
        for (status, expected) in [(426, &["websocket", "TLS/1.0"][..]), (400, &[]), (200, &[])] {
            let response =
                Response::builder().status(status).header("upgrade", "websocket").header("upgrade", "TLS/1.0");
            let mut headers = HeaderMap::new();
            offer(&mut headers, offered(&response.body(()).unwrap()));
            assert_eq!(headers.get_all("upgrade").iter().collect::<Vec<_>>(), expected);
            assert_eq!(headers.get("connection").is_some(), status == 426);
        }
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
        let both = get(&[(UPGRADE, "websocket"), (CONNECTION, "upgrade")]);
        assert!(!asks_for_websocket(&RequestHead { method: Method::POST, ..both.clone() }));
        assert!(!asks_for_websocket(&RequestHead { version: Version::HTTP_10, ..both }));
    }
}
