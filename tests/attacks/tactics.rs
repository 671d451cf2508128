//! What attackers do. All of them share one thread, and their pace is bounded: on a machine with few cores, what they
//! compute is taken from everybody else, which is no fault of hostward's.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// One kind of attack.
pub struct Attack {
    pub name: &'static str,
    /// Attackers at once; or, if they come one after the other, how many a round. In short, and in full.
    sizes: [usize; 2],
    pub unit: &'static str,
    pace: Pace,
    tactic: Tactic,
    /// What the attackers get: each of these, and nothing else.
    pub expected: &'static [&'static str],
    /// Whether the connections of all attackers are open at once.
    pub holds_all: bool,
}

enum Pace {
    /// All at once, and each begins anew so long after it has begun, if it is over by then.
    Every(Duration),
    /// One after the other, so long after the last one has begun.
    InTurn([Duration; 2]),
}

/// What one attacker does once. The number is its own, or its turn's.
type Tactic = fn(SocketAddr, usize) -> Attempt;
/// What it got, and how often.
type Attempt = Pin<Box<dyn Future<Output = (String, usize)> + Send>>;

pub const ATTACKS: [Attack; 11] = [
    Attack {
        name: "slow head",
        sizes: [100, 1000],
        unit: "connections at once, a byte every 100 ms",
        pace: Pace::Every(Duration::ZERO),
        tactic: |address, _| Box::pin(slow_head(address)),
        expected: &["408"],
        holds_all: true,
    },
    Attack {
        name: "slow body",
        sizes: [100, 1000],
        unit: "connections at once that pause in a body",
        pace: Pace::Every(Duration::ZERO),
        tactic: |address, number| Box::pin(slow_body(address, number)),
        expected: &["408"],
        holds_all: true,
    },
    Attack {
        name: "slow read",
        sizes: [8, 100],
        unit: "connections at once that read nothing of 14 MiB",
        pace: Pace::Every(Duration::from_secs(3)),
        tactic: |address, _| Box::pin(slow_read(address)),
        expected: &["cut"],
        holds_all: true,
    },
    Attack {
        name: "one byte at a time",
        sizes: [20, 100],
        unit: "connections at once, a byte every 5 ms",
        pace: Pace::Every(Duration::ZERO),
        tactic: |address, _| Box::pin(byte_by_byte(address)),
        expected: &["200"],
        holds_all: true,
    },
    Attack {
        name: "half-close in each phase",
        sizes: [40, 100],
        unit: "attackers, each 5 times a second",
        pace: Pace::Every(Duration::from_millis(200)),
        tactic: |address, number| Box::pin(half_close(address, number)),
        expected: &["closed", "200"],
        holds_all: false,
    },
    Attack {
        name: "reset in each phase",
        sizes: [40, 100],
        unit: "attackers, each 5 times a second",
        pace: Pace::Every(Duration::from_millis(200)),
        tactic: |address, number| Box::pin(reset(address, number)),
        expected: &["left"],
        holds_all: false,
    },
    Attack {
        name: "idle connections",
        sizes: [1000, 10_000],
        unit: "connections at once, idle after a request",
        // Once is enough: they are closed at their end.
        pace: Pace::Every(Duration::from_mins(1)),
        tactic: |address, _| Box::pin(idle(address)),
        expected: &["closed"],
        holds_all: true,
    },
    Attack {
        name: "one after the other",
        sizes: [500, 34_000],
        unit: "connections a round with a request each",
        pace: Pace::InTurn([Duration::from_millis(1), Duration::from_micros(500)]),
        tactic: |address, _| Box::pin(one_request(address)),
        expected: &["200"],
        holds_all: false,
    },
    Attack {
        name: "pipelining",
        sizes: [5, 20],
        unit: "attackers, each 100 requests a second in one write",
        pace: Pace::Every(Duration::from_secs(1)),
        tactic: |address, _| Box::pin(pipelining(address)),
        expected: &["200"],
        holds_all: false,
    },
    Attack {
        name: "refused hosts",
        sizes: [10, 40],
        unit: "attackers, each 50 requests a second on kept connections",
        pace: Pace::Every(Duration::from_millis(200)),
        tactic: |address, number| Box::pin(foreign_hosts(address, number)),
        expected: &["421"],
        holds_all: false,
    },
    Attack {
        name: "malformed and oversized heads",
        sizes: [20, 100],
        unit: "attackers, each 5 times a second",
        pace: Pace::Every(Duration::from_millis(200)),
        tactic: |address, number| Box::pin(malformed(address, number)),
        expected: &["400", "431"],
        holds_all: false,
    },
];

/// One round of an attack.
pub struct Front {
    address: SocketAddr,
    size: usize,
    stop: watch::Sender<bool>,
    begun: AtomicUsize,
    outcomes: Mutex<BTreeMap<String, usize>>,
}

