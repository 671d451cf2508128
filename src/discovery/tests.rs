//! Discovery against stand-ins of the endpoint, healthy and not, on real sockets.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError, mpsc};

use super::*;

/// Longer than anything here may take; a hang becomes a failure.
const PATIENCE: Duration = Duration::from_secs(20);

const CONTAINER: &str = r#"{
    "Name": "proxy", "Type": "NORMAL", "KnownStatus": "RUNNING", "Limits": {"CPU": 10, "Memory": 128},
    "Labels": {"com.amazonaws.ecs.task-definition-family": "web", "com.amazonaws.ecs.task-definition-version": "7"},
    "Networks": [{"NetworkMode": "awsvpc", "IPv4Addresses": ["10.0.2.100"], "IPv6Addresses": ["2001:DB8::AB"]}]
}"#;

const TASK: &str = r#"{
    "Family": "web", "Revision": "7", "Limits": {"CPU": 0.5, "Memory": 1024}, "AvailabilityZone": "eu-west-1a",
    "Containers": [
        {"Name": "~internal~ecs~pause", "Type": "CNI_PAUSE", "KnownStatus": "RESOURCES_PROVISIONED",
         "Networks": [{"IPv4Addresses": ["10.0.2.99"]}]},
        {"Name": "app", "Type": "NORMAL", "KnownStatus": "PULLED"},
        {"Name": "init", "Type": "NORMAL", "KnownStatus": "STOPPED", "Networks": [{"IPv4Addresses": ["10.0.2.98"]}]},
        {"Name": "proxy", "Type": "NORMAL", "KnownStatus": "RUNNING", "Networks": [{"IPv4Addresses": ["10.0.2.100"]}]}
    ]
}"#;

const WITHOUT_ADDRESS: &str = r#"{"Name": "proxy", "Networks": [{"NetworkMode": "host", "IPv4Addresses": [""]}]}"#;

/// What the stand-in does with a request, by its path and its number, counted from 0.
type Behaviour = fn(&mut TcpStream, &str, usize) -> io::Result<()>;

/// A stand-in of the endpoint; ends with the test.
struct StandIn {
    address: SocketAddr,
    paths: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl StandIn {
    fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (paths, ended) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(AtomicBool::new(false)));
        let (seen, end) = (Arc::clone(&paths), Arc::clone(&ended));
        let thread = thread::spawn(move || {
            for stream in listener.incoming().take_while(|_| !end.load(Ordering::SeqCst)) {
                let mut stream = stream.unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let Some(path) = read_path(&mut stream) else { continue };
                let number = {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.push(path.clone());
                    seen.len() - 1
                };
                // The client leaves a slow or endless answer early, which fails the write: that is the point.
                drop(behaviour(&mut stream, &path, number));
            }
        });
        Self { address, paths, ended, thread: Some(thread) }
    }

    fn uri(&self) -> String {
        format!("http://{}/v4/7e1c", self.address)
    }

    fn paths(&self) -> Vec<String> {
        self.paths.lock().unwrap().clone()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || thread::panicking(), "the stand-in failed");
        }
    }
}

/// The path of a request; its head has been read to the end.
fn read_path(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    head.strip_prefix("GET ")?.split(' ').next().map(str::to_owned)
}

