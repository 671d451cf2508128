//! Answers as the frameworks write them. Those of the apps that are run in `tests/app_refusals.rs` are short here; the
//! others (Vite, ASP.NET Core, the MCP SDKs for TypeScript, Go and Rust) are from their sources.

use http::HeaderValue;
use http::header::HeaderName;

use super::*;

const PROBE: Given<'static> = Given { host: "www.example.com", by: By::Probe("https"), get: true };
const USER: Given<'static> = Given { host: "shop.example.com", by: By::Preserved, get: true };

/// The words for an answer to a probe, and for one to a user.
fn words(status: u16, fields: &[(&str, &str)], body: &str) -> [&'static str; 2] {
    let found = |given| recognise(status, fields, body, given).map_or("-", |refusal| refusal.framework());
    [found(&PROBE), found(&USER)]
}

fn recognise(status: u16, fields: &[(&str, &str)], body: &str, given: &Given<'_>) -> Option<Refusal> {
    let pair = |(name, value): &(&str, &str)| -> (HeaderName, HeaderValue) {
        (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())
    };
    let headers = fields.iter().map(pair).collect();
    let status = StatusCode::from_u16(status).unwrap();
    assert!(may_be(status, true), "{status} is never looked at");
    if !may_be(status, matches!(given.by, By::Probe(_))) {
        return None;
    }
    Refusal::recognise(status, &headers, &body.as_bytes()[..body.len().min(ENOUGH)], given)
}

#[test]
fn every_framework_is_known_by_its_words() {
    let django = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n  <meta name=\"robots\" content=\"NONE,NOARCHIVE\">\n  \
                  <title>DisallowedHost\n          at /</title>";
    assert_eq!(words(400, &[], django), ["django"; 2]);
    let werkzeug = "<!doctype html>\n<html lang=en>\n<title>400 Bad Request</title>\n<h1>Bad Request</h1>\n\
                    <p>Host &#39;evil.example&#39; is not trusted.</p>\n";
    assert_eq!(words(400, &[], werkzeug), ["werkzeug"; 2]);
    assert_eq!(words(400, &[], "Invalid host header"), ["starlette"; 2]);
    let aspnet = "<!DOCTYPE HTML PUBLIC \"-//W3C//DTD HTML 4.01//EN\"\"http://www.w3.org/TR/html4/strict.dtd\">\r\n\
                  <HTML><HEAD><TITLE>Bad Request</TITLE>\r\n\
                  <META HTTP-EQUIV=\"Content-Type\" Content=\"text/html; charset=us-ascii\"></ HEAD >\r\n\
                  <BODY><h2>Bad Request - Invalid Hostname</h2>\r\n\
                  <hr><p>HTTP Error 400. The request hostname is invalid.</p>\r\n</BODY></HTML>";
    assert_eq!(words(400, &[], aspnet), ["aspnet"; 2]);
    let vite = "Blocked request. This host (\"shop.example.com\") is not allowed.\n\
                To allow this host, add \"shop.example.com\" to `server.allowedHosts` in vite.config.js.";
    assert_eq!(words(403, &[], vite), ["vite"; 2]);
    let rails = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n  <meta charset=\"utf-8\" />\n  \
                 <title>Action Controller: Exception caught</title>\n  <style>";
    assert_eq!(words(403, &[], rails), ["rails"; 2]);
    assert_eq!(words(403, &[], "Blocked hosts: shop.example.com"), ["rails"; 2]);
    let mcp = "{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32000,\"message\":\"Invalid Host header: a\"},\"id\":null}";
    assert_eq!(words(403, &[], mcp), ["mcp"; 2]);
    assert_eq!(words(403, &[], "Forbidden: invalid Host header \"shop.example.com\"\n"), ["mcp"; 2]);
    assert_eq!(words(403, &[], "Forbidden: Host header is not allowed"), ["mcp"; 2]);
    assert_eq!(words(421, &[], "Invalid Host header"), ["mcp"; 2]);
    assert_eq!(words(404, &[], "{\"message\": \"Bad hostname provided.\"}"), ["laravel", "-"]);
}

