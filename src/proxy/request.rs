//! The request's side of its life, pure: what came in is read and judged, and becomes what goes out. The
//! proxy and `explain` take the same steps.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Uri, Version};

use crate::config::Config;
use crate::error::Failure;
use crate::message::authority::Authority;
use crate::message::fields::content_length;
use crate::message::fields::{Removal, Sender};
use crate::message::forwarding::{self, Origin, Peer, Source};
use crate::message::head::{MAX_FIELDS, RequestHead};
use crate::message::lines::FieldLines;
use crate::message::names::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, Name, TE};
use crate::message::{fields, upgrade};
use crate::policy::{Facts, Policy, Verdict};

/// What a request says of its own framing and destination.
pub struct Inbound {
    /// The authority's bytes; `None` in an HTTP/1.0 request that has none.
    pub host: Option<HeaderValue>,
    /// Of the body, as far as it was announced.
    pub length: u64,
}

impl Inbound {
    /// Reads them, and refuses what nobody could answer.
    ///
    /// # Errors
    ///
    /// What is wrong with the request.
    pub fn read(head: &RequestHead) -> Result<Self, Failure> {
        let RequestHead { method, target, fields, version } = head;
        if *method == Method::CONNECT || *method == Method::TRACE {
            return Err(Failure::Method);
        }
        let mut lines = fields.get_all(HOST);
        let line = match (lines.next(), lines.next()) {
            (_, Some(_)) => return Err(Failure::Malformed("more than one Host")),
            // RFC 9112 §3.2: "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1
            // request message that lacks a Host header field".
            (None, None) if *version == Version::HTTP_11 => return Err(Failure::Malformed("no Host")),
            (line, None) => line,
        };
        let brought = || match (line, fields.value(HOST)) {
            (Some(_), None) => Err(Failure::Malformed("the Host")),
            (_, host) => Ok(host),
        };
        let host = match (target.scheme_str(), target.authority()) {
            // RFC 9112 §3.2.2: "the server MUST ignore the received Host header field (if any) and instead
            // replace it with the host information of the request-target".
            (Some("http" | "https"), Some(authority)) => {
                Some(HeaderValue::from_str(authority.as_str()).map_err(|_| Failure::Malformed("the target's host"))?)
            }
            (None, None) if target.path().starts_with('/') => brought()?,
            (None, None) if target.path() == "*" && *method == Method::OPTIONS => brought()?,
            _ => return Err(Failure::Malformed("the request target")),
        };
        if *version == Version::HTTP_2 {
            check_http2(head, line)?;
        }
        // RFC 9110 §10.1.1: a list, which may be empty.
        let is_met = |value: &[u8]| value.eq_ignore_ascii_case(b"100-continue") || value.trim_ascii().is_empty();
        if !fields.get_all(EXPECT).all(is_met) {
            return Err(Failure::Expectation);
        }
        let length = fields.get(CONTENT_LENGTH).and_then(content_length);
        Ok(Self { host, length: length.unwrap_or_default() })
    }
}

impl Inbound {
    /// The authority, parsed.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn authority(&self) -> Result<Option<Authority<'_>>, Failure> {
        let host = self.host.as_ref().map(|host| Authority::parse(host.as_bytes()));
        host.transpose().map_err(Failure::InvalidHost)
    }
}

/// What the `h2` crate lets pass and is malformed. It has refused the rest: connection-specific
/// fields, a `TE` other than `trailers`, missing or repeated pseudo-fields, and lengths that don't fit.
fn check_http2(head: &RequestHead, host: Option<&[u8]>) -> Result<(), Failure> {
    match (head.target.authority(), host) {
        // RFC 9113 §8.3.1: "A server SHOULD treat a request as malformed if it contains a Host header field that
        // identifies an entity that differs from the entity in the \":authority\" pseudo-header field."
        (Some(authority), Some(host)) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host) => {
            return Err(Failure::Malformed("a Host that differs from :authority"));
        }
        (None, None) => return Err(Failure::Malformed("neither :authority nor Host")),
        _ => {}
    }
    let path = head.target.path_and_query().map_or("", PathAndQuery::as_str);
    let visible = path.bytes().all(|b| b.is_ascii_graphic());
    if !visible || !(path.starts_with('/') || (path == "*" && head.method == Method::OPTIONS)) {
        return Err(Failure::Malformed("the :path"));
    }
    // RFC 9113 §8.2.1: "A field value MUST NOT start or end with an ASCII whitespace character". HTTP/1.1 would drop it.
    let is_padded = |value: &[u8]| matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t']);
    if head.fields.iter().any(|(_, value)| is_padded(value)) {
        return Err(Failure::Malformed("white space around a header value"));
    }
    let mut lengths = head.fields.get_all(CONTENT_LENGTH);
    match (lengths.next(), lengths.next()) {
        (_, Some(_)) => return Err(Failure::Malformed("Content-Length twice")),
        (Some(length), None) if content_length(length).is_none() => {
            return Err(Failure::Malformed("Content-Length is not a number"));
        }
        _ => {}
    }
    if head.fields.len() > MAX_FIELDS {
        return Err(Failure::TooManyHeaders);
    }
    Ok(())
}

/// The policy's verdict about a request.
///
/// # Errors
///
/// When its host is no host.
pub fn judge(policy: &Policy, peer: &Peer, inbound: &Inbound, head: &RequestHead) -> Result<Verdict, Failure> {
    Ok(policy.judge(&facts(inbound.authority()?.as_ref(), peer, head)))
}

