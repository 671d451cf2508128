//! The app: answers of several kinds, and a restart every few seconds, which cuts what it is at.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::load::Load;
use crate::support::app::{App, Conversation, Then, answer};
use crate::support::eventually;

/// When it was not to be had: from before it ended to after it listened again.
#[derive(Default)]
pub struct Outages(Mutex<Vec<(Instant, Option<Instant>)>>);

impl Outages {
    pub fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Whether there was one in this time. Nothing is allowed for what comes after: an app that listens is to be had.
    pub fn touch(&self, from: Instant, to: Instant) -> bool {
        self.0
            .lock()
            .unwrap()
            .iter()
            .rev()
            .any(|(begun, ended)| *begun <= to && ended.is_none_or(|ended| ended >= from))
    }

    pub fn begin(&self) {
        self.0.lock().unwrap().push((Instant::now(), None));
    }

    fn end(&self) {
        self.0.lock().unwrap().last_mut().unwrap().1 = Some(Instant::now());
    }
}

const BETWEEN_RESTARTS: Duration = Duration::from_secs(5);
/// How long it takes to come up again, at the least.
const AWAY: Duration = Duration::from_millis(50);
pub const LARGE: usize = 200_000;
/// More than hostward reads ahead and the kernel's buffers take together.
pub const HUGE: usize = 32 << 20;
pub const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

pub fn restart_again_and_again(address: SocketAddr, load: &Load) {
    loop {
        let app = App::listen(address, behave);
        load.outages.end();
        let started = Instant::now();
        while started.elapsed() < BETWEEN_RESTARTS {
            if load.stopping.load(Ordering::SeqCst) && load.is_over() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        load.outages.begin();
        drop(app);
        wait_until_free(address);
        thread::sleep(AWAY);
    }
}

/// The port is free when the accepting thread has gone.
pub fn wait_until_free(address: SocketAddr) {
    eventually("the app is gone", || TcpListener::bind(address).ok());
}

pub fn behave(talk: &mut Conversation<'_>) -> Then {
    static BODY: LazyLock<String> = LazyLock::new(|| answer("200 OK", "", &"x".repeat(LARGE)));
    let target = talk.request.target.clone();
    match target.split('/').nth(1).unwrap_or_default() {
        "large" => talk.reply(&*BODY),
        "chunked" => {
            let parts = "5\r\nhello\r\n".repeat(20);
            talk.reply(format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n{parts}0\r\nX-Sum: 1\r\n\r\n"
            ))
        }
        "slow" => {
            thread::sleep(Duration::from_millis(100));
            talk.reply(answer("200 OK", "", "slow"))
        }
        "huge" => {
            let block = vec![b'x'; 64 << 10];
            let mut sent = talk.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {HUGE}\r\n\r\n"));
            for _ in 0..HUGE / block.len() {
                sent = sent.and_then(|()| talk.send(&block));
            }
            Then::Close
        }
        "chat" => chat(talk),
        // Whose answer it is can be seen.
        _ => match talk.body() {
            Ok(body) => match talk.send(answer("200 OK", "", &format!("{target} {}", body.len()))) {
                Ok(()) => Then::Keep,
                Err(_) => Then::Close,
            },
            Err(_) => Then::Close,
        },
    }
}

/// A WebSocket, as far as hostward can see: sends everything back.
fn chat(talk: &mut Conversation<'_>) -> Then {
    if talk.send(SWITCH).is_err() {
        return Then::Close;
    }
    let mut buffer = [0; 16 << 10];
    loop {
        let bytes = std::mem::take(&mut talk.input.ahead);
        if talk.send(bytes).is_err() {
            return Then::Close;
        }
        match talk.input.stream.read(&mut buffer) {
            Ok(0) | Err(_) => return Then::Close,
            Ok(length) => talk.input.ahead.extend_from_slice(&buffer[..length]),
        }
    }
}
