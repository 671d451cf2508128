//! The real binary as a child process with an environment of its own, and its log, line by line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::app::App;
use super::kernel::MemoryCgroup;
use super::tls;

/// A running hostward. Dropping it kills the child.
pub struct Hostward {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where its admin port is; port 0 when that is off.
    pub admin: SocketAddr,
    child: Child,
    log: Arc<Log>,
    /// Removed after the child has ended.
    cgroup: Option<MemoryCgroup>,
}

impl Hostward {
    /// Starts hostward with these variables and no others, and waits until it says that it has started.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::spawn(command(&[], settings), settings)
    }

    /// The same, as somebody who may not do everything, if the tests are root's.
    pub fn start_as_nobody(settings: &[(&str, &str)]) -> Self {
        let mut command = command(&[], settings);
        if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
            command.uid(NOBODY).gid(NOBODY);
        }
        Self::spawn(command, settings)
    }

    /// The same, with so many file descriptors.
    pub fn start_with_descriptors(most: usize, settings: &[(&str, &str)]) -> Self {
        let plain = command(&[], settings);
        let mut limited = Command::new("/bin/sh");
        limited.args(["-c", &format!("ulimit -n {most}; exec \"$0\"")]).arg(plain.get_program());
        limited.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Self::spawn(limited, settings)
    }

    /// The same, in a memory cgroup of `mib` mebibytes. `None` where none can be made, which fails with `CI=true`.
    pub fn start_with_memory(mib: usize, settings: &[(&str, &str)]) -> Option<Self> {
        let cgroup = match MemoryCgroup::new(mib << 20) {
            Ok(cgroup) => cgroup,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "no memory cgroup can be made: {error}");
                writeln!(std::io::stderr(), "skipped: no memory cgroup can be made: {error}").ok();
                return None;
            }
        };
        let plain = command(&[], settings);
        let mut limited = Command::new("/bin/sh");
        limited.args(["-c", "echo $$ >\"$1\" && exec \"$0\""]).arg(plain.get_program()).arg(cgroup.procs());
        limited.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut hostward = Self::spawn(limited, settings);
        hostward.cgroup = Some(cgroup);
        Some(hostward)
    }

    fn spawn(mut command: Command, settings: &[(&str, &str)]) -> Self {
        for (name, value) in [
            ("HOSTWARD_LISTEN", "127.0.0.1:0"),
            ("HOSTWARD_ADMIN_LISTEN", "127.0.0.1:0"),
            ("HOSTWARD_LOG_FORMAT", "json"),
        ] {
            if !settings.iter().any(|(given, _)| *given == name) {
                command.env(name, value);
            }
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Log::default());
        log.follow(child.stdout.take().unwrap());
        log.follow(child.stderr.take().unwrap());
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut hostward = Self { address: nowhere, admin: nowhere, child, log, cgroup: None };
        let started = hostward.wait_line(Duration::from_secs(10), |line| line["msg"] == "started");
        let started = started.unwrap_or_else(|| panic!("hostward did not start:\n{}", hostward.output()));
        let address = |name: &str| started[name].as_str().and_then(|text| text.parse().ok());
        hostward.address = address("listen").unwrap_or_else(|| panic!("no address in {started}"));
        hostward.admin = address("admin").unwrap_or(nowhere);
        if settings.iter().any(|(name, value)| *name == "HOSTWARD_TLS" && *value != "off") {
            tls::remember(hostward.address);
        }
        hostward
    }

    /// hostward in front of `app`, with `www.example.com` allowed unless the settings say otherwise.
    pub fn before(app: &App, settings: &[(&str, &str)]) -> Self {
        let upstream = app.url();
        let mut all = settings.to_vec();
        for default in [("HOSTWARD_ALLOWED_HOSTS", "www.example.com"), ("HOSTWARD_UPSTREAM", upstream.as_str())] {
            if !settings.iter().any(|(given, _)| *given == default.0) {
                all.push(default);
            }
        }
        Self::start(&all)
    }

    /// What a start that must fail said.
    pub fn refused(settings: &[(&str, &str)]) -> Output {
        Self::run(&[], settings)
    }

    /// A subcommand, run to its end.
    pub fn run(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
        Self::run_with(arguments, settings, b"")
    }

    /// The same, with something to read.
    pub fn run_with(arguments: &[&str], settings: &[(&str, &str)], input: &[u8]) -> Output {
        let mut command = command(arguments, settings);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Kill(command.spawn().unwrap());
        // Whoever doesn't read it may have gone.
        child.0.stdin.take().unwrap().write_all(input).ok();
        let drain = |mut pipe: Box<dyn Read + Send>| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                pipe.read_to_end(&mut bytes).unwrap();
                bytes
            })
        };
        let stdout = drain(Box::new(child.0.stdout.take().unwrap()));
        let stderr = drain(Box::new(child.0.stderr.take().unwrap()));
        let status = wait(&mut child.0, Duration::from_secs(10));
        if status.is_none() {
            drop(child);
        }
        let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
        match status {
            Some(status) => Output { status, stdout, stderr },
            None => panic!(
                "hostward {arguments:?} did not end:\n{}{}",
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr)
            ),
        }
    }

    /// The first log line, past or future, that `what` is true of.
    pub fn line(&self, what: impl Fn(&Value) -> bool) -> Value {
        self.wait_line(Duration::from_secs(5), what)
            .unwrap_or_else(|| panic!("no such line in the log:\n{}", self.output()))
    }

    /// The access-log line of the request for `path`.
    pub fn request_line(&self, path: &str) -> Value {
        self.line(|line| line["msg"] == "request" && line["path"] == path)
    }

    /// Every log line until now.
    pub fn lines(&self) -> Vec<Value> {
        self.log.text.lock().unwrap().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Every log line since the last time, which is then forgotten: for tests that run for long.
    pub fn take_lines(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.text.lock().unwrap())
    }

    /// Everything that was written until now.
    pub fn output(&self) -> String {
        self.log.text.lock().unwrap().join("\n")
    }

    /// From its next line on, the log has another reader.
    pub fn read_log(&self, reader: LogReader) {
        *self.log.reader.lock().unwrap() = reader;
        self.log.another.notify_all();
    }

    /// The child's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends SIGINT.
    pub fn interrupt(&self) {
        self.signal("INT");
    }

    /// Waits for the child's end.
    pub fn wait(&mut self, bound: Duration) -> ExitStatus {
        let status = wait(&mut self.child, bound)
            .unwrap_or_else(|| panic!("hostward did not end within {bound:?}:\n{}", self.output()));
        // The last of what it wrote may still be in the pipes.
        if *self.log.reader.lock().unwrap() == LogReader::Reads {
            super::eventually("the log is read", || (*self.log.ended.lock().unwrap() == 2).then_some(()));
        }
        status
    }

    fn signal(&self, name: &str) {
        // The shell's own `kill`: the program of that name isn't everywhere.
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.pid())).status().unwrap();
        assert!(sent.success(), "no SIG{name} to {}", self.pid());
    }

    fn wait_line(&self, bound: Duration, what: impl Fn(&Value) -> bool) -> Option<Value> {
        let deadline = Instant::now() + bound;
        let mut seen = 0;
        let mut text = self.log.text.lock().unwrap();
        loop {
            for line in &text[seen..] {
                if let Ok(value) = serde_json::from_str::<Value>(line)
                    && what(&value)
                {
                    return Some(value);
                }
            }
            seen = text.len();
            let left = deadline.checked_duration_since(Instant::now())?;
            if *self.log.ended.lock().unwrap() == 2 {
                return None;
            }
            text = self.log.changed.wait_timeout(text, left.min(Duration::from_millis(200))).unwrap().0;
        }
    }
}