#[test]
fn what_only_may_be_a_refusal_is_one_on_a_probe_and_worded_so() {
    let bare = "\n<!doctype html>\n<html lang=\"en\">\n<head>\n  <title>Bad Request (400)</title>\n</head>\n<body>\n  \
                <h1>Bad Request (400)</h1><p></p>\n</body>\n</html>\n";
    assert_eq!(words(400, &[], bare), ["django"; 2]);
    assert_eq!(recognise(400, &[], bare, &Given { get: false, ..USER }), None);

    let empty = [("content-type", "text/html; charset=utf-8"), ("content-length", "0")];
    assert_eq!(words(403, &empty, ""), ["rails", "-"]);
    for html in [
        "text/html; charset=UTF-8",
        "text/html;charset=utf-8",
        "text/html",
        "Text/HTML ; Charset=\"ISO-8859-1\"; x=y",
        "text/html; charset=utf-8; boundary=a",
    ] {
        assert_eq!(words(403, &[("Content-Type", html), ("Content-Length", "0")], ""), ["rails", "-"], "{html}");
    }
    for other in ["text/plain; charset=utf-8", "text/htmlx", "application/xhtml+xml", "", "; text/html"] {
        assert_eq!(words(403, &[("content-type", other), ("content-length", "0")], ""), ["-"; 2], "{other}");
    }
    let page = "<!DOCTYPE html><title>Not Found</title><style>/*! normalize.css v8.0.1 | MIT License */";
    assert_eq!(words(404, &[], page), ["laravel", "-"]);
    for (status, fields, body) in [(400, &[][..], bare), (403, &empty, ""), (404, &[], page)] {
        let hint = recognise(status, fields, body, &PROBE).unwrap().hint(&PROBE);
        assert!(hint.contains("may not allow HOSTWARD_CANONICAL_HOST=www.example.com"), "{hint}");
    }
}

#[test]
fn an_apps_own_refusals_are_none_of_the_host() {
    // Both from behind the check of the host, which the fields of Rails' later middleware show.
    let id = ("x-request-id", "3f0e");
    let empty = [("content-type", "text/html; charset=utf-8"), ("content-length", "0"), id];
    assert_eq!(words(403, &empty, ""), ["-"; 2]);
    assert_eq!(words(403, &[id], "<title>Action Controller: Exception caught</title>"), ["-"; 2]);
    for (status, body) in [
        (400, ""),
        (400, "{\"detail\":\"JSON parse error\"}"),
        (400, "<title>400 Bad Request</title>\n<p>The browser sent a request that this server could not understand."),
        (403, "<h1>403 Forbidden</h1>"),
        (403, "{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32000,\"message\":\"Invalid Origin header: a\"},\"id\":null}"),
        (404, "<h1>Not Found</h1>"),
        (421, ""),
    ] {
        assert_eq!(words(status, &[], body), ["-"; 2], "{status} {body}");
    }
}

#[test]
fn a_probes_redirect_is_judged_by_where_it_leads() {
    let to = |location: &str, proto| {
        let given = Given { by: By::Probe(proto), ..PROBE };
        let refusal = recognise(301, &[("location", location)], "", &given)?;
        Some((refusal.framework(), refusal.hint(&given)))
    };
    let (word, hint) = to("https://www.example.com/health", "http").unwrap();
    assert_eq!(word, "https_redirect");
    assert!(hint.contains("HOSTWARD_PROBE_PROTO=https"), "{hint}");
    let (word, hint) = to("https://www.example.com:443/health", "https").unwrap();
    assert_eq!(word, "https_redirect");
    assert!(hint.contains("SECURE_PROXY_SSL_HEADER"), "{hint}");
    let (word, hint) = to("https://example.com/health", "https").unwrap();
    assert_eq!(word, "host_redirect");
    assert!(hint.contains("set HOSTWARD_CANONICAL_HOST=example.com"), "{hint}");
    for elsewhere in ["/login", "http://www.example.com/login", "//", ""] {
        assert_eq!(to(elsewhere, "http"), None, "{elsewhere}");
    }
    assert_eq!(recognise(301, &[("location", "https://shop.example.com/")], "", &USER), None);
}

#[test]
fn the_hint_names_the_host_the_list_and_the_setting() {
    for (given, words) in [
        (PROBE, &["HOSTWARD_CANONICAL_HOST=www.example.com", "Django's ALLOWED_HOSTS"][..]),
        (
            USER,
            &[
                "shop.example.com",
                "Django's ALLOWED_HOSTS",
                "HOSTWARD_ALLOWED_HOSTS",
                "HOSTWARD_HOST_REWRITE=canonical",
            ],
        ),
        (Given { by: By::Rewritten, ..PROBE }, &["HOSTWARD_CANONICAL_HOST=www.example.com", "Django's ALLOWED_HOSTS"]),
    ] {
        let hint = Refusal::Django.hint(&given);
        assert!(words.iter().all(|word| hint.contains(word)), "{hint}");
    }
}
