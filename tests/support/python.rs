//! Apps written in Python, and one each in Ruby and PHP, run as their users run them: their own server, a process of
//! its own, a free port.
//!
//! Relies on `python3` and the package index that pip is set up for. The virtual environments are made on first use
//! under `target/`, one per requirements file, and are kept. For Ruby and PHP it relies on the system's packages.
//! Leaves it to `tests/apps` what the apps do.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, PipeReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

use serde_json::Value;

/// Where the apps and the requirements files are.
const APPS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/apps");
/// Cargo makes this directory under `target/` for the tests of this package.
const TARGET: &str = env!("CARGO_TARGET_TMPDIR");
/// Bound on an app's start: importing Django takes a second, on a loaded machine several.
const START: Duration = Duration::from_mins(1);
/// Lines of an app's output that are kept to explain a failed start.
const KEPT_LINES: usize = 40;

static DEBIAN: Environment = Environment::of("requirements-debian.txt");
static JUPYTER: Environment = Environment::of("requirements-jupyter.txt");
static MOST: Environment = Environment::of("requirements.txt");
static GRPC: Environment = Environment::of("requirements-grpc.txt");
static METRICS: Environment = Environment::of("requirements-metrics.txt");
static REFUSALS: Environment = Environment::of("requirements-refusals.txt");
static UWSGI: Environment = Environment::of("requirements-uwsgi.txt");

/// An app and what serves it.
#[derive(Clone, Copy, Debug)]
pub enum Server {
    /// Django under gunicorn's default worker, which closes every connection after its answer.
    GunicornSync,
    /// Django under gunicorn's threaded worker, which keeps idle connections for two seconds.
    GunicornThreads,
    /// Django under gunicorn's threaded worker, at a path.
    GunicornUnix,
    /// Django under uWSGI's own HTTP.
    Uwsgi,
    /// Django under uWSGI, which speaks uwsgi on a port.
    UwsgiTcp,
    /// Django under uWSGI, which speaks uwsgi at a path.
    UwsgiUnix,
    /// The same with an abstract name.
    UwsgiAbstract,
    /// On a port, with uWSGI's own bound on a request head.
    UwsgiTcpOfDefaults,
    /// Starlette under uvicorn.
    Uvicorn,
    /// The same, at a path.
    UvicornUnix,
    /// A gRPC service on grpcio's own server.
    Grpc,
    /// Flask under gunicorn's default worker.
    Flask,
    /// Django in Debian's version, under gunicorn's default worker.
    DebianDjango,
    /// The same for Flask.
    DebianFlask,
    /// The same for Starlette, under uvicorn.
    DebianStarlette,
    /// Jupyter's server.
    Jupyter,
    /// Flask with `ProxyFix` under gunicorn's default worker.
    FlaskProxyFix,
    /// An MCP server under uvicorn.
    Mcp,
    /// Rails' check of hosts under puma.
    Rails,
    /// A generated Rails site in production, under puma.
    RailsGenerated,
    /// Laravel under PHP's own server.
    Laravel,
    /// PHP alone, under its own server.
    Php,
    /// Symfony's `HttpFoundation` under PHP's own server.
    Symfony,
}

/// An app that runs until it is dropped.
pub struct Site {
    /// Where it listens; port 0 when that is a path.
    pub address: SocketAddr,
    process: Child,
    record: PathBuf,
    upstream: String,
    /// Its socket, when that is a path.
    path: PathBuf,
}

/// A virtual environment with the packages of one requirements file.
struct Environment {
    requirements: &'static str,
    made: OnceLock<Result<PathBuf, String>>,
}

impl Site {
    /// Starts the app and returns when it listens. `None` where Python or its index can't be had: the test is skipped,
    /// and the reason is on the terminal. With `CI=true` that is a failure.
    pub fn start(server: Server, variables: &[(&str, &str)]) -> Option<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let environment = server.environment()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let record = Path::new(TARGET).join(format!("requests-{}-{number}.jsonl", std::process::id()));
        File::create(&record).expect("the file for the app's record");
        // A socket's path is short, the target directory's may be long.
        let path = std::env::temp_dir().join(format!("hostward-{}-{number}.sock", std::process::id()));

