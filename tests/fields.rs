//! Contract 3: which fields pass, in both directions. What nobody expects fails the test.

use crate::support::Task;
use crate::support::app::{Received, Then, answer};
use crate::support::wire::Answer;

/// What hostward writes on a request with `Host: www.example.com` and no forwarding fields.
const OURS: [(&str, &str); 7] = [
    ("host", "www.example.com"),
    ("x-forwarded-for", "127.0.0.1"),
    ("x-forwarded-proto", "http"),
    ("x-forwarded-port", "*"),
    ("x-forwarded-host", "www.example.com"),
    ("x-real-ip", "127.0.0.1"),
    ("x-request-id", "*"),
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
        let mut all = String::new();
        for name in names {
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
    // What the client said under these names went with the connection.
    let received = task.admitted(request(
        "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nConnection: x-forwarded-for, x-forwarded-proto, cookie\r\n\
         Cookie: a=b\r\n",
    ));
    assert_only(&received, &[]);
}

#[test]
fn connection_options_cannot_remove_the_framing() {
    let task = Task::echo(&[]);
    for framing in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        for option in ["content-length", "transfer-encoding", "content-length, transfer-encoding, close"] {
            let mut client = task.client();
            client.send(format!("POST / HTTP/1.1\r\nHost: www.example.com\r\nConnection: {option}\r\n{framing}"));
            let answer = client.answer();
            if answer.status == 200 {
                assert_eq!(task.app.last().body, b"hello", "{option} {framing}");
            } else {
                assert_eq!((answer.status, answer.closes()), (400, true), "{option} {framing}");
            }
        }
    }
}

#[test]
fn other_fields_pass_with_every_line_in_order() {
    let task = Task::echo(&[]);
    let received = task.admitted(request(
        "Accept: a\r\nX-Custom:  spaced out\t \r\nAccept: b\r\nCookie: a=1\r\nX-Empty:\r\nCookie: b=\"2\"\r\naccept: c\r\nVia: 1.0 x\r\n\
         Authorization: Bearer t\r\nOrigin: https://www.example.com\r\nReferer: https://www.example.com:8443/a\r\nX.Dot!#$%&'*+-^`|~: 1\r\n",
    ));
    assert_eq!((received.all("accept"), received.all("cookie")), (vec!["a", "b", "c"], vec!["a=1", "b=\"2\""]));
    assert_eq!((received.field("x-custom"), received.field("x-empty")), (Some("spaced out"), Some("")));
    assert_eq!(received.field("authorization"), Some("Bearer t"));
    assert_eq!(received.field("origin"), Some("https://www.example.com"));
    assert_eq!(received.field("referer"), Some("https://www.example.com:8443/a"));
    assert_eq!(received.field("x.dot!#$%&'*+-^`|~"), Some("1"));
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
             Set-Cookie: b=2\r\nServer: app\r\nX_Underscore: yes\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
            "hello",
        ))
    });
    let answer = task.get("/").expect(200);
    assert_eq!(
        names(&answer),
        ["content-length", "content-type", "server", "set-cookie", "set-cookie", "x_underscore"],
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
