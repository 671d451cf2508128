//! Contract 3: which fields pass, in both directions. What nobody expects fails the test.

use crate::support::Task;
use crate::support::app::{Received, Then, answer};
use crate::support::hostward::Hostward;
use crate::support::http2::{self, ask_once, connect, get as http2_get, run};
use crate::support::uwsgi::UwsgiApp;
use crate::support::wire::{Answer, get};

/// What hostward writes on a request with `Host: www.example.com` and no forwarding fields.
const OURS: [(&str, &str); 8] = [
    ("host", "www.example.com"),
    ("x-forwarded-for", "127.0.0.1"),
    ("x-forwarded-proto", "http"),
    ("x-forwarded-port", "*"),
    ("x-forwarded-host", "www.example.com"),
    ("x-real-ip", "127.0.0.1"),
    ("x-request-id", "*"),
    ("x-request-start", "*"),
];

/// Asserts that the app received ours, these, and no others.
fn assert_only(received: &Received, theirs: &[(&str, &str)]) {
    received.assert_fields(&[&OURS, theirs].concat());
}

fn request(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: www.example.com\r\n{fields}\r\n")
}

#[test]
fn what_no_client_may_say_is_removed_from_everybody() {
    let names = [
        "Proxy",
        "X-Host",
        "X-Original-Host",
        "X-Forwarded-Server",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Forwarded-Ssl",
        "X-Forwarded-Protocol",
        "X-Forwarded-Scheme",
        "X-Scheme",
        "Front-End-Https",
        "Forwarded",
        "X-Forwarded",
        "X-Forwarded-Prefix",
        "X-Forwarded-Path",
        "X-Forwarded-Uri",
        "X-Forwarded-User",
        "X-Forwarded-By",
        "X-Forwarded-Context",
        "X-Forwarded-Any-Other",
        "X-HTTP-Host-Override",
        "X-Original-URI",
        "X-Original-Method",
        "X-Script-Name",
        "X-Url-Scheme",
        "X-ProxyHost",
        "X-ProxyPort",
        "X-ProxyScheme",
        "X-ProxyContextPath",
        "X-ARR-SSL",
        "X-Proxied-Https",
        "WL-Proxy-SSL",
        "CF-Visitor",
        "CloudFront-Forwarded-Proto",
        "X-Sendfile-Type",
        "X-Accel-Mapping",
        "X-Queue-Start",
        // Names that PHP can't tell from others, and all other characters of a token.
        "X.Forwarded.For",
        "X-Forwarded.Proto",
        "X.Real.IP",
        "X~Forwarded~For",
        "$WSSN",
        "a!b",
        "a#b",
        "a%20b",
        "a&b",
        "a'b",
        "a*b",
        "a+b",
        "a^b",
        "a`b",
        "a|b",
        // Names that WSGI can't tell from others.
        "X_Forwarded_For",
        "X_Forwarded_Host",
        "X_Forwarded-Proto",
        "X-Forwarded_Port",
        "x_real_ip",
        "HOST_",
        "_",
        "a_b",
        "Content_Length",
        "Transfer_Encoding",
        "X_Request_Id",
    ];
    for trusted in ["private", "none"] {
        let task = Task::echo(&[("HOSTWARD_TRUSTED_PROXIES", trusted)]);
        // Fewer lines than a head may have.
        for some in names.chunks(20) {
            let mut all = String::new();
            for name in some {
                let line = format!("{name}: on\r\n");
                assert_only(&task.admitted(request(&line)), &[]);
                all += &line;
                all += &line.to_uppercase();
            }
            assert_only(
                &task.admitted(request(&format!("Accept: */*\r\n{all}Cookie: a=b\r\n"))),
                &[("accept", "*/*"), ("cookie", "a=b")],
            );
        }
    }
}