        let (output, its_output) = io::pipe().expect("a pipe for the app's output");
        let process = server
            .command(environment, &path)
            .current_dir(APPS)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("WITNESS_FILE", &record)
            .env("GATE_FILE", record.with_extension("gate"))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(its_output.try_clone().expect("a second handle of the pipe"))
            .stderr(its_output)
            // A group of its own, so that its worker processes can be ended together with it.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{server:?} can't be run: {error}"));
        // Owned from here on, so that a failed start leaves nothing behind.
        let upstream = String::new();
        let mut app = Self { address: (Ipv4Addr::LOCALHOST, 0).into(), process, record, upstream, path };
        let port = wait_for_port(output, server)
            .unwrap_or_else(|output| panic!("{server:?} didn't start. Its last output:\n{output}"));
        app.address.set_port(port);
        app.upstream = server.upstream(app.address, &app.path);
        Some(app)
    }

    /// Where hostward has to send requests for this app.
    pub fn upstream(&self) -> String {
        self.upstream.clone()
    }

    /// Lets go on what waits for it in the app.
    pub fn open_gate(&self) {
        File::create(self.record.with_extension("gate")).expect("the file that the app waits for");
    }

    /// Ends the app at once, as the kernel does when there is no memory.
    pub fn kill(&self) {
        // The leader hasn't been waited for, so its group id can't belong to anybody else yet.
        // The shell's own `kill`: the program of that name isn't everywhere.
        let group = self.process.id();
        Command::new("sh").arg("-c").arg(format!("kill -KILL -{group}")).status().ok();
    }

    /// Every request that has reached the app, refused by its framework or not, in their order.
    pub fn requests(&self) -> Vec<Request> {
        let lines = fs::read_to_string(&self.record).expect("the app's record");
        lines.lines().map(|line| Request(serde_json::from_str(line).expect("a JSON line"))).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
        self.process.wait().ok();
        for file in [&self.record, &self.record.with_extension("gate"), &self.path] {
            fs::remove_file(file).ok();
        }
        // Where an app has put its own files.
        for its_own in ["jsonl.rails", "jsonl.jupyter"] {
            fs::remove_dir_all(self.record.with_extension(its_own)).ok();
        }
    }
}

/// A request as the app saw it.
#[derive(Debug)]
pub struct Request(Value);

impl Request {
    /// Method and path, as in `GET /`.
    pub fn what(&self) -> String {
        let text = |key: &str| self.0[key].as_str().expect("a string").to_owned();
        format!("{} {}", text("method"), text("path"))
    }

    /// The values of a field, in their order. WSGI knows one value per field and `-` and `_` as the same.
    pub fn field(&self, name: &str) -> Vec<&str> {
        let fields = self.0["fields"].as_array().expect("an array");
        fields.iter().filter(|field| field[0] == name).filter_map(|field| field[1].as_str()).collect()
    }

    /// Whether `text` is anywhere in the request's head.
    pub fn mentions(&self, text: &str) -> bool {
        self.0.to_string().to_lowercase().contains(text)
    }
}

