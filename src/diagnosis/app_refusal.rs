//! Did the app turn a request down for its `Host`, or send a probe elsewhere? Recognised by the status, the fields and
//! the first bytes of the answer, as each framework writes them, and put into words: what it was, and what to set
//! where. Pure; who looks at answers is `observer`.

use std::fmt;

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::Authority;
use http::{StatusCode, Uri};

use crate::message::location::without_port;

/// What an app's answer says about the host it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Django's debug page for `DisallowedHost`.
    Django,
    /// Django's 400 without `DEBUG`: the same page for everything that is suspicious.
    DjangoBare,
    /// Rails' development page, or its text.
    Rails,
    /// Rails' 403 in production, which is empty.
    RailsBare,
    /// Werkzeug's `SecurityError`, which is Flask's too.
    Werkzeug,
    /// Starlette's `TrustedHostMiddleware`, and so `FastAPI`'s.
    Starlette,
    /// Vite's dev server, or its preview server.
    Vite,
    /// ASP.NET Core's host filtering.
    AspNet,
    /// An MCP server's protection against DNS rebinding.
    Mcp,
    /// Laravel, in JSON.
    Laravel,
    /// Laravel's page for what isn't found, or isn't a good request.
    LaravelBare,
    /// An app that isn't known, of which a comparison has shown that the host decides.
    Other {
        /// A host for which it has another status.
        with: String,
        /// That status.
        status: StatusCode,
    },
    /// A probe that is sent to HTTPS.
    HttpsRedirect,
    /// A probe that is sent to this host.
    HostRedirect(Authority),
}

/// What the app was given.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The host that it saw.
    pub host: &'a str,
    /// How the request came by that host.
    pub by: By,
    /// Whether it was a `GET`: a form may be a bad request for many reasons.
    pub get: bool,
}

/// Why the app saw that host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A probe: `CANONICAL_HOST`, and this `X-Forwarded-Proto`.
    Probe(&'static str),
    /// An allowed host, as it came.
    Preserved,
    /// An allowed host, for which `HOST_REWRITE=canonical` wrote `CANONICAL_HOST`.
    Rewritten,
}

/// Whether an answer with this status may be a refusal. A user's 404 or redirect never is.
pub fn may_be(status: StatusCode, probe: bool) -> bool {
    match status.as_u16() {
        400 | 403 | 421 => true,
        301 | 302 | 307 | 308 | 404 => probe,
        _ => false,
    }
}

/// Whether a redirect leads to the very URL that was asked for, but by HTTPS. Ports say nothing here: an app that
/// doesn't know the client's names its own.
pub fn is_same_by_https(location: &[u8], host: Option<&HeaderValue>, target: &Uri) -> bool {
    let Some(location) = std::str::from_utf8(location).ok().and_then(|text| text.parse::<Uri>().ok()) else {
        return false;
    };
    let (Some(to), Some(host)) = (location.host(), host) else { return false };
    let path = |uri: &Uri| uri.path_and_query().map_or_else(|| "/".into(), |path| path.as_str().to_owned());
    location.scheme_str() == Some("https")
        && without_port(host.as_bytes()).eq_ignore_ascii_case(to.as_bytes())
        && path(&location) == path(target)
}