fn answer(stream: &mut TcpStream, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// As on Fargate.
fn healthy(stream: &mut TcpStream, path: &str, _number: usize) -> io::Result<()> {
    match path {
        "/v4/7e1c" => answer(stream, "200 OK", CONTAINER),
        "/v4/7e1c/task" => answer(stream, "200 OK", TASK),
        _ => answer(stream, "404 Not Found", r#""V4 container metadata handler: no such container""#),
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("in time") })
}

fn ask(uri: &str) -> Result<Document, Failure> {
    let endpoint = Endpoint::at("v4", uri).unwrap();
    block_on(async { endpoint::ask(&endpoint::client().unwrap(), &endpoint.container).await })
}

fn v4(uri: String) -> MetadataSource {
    MetadataSource { v4: Some(uri), ..MetadataSource::default() }
}

/// Runs discovery as `run` does, and waits for what it finds.
fn find(source: MetadataSource) -> (Found, Arc<OwnAddresses>) {
    let own = Arc::new(OwnAddresses::default());
    let (sender, receiver) = mpsc::channel();
    spawn(&TaskIp::Auto(source), Arc::clone(&own), move |found| sender.send(found.clone()).unwrap());
    let found = receiver.recv_timeout(PATIENCE).expect("addresses are found");
    assert_eq!(own.discovered.get(), Some(&found.addresses));
    (found, own)
}

fn ips(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

thread_local! {
    /// What this thread logs.
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes to the calling thread's own [`LINES`].
struct ThreadLines;

impl Write for ThreadLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.with_borrow_mut(|lines| lines.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The text of every event that `act` causes on this thread. The subscriber is the whole process's, because `tracing`
/// caches per call site whether anyone listens: with one for each thread, a test without one could switch off the events
/// of a test with one.
fn logged(act: impl FnOnce()) -> String {
    static SUBSCRIBER: Once = Once::new();
    SUBSCRIBER.call_once(|| {
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(|| ThreadLines).finish();
        tracing::subscriber::set_global_default(subscriber).expect("the only subscriber of these tests");
    });
    LINES.take();
    act();
    String::from_utf8(LINES.take()).unwrap()
}

#[test]
fn the_own_containers_document_gives_the_addresses_and_the_tasks_only_its_limit() {
    let endpoint = StandIn::start(healthy);
    let (found, _) = find(v4(endpoint.uri()));
    assert_eq!(found.addresses, ips(&["10.0.2.100", "2001:db8::ab"]));
    assert_eq!((found.source, found.task.as_deref()), ("v4 container", Some("web:7")));
    if thread::available_parallelism().unwrap().get() > 1 {
        assert_eq!((found.vcpus, found.availability_zone.as_deref()), (Some(0.5), Some("eu-west-1a")));
        assert_eq!(endpoint.paths(), ["/v4/7e1c", "/v4/7e1c/task"]);
    } else {
        assert_eq!(endpoint.paths(), ["/v4/7e1c"]);
    }
}

#[test]
fn a_container_without_an_address_has_the_tasks() {
    let endpoint = StandIn::start(|stream, path, number| match path {
        "/v4/7e1c" => answer(stream, "200 OK", WITHOUT_ADDRESS),
        _ => healthy(stream, path, number),
    });
    let (found, _) = find(v4(endpoint.uri()));
    assert_eq!((found.addresses, found.source), (ips(&["10.0.2.100"]), "v4 task"));
    assert_eq!((found.vcpus, found.task.as_deref()), (Some(0.5), Some("web:7")));
    assert_eq!(endpoint.paths(), ["/v4/7e1c", "/v4/7e1c/task"], "nothing is asked twice");
}

#[test]
fn a_task_document_that_cannot_be_had_costs_only_the_limit() {
    let endpoint = StandIn::start(|stream, path, number| match path {
        "/v4/7e1c" => healthy(stream, path, number),
        _ => answer(stream, "500 Internal Server Error", r#""no network settings""#),
    });
    let (found, _) = find(v4(endpoint.uri()));
    assert_eq!((found.addresses, found.vcpus), (ips(&["10.0.2.100", "2001:db8::ab"]), None));
    // On a single CPU nobody wants to know.
    let tries = if thread::available_parallelism().unwrap().get() > 1 { TRIES as usize } else { 0 };
    assert_eq!(endpoint.paths().len(), 1 + tries, "{:?}", endpoint.paths());
}

#[test]
fn a_task_document_that_comes_late_brings_the_limit() {
    if thread::available_parallelism().unwrap().get() == 1 {
        return;
    }
    let endpoint = StandIn::start(|stream, path, number| match (path, number) {
        ("/v4/7e1c/task", 0..3) => answer(stream, "500 Internal Server Error", r#""no network settings""#),
        _ => healthy(stream, path, number),
    });
    let (found, _) = find(v4(endpoint.uri()));
    assert_eq!(found.vcpus, Some(0.5));
}

#[test]
fn addresses_that_come_late_are_found_late() {
    let endpoint = StandIn::start(|stream, path, number| match (path, number) {
        (_, 0) => answer(stream, "404 Not Found", r#""no such container""#),
        ("/v4/7e1c", 1) => answer(stream, "200 OK", WITHOUT_ADDRESS),
        ("/v4/7e1c/task", 2) => answer(stream, "500 Internal Server Error", r#""no network settings""#),
        _ => healthy(stream, path, number),
    });
    let (found, _) = find(v4(endpoint.uri()));
    assert_eq!((found.addresses, found.source), (ips(&["10.0.2.100", "2001:db8::ab"]), "v4 container"));
    assert_eq!(endpoint.paths()[..4], ["/v4/7e1c", "/v4/7e1c", "/v4/7e1c/task", "/v4/7e1c"]);
}

#[test]
fn any_url_will_do() {
    let endpoint = StandIn::start(|stream, path, _| match path {
        "/" | "/v3" | "/a/b?token=1" => answer(stream, "200 OK", CONTAINER),
        "/task" | "/v3/task" | "/a/b/task?token=1" => answer(stream, "200 OK", TASK),
        _ => answer(stream, "404 Not Found", ""),
    });
    let address = endpoint.address;
    for uri in ["", "/", "/v3", "/v3/", "/a/b?token=1", "/a/b/?token=1"] {
        let (found, _) = find(v4(format!("http://{address}{uri}")));
        assert_eq!(found.addresses, ips(&["10.0.2.100", "2001:db8::ab"]), "{uri}");
    }
    let (found, _) = find(v4(format!(" http://localhost:{}/v3 ", address.port())));
    assert_eq!(found.source, "v4 container");
}

#[test]
fn proxy_variables_do_not_count() {
    // The environment belongs to the whole process, so a process of its own runs the test above.
    let proxies = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].map(|name| (name, "http://127.0.0.1:9"));
    let again = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "discovery::tests::any_url_will_do"])
        .envs(proxies)
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn v4_comes_before_v3_and_v2_only_where_ecs_names_neither() {
    let uri = |version: &str| Some(format!("http://127.0.0.1:9/{version}"));
    let none = MetadataSource::default();
    let both = MetadataSource { v4: uri("v4"), v3: uri("v3"), on_ecs: true, ..none.clone() };
    let only_v3 = MetadataSource { v4: Some(" ".into()), v3: uri("v3"), on_ecs: true, ..none.clone() };
    let only_ecs = MetadataSource { on_ecs: true, ..none.clone() };
    for (source, expected) in [
        (both, Some(("v4", "http://127.0.0.1:9/v4", Some("http://127.0.0.1:9/v4/task")))),
        (only_v3, Some(("v3", "http://127.0.0.1:9/v3", Some("http://127.0.0.1:9/v3/task")))),
        (only_ecs, Some(("v2", "http://169.254.170.2/v2/metadata", None))),
        (none, None),
    ] {
        let endpoint = endpoint(&source).map(Result::unwrap);
        let actual = endpoint.as_ref().map(|e| (e.version, e.container.as_str(), e.task.as_ref().map(Url::as_str)));
        assert_eq!(actual, expected);
    }
}

#[test]
fn v2_answers_with_the_tasks_document_alone() {
    let endpoint = StandIn::start(|stream, _, _| answer(stream, "200 OK", TASK));
    let v2 = Endpoint { version: "v2", container: endpoint.uri().parse().unwrap(), task: None };
    let own = OwnAddresses::default();
    let found = block_on(async { discover(&endpoint::client().unwrap(), &v2, &own).await });
    assert_eq!((found.addresses, found.source, found.vcpus), (ips(&["10.0.2.100"]), "v2 task", Some(0.5)));
    assert_eq!(endpoint.paths(), ["/v4/7e1c"]);
}

#[test]
fn given_addresses_are_there_at_once_and_nobody_is_asked() {
    let endpoint = StandIn::start(healthy);
    for (task_ip, source) in [
        (TaskIp::Given(ips(&["10.0.2.7", "fd00::7"])), "HOSTWARD_TASK_IP"),
        (TaskIp::Auto(MetadataSource { pod: ips(&["10.0.2.7", "fd00::7"]), ..v4(endpoint.uri()) }), "POD_IP"),
    ] {
        let own = Arc::new(OwnAddresses::default());
        let (sender, receiver) = mpsc::channel();
        spawn(&task_ip, Arc::clone(&own), move |found| sender.send(found.clone()).unwrap());
        assert_eq!(own.discovered.get(), Some(&ips(&["10.0.2.7", "fd00::7"])));
        assert_eq!(receiver.try_recv().unwrap().source, source);
    }
    assert_eq!(endpoint.paths(), [""; 0]);
}

#[test]
fn switched_off_or_outside_ecs_nothing_is_asked_and_nothing_said() {
    let said = logged(|| {
        for task_ip in [TaskIp::Off, TaskIp::Auto(MetadataSource::default())] {
            let own = Arc::new(OwnAddresses::default());
            // The callback owns the sender: had a thread been started, the channel would still be open.
            let (sender, receiver) = mpsc::channel();
            spawn(&task_ip, Arc::clone(&own), move |found| sender.send(found.clone()).unwrap());
            assert_eq!(receiver.try_recv(), Err(mpsc::TryRecvError::Disconnected));
            assert_eq!(own.discovered.get(), None);
        }
    });
    assert_eq!(said, "");
}

#[test]
fn a_variable_that_is_no_url_is_said_once_and_survived() {
    for uri in ["169.254.170.2/v4/x", "http://", "https://169.254.170.2/v4/x", "file:///etc/passwd", "${URI}\u{1b}[31m"]
    {
        let own = Arc::new(OwnAddresses::default());
        let (sender, receiver) = mpsc::channel();
        let said = logged(|| {
            spawn(&TaskIp::Auto(v4(uri.into())), own, move |found| sender.send(found.clone()).unwrap());
        });
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("task metadata unavailable") && said.contains("HOSTWARD_TASK_IP"), "{said}");
        assert!(!said.contains('\u{1b}'), "{said}");
        assert_eq!(receiver.try_recv(), Ok(Found::default()), "nobody has to wait for more");
    }
}

#[test]
fn every_fault_has_its_reason_and_is_over_within_its_second() {
    let faults: [(Behaviour, Reason, &str); 15] = [
        (|s, _, _| answer(s, "404 Not Found", r#""no such \u001b[31m container""#), Reason::Status(404), "container"),
        (|s, _, _| answer(s, "429 Too Many Requests", ""), Reason::Status(429), "answered 429"),
        (|s, _, _| answer(s, "500 Internal Server Error", "oh"), Reason::Status(500), "oh"),
        (
            |s, _, _| write!(s, "HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
            Reason::Status(301),
            "answered 301",
        ),
        (|s, _, _| answer(s, "200 OK", r#""a sentence""#), Reason::NoDocument, "a sentence"),
        (|s, _, _| answer(s, "200 OK", &"<".repeat(9_000)), Reason::NoDocument, "<…"),
        (|s, _, _| answer(s, "200 OK", ""), Reason::NoDocument, "not a JSON object"),
        (|s, _, _| s.write_all(b"\x16\x03\x01 garbage\r\n\r\n"), Reason::Broken, "not HTTP"),
        (|s, _, _| s.shutdown(Shutdown::Both), Reason::Broken, "broke off"),
        // A promise of more than comes.
        (|s, _, _| s.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}"), Reason::Broken, "broke off"),
        (|s, _, _| socket2::SockRef::from(&*s).set_linger(Some(Duration::ZERO)), Reason::Broken, "reset"),
        // A black hole: takes the request and says nothing until the client has gone.
        (|s, _, _| s.read(&mut [0]).map(drop), Reason::Timeout, "1s"),
        (slow_drip, Reason::Timeout, "1s"),
        (|s, _, _| endless(s, "Content-Length: 1073741824", ""), Reason::TooLarge, "1048576"),
        (|s, _, _| endless(s, "Transfer-Encoding: chunked", "10000\r\n"), Reason::TooLarge, "1048576"),
    ];
    for (behaviour, reason, words) in faults {
        let endpoint = StandIn::start(behaviour);
        let began = Instant::now();
        let failure = ask(&endpoint.uri()).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(5), "{failure:?} took {:?}", began.elapsed());
        assert_eq!(failure.reason, reason, "{failure:?}");
        let said = failure.to_string();
        assert!(said.contains(words), "{said}");
        assert!(said.chars().count() < 250 && !said.contains(char::is_control), "{said}");
    }
}

/// A byte now and then: every read succeeds, the whole never comes.
fn slow_drip(stream: &mut TcpStream, _path: &str, _number: usize) -> io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{{")?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    loop {
        stream.write_all(b" ")?;
        match stream.read(&mut [0]) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            left => return left.map(drop),
        }
    }
}

/// Sends 64 KiB pieces until the client has had enough.
fn endless(stream: &mut TcpStream, field: &str, before: &str) -> io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\n{field}\r\n\r\n")?;
    let piece = vec![b' '; 65_536];
    loop {
        stream.write_all(before.as_bytes())?;
        stream.write_all(&piece)?;
        if !before.is_empty() {
            stream.write_all(b"\r\n")?;
        }
    }
}

#[test]
fn nobody_listening_is_a_failure_to_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}/v4/7e1c", listener.local_addr().unwrap());
    drop(listener);
    let failure = ask(&uri).unwrap_err();
    assert_eq!(failure.reason, Reason::Connect);
    assert!(failure.to_string().contains("refused"), "{failure}");
}

#[test]
fn a_largest_answer_is_still_read() {
    let endpoint = StandIn::start(|stream, _, _| {
        let padding = " ".repeat(1024 * 1024 - CONTAINER.len());
        answer(stream, "200 OK", &format!("{padding}{CONTAINER}"))
    });
    assert_eq!(ask(&endpoint.uri()).unwrap().addresses().len(), 2);
}

#[test]
fn a_failure_makes_one_line_with_the_remedy_and_success_another() {
    let endpoint = StandIn::start(|stream, path, number| match number {
        0..3 => answer(stream, "500 Internal Server Error", &format!(r#""try {number}""#)),
        _ => healthy(stream, path, number),
    });
    let uri = endpoint.uri().replace("://", "://user:secret@");
    let said = logged(|| {
        let endpoint = Endpoint::at("v4", &uri).unwrap();
        block_on(async { discover(&endpoint::client().unwrap(), &endpoint, &OwnAddresses::default()).await });
    });
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    for part in
        ["WARN", "task metadata unavailable", "uri=http://user:***@", "/v4/7e1c", "answered 500: try 0", "hint="]
    {
        assert!(lines[0].contains(part), "{part} in {said}");
    }
    for part in ["INFO", "task addresses found", "addresses=10.0.2.100, 2001:db8::ab", "v4 container"] {
        assert!(lines[1].contains(part), "{part} in {said}");
    }
    assert!(!said.contains("secret"), "{said}");
}

#[test]
fn a_lasting_failure_is_told_once_a_minute_with_a_count() {
    let mut complaints = Complaints::default();
    let start = Instant::now();
    let mut due = |reason, second| complaints.due(reason, start + Duration::from_secs(second));
    assert_eq!(due(Reason::Timeout, 0), Some(1));
    assert_eq!(due(Reason::Timeout, 1), None);
    assert_eq!(due(Reason::Status(404), 2), Some(1), "another reason");
    assert_eq!(due(Reason::Status(500), 3), Some(1), "another status");
    assert_eq!(due(Reason::Timeout, 59), None);
    assert_eq!(due(Reason::Timeout, 60), Some(3));
    assert_eq!(due(Reason::Timeout, 61), None);
}

#[test]
fn the_interfaces_have_the_loopback_address_and_no_unspecified_one() {
    let addresses = interface_addresses();
    assert!(addresses.iter().any(IpAddr::is_loopback), "{addresses:?}");
    assert!(!addresses.iter().any(IpAddr::is_unspecified), "{addresses:?}");
}
