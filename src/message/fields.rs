//! Headers that must not go on: connection-specific ones in both directions, and those of a request that would change
//! what an app takes for its own host, scheme, port, path or files.
//!
//! Strip first, then write: nothing that hostward writes is stripped again. Headers are edited in place,
//! in one pass over the names; only what was found is removed.

use std::collections::HashSet;
use std::fmt;

use http::header::{self, HeaderMap, HeaderName};

use crate::message::lines::FieldLines;
use crate::message::names::{self, Known, Name};

/// What the pass over a request's fields found out, besides stripping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// `TE: trailers`, the one transfer preference that may go on (RFC 9110 §10.1.4).
    pub te_trailers: bool,
}

/// Whose request is stripped, and what may stay in it all the same.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// Whether it is a trusted proxy.
    pub trusted: bool,
    /// The headers that a trusted proxy may send though they are removed from everybody else.
    pub pass: &'a [HeaderName],
    /// The header in which a trusted proxy sends the client's address.
    pub client_ip: Option<&'a Name>,
}

/// Why a request's header is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is connection-specific.
    Connection,
    /// The request's `Connection` names it.
    Option,
    /// Its name has a character other than letters, digits and hyphens.
    Name,
    /// It changes what the app takes for its own host, scheme, port, path or files.
    Override,
    /// hostward writes it.
    Written,
    /// Only a trusted proxy may send it.
    Untrusted,
    /// It should hold the client's address, and doesn't, or not from a trusted proxy.
    ClientIp,
}

impl Removal {
    /// A stable word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection_specific",
            Self::Option => "connection_option",
            Self::Name => "name",
            Self::Override => "override",
            Self::Written => "written",
            Self::Untrusted => "untrusted",
            Self::ClientIp => "client_ip",
        }
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "it is for this connection only",
            Self::Option => "the request's Connection header names it",
            Self::Name => "the name has a character other than letters, digits and hyphens",
            Self::Override => {
                "apps take it for their own host, scheme, port, path or files; HOSTWARD_PASS_HEADERS lets it pass from trusted proxies"
            }
            Self::Written => "hostward writes this header itself",
            Self::Untrusted => "only a peer in HOSTWARD_TRUSTED_PROXIES may send it",
            Self::ClientIp => {
                "HOSTWARD_CLIENT_IP_HEADER names it, and it is not one line with an address from a peer in HOSTWARD_TRUSTED_PROXIES"
            }
        })
    }
}

/// Strips from a request what is connection-specific, what a client may not say, and what hostward writes. Calls
/// `removed` with each header that the app doesn't get as it came, and the reason.
pub fn strip_request(fields: &mut FieldLines, sender: Sender<'_>, mut removed: impl FnMut(&Name, Removal)) -> Found {
    let te_trailers = fields.get_all(names::TE).any(|value| value.eq_ignore_ascii_case(b"trailers"));
    let options = fields.get_all(names::CONNECTION).flat_map(connection_options);
    // Nearly always empty; but there may be thousands, to be looked for in each line.
    let options: HashSet<Name> = options.filter_map(|option| Name::read(option).ok()).collect();
    fields.retain(|name| {
        let why = match name {
            Name::Known(known) if is_for_the_app(*known) => return true,
            Name::Known(names::CONNECTION | names::TE) => return false,
            Name::Known(
                names::X_FORWARDED_FOR | names::X_FORWARDED_PROTO | names::X_FORWARDED_PORT | names::X_REQUEST_ID,
            ) if sender.trusted => {
                // What it says has been read, and is written again.
                return false;
            }
            name => match removal(name.as_str(), sender) {
                None => return true,
                Some(why) => why,
            },
        };
        removed(name, why);
        false
    });
    if !options.is_empty() {
        fields.retain(|name| {
            let stays = !options.contains(name)
                || is_protected(name.as_str())
                || sender.client_ip == Some(name)
                || sender.passes(name.as_str());
            if !stays {
                removed(name, Removal::Option);
            }
            stays
        });
    }
    Found { te_trailers }
}

impl Sender<'_> {
    fn passes(self, name: &str) -> bool {
        self.trusted && self.pass.iter().any(|passed| passed.as_str() == name)
    }
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

