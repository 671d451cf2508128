//! Small messages of an HTTP/2 app, and of HTTP/2 clients: what waits for the other side is bounded in bytes of
//! memory, not only in bytes of content, and flow control follows what the other side takes. Covered: clients of
//! HTTP/1.1 and HTTP/2, read-ahead on and off, an HTTP/1.1 app that sends small chunks, uploads in small frames.

use std::future::poll_fn;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::{Request, Response};

use crate::h2c::before;
use crate::read_ahead::{resident, slow_client};
use crate::support::app::Then;
use crate::support::frames::{
    self, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use crate::support::hostward::Hostward;
use crate::support::http2::{App, Conversation, ask_once, connect, get, run};
use crate::support::{self, wire};

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "www.example.com"), (":path", "/messages")];

/// Sends a message as soon as there is room for it.
async fn send(stream: &mut SendStream<Bytes>, message: &'static [u8]) -> Result<(), h2::Error> {
    stream.reserve_capacity(message.len());
    while stream.capacity() < message.len() {
        poll_fn(|cx| stream.poll_capacity(cx)).await.ok_or(Reason::CANCEL)??;
    }
    stream.send_data(Bytes::from_static(message), false)
}

/// An app that sends messages of one to six bytes, as fast as they are taken, at `/messages`. Counts their bytes.
fn messages() -> (App, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let app = App::start(1000, move |mut talk: Conversation| {
        let counter = Arc::clone(&counter);
        async move {
            if talk.head.uri().path() != "/messages" {
                return talk.reply(200, b"here");
            }
            let mut stream = talk.begin(Response::new(()));
            for message in [&b"1"[..], b"22", b"333", b"4444", b"55555", b"666666"].iter().cycle() {
                if send(&mut stream, message).await.is_err() {
                    return;
                }
                if counter.fetch_add(message.len(), Ordering::Relaxed).is_multiple_of(64) {
                    tokio::task::yield_now().await;
                }
            }
        }
    });
    (app, sent)
}

/// Waits until the count stands still, and meanwhile looks at the memory. The most there was, in KiB.
fn watch(hostward: &Hostward, count: &AtomicUsize) -> usize {
    let (mut most, mut before, mut still) = (0, 0, 0);
    for _ in 0..400 {
        std::thread::sleep(Duration::from_millis(25));
        most = most.max(resident(hostward));
        let now = count.load(Ordering::Relaxed);
        still = if now == before { still + 1 } else { 0 };
        before = now;
        if still > 20 {
            break;
        }
    }
    most
}

fn assert_others_are_served(hostward: &Hostward, app: &App) {
    for _ in 0..5 {
        assert_eq!(ask_once(hostward.address, get("/"), b"").body, b"here");
        assert_eq!(wire::get(hostward.address, "www.example.com", "/").expect(200).text(), "here");
    }
    assert_eq!(app.connections(), 1);
}

#[test]
fn clients_that_do_not_read_small_messages_cost_little_memory() {
    for settings in [&[][..], &[("HOSTWARD_BUFFER_RESPONSES", "0")]] {
        let (app, sent) = messages();
        let hostward = before(&app, &[&[("HOSTWARD_THREADS", "1")], settings].concat());
        assert_others_are_served(&hostward, &app);
        let started = resident(&hostward);
        // SETTINGS_INITIAL_WINDOW_SIZE = 0: nothing is taken.
        let mut closed = Frames::connect(hostward.address, &[0, 4, 0, 0, 0, 0]);
        // The largest window, of which the kernel takes little.
        let mut open =
            Frames::over(support::tls::Stream::Plain(slow_socket(&hostward)), &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        open.send(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes()).unwrap();
        let mut slow = Vec::new();
        for number in 0..15 {
            for frames in [&mut closed, &mut open] {
                frames.ask(2 * number + 1, END_STREAM, &GET);
            }
            let mut client = slow_client(hostward.address);
            client.send("GET /messages HTTP/1.1\r\nHost: www.example.com\r\n\r\n");
            slow.push(client);
        }
        let most = watch(&hostward, &sent);
        let sent = sent.load(Ordering::Relaxed) >> 10;
        println!("{settings:?}: {started} KiB before, {most} KiB at most, {sent} KiB sent");
        // Little more than what the messages say, however much a quick machine sends meanwhile.
        assert!(most - started < sent + (8 << 10), "{started} KiB before, {most} KiB at most, {sent} KiB sent");
        assert_others_are_served(&hostward, &app);
        drop((closed, open, slow));
    }
}

fn slow_socket(hostward: &Hostward) -> std::net::TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::for_address(hostward.address), socket2::Type::STREAM, None);
    let socket = socket.unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&hostward.address.into()).unwrap();
    socket.into()
}