impl Server {
    /// Where its programs are.
    fn environment(self) -> Option<&'static Path> {
        let environment = match self {
            Self::Uwsgi | Self::UwsgiTcp | Self::UwsgiUnix | Self::UwsgiAbstract | Self::UwsgiTcpOfDefaults => &UWSGI,
            Self::Grpc => &GRPC,
            Self::GunicornSync | Self::GunicornThreads | Self::GunicornUnix | Self::Uvicorn | Self::UvicornUnix => {
                &MOST
            }
            Self::Flask | Self::FlaskProxyFix | Self::Mcp => &REFUSALS,
            Self::DebianDjango | Self::DebianFlask | Self::DebianStarlette => &DEBIAN,
            Self::Jupyter => &JUPYTER,
            Self::Rails | Self::RailsGenerated => return ruby(),
            Self::Laravel | Self::Php | Self::Symfony => return php(),
        };
        environment.get()
    }

    /// The server as it is started in production, except for the port that the system chooses.
    fn command(self, environment: &Path, path: &Path) -> Command {
        let program = |name: &str| Command::new(environment.join("bin").join(name));
        let path = path.to_str().expect("a path of ASCII");
        let gunicorn_for = |site: &str, bind: &str, worker: &[&str]| {
            let mut command = program("gunicorn");
            // Preloaded, an app that can't be imported ends gunicorn at once.
            command.args(["--bind", bind, "--no-control-socket", "--preload"]);
            command.args(worker).arg(site);
            command
        };
        let gunicorn = |bind: &str, worker: &[&str]| gunicorn_for("django_site:application", bind, worker);
        let uwsgi = |socket: &[&str]| {
            let mut command = program("uwsgi");
            command.args(socket).args(["--module", "django_site:application", "--need-app"]);
            command.args(["--pythonpath", APPS, "--die-on-term", "--virtualenv"]).arg(environment);
            command
        };
        let uvicorn_for = |site: &str, socket: &[&str]| {
            let mut command = program("uvicorn");
            command.args(socket).args(["--app-dir", APPS, site]);
            command
        };
        let php_server = |site: &str| {
            let mut command = Command::new("php");
            command.args(["-S", "127.0.0.1:0", site]);
            command
        };
        let uvicorn = |socket: &[&str]| uvicorn_for("starlette_site:application", socket);
        match self {
            Self::GunicornSync | Self::DebianDjango => gunicorn("127.0.0.1:0", &[]),
            Self::GunicornThreads => gunicorn("127.0.0.1:0", &["--worker-class", "gthread", "--threads", "4"]),
            Self::GunicornUnix => gunicorn(&format!("unix:{path}"), &["--worker-class", "gthread", "--threads", "4"]),
            Self::Uwsgi => uwsgi(&["--http-socket", "127.0.0.1:0"]),
            Self::UwsgiTcp => uwsgi(&["--socket", "127.0.0.1:0", "--buffer-size", "65535"]),
            Self::UwsgiAbstract => uwsgi(&["--socket", &format!("@{path}"), "--buffer-size", "65535"]),
            Self::UwsgiUnix => uwsgi(&["--socket", path, "--buffer-size", "65535"]),
            Self::UwsgiTcpOfDefaults => uwsgi(&["--socket", "127.0.0.1:0"]),
            Self::Grpc => {
                let mut command = program("python");
                command.arg("grpc_site.py");
                command
            }
            Self::Uvicorn | Self::DebianStarlette => uvicorn(&["--port", "0"]),
            Self::UvicornUnix => uvicorn(&["--uds", path]),
            Self::Jupyter => {
                let mut command = program("python");
                command.arg("jupyter_site.py");
                command
            }
            Self::RailsGenerated => Command::new("./rails_generated"),
            Self::Flask | Self::DebianFlask => gunicorn_for("flask_site:application", "127.0.0.1:0", &[]),
            Self::Mcp => uvicorn_for("mcp_site:application", &["--port", "0"]),
            Self::Rails => {
                let mut command = Command::new("puma");
                command.args(["--bind", "tcp://127.0.0.1:0", "rails_site.ru"]);
                command
            }
            Self::FlaskProxyFix => gunicorn_for("proxy_fix_site:app", "127.0.0.1:0", &[]),
            Self::Laravel => php_server("laravel_site.php"),
            Self::Php => php_server("php_site.php"),
            Self::Symfony => php_server("symfony_site.php"),
        }
    }

    /// The value of `HOSTWARD_UPSTREAM`.
    fn upstream(self, address: SocketAddr, path: &Path) -> String {
        match self {
            Self::GunicornSync
            | Self::GunicornThreads
            | Self::Uwsgi
            | Self::Uvicorn
            | Self::Flask
            | Self::DebianDjango
            | Self::DebianFlask
            | Self::DebianStarlette
            | Self::Jupyter
            | Self::Mcp
            | Self::Rails
            | Self::RailsGenerated
            | Self::Laravel
            | Self::FlaskProxyFix
            | Self::Php
            | Self::Symfony => format!("http://{address}"),
            Self::Grpc => format!("h2c://{address}"),
            Self::GunicornUnix | Self::UvicornUnix => format!("http+unix:{}", path.display()),
            Self::UwsgiTcp | Self::UwsgiTcpOfDefaults => format!("uwsgi://{address}"),
            Self::UwsgiAbstract => format!("uwsgi+unix:@{}", path.display()),
            Self::UwsgiUnix => format!("uwsgi+unix:{}", path.display()),
        }
    }

    /// The port, when `line` is the one that names it, or 0 when it names a path. Every server listens from this line
    /// on.
    fn port(self, line: &str) -> Option<u16> {
        let before = match self {
            Self::GunicornUnix => return line.contains("Listening at: unix:").then_some(0),
            Self::UvicornUnix => return line.contains("running on unix socket").then_some(0),
            Self::UwsgiUnix | Self::UwsgiAbstract => return line.contains("bound to UNIX address").then_some(0),
            Self::GunicornSync
            | Self::GunicornThreads
            | Self::Flask
            | Self::FlaskProxyFix
            | Self::DebianDjango
            | Self::DebianFlask => "Listening at: http://127.0.0.1:",
            Self::Jupyter => "http://127.0.0.1:",
            Self::Rails | Self::RailsGenerated => "Listening on http://127.0.0.1:",
            Self::Laravel | Self::Php | Self::Symfony => "Development Server (http://127.0.0.1:",
            Self::Uwsgi | Self::UwsgiTcp | Self::UwsgiTcpOfDefaults => "bound to TCP address 127.0.0.1:",
            Self::Grpc => "listening on 127.0.0.1:",
            Self::Uvicorn | Self::Mcp | Self::DebianStarlette => "running on http://127.0.0.1:",
        };
        let (_, rest) = line.split_once(before)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    }
}