impl Drop for Hostward {
    fn drop(&mut self) {
        tls::forget(self.address);
        // It may have ended already: then there is nothing to kill.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Owns nothing, on every Linux.
const NOBODY: u32 = 65_534;

/// The lines of the child's two outputs.
#[derive(Default)]
struct Log {
    text: Mutex<Vec<String>>,
    changed: Condvar,
    ended: Mutex<u8>,
    reader: Mutex<LogReader>,
    another: Condvar,
}

/// Who reads what hostward writes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum LogReader {
    /// Somebody who takes it as it comes.
    #[default]
    Reads,
    /// Somebody who takes no more, as a log driver that can't be rid of it.
    Stalls,
    /// Nobody any more.
    Leaves,
}

impl Log {
    fn follow(self: &Arc<Self>, pipe: impl Read + Send + 'static) {
        let log = Arc::clone(self);
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                log.text.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
                log.changed.notify_all();
                let reader = log.reader.lock().unwrap();
                let reader = log.another.wait_while(reader, |reader| *reader == LogReader::Stalls).unwrap();
                if *reader == LogReader::Leaves {
                    break;
                }
            }
            *log.ended.lock().unwrap() += 1;
            log.changed.notify_all();
        });
    }
}

/// Kills a child that a panic would leave behind.
struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn command(arguments: &[&str], settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostward"));
    command.args(arguments).env_clear().envs(settings.iter().copied()).stdin(Stdio::null());
    command
}

fn wait(child: &mut Child, bound: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}