/// Removes from a response the headers with which an app tells nginx, Apache or lighttpd what to do. Returns the name of a
/// header that asks for a file instead of the response's body, which the client doesn't get without that server.
pub fn strip_server_commands(headers: &mut HeaderMap) -> Option<&'static str> {
    // Nearly no response has one.
    if !headers.keys().any(|name| is_server_command(name.as_str())) {
        return None;
    }
    let found: Vec<HeaderName> = headers.keys().filter(|name| is_server_command(name.as_str())).cloned().collect();
    for name in &found {
        headers.remove(name);
    }
    SENDFILE.into_iter().find(|command| found.iter().any(|name| name.as_str().eq_ignore_ascii_case(command)))
}

/// Whether a header, whose name is in lower case, is for the server in front of the app alone.
fn is_server_command(name: &str) -> bool {
    name.starts_with("x-")
        && (name.starts_with("x-accel-") || SENDFILE.iter().any(|command| name.eq_ignore_ascii_case(command)))
}

/// What asks nginx, Apache, lighttpd, Litespeed and Perlbal for a file.
const SENDFILE: [&str; 7] = [
    "X-Accel-Redirect",
    "X-Sendfile",
    "X-Sendfile2",
    "X-Lighttpd-Send-File",
    "X-Lighttpd-Send-Tempfile",
    "X-LiteSpeed-Location",
    "X-Reproxy-URL",
];

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
    let anybody = Sender { trusted: false, pass: &[], client_ip: None };
    let doomed = |name: &&HeaderName| only_in_heads.contains(name) || removal(name.as_str(), anybody).is_some();
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
        .filter(|name| !is_protected(name.as_str()))
        .collect();
    for name in named {
        headers.remove(name);
    }
    headers.remove(header::CONNECTION);
}

/// What a `Connection` line names that is to be removed with it.
pub(super) fn connection_options(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let options = line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    // Nearly always `keep-alive`, and such a header is removed in any case.
    options.filter(|option| !option.is_empty() && !option.eq_ignore_ascii_case(b"keep-alive"))
}

/// Whether a header stays though `Connection` names it. A client that names one of these wants the app to see another
/// request than it sent, or than a proxy on the way forwarded. RFC 9110 §7.6.1: "A sender MUST NOT
/// send a connection option corresponding to a field that is intended for all recipients of the content."
fn is_protected(name: &str) -> bool {
    matches!(
        name,
        "host"
            | "content-length"
            | "cookie"
            | "authorization"
            | "forwarded"
            | "via"
            | "x-real-ip"
            | "x-request-id"
            | "x-request-start"
            | "traceparent"
            | "tracestate"
    ) || name.starts_with("x-forwarded-")
        || name.starts_with("x-amzn-")
}

/// Whether a request's header passes from every sender, which is quicker to find out than by its text.
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
            | names::X_FORWARDED_FOR
            | names::X_FORWARDED_HOST
            | names::X_FORWARDED_PORT
            | names::X_FORWARDED_PROTO
            | names::X_REAL_IP
            | names::X_REQUEST_ID
            | names::X_REQUEST_START
    )
}

/// Why a request's header of this name, which is in lower case, must not go on.
fn removal(name: &str, sender: Sender<'_>) -> Option<Removal> {
    if !is_plain_name(name) {
        // WSGI and CGI make `X_Forwarded_For` and `X-Forwarded-For` one variable, and PHP `X.Forwarded.For` too. nginx
        // drops such names as well.
        return Some(Removal::Name);
    }
    if is_written(name) {
        return Some(Removal::Written);
    }
    if is_connection_specific(name) {
        return Some(Removal::Connection);
    }
    if is_override(name) {
        return (!sender.passes(name)).then_some(Removal::Override);
    }
    let untrusted =
        !sender.trusted && name.starts_with("x-amzn-") && ALB_ONLY.iter().any(|prefix| name.starts_with(prefix));
    untrusted.then_some(Removal::Untrusted)
}

