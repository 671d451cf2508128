//! A whole ECS task on loopback: a task metadata endpoint, an app that checks its hosts as Django does, and
//! hostward as a real child process in front. Sends what a load balancer, a user and a stranger would send, to the
//! app directly and through hostward, and compares.
//!
//! `cargo run --release --example local-task` stays up for `curl` until Ctrl-C; `-- --once` ends after the
//! comparison, with exit code 0 only when everything came out as it should.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is a demonstration: the terminal is its output")]

use std::convert::Infallible;
use std::error::Error;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HOST};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;

type Failure = Box<dyn Error>;

/// The one host that the app allows.
const SITE: &str = "www.example.com";

/// The address that the task has, says its metadata: here, nothing listens there.
const TASK_IP: &str = "10.0.2.100";

/// Longer than any step takes.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let once = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--once" => true,
        _ => {
            eprintln!("usage: cargo run --release --example local-task [-- --once]");
            return ExitCode::from(2);
        }
    };
    let outcome = hostward_binary().and_then(|binary| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(until_stopped(demonstrate(&binary, once), once))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("local-task: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// `cargo run --example` builds the example and the library, but not the package's binary: so cargo is asked for
/// that, in the same profile and target directory. When it is fresh, this takes a moment only.
fn hostward_binary() -> Result<PathBuf, Failure> {
    let example = std::env::current_exe()?;
    let layout = || -> Option<(&Path, &str)> {
        let profile = example.parent().filter(|folder| folder.ends_with("examples"))?.parent()?;
        Some((profile, profile.file_name()?.to_str()?))
    };
    let (folder, profile) = layout().ok_or("start it with cargo run --release --example local-task")?;
    let target = folder.parent().ok_or("no target directory")?;
    let status = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--locked", "--bin", "hostward", "--profile", if profile == "debug" { "dev" } else { profile }])
        .arg("--target-dir")
        .arg(target)
        .status()?;
    if !status.success() {
        return Err(format!("cargo could not build hostward: {status}").into());
    }
    Ok(folder.join("hostward"))
}

/// Runs `work` to its end, or to Ctrl-C or SIGTERM, which is a failure when the end was wanted. Either way what it
/// owns is dropped, the child process too.
async fn until_stopped(work: impl Future<Output = Result<(), Failure>>, to_its_end: bool) -> Result<(), Failure> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        outcome = work => return outcome,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    if to_its_end { Err("interrupted".into()) } else { Ok(()) }
}

async fn demonstrate(binary: &Path, once: bool) -> Result<(), Failure> {
    let asked = Arc::new(AtomicUsize::new(0));
    let app = serve(app(Arc::clone(&asked))).await?;
    let metadata = format!("http://{}/v4/local-task", serve(metadata).await?);
    let mut hostward = Hostward::start(binary, app, &metadata)?;
    let (listen, admin) = hostward.ready().await?;

    println!("A task on this machine, whose metadata say that its IP is {TASK_IP}:\n");
    println!("  app       http://{app}   allows {SITE} alone");
    println!("  metadata  {metadata}");
    println!("  hostward  http://{listen}   HOSTWARD_ALLOWED_HOSTS={SITE} HOSTWARD_UPSTREAM=http://{app}");
    println!("  admin     http://{admin}/readyz\n");

    let directly = ask_everything(app).await?;
    let before = asked.load(Ordering::SeqCst);
    let through = ask_everything(listen).await?;
    let admitted = asked.load(Ordering::SeqCst) - before;

    let as_expected = directly == [400, 200, 400] && through == [200, 200, 421] && admitted == 2;
    println!("{:20}{:29}{:>8}   through hostward", "request", "Host", "directly");
    for (sender, (direct, through)) in directly.iter().zip(&through).enumerate() {
        println!("{:20}{:29}{direct:>8}   {through}", SENDERS[sender], host(sender, listen));
    }
    println!("\nOf the three through hostward, {admitted} reached the app.");
    if !as_expected {
        hostward.end()?;
        hostward.show_log().await;
        return Err("expected 400, 200, 400 directly; 200, 200, 421 through hostward, of which 2 reach the app".into());
    }
    if once {
        return Ok(());
    }
    println!("\nTry it:\n");
    for (sender, name) in SENDERS.iter().enumerate() {
        println!("  curl -i -H 'Host: {}' http://{listen}/   # as {name}", host(sender, listen));
    }
    println!("  curl -i http://{admin}/readyz");
    println!("\nCtrl-C ends it. What hostward logs:\n");
    hostward.show_log().await;
    Err("hostward has ended by itself".into())
}

/// hostward as a child process. It ends with this value.
struct Hostward {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    /// Lines that were read while waiting for others.
    unseen: Vec<String>,
}

impl Hostward {
    fn start(binary: &Path, app: SocketAddr, metadata: &str) -> Result<Self, Failure> {
        let mut child = Command::new(binary)
            .env_clear()
            .env("HOSTWARD_ALLOWED_HOSTS", SITE)
            .env("HOSTWARD_UPSTREAM", format!("http://{app}"))
            .env("HOSTWARD_LISTEN", "127.0.0.1:0")
            .env("HOSTWARD_ADMIN_LISTEN", "127.0.0.1:0")
            .env("ECS_CONTAINER_METADATA_URI_V4", metadata)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // The terminal's Ctrl-C comes to this process alone, which then ends the child.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{}: {error}", binary.display()))?;
        let stdout = child.stdout.take();
        let (sender, lines) = mpsc::unbounded_channel();
        let hostward = Self { child, lines, unseen: Vec::new() };
        let stdout = BufReader::new(stdout.ok_or("no standard output")?);
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(hostward)
    }

    /// Waits until it accepts connections and knows the task's IP; its address, and its admin address.
    async fn ready(&mut self) -> Result<(SocketAddr, SocketAddr), Failure> {
        let (mut started, mut discovered) = (None, false);
        while started.is_none() || !discovered {
            let Ok(Some(line)) = timeout(PATIENCE, self.lines.recv()).await else {
                self.show_unseen();
                let missing = if started.is_none() { "started" } else { "task addresses found" };
                return Err(format!("hostward ended, or said nothing, before it said `{missing}`").into());
            };
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            match event["msg"].as_str() {
                Some("started") => started = Some((address(&event["listen"])?, address(&event["admin"])?)),
                Some("task addresses found") => discovered = true,
                _ => {}
            }
            self.unseen.push(line);
        }
        started.ok_or_else(|| "hostward did not start".into())
    }

    fn show_unseen(&mut self) {
        for line in self.unseen.drain(..) {
            println!("  {line}");
        }
    }

    /// Ends it, by its process id. A second time does nothing.
    fn end(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Shows what it has logged and logs, until it ends.
    async fn show_log(&mut self) {
        self.show_unseen();
        while let Some(line) = self.lines.recv().await {
            println!("  {line}");
        }
    }
}

impl Drop for Hostward {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("local-task: hostward (process {}) could not be ended: {error}", self.child.id());
        }
    }
}

