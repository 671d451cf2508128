//! The app behind hostward: it reads with the strict readers, keeps what it has read, and answers.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::http1::{self, Read, Request};
use crate::uwsgi::{self, Packet};

/// What reached the app as one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    Http(Request),
    Uwsgi(Packet),
}

/// All that reached it.
#[derive(Debug, Default)]
pub struct Record {
    /// Whole requests, in the order in which they were whole.
    pub requests: Vec<Received>,
    /// The beginnings of requests that connections ended with.
    pub torn: Vec<Vec<u8>>,
    /// What the strict readers refused, and why.
    pub bad: Vec<(&'static str, Vec<u8>)>,
}

/// What the app does.
#[derive(Clone, Debug)]
pub enum Script {
    /// Answers 200 with the request's number in `X-App`.
    Serve,
    /// Answers the first request of a connection with these bytes, and closes.
    Say(Rc<[u8]>),
}

/// Serves until `stop`, and then until the connections have ended.
pub async fn run(
    listener: UnixListener,
    uwsgi: bool,
    script: Script,
    record: Rc<RefCell<Record>>,
    mut stop: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn_local(serve(stream, uwsgi, script.clone(), Rc::clone(&record)));
                }
                Err(error) => panic!("the app can't accept: {error}"),
            },
            _ = &mut stop => break,
        }
    }
    connections.join_all().await;
}

/// One connection. What can't be written any more is no fault of hostward's: it may have left.
async fn serve(mut stream: UnixStream, uwsgi: bool, script: Script, record: Rc<RefCell<Record>>) {
    let mut bytes = Vec::new();
    loop {
        match read(&bytes, uwsgi) {
            Read::Whole(request, length) => {
                bytes.drain(..length);
                let head_only = is_head(&request);
                let number = {
                    let mut record = record.borrow_mut();
                    record.requests.push(request);
                    record.requests.len() - 1
                };
                let answer = match &script {
                    Script::Serve => answer(number, head_only).into(),
                    Script::Say(bytes) => Rc::clone(bytes),
                };
                stream.write_all(&answer).await.ok();
                if uwsgi || matches!(script, Script::Say(_)) {
                    stream.shutdown().await.ok();
                }
                continue;
            }
            Read::Bad(why) => return record.borrow_mut().bad.push((why, bytes)),
            Read::Torn => {}
        }
        if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
            if !bytes.is_empty() {
                record.borrow_mut().torn.push(bytes);
            }
            return;
        }
    }
}

fn read(bytes: &[u8], uwsgi: bool) -> Read<Received> {
    if uwsgi {
        match uwsgi::packet(bytes) {
            Read::Whole(packet, length) => Read::Whole(Received::Uwsgi(packet), length),
            Read::Torn => Read::Torn,
            Read::Bad(why) => Read::Bad(why),
        }
    } else {
        match http1::request(bytes) {
            // A client may send empty lines; hostward has no reason to.
            Read::Whole(..) if bytes.starts_with(b"\r\n") => Read::Bad("an empty line before a request"),
            Read::Whole(request, length) => Read::Whole(Received::Http(request), length),
            Read::Torn => Read::Torn,
            Read::Bad(why) => Read::Bad(why),
        }
    }
}

fn is_head(request: &Received) -> bool {
    match request {
        Received::Http(request) => request.method == b"HEAD",
        Received::Uwsgi(packet) => packet.value("REQUEST_METHOD") == Some(b"HEAD"),
    }
}

fn answer(number: usize, head_only: bool) -> Vec<u8> {
    let body = if head_only { "" } else { "app" };
    format!("HTTP/1.1 200 OK\r\nX-App: {number}\r\nContent-Length: 3\r\n\r\n{body}").into_bytes()
}