#[test]
fn what_a_load_balancer_says_is_believed_from_a_trusted_peer_alone() {
    let theirs = [
        ("x-amzn-oidc-data", "eyJ"),
        ("x-amzn-oidc-identity", "root"),
        ("x-amzn-oidc-accesstoken", "t"),
        ("x-amzn-mtls-clientcert", "-----BEGIN"),
        ("x-amzn-mtls-clientcert-subject", "CN=root"),
        ("x-amzn-tls-version", "TLSv1.3"),
        ("x-amzn-tls-cipher-suite", "TLS_AES_128_GCM_SHA256"),
    ];
    let lines = theirs.map(|(name, value)| format!("{}: {value}\r\n", name.to_uppercase())).concat();
    let task = Task::echo(&[]);
    assert_only(&task.admitted(request(&lines)), &theirs);
    let task = Task::echo(&[("HOSTWARD_TRUSTED_PROXIES", "none")]);
    assert_only(&task.admitted(request(&lines)), &[]);
}

#[test]
fn connection_specific_fields_stay_on_their_side() {
    let task = Task::echo(&[]);
    assert_only(
        &task.admitted(request(
            "Connection: keep-alive, X-One\r\nX-One: 1\r\nX-Two: 2\r\nconnection: x-TWO,X-Three ,, close\r\nX-Three: 3\r\n\
             X-Three: 3\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nUpgrade: foo/2\r\nX-Four: 4\r\n",
        )),
        &[("x-four", "4")],
    );
}

#[test]
fn connection_options_cannot_remove_what_hostward_writes() {
    let task = Task::echo(&[]);
    let ours: Vec<&str> = OURS.iter().map(|(name, _)| *name).collect();
    assert_only(&task.admitted(request(&format!("Connection: {}\r\nConnection: close\r\n", ours.join(", ")))), &[]);
}

