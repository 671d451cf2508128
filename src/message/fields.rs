//! Fields that must not go on: connection-specific ones in both directions, and what clients may not say.
//!
//! Strip first, then write: nothing that hostward writes is stripped again. Fields are edited in place,
//! in one pass over the names; only what was found is removed.

use std::collections::HashSet;

use http::header::{self, HeaderMap, HeaderName};

use crate::message::lines::FieldLines;
use crate::message::names::{self, Known, Name};

/// What the pass over a request's fields found out, besides stripping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// `TE: trailers`, the one transfer preference that may go on (RFC 9110 §10.1.4).
    pub te_trailers: bool,
}

/// Strips from a request what is connection-specific and what a client may not say.
///
/// Believed only when they come from `trusted` peers: the fields in which an Application Load Balancer
/// tells who the user or the client certificate is.
pub fn strip_request(fields: &mut FieldLines, trusted: bool) -> Found {
    let mut found = Found::default();
    // Nearly always empty; but there may be thousands, to be looked for in each line.
    let mut options = HashSet::new();
    fields.retain(|name, value| match name {
        Name::Known(known) if is_for_the_app(*known) => true,
        Name::Known(names::CONNECTION) => {
            options.extend(connection_options(value).filter_map(|option| Name::read(option).ok()));
            false
        }
        Name::Known(names::TE) => {
            found.te_trailers |= value.eq_ignore_ascii_case(b"trailers");
            false
        }
        name => !is_to_be_stripped(name.as_str(), trusted),
    });
    if !options.is_empty() {
        fields.retain(|name, _| !options.contains(name));
    }
    found
}

/// Strips from a response what is connection-specific.
pub fn strip_response(headers: &mut HeaderMap) {
    strip_connection_options(headers);
    // Nearly never is there one, and to look at all the names is quicker than to look for each of these.
    if headers.keys().any(|name| CONNECTION_SPECIFIC.contains(name)) {
        for name in &CONNECTION_SPECIFIC {
            headers.remove(name);
        }
    }
}