impl Refusal {
    /// Looks at an answer's head and the first bytes of its body, at most [`ENOUGH`] of them.
    pub fn recognise(status: StatusCode, headers: &HeaderMap, start: &[u8], given: &Given<'_>) -> Option<Self> {
        let probe = matches!(given.by, By::Probe(_));
        let has = |text: &str| memchr::memmem::find(start, text.as_bytes()).is_some();
        match status.as_u16() {
            // django/views/debug.py: the technical 500 page begins with the exception's name.
            400 if has("<title>DisallowedHost") || start.starts_with(b"DisallowedHost at ") => Some(Self::Django),
            // werkzeug/sansio/utils.py, get_host: `SecurityError(f"Host {host!r} is not trusted.")`.
            400 if has("<title>400 Bad Request</title>") && has(" is not trusted.") => Some(Self::Werkzeug),
            // starlette/middleware/trustedhost.py
            400 if start == b"Invalid host header" => Some(Self::Starlette),
            // src/Middleware/HostFiltering/src/HostFilteringMiddleware.cs: `DefaultResponse`.
            400 if has("<h2>Bad Request - Invalid Hostname</h2>") => Some(Self::AspNet),
            // django/views/defaults.py, bad_request: `ERROR_PAGE_TEMPLATE`.
            400 if given.get && has("<h1>Bad Request (400)</h1><p></p>") => Some(Self::DjangoBare),
            // vite/src/node/server/middlewares/hostCheck.ts
            403 if has("Blocked request. This host (") => Some(Self::Vite),
            // Of the SDKs, the one for TypeScript answers in JSON (src/server/streamableHttp.ts), Go's in this text
            // (mcp/streamable.go), and Rust's (rmcp, streamable_http_server/tower.rs) in the next.
            403 if has("\"jsonrpc\"") && (has("Invalid Host") || has("Missing Host")) => Some(Self::Mcp),
            403 if start.starts_with(b"Forbidden: invalid Host header") => Some(Self::Mcp),
            403 if start.starts_with(b"Forbidden: Host header is not allowed") => Some(Self::Mcp),
            // actionpack/lib/action_dispatch/middleware/host_authorization.rb: the first middleware of all. The page
            // names the host behind a long style sheet, and has its title in common with every other error.
            403 if !passed_rails(headers) && (has("Blocked host") || has(RAILS_TITLE)) => Some(Self::Rails),
            403 if probe && !passed_rails(headers) && is_empty_html(headers, start) => Some(Self::RailsBare),
            // mcp/server/transport_security.py
            421 if start == b"Invalid Host header" => Some(Self::Mcp),
            // Illuminate/Foundation/Exceptions/Handler.php makes a 404 of Symfony's exception, or a 400; both have
            // the page views/minimal.blade.php.
            400 | 404 if has("Bad hostname provided.") => Some(Self::Laravel),
            400 | 404 if probe && has("normalize.css v8.0.1") && (has(NOT_FOUND) || has(BAD_REQUEST)) => {
                Some(Self::LaravelBare)
            }
            301 | 302 | 307 | 308 => Self::redirect(headers, given),
            _ => None,
        }
    }

    /// Where a probe is sent: to HTTPS, or to another host.
    fn redirect(headers: &HeaderMap, given: &Given<'_>) -> Option<Self> {
        let By::Probe(proto) = given.by else { return None };
        let target: Uri = headers.get(header::LOCATION)?.to_str().ok()?.parse().ok()?;
        let host = target.authority()?;
        let https = target.scheme_str() == Some("https");
        let same = name(host.as_str()).eq_ignore_ascii_case(name(given.host));
        match (https, same) {
            (true, _) if proto != "https" => Some(Self::HttpsRedirect),
            (true, true) => Some(Self::HttpsRedirect),
            (_, false) => Some(Self::HostRedirect(host.clone())),
            (false, true) => None,
        }
    }