/// Reads an app's output to its end, so that the app never blocks on a full pipe. The error is its last lines.
fn wait_for_port(output: PipeReader, server: Server) -> Result<u16, String> {
    let (send, port) = mpsc::channel();
    let lines = Arc::new(Mutex::new(VecDeque::new()));
    let kept = Arc::clone(&lines);
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some(port) = server.port(&line) {
                send.send(port).ok();
            }
            let mut kept = kept.lock().expect("nothing panics with this lock");
            kept.push_back(line);
            if kept.len() > KEPT_LINES {
                kept.pop_front();
            }
        }
    });
    port.recv_timeout(START).map_err(|_| {
        let lines = lines.lock().expect("nothing panics with this lock");
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    })
}

/// Ruby, if it has what the site needs; its programs are where the system's are.
fn ruby() -> Option<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    or_skip(FOUND.get_or_init(|| {
        let rails = "require 'action_dispatch'; require 'action_view'; require 'rails'; require 'active_model/railtie'";
        run(Command::new("ruby").args(["-e", rails]))?;
        run(Command::new("puma").arg("--version"))?;
        Ok(PathBuf::new())
    }))
}

/// PHP, if it has Laravel and Symfony's `HttpFoundation`.
fn php() -> Option<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    or_skip(FOUND.get_or_init(|| {
        let laravel =
            "require 'Illuminate/autoload.php'; exit(class_exists('Illuminate\\Foundation\\Application') ? 0 : 1);";
        run(Command::new("php").args(["-r", laravel]))?;
        run(Command::new("php").args(["-r", "require 'Symfony/Component/HttpFoundation/autoload.php';"]))?;
        Ok(PathBuf::new())
    }))
}