/// Whether a header's name, in lower case, has nothing but letters, digits and hyphens. Without a branch a byte, which is
/// quicker than a search: names are short, and nearly all are plain.
pub fn is_plain_name(name: &str) -> bool {
    name.bytes().filter(|byte| !matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')).count() == 0
}

/// Whether hostward always writes this request header itself. `X-Queue-Start` is another name for
/// `X-Request-Start`.
pub fn is_written(name: &str) -> bool {
    match name.len() {
        9 => name == "x-real-ip",
        12 => name == "x-request-id",
        13 => name == "x-queue-start",
        15 => matches!(name, "x-forwarded-for" | "x-request-start"),
        16 => matches!(name, "x-forwarded-host" | "x-forwarded-port"),
        17 => name == "x-forwarded-proto",
        _ => false,
    }
}

/// Whether a request's header is for one connection only, or for the recipient of the request alone.
pub fn is_connection_specific(name: &str) -> bool {
    match name.len() {
        2 => name == "te",
        6 => name == "expect",
        7 => name == "upgrade",
        10 => matches!(name, "connection" | "keep-alive"),
        14 => name == "http2-settings",
        16 => name == "proxy-connection",
        17 => name == "transfer-encoding",
        _ => false,
    }
}

/// Whether a framework, or a server that apps run on, takes this request header for its own host, scheme, port or path,
/// or for where its files are. Load balancers neither write nor remove most of these, so that clients can send them
/// through. By length first: this runs for many headers of every request.
pub fn is_override(name: &str) -> bool {
    // All of the family: `-Prefix`, `-Path`, `-Uri`, `-User`, `-Ssl`, `-Scheme`, `-Server`, `-By` …
    if name.starts_with("x-forwarded") {
        return !is_written(name) && matches!(name.as_bytes().get(X_FORWARDED.len()), None | Some(b'-'));
    }
    match name.len() {
        5 => name == "proxy",
        6 => name == "x-host",
        7 => name == "x-proto",
        8 => name == "x-scheme",
        9 => matches!(name, "forwarded" | "x-arr-ssl"),
        10 => name == "cf-visitor",
        11 => matches!(name, "x-proxyhost" | "x-proxyport"),
        12 => matches!(name, "x-url-scheme" | "wl-proxy-ssl" | "proxy-ssl-id"),
        13 => matches!(name, "x-rewrite-url" | "x-script-name" | "x-proxyscheme" | "https-from-lb" | "ssl-offloaded"),
        14 => matches!(name, "x-original-url" | "x-original-uri" | "x-ingress-path"),
        15 => matches!(
            name,
            "x-original-host"
                | "x-original-path"
                | "x-original-port"
                | "front-end-https"
                | "x-sendfile-type"
                | "x-accel-mapping"
                | "x-proxied-https"
                | "proxy-auth-cert"
        ),
        16 => name == "x-original-proto",
        17 => matches!(name, "x-original-scheme" | "x-original-method" | "x-original-prefix"),
        18 => name == "x-proxycontextpath",
        20 => name == "x-http-host-override",
        26 => name == "cloudfront-forwarded-proto",
        _ => false,
    }
}

const X_FORWARDED: &str = "x-forwarded";

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

    fn sender(trusted: bool) -> Sender<'static> {
        Sender { trusted, pass: &[], client_ip: None }
    }

    fn strip(fields: &mut FieldLines, trusted: bool) -> Found {
        strip_request(fields, sender(trusted), |_, _| {})
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
        strip(&mut fields, true);
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
        strip(&mut fields, true);
        assert_eq!(fields.len(), 49);
    }

    #[test]
    fn a_connection_option_can_not_remove_what_every_recipient_needs() {
        let protected = ["host", "content-length", "cookie", "authorization", "via", "traceparent", "x-amzn-trace-id"];
        let options = [&protected[..], &["x-passed", "cf-connecting-ip", "x-hop"]].concat().join(", ");
        let mut sent =
            vec![("Connection", options.as_str()), ("X-Passed", "1"), ("CF-Connecting-IP", "1"), ("X-Hop", "1")];
        sent.extend(protected.map(|name| (name, "1")));
        let mut fields = lines(&sent);
        let client_ip = Name::read(b"cf-connecting-ip").unwrap();
        let pass = [HeaderName::from_static("x-passed")];
        strip_request(&mut fields, Sender { trusted: true, pass: &pass, client_ip: Some(&client_ip) }, |_, _| {});
        let mut expected = [&protected[..], &["x-passed", "cf-connecting-ip"]].concat();
        expected.sort_unstable();
        assert_eq!(left(&fields), expected);
        let mut trailers = map(&[("Connection", "x-amzn-a, x-b"), ("X-Amzn-A", "1"), ("X-B", "1")]);
        strip_trailers(&mut trailers);
        assert_eq!(names(&trailers), ["x-amzn-a"]);
    }

    #[test]
    fn a_name_has_letters_digits_and_hyphens() {
        for name in [
            "X.Forwarded.For",
            "X_Forwarded_For",
            "x!a",
            "x#",
            "$wssn",
            "x%",
            "x&",
            "'",
            "x*",
            "x+",
            "x^",
            "`",
            "|",
            "~",
        ] {
            for trusted in [true, false] {
                let mut fields = lines(&[(name, "1"), ("X-Plain-9", "1")]);
                let mut why = Vec::new();
                strip_request(&mut fields, sender(trusted), |name, reason| {
                    why.push((name.as_str().to_owned(), reason));
                });
                assert_eq!(left(&fields), ["x-plain-9"], "{name}");
                assert_eq!(why, [(name.to_ascii_lowercase(), Removal::Name)]);
            }
            let mut trailers = map(&[(name, "1"), ("X-Plain-9", "1")]);
            strip_trailers(&mut trailers);
            assert_eq!(names(&trailers), ["x-plain-9"]);
        }
    }

    #[test]
    fn a_named_override_passes_from_trusted_peers_alone() {
        let pass = [HeaderName::from_static("x-forwarded-user"), header::FORWARDED];
        let sent =
            lines(&[("X-Forwarded-User", "u"), ("Forwarded", "for=a"), ("X-Forwarded-Prefix", "/e"), ("X-User_", "u")]);
        let left_of = |trusted| {
            let mut fields = sent.clone();
            strip_request(&mut fields, Sender { trusted, pass: &pass, client_ip: None }, |_, _| {});
            fields.iter().map(|(name, _)| name.as_str().to_owned()).collect::<Vec<_>>()
        };
        let mut passed = left_of(true);
        passed.sort_unstable();
        assert_eq!(passed, ["forwarded", "x-forwarded-user"]);
        assert!(left_of(false).is_empty());
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
            ("X-Forwarded", "for=e"),
            ("X-Forwarded-Prefix", "//evil"),
            ("X-Forwarded-Anything", "e"),
            ("X-HTTP-Host-Override", "e"),
            ("X-Script-Name", "/e"),
            ("X-Accel-Mapping", "/e=/e"),
            ("X-ProxyContextPath", "/e"),
            ("Content-Type", "a/b"),
            ("X-Amzn-Trace-Id", "Root=1-2-3"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("X-Real-IP", "1.2.3.4"),
            ("X-Request-Start", "t=1"),
            ("X-Queue-Start", "t=1"),
            ("X-HTTP-Method-Override", "PUT"),
            ("X-Forwardedness", "1"),
        ]);
        strip(&mut fields, true);
        let kept = ["accept", "content-type", "x-amzn-trace-id", "x-forwardedness", "x-http-method-override"];
        assert_eq!(left(&fields), kept);
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
        strip(&mut fields, true);
        assert_eq!(fields.len(), 4);
        strip(&mut fields, false);
        assert_eq!(left(&fields), ["x-amzn-trace-id"]);
    }

    #[test]
    fn te_is_stripped_and_trailers_remembered() {
        let mut fields = lines(&[("TE", "trailers"), ("Connection", "te")]);
        assert!(strip(&mut fields, true).te_trailers);
        assert!(fields.is_empty());
        assert!(!strip(&mut lines(&[("TE", "gzip")]), true).te_trailers);
    }

    #[test]
    fn of_the_known_names_those_are_for_the_app_that_are_never_stripped() {
        for name in names::all() {
            let specific = [names::CONNECTION, names::TE].contains(&name);
            let stripped = specific || removal(name.as_str(), sender(false)).is_some();
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
    fn commands_to_another_server_are_removed_and_those_for_files_are_found() {
        for (name, found) in [
            ("X-Accel-Redirect", Some("X-Accel-Redirect")),
            ("x-sendfile", Some("X-Sendfile")),
            ("X-SENDFILE2", Some("X-Sendfile2")),
            ("X-LIGHTTPD-send-file", Some("X-Lighttpd-Send-File")),
            ("X-Reproxy-Url", Some("X-Reproxy-URL")),
            ("X-Accel-Buffering", None),
            ("X-Accel-Expires", None),
            ("X-Accel-Anything", None),
        ] {
            let mut headers = map(&[("X-Accelerate", "1"), (name, "/internal"), ("X-Sendfiles", "1"), (name, "/more")]);
            assert_eq!(strip_server_commands(&mut headers), found, "{name}");
            assert_eq!(names(&headers), ["x-accelerate", "x-sendfiles"], "{name}");
        }
        let both = &mut map(&[("X-Accel-Buffering", "no"), ("X-Sendfile", "/a"), ("Via", "1.1 a")]);
        assert_eq!(strip_server_commands(both), Some("X-Sendfile"));
        assert_eq!(names(both), ["via"]);
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