/// What the policy has to know of a request.
pub fn facts<'a>(authority: Option<&'a Authority<'a>>, peer: &Peer, head: &RequestHead) -> Facts<'a> {
    Facts {
        authority,
        peer: peer.address,
        direct: peer.direct,
        local: peer.local.ip(),
        forwarded: forwarding::is_forwarded(&head.fields),
    }
}

/// How a request came.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// From whom.
    pub peer: &'a Peer,
    /// What the peer speaks to hostward.
    pub scheme: &'static str,
    /// When its head was read, in milliseconds since 1970.
    pub started: u64,
}

/// Turns the head that came in into the one that goes out. Read first, then strip, then write: nothing that is written
/// is stripped. Calls `removed` with each header that the app doesn't get, and the reason.
///
/// # Errors
///
/// The refusal, when that is the verdict; or that the body is announced to be too large.
pub fn rewrite(
    head: &mut RequestHead,
    inbound: Inbound,
    verdict: Verdict,
    arrival: Arrival<'_>,
    config: &Config,
    policy: &Policy,
    mut removed: impl FnMut(&Name, Removal),
) -> Result<Origin, Failure> {
    let length = inbound.length;
    // What becomes `Host`, and what becomes `X-Forwarded-Host`.
    let (host, public) = match verdict {
        Verdict::Allowed(_) => match &policy.rewrite_allowed {
            Some(canonical) => (Some(canonical.clone()), inbound.host),
            None => (inbound.host.clone(), inbound.host),
        },
        Verdict::Probe(_) => (policy.canonical.clone(), policy.canonical.clone()),
        Verdict::Reported(_) => (inbound.host.clone(), inbound.host),
        Verdict::Refused(refusal) => return Err(Failure::Refused(refusal)),
    };
    let Arrival { peer, scheme, started } = arrival;
    let settings = &config.forwarding;
    if config.max_body_size.is_some_and(|limit| length > limit) {
        return Err(Failure::BodyTooLarge);
    }
    let websocket = upgrade::asks_for_websocket(head);
    let fields = &mut head.fields;
    let given = forwarding::read(fields, peer, &policy.trusted, settings, || fastrand::u64(1..));
    let client_ip = settings.client_ip_header.as_ref();
    let found =
        fields::strip_request(fields, Sender { trusted: peer.trusted, pass: &settings.pass, client_ip }, &mut removed);
    if let Some(header) = client_ip.filter(|_| given.client_from != Source::ClientIpHeader) {
        // What isn't believed here must not be believed behind.
        fields.retain(|name| {
            let other = name != header;
            if !other {
                removed(name, Removal::ClientIp);
            }
            other
        });
    }

    let facts = forwarding::Facts {
        host: public,
        scheme: settings.client_proto.map_or((scheme, Source::Connection), |scheme| (scheme, Source::ClientProto)),
        probe_scheme: config.probe_proto.filter(|_| matches!(verdict, Verdict::Probe(_))),
        started,
    };
    let origin = forwarding::write(fields, peer, given, facts, make_request_id);
    if settings.forwarded {
        forwarding::write_forwarded(fields, origin.client);
    }
    // RFC 9112 §3.2: a request without an authority is sent with an empty `Host`. Only `HOST_POLICY=report` lets
    // one through.
    fields.insert(HOST, host.unwrap_or(HeaderValue::from_static("")));
    if websocket {
        upgrade::ask_for_websocket(fields);
    } else if found.te_trailers {
        fields.insert(TE, HeaderValue::from_static("trailers"));
        fields.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if head.version == Version::HTTP_2 {
        join_cookies(fields);
        if fields.contains(CONTENT_LENGTH) {
            // Without the zeros in front that the client may have sent.
            fields.insert(CONTENT_LENGTH, length.into());
        }
    }
    if head.target.scheme().is_some() {
        head.target = origin_form(&head.target);
    }
    head.version = Version::HTTP_11;
    Ok(origin)
}

/// Bytes of an HTTP/2 head as HTTP/1.1 would write it, about: one setting bounds both.
pub fn head_size(head: &RequestHead) -> usize {
    let target = head.target.path_and_query().map_or(0, |path| path.as_str().len());
    let fields = head.fields.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    target + fields.sum::<usize>()
}

/// RFC 9113 §8.2.3: the lines of a `Cookie` that was split for HTTP/2 "MUST be concatenated into a single octet
/// string using the two-octet delimiter of 0x3b, 0x20".
fn join_cookies(fields: &mut FieldLines) {
    if fields.get_all(COOKIE).nth(1).is_some() {
        let lines: Vec<&[u8]> = fields.get_all(COOKIE).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
            fields.insert(COOKIE, joined);
        }
    }
}

/// RFC 9112 §3.2.1: what a server is sent. An absolute form without a path asks for `/`.
fn origin_form(target: &Uri) -> Uri {
    target.path_and_query().map_or_else(|| Uri::from_static("/"), |path: &PathAndQuery| Uri::from(path.clone()))
}

/// 128 random bits. An id, not a secret.
pub fn make_request_id() -> HeaderValue {
    let mut text = [0; 32];
    let mut bits = fastrand::u128(..);
    for digit in &mut text {
        *digit = b"0123456789abcdef"[(bits & 15) as usize];
        bits >>= 4;
    }
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&text)).unwrap_or(HeaderValue::from_static("0"))
}