impl Attack {
    pub fn size(&self, full: bool) -> usize {
        self.sizes[usize::from(full)]
    }

    /// Whether it ends by itself.
    pub fn is_counted(&self) -> bool {
        matches!(self.pace, Pace::InTurn(_))
    }
}

impl Front {
    pub fn new(address: SocketAddr, size: usize) -> Self {
        Self { address, size, stop: watch::Sender::new(false), begun: AtomicUsize::new(0), outcomes: Mutex::default() }
    }

    /// Attacks until it is stopped, and every attempt has come to its end.
    pub fn run(self: &Arc<Self>, attack: &'static Attack) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            match &attack.pace {
                Pace::InTurn(periods) => {
                    let period = periods[usize::from(self.size == attack.size(true))];
                    let mut due = Instant::now();
                    for number in 0..self.size {
                        self.attempt(attack, number).await;
                        due = (due + period).max(Instant::now());
                        sleep_until(due).await;
                    }
                }
                Pace::Every(period) => {
                    let attackers: Vec<_> = (0..self.size)
                        .map(|number| tokio::spawn(Arc::clone(self).repeat(attack, *period, number)))
                        .collect();
                    for attacker in attackers {
                        attacker.await.unwrap();
                    }
                }
            }
        });
    }

    /// Whether every attacker has begun, or the first one if they come one after the other.
    pub fn is_under_way(&self, attack: &Attack) -> bool {
        self.begun.load(Ordering::SeqCst) >= if attack.is_counted() { 1 } else { self.size }
    }

    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    pub fn outcomes(&self) -> BTreeMap<String, usize> {
        self.outcomes.lock().unwrap().clone()
    }

    async fn repeat(self: Arc<Self>, attack: &'static Attack, period: Duration, number: usize) {
        let mut stop = self.stop.subscribe();
        // They don't march in step.
        let full = self.size == attack.size(true);
        sleep(SPREAD[usize::from(full)] * u32::try_from(number).unwrap() / u32::try_from(self.size).unwrap()).await;
        for turn in 0.. {
            let due = Instant::now() + period;
            self.attempt(attack, number + turn).await;
            tokio::select! {
                () = sleep_until(due) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            if *stop.borrow() {
                return;
            }
        }
    }

    async fn attempt(&self, attack: &Attack, number: usize) {
        let attempt = (attack.tactic)(self.address, number);
        self.begun.fetch_add(1, Ordering::SeqCst);
        let (outcome, count) =
            timeout(BOUND, attempt).await.unwrap_or_else(|_| (format!("nothing within {BOUND:?}"), 1));
        *self.outcomes.lock().unwrap().entry(outcome).or_default() += count;
    }
}

/// Over how long the first attempts of all attackers are spread, in short and in full. That many at once is meant, not that
/// many in one moment, when the kernel and the app have work for all of them.
const SPREAD: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(2500)];
/// Longer than any limit here.
const BOUND: Duration = Duration::from_secs(20);
const GET: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";

async fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// The status of the next answer, or how the connection ended without one. Reads the answer's body if it says its
/// length.
async fn answer(stream: &mut TcpStream, ahead: &mut Vec<u8>) -> String {
    let mut wanted = None;
    loop {
        if let Some(head) = ahead.windows(4).position(|window| window == b"\r\n\r\n")
            && wanted.is_none()
        {
            let text = String::from_utf8_lossy(&ahead[..head]).to_ascii_lowercase();
            let length = text.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
            wanted = Some((head + 4 + length.unwrap_or(0), text[9..12].to_owned()));
        }
        if let Some((end, status)) = &wanted
            && ahead.len() >= *end
        {
            ahead.drain(..*end);
            return status.clone();
        }
        match stream.read_buf(ahead).await {
            Ok(0) if ahead.is_empty() => return "closed".into(),
            Ok(0) => return "an answer that breaks off".into(),
            Ok(_) => {}
            Err(error) => return format!("{}", error.kind()),
        }
    }
}

/// Sends a request on a connection that hostward may close at any time, and reads the answer.
async fn ask(address: SocketAddr, request: &[u8]) -> (String, usize) {
    let mut stream = connect(address).await;
    stream.write_all(request).await.ok();
    (answer(&mut stream, &mut Vec::new()).await, 1)
}

async fn slow_head(address: SocketAddr) -> (String, usize) {
    let mut stream = connect(address).await;
    let mut ahead = Vec::new();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: ").await.ok();
    loop {
        match timeout(Duration::from_millis(100), answer(&mut stream, &mut ahead)).await {
            Ok(outcome) => return (outcome, 1),
            // hostward may answer and close at this very moment.
            Err(_) => stream.write_all(b"a").await.unwrap_or(()),
        }
    }
}