/// What was found, or nothing and the reason on the terminal. With `CI=true` that is a failure.
fn or_skip(found: &Result<PathBuf, String>) -> Option<&Path> {
    match found {
        Ok(directory) => Some(directory),
        Err(why) => {
            super::skip(why);
            None
        }
    }
}

impl Environment {
    const fn of(requirements: &'static str) -> Self {
        Self { requirements, made: OnceLock::new() }
    }

    fn get(&self) -> Option<&Path> {
        or_skip(self.made.get_or_init(|| self.make()))
    }

    /// Makes the environment, unless an earlier run has. Its name holds what it was made from; the file `complete` in
    /// it says that nothing is missing.
    fn make(&self) -> Result<PathBuf, String> {
        let requirements = Path::new(APPS).join(self.requirements);
        let pins = fs::read(&requirements).map_err(|error| format!("{}: {error}", requirements.display()))?;
        let mut hasher = DefaultHasher::new();
        (pins, run(Command::new("python3").arg("-VV"))?).hash(&mut hasher);
        let directory = Path::new(TARGET).join(format!("python-{:016x}", hasher.finish()));
        let complete = directory.join("complete");

        // Another test process may be making the same one. The lock ends with the process that holds it.
        let lock = OpenOptions::new().create(true).append(true).open(directory.with_extension("lock"));
        let lock = lock.and_then(|file| file.lock().map(|()| file)).map_err(|error| format!("lock: {error}"))?;
        if !complete.exists() {
            if directory.exists() {
                fs::remove_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
            }
            run(Command::new("python3").args(["-m", "venv"]).arg(&directory))?;
            let mut pip = Command::new(directory.join("bin/python"));
            pip.args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--quiet"]);
            run(pip.args(["--retries", "2", "--requirement"]).arg(&requirements))?;
            File::create(&complete).map_err(|error| format!("{}: {error}", complete.display()))?;
        }
        drop(lock);
        Ok(directory)
    }

    /// A Python of this environment, for programs that aren't servers.
    fn python(&self) -> Option<Command> {
        let mut command = Command::new(self.get()?.join("bin/python"));
        command.current_dir(APPS).env("PYTHONDONTWRITEBYTECODE", "1");
        Some(command)
    }
}

/// Runs one of the programs in `tests/apps` and returns what it prints. Only for a test that has an app already.
pub fn run_program(arguments: &[&str]) -> String {
    run(MOST.python().expect("the environment that the app runs in").args(arguments))
        .unwrap_or_else(|why| panic!("{why}"))
}

/// Runs the gRPC client. Only for a test that has the service already.
pub fn run_grpc_client(arguments: &[&str]) -> String {
    run(GRPC.python().expect("the environment that the service runs in").arg("grpc_client.py").args(arguments))
        .unwrap_or_else(|why| panic!("{why}"))
}

/// Has `text` read by the reader of metrics, whose arguments are followed by a file that holds it: what it found.
/// `None` where Python or its index can't be had, as with [`Site::start`].
pub fn read_metrics(arguments: &[&str], text: &str) -> Option<Value> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let mut python = METRICS.python()?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let file = Path::new(TARGET).join(format!("metrics-{}-{number}.txt", std::process::id()));
    fs::write(&file, text).expect("a file for the reader");
    let found = run(python.arg("read_metrics.py").args(arguments).arg(&file));
    fs::remove_file(&file).ok();
    let found = found.unwrap_or_else(|why| panic!("{why}\n{text}"));
    Some(serde_json::from_str(&found).expect("JSON"))
}

fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{name} can't be run: {error}"))?;
    if !output.status.success() {
        // pip says what went wrong in its last lines, venv on standard output. pip's lines may list every version.
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let lines =
            said.lines().filter(|line| !line.starts_with("WARNING")).map(|line| line.chars().take(200).collect());
        let lines: Vec<String> = lines.collect();
        let last = &lines[lines.len().saturating_sub(4)..];
        return Err(format!("{name}: {}: {}", output.status, last.join(" / ")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