    /// A stable word.
    pub fn framework(&self) -> &'static str {
        match self {
            Self::Django | Self::DjangoBare => "django",
            Self::Rails | Self::RailsBare => "rails",
            Self::Werkzeug => "werkzeug",
            Self::Starlette => "starlette",
            Self::Vite => "vite",
            Self::AspNet => "aspnet",
            Self::Mcp => "mcp",
            Self::Laravel | Self::LaravelBare => "laravel",
            Self::Other { .. } => "unknown",
            Self::HttpsRedirect => "https_redirect",
            Self::HostRedirect(_) => "host_redirect",
        }
    }

    /// The app's own list of hosts.
    fn list(&self) -> &'static str {
        match self {
            Self::Django | Self::DjangoBare => "Django's ALLOWED_HOSTS",
            Self::Rails | Self::RailsBare => "Rails' config.hosts",
            Self::Werkzeug => "Werkzeug's trusted_hosts (in Flask: TRUSTED_HOSTS)",
            Self::Starlette => "TrustedHostMiddleware's allowed_hosts",
            Self::Vite => "Vite's server.allowedHosts (vite preview: preview.allowedHosts)",
            Self::AspNet => "ASP.NET Core's AllowedHosts",
            Self::Mcp => "the MCP server's allowed hosts",
            Self::Laravel | Self::LaravelBare => "Laravel's trusted hosts (TrustHosts)",
            Self::Other { .. } => {
                "the app's own list of hosts (Jupyter: ServerApp.local_hostnames; MLflow: --allowed-hosts; Tomcat: a \
                 <Host>)"
            }
            Self::HttpsRedirect | Self::HostRedirect(_) => "the app's own list of hosts",
        }
    }

    /// What to set where.
    pub fn hint(&self, given: &Given<'_>) -> String {
        let (list, host) = (self.list(), given.host);
        match (self, given.by) {
            (Self::HttpsRedirect, By::Probe("https")) => {
                "the app was told X-Forwarded-Proto: https and doesn't believe it: let it believe hostward (Django: \
                 SECURE_PROXY_SSL_HEADER; Laravel: trustProxies; ASP.NET Core: UseForwardedHeaders; uvicorn: \
                 FORWARDED_ALLOW_IPS), or leave the health check's path out of the redirect"
                    .to_owned()
            }
            (Self::HttpsRedirect, _) => {
                "the app sends to HTTPS what was not asked by HTTPS; HOSTWARD_PROBE_PROTO=https tells it that a health \
                 check was"
                    .to_owned()
            }
            (Self::HostRedirect(to), _) => format!(
                "the app sends HOSTWARD_CANONICAL_HOST={host} to {to}: set HOSTWARD_CANONICAL_HOST={to}, or give the \
                 health check a path that answers 200"
            ),
            (Self::Other { with, .. }, _) => format!(
                "the app doesn't allow HOSTWARD_CANONICAL_HOST={host}: set it to a host that is in {list}, which {with} \
                 is, or add {host} there"
            ),
            // actionpack's host_authorization.rb judges `X-Forwarded-Host` by the same list.
            (Self::Rails | Self::RailsBare, By::Rewritten) => format!(
                "the app {} HOSTWARD_CANONICAL_HOST={host}, or the client's host, which it reads in X-Forwarded-Host: both \
                 have to be in {list}",
                self.verb()
            ),
            (Self::Rails | Self::RailsBare, By::Preserved) => {
                format!("the app {} {host}: add it to {list}, or take it out of HOSTWARD_ALLOWED_HOSTS", self.verb())
            }
            (_, By::Probe(_) | By::Rewritten) => format!(
                "the app {} HOSTWARD_CANONICAL_HOST={host}: set it to a host that is in {list}, or add {host} there",
                self.verb()
            ),
            (_, By::Preserved) => format!(
                "the app {} {host}: add it to {list}, or take it out of HOSTWARD_ALLOWED_HOSTS, or let the app see one \
                 host alone with HOSTWARD_HOST_REWRITE=canonical",
                self.verb()
            ),
        }
    }

    /// How sure it is.
    fn verb(&self) -> &'static str {
        match self {
            Self::DjangoBare | Self::RailsBare | Self::LaravelBare => "may not allow",
            _ => "doesn't allow",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Other { with, status } => return write!(f, "the same request with Host: {with} gets {status}"),
            Self::Django => "Django's DisallowedHost",
            Self::DjangoBare => "Django's bare 400, which is its answer to a host it doesn't allow, among others",
            Self::Rails => "Rails' blocked host",
            Self::RailsBare => "an empty 403 from before the app, as Rails gives to a host it doesn't allow",
            Self::Werkzeug => "Werkzeug's untrusted host",
            Self::Starlette => "TrustedHostMiddleware's invalid host",
            Self::Vite => "Vite's blocked request",
            Self::AspNet => "ASP.NET Core's invalid hostname",
            Self::Mcp => "an MCP server's protection against DNS rebinding",
            Self::Laravel => "Laravel's bad hostname",
            Self::LaravelBare => "Laravel's bare page, which is its answer to an untrusted host, among others",
            Self::HttpsRedirect => "a health check was redirected to HTTPS, and no health check follows",
            Self::HostRedirect(_) => "a health check was redirected to another host, and no health check follows",
        })
    }
}

/// Whether the answer has been through `Rack::Runtime` or `RequestId`, which stand behind the check of the host.
fn passed_rails(headers: &HeaderMap) -> bool {
    headers.contains_key("x-runtime") || headers.contains_key("x-request-id")
}

fn is_empty_html(headers: &HeaderMap, start: &[u8]) -> bool {
    let is_empty = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length == "0");
    start.is_empty() && is_empty && media_type(headers).eq_ignore_ascii_case(b"text/html")
}

/// The `Content-Type` without its parameters, whose form depends on the app's settings (a generated Rails app has
/// `charset=UTF-8`, one that is put together has `charset=utf-8`). RFC 9110 §8.3.1: type and subtype are case-insensitive.
fn media_type(headers: &HeaderMap) -> &[u8] {
    let value = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

/// A host without its port.
fn name(host: &str) -> &str {
    host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(name, _)| name)
}

/// Bytes of an answer that say everything.
pub const ENOUGH: usize = 1024;
const RAILS_TITLE: &str = "<title>Action Controller: Exception caught</title>";
const NOT_FOUND: &str = "<title>Not Found</title>";
const BAD_REQUEST: &str = "<title>Bad Request</title>";

#[cfg(test)]
mod tests;