#[test]
fn forty_clients_that_read_small_messages_as_fast_as_they_can_cost_little_memory() {
    let (app, _) = messages();
    let hostward = before(&app, &[("HOSTWARD_THREADS", "1")]);
    assert_others_are_served(&hostward, &app);
    let started = resident(&hostward);
    let mut frames = Frames::connect(hostward.address, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    frames.send(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes()).unwrap();
    for number in 0..40 {
        frames.ask(2 * number + 1, END_STREAM, &GET);
    }
    let (mut most, mut read) = (0, 0);
    for count in 0..200_000 {
        let frame = frames.next().expect("the connection stays");
        assert!(!matches!(frame.kind, RST_STREAM | GOAWAY), "{frame:?}");
        read += if frame.kind == DATA { frame.payload.len() } else { 0 };
        if count % 1000 == 0 {
            most = most.max(resident(&hostward));
        }
        if read > 2 << 20 {
            break;
        }
    }
    println!("{started} KiB before, {most} KiB at most, {read} bytes read");
    assert!(most - started < 10 << 10, "{started} KiB before, {most} KiB at most");
    assert_others_are_served(&hostward, &app);
}

#[test]
fn small_chunks_of_an_http_1_app_are_joined_where_they_wait() {
    let task = support::Task::start(&[("HOSTWARD_BUFFER_RESPONSES", "256KiB"), ("HOSTWARD_THREADS", "1")], |talk| {
        if talk.request.target == "/" {
            return talk.reply(support::app::answer("200 OK", "", "here"));
        }
        talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        let chunks = b"1\r\nx\r\n".repeat(1 << 18);
        talk.input.stream.tcp().set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        talk.input.stream.tcp().write_all(&chunks).ok();
        Then::Close
    });
    task.get("/").expect(200);
    let started = resident(&task.hostward);
    let mut frames = Frames::connect(task.hostward.address, &[0, 4, 0, 0, 0, 0]);
    for number in 0..8 {
        frames.ask(2 * number + 1, END_STREAM, &GET);
    }
    for _ in 0..8 {
        while frames.next().expect("the connection stays").kind != HEADERS {}
    }
    let most = watch(&task.hostward, &AtomicUsize::new(0));
    println!("{started} KiB before, {most} KiB at most");
    assert!(most - started < 9 << 10, "{started} KiB before, {most} KiB at most");
}

#[test]
fn uploads_in_small_frames_that_the_app_does_not_read_cost_little_memory() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    // It gives no upload more than the window that it begins with, and answers what has no body.
    let address = frames::serve(move |mut app| {
        counter.fetch_add(1, Ordering::SeqCst);
        app.send(SETTINGS, 0, 0, &[]).ok();
        app.send(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes()).ok();
        while let Some(frame) = app.try_next() {
            if frame.kind == HEADERS && frame.flags & END_STREAM != 0 {
                let head = frames::block(&[(":status", "200")]);
                app.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, &head).ok();
            }
        }
    });
    let url = format!("h2c://{address}");
    let settings =
        [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", url.as_str()), ("HOSTWARD_THREADS", "1")];
    let hostward = Hostward::start(&settings);
    assert_eq!(ask_once(hostward.address, get("/"), b"").status, 200);
    let started = resident(&hostward);
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    let address = hostward.address;
    let uploads = std::thread::spawn(move || {
        run(async {
            let sender = connect(address).await;
            for _ in 0..60 {
                let request = Request::post("http://www.example.com/messages").body(()).unwrap();
                let mut sender = sender.clone().ready().await.unwrap();
                let (response, mut stream) = sender.send_request(request, false).unwrap();
                let counter = Arc::clone(&counter);
                tokio::spawn(async move {
                    while send(&mut stream, b"x").await.is_ok() {
                        if counter.fetch_add(1, Ordering::Relaxed).is_multiple_of(64) {
                            tokio::task::yield_now().await;
                        }
                    }
                    drop(response);
                });
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
            // It still is a connection.
            let (response, _) = sender.clone().send_request(get("/"), true).unwrap();
            assert_eq!(response.await.unwrap().status(), 200);
        });
    });
    let most = watch(&hostward, &taken);
    println!("{started} KiB before, {most} KiB at most, {} bytes sent", taken.load(Ordering::Relaxed));
    uploads.join().unwrap();
    assert!(taken.load(Ordering::Relaxed) > 50_000, "{taken:?}");
    assert!(most - started < 9 << 10, "{started} KiB before, {most} KiB at most");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_large_response_is_as_it_was_whatever_the_sizes_of_its_frames() {
    let app = App::start(100, |mut talk| async move {
        let mut stream = talk.begin(Response::new(()));
        let content: Bytes = content().into();
        let (mut at, mut size) = (0, 1);
        while at < content.len() {
            let next = content.slice(at..content.len().min(at + size));
            stream.reserve_capacity(next.len());
            while stream.capacity() < next.len() {
                poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
            }
            at += next.len();
            size = size * 7 % 9001;
            stream.send_data(next, at == content.len()).unwrap();
        }
    });
    let hostward = before(&app, &[]);
    assert!(ask_once(hostward.address, get("/"), b"").body == content());
    let answer = wire::get(hostward.address, "www.example.com", "/");
    assert!(answer.body == content());
}

fn content() -> Vec<u8> {
    (0..3_u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}
