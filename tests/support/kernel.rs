//! What the kernel says about a running process and about this machine.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What a process has taken.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Memory, as `smaps_rollup` counts it.
    pub rss_kib: u64,
    pub pss_kib: u64,
    /// The part of it that is no file: heap and stacks.
    pub anonymous_kib: u64,
    pub descriptors: usize,
    pub threads: u64,
    /// Since its start.
    pub cpu: Duration,
}

/// A memory cgroup, removed when it is dropped.
pub struct MemoryCgroup(PathBuf);

impl MemoryCgroup {
    /// One with this limit below the tests' own (cgroup v1), or below the root (v2).
    pub fn new(bytes: usize) -> io::Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("hostward-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let root = Path::new("/sys/fs/cgroup");
        let v1 = root.join("memory");
        let (parent, limit) = if v1.is_dir() {
            let own = fs::read_to_string("/proc/self/cgroup")?;
            let own = own.lines().find_map(|line| line.split_once(":memory:/").map(|(_, path)| v1.join(path)));
            (own.filter(|own| own.is_dir()).unwrap_or(v1), "memory.limit_in_bytes")
        } else {
            fs::write(root.join("cgroup.subtree_control"), "+memory")?;
            (root.to_owned(), "memory.max")
        };
        let cgroup = Self(parent.join(name));
        fs::create_dir(&cgroup.0)?;
        fs::write(cgroup.0.join(limit), bytes.to_string())?;
        Ok(cgroup)
    }

    /// The file that takes the ids of processes.
    pub fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok();
    }
}

/// What a process has taken until now.
pub fn usage(pid: u32) -> Usage {
    let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The second field is the program's name, in parentheses, and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let number = |at: usize| fields[at - 3].parse::<u64>().unwrap();
    Usage {
        rss_kib: line(&memory, "Rss"),
        pss_kib: line(&memory, "Pss"),
        anonymous_kib: line(&memory, "Anonymous"),
        descriptors: descriptors(pid),
        threads: number(20),
        cpu: CLOCK_TICK * u32::try_from(number(14) + number(15)).unwrap(),
    }
}

/// How many file descriptors a process has open.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Bytes that the kernel holds of what was written to the other end of a TCP connection, by proc(5).
pub fn unacknowledged(local: SocketAddr, remote: SocketAddr) -> u64 {
    let number = |address: SocketAddr| match address {
        SocketAddr::V4(address) => format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port()),
        SocketAddr::V6(_) => panic!("{address} is not in /proc/net/tcp"),
    };
    let ends = format!(" {} {} ", number(local), number(remote));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let line = table.lines().find(|line| line.contains(&ends)).expect("the connection");
    let (to_send, _received) = line.split_whitespace().nth(4).unwrap().split_once(':').unwrap();
    u64::from_str_radix(to_send, 16).unwrap()
}

/// How many of each kind: `socket`, `pipe`, `anon_inode`, or a file's path.
pub fn kinds_of_descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        // It may have been closed since.
        let Ok(link) = fs::read_link(entry.unwrap().path()) else { continue };
        let link = link.to_string_lossy();
        *kinds.entry(link.split(':').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    kinds
}

/// Raises this process's limit on file descriptors as far as it may, which its children inherit.
pub fn raise_descriptors() -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    }
    hard
}

/// The machine, the build and the day, for the head of a table of figures.
pub fn circumstances() -> String {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = file("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    format!(
        "{} × {}, {} MiB of memory, Linux {} on {}; {} build; {}",
        std::thread::available_parallelism().map_or(1, usize::from),
        model.trim_start_matches(['\t', ' ', ':']),
        line(&file("/proc/meminfo"), "MemTotal") / 1024,
        file("/proc/sys/kernel/osrelease").trim(),
        std::env::consts::ARCH,
        if cfg!(debug_assertions) { "debug" } else { "release" },
        httpdate::fmt_http_date(SystemTime::now()),
    )
}

/// `USER_HZ` is 100 wherever Linux runs.
const CLOCK_TICK: Duration = Duration::from_millis(10);

/// The number of kibibytes behind a name.
fn line(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = value.unwrap_or_else(|| panic!("no {name} in\n{text}"));
    value.trim().trim_end_matches(" kB").parse().unwrap()
}
