//! What the tests stand on: the real binary as a child process, an app that records what it receives, a
//! client that sends bytes and reads answers, a task metadata endpoint. All of it blocking, on threads, with
//! a bound on every wait.

pub mod app;
pub mod frames;
pub mod hostward;
pub mod http2;
pub mod kernel;
pub mod metadata;
pub mod python;
pub mod tls;
pub mod unix;
pub mod uwsgi;
pub mod wire;

use std::io::Write;
use std::time::{Duration, Instant};

use self::app::{App, Conversation, Received, Then, echo};
use self::hostward::Hostward;
use self::wire::{Answer, Client};

/// No wait in a test is longer, unless the test says so.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Says on the terminal that a test can't run here, and what is missing. With `CI=true` that is a failure.
pub fn skip(missing: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI=true, so this can't be skipped: {missing}");
    // Not `eprintln!`, which the test harness captures.
    writeln!(std::io::stderr(), "skipped: {missing}").ok();
}

/// Whether this machine has IPv6; if not, the test is skipped.
pub fn has_ipv6() -> bool {
    let bound = std::net::TcpListener::bind("[::1]:0");
    if let Err(error) = &bound {
        skip(&format!("IPv6: [::1] can't be listened on ({error})"));
    }
    bound.is_ok()
}

/// Asks again and again until there is an answer.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// hostward and the app behind it.
pub struct Task {
    pub app: App,
    pub hostward: Hostward,
}

impl Task {
    /// An app that echoes, behind hostward. `www.example.com` is allowed unless the settings say otherwise.
    pub fn echo(settings: &[(&str, &str)]) -> Self {
        Self::start(settings, echo)
    }

    /// An app that behaves, behind hostward.
    pub fn start(
        settings: &[(&str, &str)],
        behaviour: impl Fn(&mut Conversation<'_>) -> Then + Send + Sync + 'static,
    ) -> Self {
        let app = App::start(behaviour);
        let hostward = Hostward::before(&app, settings);
        Self { app, hostward }
    }

    /// The same in a memory cgroup of `mib` mebibytes, three eighths of which are hostward's budget. `None` where none can
    /// be made, which fails with `CI=true`.
    pub fn start_with_memory(
        mib: usize,
        settings: &[(&str, &str)],
        behaviour: impl Fn(&mut Conversation<'_>) -> Then + Send + Sync + 'static,
    ) -> Option<Self> {
        let app = App::start(behaviour);
        let upstream = app.url();
        let needed = [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", upstream.as_str())];
        let hostward = Hostward::start_with_memory(mib, &[settings, &needed].concat())?;
        Some(Self { app, hostward })
    }

    /// A new connection to hostward.
    pub fn client(&self) -> Client {
        Client::connect(self.hostward.address)
    }

    /// Sends a request on a new connection and reads the answer.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        wire::ask(self.hostward.address, request)
    }

    /// A `GET` with the allowed host on a new connection.
    pub fn get(&self, path: &str) -> Answer {
        wire::get(self.hostward.address, "www.example.com", path)
    }

    /// A request that must reach the app and be answered 200: what the app received.
    pub fn admitted(&self, request: impl AsRef<[u8]>) -> Received {
        let request = request.as_ref();
        let before = self.app.count();
        let answer = self.ask(request);
        assert_eq!(answer.status, 200, "{}\n{}{}", wire::text(request), answer.head, answer.text());
        assert_eq!(self.app.count(), before + 1, "{}", wire::text(request));
        self.app.last()
    }

    /// A request that must be answered by hostward with `status`, and must not reach the app.
    pub fn turned_away(&self, request: impl AsRef<[u8]>, status: u16) -> Answer {
        let request = request.as_ref();
        let before = self.app.count();
        let mut client = self.client();
        // hostward may have answered and closed before everything was sent.
        client.try_send(request).ok();
        let answer = client.try_answer().unwrap_or_else(|broken| panic!("{}\n{broken}", wire::text(request)));
        assert_eq!(answer.status, status, "{}\n{}{}", wire::text(request), answer.head, answer.text());
        assert_eq!(self.app.count(), before, "{}\nreached the app", wire::text(request));
        answer
    }
}