#[test]
fn connection_options_cannot_remove_what_a_proxy_or_the_app_relies_on() {
    let theirs = [
        ("cookie", "a=b"),
        ("authorization", "Bearer t"),
        ("x-amzn-trace-id", "Root=1-67891233-abcdef012345678912345678"),
        ("x-amzn-oidc-identity", "user"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("via", "1.1 proxy"),
    ];
    let forwarded = [("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Port", "8444")];
    let names: Vec<&str> = theirs.iter().chain(&forwarded).map(|(name, _)| *name).collect();
    let lines: Vec<String> =
        theirs.iter().chain(&forwarded).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let lines = lines.concat();
    let task = Task::echo(&[]);
    for options in [names.join(", "), names.join(",").to_uppercase(), format!("close, {}", names.join(" , "))] {
        let received = task.admitted(request(&format!("Connection: {options}, x-hop\r\nX-Hop: 1\r\n{lines}")));
        let mut expected = [&OURS[..], &theirs].concat();
        for (name, value) in [
            ("x-forwarded-for", "203.0.113.9, 127.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "8444"),
            ("x-real-ip", "203.0.113.9"),
        ] {
            expected.iter_mut().filter(|(ours, _)| *ours == name).for_each(|(_, written)| *written = value);
        }
        received.assert_fields(&expected);
    }
}

#[test]
fn a_request_that_comes_in_parts_or_over_http_2_is_stripped_alike() {
    let lines = [
        ("x.forwarded.for", "6.6.6.6"),
        ("x_forwarded_for", "6.6.6.6"),
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-prefix", "//evil.example"),
        ("x-script-name", "/evil"),
        ("x-request-start", "t=1"),
        ("x-queue-start", "t=1"),
        ("x-plain-9", "1"),
    ];
    let task = Task::echo(&[("HOSTWARD_TRUSTED_PROXIES", "none")]);
    let whole = request(&lines.map(|(name, value)| format!("{name}: {value}\r\n")).concat());
    for cut in [whole.len(), 10, whole.len() / 2, whole.len() - 1] {
        let mut client = task.client();
        client.send(&whole[..cut]);
        std::thread::sleep(std::time::Duration::from_millis(20));
        client.send(&whole[cut..]);
        client.answer().expect(200);
        let received = task.app.last();
        assert_only(&received, &[("x-plain-9", "1")]);
        assert_ne!(received.field("x-request-start"), Some("t=1"));
    }
    let mut request = http::Request::get("http://www.example.com/");
    for (name, value) in lines {
        request = request.header(name, value);
    }
    let answer = ask_once(task.hostward.address, request.body(()).unwrap(), b"");
    assert_eq!(answer.status, 200);
    assert_only(&task.app.last(), &[("x-plain-9", "1")]);
}

#[test]
fn what_hostward_writes_stands_behind_what_the_client_sent() {
    let task = Task::echo(&[]);
    let received = task.admitted(request(
        "X-Forwarded-For: 203.0.113.9\r\nX-Real-IP: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nAccept: */*\r\nX-Own: 1\r\n",
    ));
    let at = |name: &str| received.fields.iter().position(|(given, _)| given.eq_ignore_ascii_case(name)).unwrap();
    for name in ["x-forwarded-for", "x-real-ip", "x-forwarded-proto", "x-forwarded-port", "x-forwarded-host"] {
        assert!(at(name) > at("x-own") && at(name) > at("accept"), "{name}\n{}", received.head);
    }
}

#[test]
fn a_dropped_name_is_logged_once_a_minute_and_counted() {
    let task = Task::echo(&[]);
    for _ in 0..3 {
        task.admitted(request("X.Forwarded.For: 6.6.6.6\r\nx_own: 1\r\n"));
    }
    let line = task.hostward.line(|line| line["msg"] == "request header dropped");
    assert_eq!((&line["header"], &line["peer_ip"]), (&"x.forwarded.for".into(), &"127.0.0.1".into()), "{line}");
    assert!(line["hint"].as_str().is_some_and(|hint| hint.contains("hyphen")), "{line}");
    let lines = task.hostward.lines();
    assert_eq!(lines.iter().filter(|line| line["msg"] == "request header dropped").count(), 1);
    let metrics = get(task.hostward.admin, "localhost", "/metrics").expect(200).text();
    assert!(metrics.contains("\nhostward_dropped_headers_total 6\n"), "{metrics}");
}

#[test]
fn pass_headers_lets_named_ones_pass_from_trusted_peers_alone() {
    let pass = ("HOSTWARD_PASS_HEADERS", "X-Forwarded-User, x-forwarded-prefix X-Script-Name,Forwarded");
    let theirs = [
        ("x-forwarded-user", "ada"),
        ("x-forwarded-prefix", "/app"),
        ("x-script-name", "/app"),
        ("forwarded", "for=203.0.113.9"),
    ];
    let lines = theirs.map(|(name, value)| format!("{}: {value}\r\n", name.to_uppercase())).concat();
    let others = "X-Forwarded-Email: a@b\r\nX-Forwarded-Host: evil.example\r\nX-Scheme: https\r\n";
    let task = Task::echo(&[pass]);
    assert_only(&task.admitted(request(&format!("{lines}{others}"))), &theirs);
    // Nor can a client take them away again.
    let options = theirs.map(|(name, _)| name).join(", ");
    assert_only(&task.admitted(request(&format!("Connection: {options}\r\n{lines}"))), &theirs);
    let task = Task::echo(&[pass, ("HOSTWARD_TRUSTED_PROXIES", "192.0.2.0/24")]);
    assert_only(&task.admitted(request(&format!("{lines}{others}"))), &[]);
}

#[test]
fn trailers_have_no_names_that_a_head_could_not_have() {
    let task = Task::echo(&[("HOSTWARD_BUFFER_REQUESTS", "off")]);
    let received = task.admitted(
        "POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\
         Trailer: X-Sum, X.Sum, X-Real-IP, X-Request-Start, X-Forwarded-Prefix, X-Script-Name\r\n\r\n0\r\nX.Sum: 1\r\nX_Sum: 1\r\n\
         X-Real-IP: 6.6.6.6\r\nX-Request-Start: t=1\r\nX-Forwarded-Prefix: /e\r\nX-Script-Name: /e\r\nX-Sum: 1\r\n\r\n",
    );
    let names: Vec<_> = received.trailers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    assert_eq!(names, ["x-sum"]);
}

#[test]
fn connection_options_have_no_case() {
    let task = Task::echo(&[]);
    for option in ["Host, CONTENT-LENGTH, X-Hop", "HOST,content-length,x-hop", "hOST ,Content-Length,, X-HOP"] {
        let mut client = task.client();
        let fields = format!("Connection: {option}\r\nX-Hop: 1\r\nContent-Length: 5\r\nConnection: close\r\n");
        client.ask(request(&fields) + "hello").expect(200);
        let received = task.app.last();
        assert_eq!(received.body, b"hello", "{option}");
        assert_only(&received, &[("content-length", "5")]);
    }
}

#[test]
fn the_trailers_option_of_te_has_no_case() {
    let task = Task::echo(&[]);
    for value in ["trailers", "Trailers", "TRAILERS"] {
        let received = task.admitted(request(&format!("TE: {value}\r\nConnection: TE\r\n")));
        assert_only(&received, &[("te", "trailers"), ("connection", "te")]);
    }
    for value in ["gzip", "trailersx", "trailers; q", ""] {
        assert_only(&task.admitted(request(&format!("TE: {value}\r\nConnection: TE\r\n"))), &[]);
    }
}

#[test]
fn connection_options_count_in_a_trailer_section_too() {
    let task = Task::echo(&[("HOSTWARD_BUFFER_REQUESTS", "off")]);
    for option in ["x-a", "X-A, close", "close,x-A"] {
        let received = task.admitted(format!(
            "POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\nTrailer: X-A, X-B, Connection\r\n\r\n\
             5\r\nhello\r\n0\r\nX-A: 1\r\nConnection: {option}\r\nX-B: 2\r\n\r\n"
        ));
        assert_eq!(received.body, b"hello");
        let trailers: Vec<_> =
            received.trailers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str())).collect();
        assert_eq!(trailers, [("x-b".to_owned(), "2")], "{option}");
    }
}