/// The number of bytes that a `Content-Length` says. RFC 9110 §8.6: digits, without a sign or a list; and at most 19, as
/// for the `h2` crate, because what overflows is another number to every reader.
pub fn content_length(value: &[u8]) -> Option<u64> {
    let plain = (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    plain.then(|| value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// Whether an app's response can be delimited in one way only: RFC 9112 §6.3. A length beside a transfer
/// coding, or a coding other than one `chunked`, is how answers are split.
///
/// hyper looks at the lengths where there is a body, and not at those of a 304 or an answer to a `HEAD`; it
/// lets a list of equal ones pass, and its server answers nothing at all when two lines stand there.
pub fn is_response_framing_plain(headers: &mut HeaderMap) -> bool {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next().cloned();
    if let Some(length) = &length {
        let number = content_length(length.as_bytes()).is_some();
        let mut others = 0;
        if !number || !lengths.inspect(|_| others += 1).all(|other| other == length) {
            return false;
        }
        if others > 0 {
            // RFC 9110 §8.6: "replace the duplicated field values with a single valid Content-Length field".
            headers.insert(header::CONTENT_LENGTH, length.clone());
        }
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked") && length.is_none(),
        (Some(_), Some(_)) => false,
    }
}

/// Strips from a trailer section what has a meaning only in a head: framing, routing, and whatever a client
/// may not say (RFC 9110 §6.5.1).
pub fn strip_trailers(trailers: &mut HeaderMap) {
    strip_connection_options(trailers);
    let only_in_heads = [header::HOST, header::CONTENT_LENGTH, header::TE, header::AUTHORIZATION, header::COOKIE];
    let doomed = |name: &&HeaderName| {
        let text = name.as_str();
        only_in_heads.contains(name) || text.starts_with("x-forwarded-") || is_to_be_stripped(text, false)
    };
    let doomed: Vec<HeaderName> = trailers.keys().filter(doomed).cloned().collect();
    for name in doomed {
        trailers.remove(name);
    }
}

/// Strips from a response's trailer section what is connection-specific or frames a message.
pub fn strip_response_trailers(trailers: &mut HeaderMap) {
    strip_response(trailers);
    trailers.remove(header::CONTENT_LENGTH);
    trailers.remove(header::HOST);
}

/// RFC 9110 §7.6.1: "Intermediaries MUST parse a received Connection header field before a message is
/// forwarded and, for each connection-option in this field, remove any header or trailer field(s) from the
/// message with the same name as the connection-option". It may stand on several lines: all of them count.
fn strip_connection_options(headers: &mut HeaderMap) {
    if !headers.contains_key(header::CONNECTION) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| connection_options(line.as_bytes()))
        .filter_map(|option| HeaderName::from_bytes(option).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    headers.remove(header::CONNECTION);
}

/// What a `Connection` line names that is to be removed with it.
fn connection_options(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    const KEPT: [&[u8]; 4] = [
        b"",
        // Nearly always this one, and such a field is removed in any case.
        b"keep-alive",
        // Whoever names these wants the app to see another message than the one that was judged.
        b"host",
        b"content-length",
    ];
    let options = line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    options.filter(|option| !KEPT.iter().any(|kept| option.eq_ignore_ascii_case(kept)))
}

/// Whether a request's field goes on whoever has sent it, which is quicker to find out than by its text.
fn is_for_the_app(name: Known) -> bool {
    !matches!(
        name,
        names::CONNECTION
            | names::EXPECT
            | names::FORWARDED
            | names::KEEP_ALIVE
            | names::TE
            | names::TRANSFER_ENCODING
            | names::UPGRADE
            | names::X_FORWARDED_HOST
    )
}

/// Whether a request's field of this name, which is in lower case, must not go on. By length first: this runs for
/// many fields of every request.
fn is_to_be_stripped(name: &str, trusted: bool) -> bool {
    let strip = match name.len() {
        5 => name == "proxy",
        6 => matches!(name, "expect" | "x-host"),
        7 => name == "upgrade",
        8 => name == "x-scheme",
        9 => name == "forwarded",
        10 => name == "keep-alive",
        13 => name == "x-rewrite-url",
        14 => matches!(name, "http2-settings" | "x-original-url"),
        15 => matches!(name, "x-forwarded-ssl" | "x-original-host" | "front-end-https"),
        16 => matches!(name, "proxy-connection" | "x-forwarded-host"),
        17 => name == "transfer-encoding",
        18 => matches!(name, "x-forwarded-server" | "x-forwarded-scheme"),
        20 => name == "x-forwarded-protocol",
        _ => false,
    };
    strip
        // WSGI makes `X_Forwarded_For` and `X-Forwarded-For` one variable; nginx drops such names too.
        || has_underscore(name)
        || (!trusted && name.starts_with("x-amzn-") && ALB_ONLY.iter().any(|prefix| name.starts_with(prefix)))
}

/// Without a branch a byte, which is quicker than a search: names are short, and nearly none has one.
fn has_underscore(name: &str) -> bool {
    name.bytes().filter(|byte| *byte == b'_').count() > 0
}

/// What an Application Load Balancer writes about the user, the client certificate and the TLS connection.
const ALB_ONLY: [&str; 3] = ["x-amzn-oidc-", "x-amzn-mtls-", "x-amzn-tls-"];

/// RFC 9110 §7.6.1, and `Proxy-Connection`, which is not a standard but is sent.
const CONNECTION_SPECIFIC: [HeaderName; 5] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn lines(lines: &[(&str, &str)]) -> FieldLines {
        map(lines).into()
    }

    fn left(fields: &FieldLines) -> Vec<&str> {
        let mut names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn every_option_of_every_connection_line_is_removed() {
        let mut fields = lines(&[
            ("Connection", "close, X-One"),
            ("X-One", "1"),
            ("connection", " x-two ,x-three"),
            ("X-Two", "2"),
            ("X-Three", "3"),
            ("X-Four", "4"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
        ]);
        strip_request(&mut fields, true);
        assert_eq!(left(&fields), ["x-four"]);
    }

    #[test]
    fn thousands_of_connection_options_count() {
        let options: Vec<String> = (0..10_000).map(|number| format!("x{number}")).collect();
        let names: Vec<String> = (0..99).map(|number| format!("x{}", number * 200)).collect();
        let mut sent = vec![("Connection", options.join(","))];
        sent.extend(names.iter().map(|name| (name.as_str(), String::new())));
        let sent: Vec<_> = sent.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut fields = lines(&sent);
        strip_request(&mut fields, true);
        assert_eq!(fields.len(), 49);
    }

    #[test]
    fn a_connection_option_can_not_remove_the_host_or_the_length() {
        let mut fields = lines(&[
            ("Connection", "host, content-length, cookie"),
            ("Host", "a"),
            ("Content-Length", "1"),
            ("Cookie", "c"),
        ]);
        strip_request(&mut fields, true);
        assert_eq!(left(&fields), ["content-length", "host"]);
    }

    #[test]
    fn what_a_client_may_not_say_is_removed_even_from_a_trusted_peer() {
        let mut fields = lines(&[
            ("X_Forwarded_For", "1"),
            ("X-Forwarded_Proto", "https"),
            ("Proxy", "http://evil"),
            ("X-Host", "e"),
            ("X-Original-Host", "e"),
            ("X-Forwarded-Server", "e"),
            ("X-Original-URL", "/e"),
            ("X-Rewrite-URL", "/e"),
            ("X-Forwarded-Ssl", "on"),
            ("X-Forwarded-Protocol", "https"),
            ("X-Forwarded-Scheme", "https"),
            ("X-Scheme", "https"),
            ("Front-End-Https", "on"),
            ("Forwarded", "host=evil"),
            ("X-Forwarded-Host", "evil"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "AA"),
            ("Transfer-Encoding", "chunked"),
            ("Expect", "100-continue"),
            ("Accept", "*/*"),
            ("X-Amzn-Trace-Id", "Root=1-2-3"),
            ("X-Forwarded-For", "1.2.3.4"),
        ]);
        strip_request(&mut fields, true);
        assert_eq!(left(&fields), ["accept", "x-amzn-trace-id", "x-forwarded-for"]);
    }

    #[test]
    fn what_only_a_load_balancer_may_say_is_believed_from_trusted_peers_alone() {
        let sent = [
            ("X-Amzn-Oidc-Identity", "root"),
            ("x-amzn-mtls-clientcert", "c"),
            ("x-amzn-tls-version", "v"),
            ("x-amzn-trace-id", "t"),
        ];
        let mut fields = lines(&sent);
        strip_request(&mut fields, true);
        assert_eq!(fields.len(), 4);
        strip_request(&mut fields, false);
        assert_eq!(left(&fields), ["x-amzn-trace-id"]);
    }

    #[test]
    fn te_is_stripped_and_trailers_remembered() {
        let mut fields = lines(&[("TE", "trailers"), ("Connection", "te")]);
        assert!(strip_request(&mut fields, true).te_trailers);
        assert!(fields.is_empty());
        assert!(!strip_request(&mut lines(&[("TE", "gzip")]), true).te_trailers);
    }

    #[test]
    fn of_the_known_names_those_are_for_the_app_that_are_never_stripped() {
        for name in names::all() {
            let specific = [names::CONNECTION, names::TE].contains(&name);
            let stripped = specific || is_to_be_stripped(name.as_str(), false);
            assert_eq!(is_for_the_app(name), !stripped, "{}", name.as_str());
        }
    }

    #[test]
    fn a_response_keeps_its_end_to_end_fields() {
        let mut headers = map(&[
            ("Connection", "keep-alive, X-Hop"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=2"),
            ("Upgrade", "h2c"),
            ("Set-Cookie", "a=b"),
            ("Trailer", "T"),
        ]);
        strip_response(&mut headers);
        assert_eq!(names(&headers), ["set-cookie", "trailer"]);
    }

    #[test]
    fn a_response_that_can_be_delimited_in_two_ways_is_not_plain() {
        let plain = |lines: &[(&str, &str)]| is_response_framing_plain(&mut map(lines));
        assert!(plain(&[("Content-Length", "5")]) && plain(&[("Transfer-Encoding", "Chunked")]) && plain(&[]));
        assert!(!plain(&[("Content-Length", "5"), ("Transfer-Encoding", "chunked")]));
        assert!(!plain(&[("Transfer-Encoding", "chunked, gzip")]));
        for length in ["", "+5", "abc", "5, 5", "0x5", "18446744073709551616"] {
            assert!(!plain(&[("Content-Length", length)]), "{length}");
        }
        assert!(!plain(&[("Content-Length", "5"), ("Content-Length", "6")]));
        assert!(!plain(&[("Transfer-Encoding", "gzip"), ("Transfer-Encoding", "chunked")]));
    }

    #[test]
    fn of_two_equal_lengths_one_goes_on() {
        let mut headers = map(&[("Content-Length", "5"), ("Content-Length", "5")]);
        assert!(is_response_framing_plain(&mut headers));
        assert_eq!(headers.get_all("content-length").iter().collect::<Vec<_>>(), ["5"]);
    }

    #[test]
    fn trailers_can_not_smuggle_what_belongs_in_a_head() {
        let mut trailers = map(&[
            ("Host", "e"),
            ("Content-Length", "1"),
            ("X-Forwarded-For", "1"),
            ("X_Y", "1"),
            ("Cookie", "c"),
            ("Digest", "d"),
        ]);
        strip_trailers(&mut trailers);
        assert_eq!(names(&trailers), ["digest"]);
    }
}