fn address(field: &Value) -> Result<SocketAddr, Failure> {
    let text = field.as_str().ok_or("hostward's line `started` lacks an address")?;
    text.parse().map_err(|error| format!("{text}: {error}").into())
}

/// In the order in which they ask.
const SENDERS: [&str; 3] = ["an ALB health check", "a user", "a stranger"];

fn host(sender: usize, to: SocketAddr) -> String {
    match sender {
        0 => format!("{TASK_IP}:{}", to.port()),
        1 => SITE.to_owned(),
        _ => "evil.example".to_owned(),
    }
}

/// The statuses that the probe, the user and the stranger are answered with.
async fn ask_everything(to: SocketAddr) -> Result<[u16; 3], Failure> {
    // What an Application Load Balancer adds to a client's request. Its own health checks don't carry it.
    let forwarded = "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 443\r\n\
                     X-Amzn-Trace-Id: Root=1-67891233-abcdef012345678912345678\r\nUser-Agent: Mozilla/5.0\r\n";
    let probe = "User-Agent: ELB-HealthChecker/2.0\r\nAccept-Encoding: gzip, compressed\r\n";
    let mut statuses = [0; 3];
    for (sender, fields) in [(0, probe), (1, forwarded), (2, forwarded)] {
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{fields}\r\n", host(sender, to));
        statuses[sender] = timeout(PATIENCE, ask(to, &request)).await??;
    }
    Ok(statuses)
}