/// RFC 9110 §7.6.1: the options name hop-by-hop headers, and what says where the body ends is always dealt with by whoever
/// reads it. Covered: both framings, named alone, both together, and with `close`.
#[test]
fn connection_options_cannot_remove_the_framing() {
    let task = Task::echo(&[]);
    for framing in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        for option in ["content-length", "transfer-encoding", "content-length, transfer-encoding, close"] {
            let mut client = task.client();
            client.send(format!("POST / HTTP/1.1\r\nHost: www.example.com\r\nConnection: {option}\r\n{framing}"));
            client.answer().expect(200);
            let received = task.app.last();
            assert_eq!((&*received.body, received.field("content-length")), (&b"hello"[..], Some("5")), "{option}");
            assert_eq!(received.field("transfer-encoding"), None, "{option}");
        }
    }
}

#[test]
fn other_fields_pass_with_every_line_in_order() {
    let task = Task::echo(&[]);
    let received = task.admitted(request(
        "Accept: a\r\nX-Custom:  spaced out\t \r\nAccept: b\r\nCookie: a=1\r\nX-Empty:\r\nCookie: b=\"2\"\r\naccept: c\r\nVia: 1.0 x\r\n\
         Authorization: Bearer t\r\nOrigin: https://www.example.com\r\nReferer: https://www.example.com:8443/a\r\nX-9-: 1\r\n",
    ));
    assert_eq!((received.all("accept"), received.all("cookie")), (vec!["a", "b", "c"], vec!["a=1", "b=\"2\""]));
    assert_eq!((received.field("x-custom"), received.field("x-empty")), (Some("spaced out"), Some("")));
    assert_eq!(received.field("authorization"), Some("Bearer t"));
    assert_eq!(received.field("origin"), Some("https://www.example.com"));
    assert_eq!(received.field("referer"), Some("https://www.example.com:8443/a"));
    assert_eq!(received.field("x-9-"), Some("1"));
    assert!(received.all("via").first().is_some_and(|value| value.starts_with("1.0 x")), "{}", received.head);
}

fn names(answer: &Answer) -> Vec<String> {
    let mut names: Vec<String> = answer.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    // An answer without a Date gets one: RFC 9110 §6.6.1.
    names.retain(|name| name != "date");
    names.sort();
    names
}