async fn slow_body(address: SocketAddr, number: usize) -> (String, usize) {
    let rest = match number % 3 {
        0 => "Content-Length: 1000\r\n\r\nabc",
        1 => "Content-Length: 1000\r\n\r\n",
        _ => "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    };
    ask(address, format!("POST / HTTP/1.1\r\nHost: www.example.com\r\n{rest}").as_bytes()).await
}

async fn slow_read(address: SocketAddr) -> (String, usize) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(b"GET /large HTTP/1.1\r\nHost: www.example.com\r\n\r\n").await.ok();
    let begun = Instant::now();
    while begun.elapsed() < BOUND / 2 {
        sleep(Duration::from_millis(50)).await;
        match stream.take_error().unwrap().map(|error| error.kind()) {
            Some(ErrorKind::ConnectionReset) => return ("cut".into(), 1),
            Some(other) => return (format!("{other}"), 1),
            None => {}
        }
    }
    ("no end".into(), 1)
}

async fn byte_by_byte(address: SocketAddr) -> (String, usize) {
    let mut stream = connect(address).await;
    for byte in b"POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 5\r\n\r\nhello".chunks(1) {
        stream.write_all(byte).await.ok();
        sleep(Duration::from_millis(5)).await;
    }
    (answer(&mut stream, &mut Vec::new()).await, 1)
}

/// How far an attacker comes before it leaves.
const PHASES: [&str; 6] = [
    "",
    "GET / HTTP/1.1\r\nHos",
    "POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 1000\r\n\r\nabc",
    "POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    GET,
    "GET /medium HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
];

async fn half_close(address: SocketAddr, number: usize) -> (String, usize) {
    let mut stream = connect(address).await;
    stream.write_all(PHASES[number % PHASES.len()].as_bytes()).await.ok();
    stream.shutdown().await.ok();
    (answer(&mut stream, &mut Vec::new()).await, 1)
}

async fn reset(address: SocketAddr, number: usize) -> (String, usize) {
    let mut stream = connect(address).await;
    let phase = number % (PHASES.len() + 1);
    stream.write_all(PHASES[phase.min(PHASES.len() - 1)].as_bytes()).await.ok();
    if phase == PHASES.len() {
        // In the middle of the answer.
        stream.read_exact(&mut [0; 1000]).await.ok();
    }
    stream.set_zero_linger().unwrap();
    ("left".into(), 1)
}

async fn idle(address: SocketAddr) -> (String, usize) {
    let mut stream = connect(address).await;
    stream.write_all(GET.as_bytes()).await.ok();
    let mut ahead = Vec::new();
    match answer(&mut stream, &mut ahead).await.as_str() {
        // And now nothing, until hostward has had enough of it.
        "200" => (answer(&mut stream, &mut ahead).await, 1),
        other => (format!("{other} at first"), 1),
    }
}

async fn one_request(address: SocketAddr) -> (String, usize) {
    ask(address, GET.as_bytes()).await
}

async fn pipelining(address: SocketAddr) -> (String, usize) {
    let mut stream = connect(address).await;
    stream.write_all(GET.repeat(100).as_bytes()).await.ok();
    answers(&mut stream, 100, "200").await
}

async fn foreign_hosts(address: SocketAddr, number: usize) -> (String, usize) {
    let mut stream = connect(address).await;
    for turn in 0..10 {
        let request = format!("GET / HTTP/1.1\r\nHost: h{number}-{turn}.evil.example\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok();
        let (outcome, _) = answers(&mut stream, 1, "421").await;
        if outcome != "421" {
            return (outcome, 1);
        }
    }
    ("421".into(), 10)
}

async fn answers(stream: &mut TcpStream, count: usize, expected: &str) -> (String, usize) {
    let mut ahead = Vec::new();
    for _ in 0..count {
        let outcome = answer(stream, &mut ahead).await;
        if outcome != expected {
            return (outcome, 1);
        }
    }
    (expected.into(), count)
}

async fn malformed(address: SocketAddr, number: usize) -> (String, usize) {
    let long = format!("GET / HTTP/1.1\r\nHost: www.example.com\r\nX-A: {}\r\n\r\n", "a".repeat(70 << 10));
    let many = format!("GET / HTTP/1.1\r\nHost: www.example.com\r\n{}\r\n", "X-A: b\r\n".repeat(1001));
    let requests = [
        "GET / HTTP/1.1\nHost: www.example.com\n\n",
        "GET / HTTP/1.1\r\nHost: www.example.com\r\nHost: www.example.com\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "\0\u{1}\u{2}\r\n\r\n",
        &long,
        &many,
    ];
    ask(address, requests[number % requests.len()].as_bytes()).await
}