/// Sends a request byte for byte; the answer's status.
async fn ask(to: SocketAddr, request: &str) -> Result<u16, Failure> {
    let mut connection = TcpStream::connect(to).await?;
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await?;
    let status = answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    status.ok_or_else(|| format!("not an HTTP answer: {:.80}", String::from_utf8_lossy(&answer)).into())
}

/// Serves `answer` on a free port, for as long as the runtime lives.
async fn serve<F>(answer: F) -> Result<SocketAddr, Failure>
where
    F: Fn(&Request<Incoming>) -> Response<String> + Clone + 'static + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let response = answer(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            // A client that leaves early is no concern of a demonstration.
            tokio::spawn(
                async move { http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok() },
            );
        }
    });
    Ok(address)
}

/// An app with `ALLOWED_HOSTS = ["www.example.com"]`, which counts how often it is asked.
fn app(asked: Arc<AtomicUsize>) -> impl Fn(&Request<Incoming>) -> Response<String> + Clone + Send {
    move |request| {
        let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
        let seen =
            |name: &str| request.headers().get(name).map_or("-", |value| value.to_str().unwrap_or("?")).to_owned();
        let host = seen(HOST.as_str());
        let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
        if name.eq_ignore_ascii_case(SITE) {
            let proto = seen("x-forwarded-proto");
            return respond(
                StatusCode::OK,
                "text/plain",
                format!("request {number}: Host {host}, X-Forwarded-Proto {proto}\n"),
            );
        }
        let body = format!(
            "DisallowedHost at /\nInvalid HTTP_HOST header: '{host}'. You may need to add '{name}' to ALLOWED_HOSTS.\n"
        );
        respond(StatusCode::BAD_REQUEST, "text/plain", body)
    }
}

/// The task metadata endpoint, version 4, as on Fargate.
fn metadata(request: &Request<Incoming>) -> Response<String> {
    let container = json!({
        "DockerId": "0f4c1d8e2b7a49f3a6c5d4e3f2b1a098-1234567890",
        "Name": "hostward",
        "DockerName": "hostward",
        "Labels": {
            "com.amazonaws.ecs.container-name": "hostward",
            "com.amazonaws.ecs.task-definition-family": "local-task",
            "com.amazonaws.ecs.task-definition-version": "1",
        },
        "DesiredStatus": "RUNNING",
        "KnownStatus": "RUNNING",
        "Limits": { "CPU": 2 },
        "Type": "NORMAL",
        "Networks": [{
            "NetworkMode": "awsvpc",
            "IPv4Addresses": [TASK_IP],
            "IPv4SubnetCIDRBlock": "10.0.2.0/24",
            "PrivateDNSName": "ip-10-0-2-100.eu-west-1.compute.internal",
            "SubnetGatewayIpv4Address": "10.0.2.1/24",
        }],
    });
    let document = match request.uri().path() {
        "/v4/local-task" => container,
        "/v4/local-task/task" => json!({
            "Cluster": "local",
            "Family": "local-task",
            "Revision": "1",
            "DesiredStatus": "RUNNING",
            "KnownStatus": "RUNNING",
            "Limits": { "CPU": 0.25, "Memory": 512 },
            "AvailabilityZone": "eu-west-1a",
            "LaunchType": "FARGATE",
            "Containers": [container],
        }),
        path => {
            let sentence = json!(format!("no such document: {path}"));
            return respond(StatusCode::NOT_FOUND, "application/json", sentence.to_string());
        }
    };
    respond(StatusCode::OK, "application/json", document.to_string())
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}