#[test]
fn an_answers_connection_specific_fields_stay_on_their_side() {
    let task = Task::start(&[], |talk| {
        talk.reply(answer(
            "200 OK",
            "Connection: X-Hop, keep-alive\r\nX-Hop: 1\r\nConnection: x-other\r\nX-Other: 2\r\nKeep-Alive: timeout=5\r\n\
             Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTE: trailers\r\nContent-Type: text/plain\r\nSet-Cookie: a=1\r\n\
             Set-Cookie: b=2\r\nServer: app\r\nX_Underscore: yes\r\nX.Dot!: yes\r\nX-Forwarded-Prefix: /a\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
            "hello",
        ))
    });
    let answer = task.get("/").expect(200);
    assert_eq!(
        names(&answer),
        [
            "content-length",
            "content-type",
            "server",
            "set-cookie",
            "set-cookie",
            "x-forwarded-prefix",
            "x.dot!",
            "x_underscore"
        ],
        "{}",
        answer.head
    );
    assert_eq!((answer.field("date"), answer.text().as_str()), (Some("Sun, 06 Nov 1994 08:49:37 GMT"), "hello"));
    let cookies: Vec<&str> = answer
        .fields
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"))
        .map(|(_, value)| &**value)
        .collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
}

#[test]
fn an_answer_passes_as_the_app_wrote_it() {
    for status in [
        "200 OK",
        "201 Created",
        "301 Moved Permanently",
        "404 Not Found",
        "418 I'm a teapot",
        "500 Internal Server Error",
        "502 Bad Gateway",
        "599 Own",
    ] {
        let task = Task::start(&[], move |talk| {
            talk.reply(answer(status, "Location: http://evil.example/a\r\nX-A: b\r\n", "the app's"))
        });
        let answer = task.get("/");
        assert_eq!(answer.status.to_string(), status[..3]);
        assert_eq!(answer.text(), "the app's");
        assert_eq!(names(&answer), ["content-length", "location", "x-a"], "{}", answer.head);
        assert_eq!(answer.field("location"), Some("http://evil.example/a"));
    }
}

#[test]
fn an_apps_connection_close_does_not_close_the_clients() {
    let task = Task::start(&[], |talk| {
        talk.reply(answer("200 OK", "Connection: close\r\n", "bye"));
        Then::Close
    });
    let mut client = task.client();
    for _ in 0..3 {
        let answer = client.ask(request("")).expect(200);
        assert!(!answer.closes(), "{}", answer.head);
    }
    assert_eq!((task.app.count(), task.app.connections()), (3, 3));
}

#[test]
fn a_clients_connection_close_does_not_close_the_apps() {
    let task = Task::echo(&[("HOSTWARD_THREADS", "1")]);
    for _ in 0..3 {
        let mut client = task.client();
        let answer = client.ask(request("Connection: close\r\n")).expect(200);
        assert!(answer.closes(), "{}", answer.head);
        client.assert_closed();
    }
    assert_eq!((task.app.count(), task.app.connections()), (3, 1));
}

/// RFC 9110 §7.6.1, also in interim responses.
#[test]
fn hop_by_hop_headers_of_a_103_are_removed() {
    let hop_by_hop = "Connection: close, x-foo\r\nX-Foo: 1\r\nconnection: X-BAR\r\nx-bar: 2\r\nKeep-Alive: timeout=5\r\n\
                      Proxy-Connection: keep-alive\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nUpgrade: h2c\r\n";
    let task = Task::start(&[], move |talk| {
        talk.send(format!("HTTP/1.1 103 Early Hints\r\n{hop_by_hop}Link: </a.css>; rel=preload\r\nX-Food: 3\r\n\r\n"))
            .unwrap();
        talk.reply(answer("200 OK", "Connection: x-foo\r\nX-Foo: 1\r\n", "here"))
    });
    let response = task.get("/").expect(200);
    let names: Vec<_> = response.interim[0].fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    assert_eq!((response.interim[0].status, names), (103, vec!["link".to_owned(), "x-food".to_owned()]));
    assert_eq!(response.field("x-foo"), None);
    run(async {
        let mut sender = connect(task.hostward.address).await;
        let (mut response, _) = sender.send_request(http2_get("/"), true).unwrap();
        let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        let mut names: Vec<_> = interim.headers().keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!((interim.status().as_u16(), names), (103, vec!["link", "x-food"]));
    });
}

/// A response that asks nginx, Apache or lighttpd for a file, in each of its spellings.
const COMMANDS: [&str; 6] = [
    "X-Accel-Redirect: /protected/a.pdf",
    "x-accel-redirect: /protected/a.pdf",
    "X-Sendfile: /srv/a.pdf",
    "X-LIGHTTPD-send-file: /srv/a.pdf",
    "X-Lighttpd-Send-File: /srv/a.pdf",
    "X-Reproxy-URL: http://10.0.0.1/a.pdf",
];

fn assert_no_command(fields: &str) {
    let fields = fields.to_ascii_lowercase();
    for part in ["x-accel-", "x-sendfile", "lighttpd", "reproxy", "a.pdf"] {
        assert!(!fields.contains(part), "{fields}");
    }
}

#[test]
fn commands_to_another_server_are_removed_and_logged_once() {
    for command in COMMANDS {
        // Plain, and by hyper: chunked; and over HTTP/2.
        for framing in ["Content-Length: 0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"] {
            let task = Task::start(&[], move |talk| {
                talk.reply(format!(
                    "HTTP/1.1 200 OK\r\n{command}\r\nX-Accel-Buffering: no\r\nX-Accelerate: 1\r\n{framing}"
                ))
            });
            for _ in 0..2 {
                let response = task.get("/download").expect(200);
                assert_no_command(&response.head);
                assert_eq!(response.field("x-accelerate"), Some("1"));
                let over_http2 = ask_once(task.hostward.address, http2_get("/download"), b"");
                assert_no_command(&format!("{:?}", over_http2.fields));
            }
            let line = task.hostward.line(|line| line["msg"] == "app is set up for another server");
            let name = command.split(':').next().unwrap();
            assert!(line["header"].as_str().unwrap().eq_ignore_ascii_case(name), "{line}");
            assert_eq!((&line["level"], &line["path"]), (&"WARN".into(), &"/download".into()), "{line}");
            assert!(line["hint"].is_string() && !line.to_string().contains("a.pdf"), "{line}");
            task.hostward.request_line("/download");
            let lines = task.hostward.lines();
            assert_eq!(lines.iter().filter(|line| line["msg"] == "app is set up for another server").count(), 1);
        }
    }
}

#[test]
fn commands_to_another_server_are_removed_whatever_the_app_speaks() {
    let uwsgi = UwsgiApp::answering("HTTP/1.1 200 OK\r\nX-Sendfile: /srv/a.pdf\r\nX-Accel-Expires: 1\r\n\r\n");
    let h2c = http2::App::start(100, |mut talk| async move {
        let response =
            http::Response::builder().header("x-accel-redirect", "/a.pdf").header("x-accel-charset", "utf-8");
        talk.begin(response.body(()).unwrap()).send_data(bytes::Bytes::new(), true).ok();
    });
    for upstream in [format!("uwsgi://{}", uwsgi.address), h2c.url()] {
        let hostward =
            Hostward::start(&[("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", &upstream)]);
        let response = get(hostward.address, "www.example.com", "/").expect(200);
        assert_no_command(&response.head);
        assert_no_command(&format!("{:?}", ask_once(hostward.address, http2_get("/"), b"").fields));
        hostward.line(|line| line["msg"] == "app is set up for another server");
    }
}

#[test]
fn a_command_that_loses_nothing_is_removed_without_a_line() {
    let task = Task::start(&[], |talk| {
        talk.reply(answer("200 OK", "X-Accel-Buffering: no\r\nX-Accel-Expires: 0\r\n", "here"))
    });
    let response = task.get("/").expect(200);
    assert_no_command(&response.head);
    assert_eq!(response.text(), "here");
    task.hostward.request_line("/");
    assert!(!task.hostward.output().contains("another server"), "{}", task.hostward.output());
}
