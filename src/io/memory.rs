//! One budget for the memory that clients and the app can make hostward hold, shared by all workers; and the return of
//! free memory to the kernel.
//!
//! Whatever keeps bytes takes them from the [`Budget`] first and gives them back by dropping its [`Held`]. When the
//! budget is short, responses are read ahead less, new work waits, and the workers end the connections that hold the
//! most for the slowest clients (`Timers::shed`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// A number of bytes, shared by all workers. A clone is the same budget.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    free: Semaphore,
    bytes: usize,
    /// How many wait for bytes.
    waiting: AtomicUsize,
    /// How many bodies wait for bytes, which is apart.
    bodies: AtomicUsize,
    /// Bytes that are in memory and could not be taken.
    owed: AtomicUsize,
    /// Whether the container's memory is nearly used up, whatever the budget says.
    squeezed: AtomicBool,
    /// Open sockets.
    sockets: AtomicUsize,
    /// How many of them may have buffers as large as the kernel likes.
    few_sockets: usize,
}

/// What one holder has taken of a [`Budget`]. Dropping it gives everything back.
#[derive(Debug)]
pub struct Held {
    budget: Budget,
    bytes: usize,
    /// What it should have taken in addition, and couldn't.
    owed: usize,
}

impl Budget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Self {
        // A semaphore counts in 32 bits at a time; 4 GiB is more than any of these connections can use.
        let bytes = bytes.min(u32::MAX as usize).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Shared {
            free: Semaphore::new(bytes),
            bytes,
            waiting: AtomicUsize::new(0),
            bodies: AtomicUsize::new(0),
            owed: AtomicUsize::new(0),
            squeezed: AtomicBool::new(false),
            sockets: AtomicUsize::new(0),
            // Together they may fill half as much as the budget.
            few_sockets: bytes / 2 / (2 * SOCKET_BUFFER),
        }))
    }

    /// Counts a socket that has been opened, until what is returned is dropped. With it, the bytes that each of its
    /// two buffers in the kernel may have, where that must be less than the kernel would choose.
    ///
    /// The kernel's buffers count in the container's memory (cgroup v2), and a peer can have them filled. A few sockets
    /// keep what the kernel tunes; of more, each gets less than the one before, so that all together stay bounded.
    pub fn socket(&self) -> (OpenSocket, Option<usize>) {
        let open = self.0.sockets.fetch_add(1, Ordering::Relaxed) + 1;
        let few = self.0.few_sockets;
        let share = SOCKET_BUFFER.saturating_mul(few.pow(2)) / open.pow(2);
        let least = if open > few * CROWD { LEAST_IN_A_CROWD } else { LEAST_SOCKET_BUFFER };
        let buffer = (open > few).then_some(share.max(least));
        (OpenSocket(Arc::clone(&self.0)), buffer)
    }

    /// Whether less than `percent` of it is taken, and the container has memory left.
    pub fn is_below(&self, percent: usize) -> bool {
        self.taken() < self.bytes() / 100 * percent && !self.is_squeezed()
    }

    /// Whether a holder waits for bytes, more is in memory than there is, or the container's memory is nearly used up.
    pub fn is_short(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) > 0 || self.is_overdrawn() || self.is_squeezed()
    }

    /// Whether more is in memory than there is.
    pub fn is_overdrawn(&self) -> bool {
        self.0.owed.load(Ordering::Relaxed) > self.0.free.available_permits()
    }

    /// Whether so much more is in memory than there is that what grows has to end at once.
    pub fn is_exceeded(&self) -> bool {
        self.0.owed.load(Ordering::Relaxed) > self.0.free.available_permits() + self.bytes() / OVERDRAFT
    }

    /// Counts a body that waits for bytes until what is returned is dropped: slow clients have to make way for it, and no
    /// others.
    pub fn body_waits(&self) -> Waiting<'_> {
        Waiting::new(&self.0.bodies)
    }

    /// Whether a body waits for bytes.
    pub fn is_wanted(&self) -> bool {
        self.0.bodies.load(Ordering::Relaxed) > 0
    }

    /// Whether the container's memory is nearly used up.
    pub fn is_squeezed(&self) -> bool {
        self.0.squeezed.load(Ordering::Relaxed)
    }

    /// How much of it is taken; more than there is, where more is in memory.
    pub fn taken(&self) -> usize {
        self.bytes() - self.0.free.available_permits().min(self.bytes()) + self.0.owed.load(Ordering::Relaxed)
    }

    /// The whole of it.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// A holder that has taken nothing yet.
    pub fn hold(&self) -> Held {
        Held { budget: self.clone(), bytes: 0, owed: 0 }
    }
}

impl Held {
    /// How many bytes it has, and should have.
    pub fn bytes(&self) -> usize {
        self.bytes + self.owed
    }

    /// What it is taken of.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Another holder of the same budget, which has taken nothing yet.
    #[must_use]
    pub fn sibling(&self) -> Self {
        self.budget.hold()
    }

    /// Takes over what another holder of the same budget has.
    pub fn absorb(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.owed += std::mem::take(&mut other.owed);
    }

    /// Parts with `bytes`, or as many as there are.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { budget: self.budget.clone(), bytes, owed: 0 }
    }

    /// Takes `bytes` more. False, and nothing taken, when there aren't as many.
    pub fn take(&mut self, bytes: usize) -> bool {
        let taken = bytes == 0
            || u32::try_from(bytes).is_ok_and(|count| match self.budget.0.free.try_acquire_many(count) {
                Ok(permit) => {
                    permit.forget();
                    true
                }
                Err(_) => false,
            });
        self.bytes += if taken { bytes } else { 0 };
        taken
    }

    /// Takes `bytes` more as soon as there are as many; those who have waited longer come first. The caller
    /// must bound the wait: others may be waiting for what this one holds.
    pub async fn wait(&mut self, bytes: usize) {
        let count = u32::try_from(bytes).unwrap_or(u32::MAX);
        let _waiting = Waiting::new(&self.budget.0.waiting);
        // The semaphore is never closed.
        if let Ok(permit) = self.budget.0.free.acquire_many(count).await {
            permit.forget();
            self.bytes += bytes;
        }
    }

    /// Makes it `bytes` in all. False, and nothing changed, when there aren't as many.
    pub fn try_set(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes && !self.take(bytes - self.bytes) {
            return false;
        }
        self.give_back(self.bytes - bytes);
        self.owe(0);
        true
    }

    /// Makes it `bytes` in all, for what is in memory already. What can't be taken is owed, and makes the budget short.
    pub fn set(&mut self, bytes: usize) {
        if !self.try_set(bytes) {
            self.take((bytes - self.bytes).min(self.budget.0.free.available_permits()));
            self.owe(bytes - self.bytes);
        }
    }

    fn owe(&mut self, bytes: usize) {
        if bytes != self.owed {
            self.budget.0.owed.fetch_add(bytes, Ordering::Relaxed);
            self.budget.0.owed.fetch_sub(std::mem::replace(&mut self.owed, bytes), Ordering::Relaxed);
        }
    }

    /// Gives back a part.
    pub fn give_back(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        if bytes > 0 {
            self.budget.0.free.add_permits(bytes);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back(self.bytes);
        self.owe(0);
    }
}

/// An open socket.
#[derive(Debug)]
pub struct OpenSocket(Arc<Shared>);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.sockets.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts one that waits, as long as it waits.
#[derive(Debug)]
pub struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The memory that this process may use, and how much of it is in use.
#[derive(Debug)]
pub struct Container {
    /// Bytes; `None` where nothing limits it.
    limit: Option<u64>,
    usage: PathBuf,
    statistics: PathBuf,
    /// When the usage was read last.
    looked: Mutex<Instant>,
}

impl Container {
    /// The container of this process, by the files of cgroup v2 or v1.
    pub fn of_this_process() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::find(Path::new("/sys/fs/cgroup"), &own)
    }

    /// The container in the cgroups that are mounted at `root`; `own` is the text of `/proc/self/cgroup` (cgroups(7)).
    fn find(root: &Path, own: &str) -> Self {
        let path = |controller: &str| {
            let mut lines = own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
            let (_, path) = lines.find(|(names, _)| names.split(',').any(|name| name == controller))?;
            Some(path.trim_start_matches('/'))
        };
        let v1 = path("memory").map(|path| (root.join("memory"), path, V1));
        let v2 = path("").map(|path| (root.to_owned(), path, V2));
        let mut found =
            Self { limit: None, usage: PathBuf::new(), statistics: PathBuf::new(), looked: Mutex::new(Instant::now()) };
        for (mount, path, files) in v1.into_iter().chain(v2) {
            // A container sees its own cgroup at the mount point, under a path that may be its host's. What limits a
            // parent limits its children.
            for directory in mount.join(path).ancestors().take_while(|directory| directory.starts_with(&mount)) {
                let read = |file| fs::read_to_string(directory.join(file)).ok();
                // Without a limit, v2 says `max` and v1 a number larger than every machine.
                let limit = read(files.limit).and_then(|text| text.trim().parse().ok());
                // The usage is this container's own: the app may use what it likes of a parent's.
                if found.usage.as_os_str().is_empty() && directory.join(files.usage).exists() {
                    found.usage = directory.join(files.usage);
                    found.statistics = directory.join(files.statistics);
                }
                if let Some(limit) = limit.filter(|limit| *limit < MOST_LIMIT)
                    && found.limit.is_none_or(|lowest| limit < lowest)
                {
                    found.limit = Some(limit);
                }
            }
        }
        found
    }

    /// The bytes of the budget: three eighths of the limit, because the program, the kernel's part of each connection
    /// and what the allocator can't use need the rest. Without a limit, a quarter of the machine's memory.
    pub fn budget(&self) -> usize {
        let bytes = self.limit.map_or_else(|| machine() / 4, |limit| limit / 8 * 3);
        usize::try_from(bytes).unwrap_or(usize::MAX).max(LEAST)
    }

    /// The bytes that files on a tmpfs may take together: an eighth of the limit, next to the budget.
    pub fn tmpfs(&self) -> u64 {
        self.limit.unwrap_or_else(machine) / 8
    }

    /// How many connections there is memory for.
    pub fn connections(&self) -> usize {
        let bytes = self.limit.unwrap_or_else(|| machine() / 4);
        usize::try_from(bytes / CONNECTION).unwrap_or(usize::MAX).max(1)
    }

    /// Compares the usage with the limit, at most once every [`LOOK`], and makes the budget short while it is close.
    pub fn look(&self, budget: &Budget) {
        let (Some(limit), Ok(mut looked)) = (self.limit, self.looked.try_lock()) else { return };
        if looked.elapsed() < LOOK {
            return;
        }
        *looked = Instant::now();
        let squeezed = budget.0.squeezed.load(Ordering::Relaxed);
        let bound = limit / 16 * if squeezed { 13 } else { 14 };
        // The statistics cost more to read, and matter only where pages of files, which the kernel can drop, are counted
        // in.
        let is_close = self.usage() > bound && self.usage().saturating_sub(self.reclaimable()) > bound;
        if is_close != squeezed {
            budget.0.squeezed.store(is_close, Ordering::Relaxed);
        }
    }

    fn usage(&self) -> u64 {
        let number = |path: &Path| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        // v2 counts the buffers of sockets with everything else, v1 apart, if at all.
        number(&self.usage).unwrap_or_default() + number(&self.usage.with_file_name(V1_SOCKETS)).unwrap_or_default()
    }

    /// Bytes that the kernel takes back when it needs memory: pages of files, and what it knows of them.
    fn reclaimable(&self) -> u64 {
        let text = fs::read_to_string(&self.statistics).unwrap_or_default();
        let fields = text.lines().filter_map(|line| line.split_once(' '));
        let fields = fields.filter(|(name, _)| RECLAIMABLE.contains(name));
        fields.filter_map(|(_, bytes)| bytes.parse::<u64>().ok()).sum()
    }
}

/// Names of a cgroup's files.
#[derive(Clone, Copy)]
struct Files {
    limit: &'static str,
    usage: &'static str,
    statistics: &'static str,
}

const V1: Files = Files { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", statistics: "memory.stat" };
const V1_SOCKETS: &str = "memory.kmem.tcp.usage_in_bytes";
const V2: Files = Files { limit: "memory.max", usage: "memory.current", statistics: "memory.stat" };
/// In `memory.stat`; only v2 has the last.
const RECLAIMABLE: [&str; 3] = ["inactive_file", "active_file", "slab_reclaimable"];

/// Bytes of this machine's memory.
fn machine() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
    total
        .and_then(|kibibytes| kibibytes.trim().parse::<u64>().ok())
        .map_or(UNKNOWN_MACHINE, |kibibytes| kibibytes << 10)
}

/// Lets the kernel have what has been free for a while. mimalloc does that only when it takes or frees a page of its own:
/// a process that has become idle would keep for hours what its busiest minute took. So here is a page that nothing
/// is written to.
pub fn give_back() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(PAGE)));
}

/// How often to give back. mimalloc waits for a second before it takes free memory for unneeded.
pub const GIVE_BACK: Duration = Duration::from_millis(1200);

/// How often the usage is compared with the limit.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of the container's memory for each connection: its kernel structures (about 5 KiB with the connection to the
/// app that it may need) and its share of the budget.
const CONNECTION: u64 = 24 << 10;
/// Bytes of a socket's buffer in one direction, which a peer can fill before the kernel has tuned it (`tcp_rmem`).
const SOCKET_BUFFER: usize = 128 << 10;
/// Bytes. The window is half of it, and a window below a segment (8,961 bytes in a VPC) makes a connection crawl.
const LEAST_SOCKET_BUFFER: usize = 32 << 10;
/// Bytes, when there are [`CROWD`] times as many sockets as may have large buffers: the window is just above a segment.
const LEAST_IN_A_CROWD: usize = 20 << 10;
const CROWD: usize = 8;
/// Bytes; more than mimalloc puts into one page with anything else.
const PAGE: usize = 2 << 20;
/// The part of the budget that may be owed while the workers look for the largest holders.
const OVERDRAFT: usize = 16;
/// Bytes. Below this a handful of ordinary uploads would be rejected.
const LEAST: usize = 4 << 20;
/// Bytes. What cgroup v1 has for "no limit" is near 2^63.
const MOST_LIMIT: u64 = 1 << 60;
/// Bytes, where the machine's memory can't be read.
const UNKNOWN_MACHINE: u64 = 512 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_dropped_is_given_back_and_nobody_takes_more_than_there_is() {
        let budget = Budget::new(100);
        let (mut one, mut other) = (budget.hold(), budget.hold());
        assert!(one.take(60) && !other.take(41) && other.take(40) && !one.take(1));
        one.give_back(10);
        assert!(!other.take(11) && other.take(10));
        drop(other);
        assert!(one.take(50) && !one.take(1));
        // Nothing is given back that wasn't taken.
        one.give_back(1000);
        assert!(one.take(100) && !budget.hold().take(1));
    }

    #[test]
    fn what_is_in_memory_already_is_counted_and_owed_where_there_is_no_room() {
        let budget = Budget::new(100);
        let (mut one, mut other) = (budget.hold(), budget.hold());
        one.set(60);
        assert!(!budget.is_short());
        other.set(50);
        assert_eq!((budget.taken(), other.bytes()), (110, 50));
        assert!(budget.is_overdrawn() && budget.is_short() && !budget.is_below(100));
        one.set(10);
        assert!(!budget.is_short() && budget.is_below(61) && !budget.is_below(60));
        drop((one, other));
        assert!(budget.is_below(1) && !budget.is_overdrawn());
    }

    #[test]
    fn setting_more_takes_only_the_difference() {
        let budget = Budget::new(100);
        let (mut one, mut other) = (budget.hold(), budget.hold());
        one.set(30);
        one.set(50);
        assert_eq!(budget.taken(), 50);
        other.set(40);
        one.set(70);
        assert_eq!((budget.taken(), one.bytes()), (110, 70));
        assert!(!one.try_set(80));
        one.set(60);
        assert_eq!((budget.taken(), budget.is_short()), (100, false));
        drop(one);
        assert_eq!(budget.taken(), 40);
        drop(other);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn a_body_that_waits_does_not_make_the_budget_short() {
        let budget = Budget::new(100);
        let waiting = budget.body_waits();
        assert!(budget.is_wanted() && !budget.is_short());
        drop(waiting);
        assert!(!budget.is_wanted());
    }

    #[tokio::test]
    async fn whoever_waits_gets_room_when_another_is_dropped() {
        let budget = Budget::new(10);
        let (mut one, mut other) = (budget.hold(), budget.hold());
        assert!(one.take(8));
        assert!(tokio::time::timeout(Duration::from_millis(20), other.wait(5)).await.is_err());
        // A cancelled wait has taken nothing.
        assert!(one.take(2));
        drop(one);
        tokio::time::timeout(Duration::from_secs(5), other.wait(10)).await.unwrap();
        assert!(!budget.hold().take(1));
        other.give_back(3);
        assert_eq!(budget.taken(), 7);
        drop(other);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn the_lowest_limit_on_the_way_to_the_root_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limit = |own| Container::find(root.path(), own).limit;
        assert_eq!(limit(""), None);
        write("memory.max", "max\n");
        write("task/memory.max", "268435456\n");
        write("task/app/memory.max", "134217728\n");
        write("task/other/memory.max", "max\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/docker/memory.limit_in_bytes", "67108864\n");
        for (own, expected) in [
            ("0::/task/app\n", Some(128 << 20)),
            ("0::/task/other\n", Some(256 << 20)),
            // The host's path, which the container doesn't see.
            ("0::/../elsewhere\n", None),
            ("0::/\n", None),
            ("4:memory:/docker\n1:cpu:/\n0::/\n", Some(64 << 20)),
            ("3:cpu,memory:/docker\n", Some(64 << 20)),
            ("4:memory:/elsewhere\n0::/task/app\n", Some(128 << 20)),
        ] {
            assert_eq!(limit(own), expected, "{own:?}");
        }
    }

    #[test]
    fn what_is_used_without_files_makes_the_budget_short_near_the_limit() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(root.path().join(file), text).unwrap();
        let mut container = {
            write("memory.max", "100000000");
            write("memory.current", "0");
            Container::find(root.path(), "0::/\n")
        };
        let budget = Budget::new(container.budget());
        let mut look = |usage: u64, files: u64| {
            write("memory.current", &usage.to_string());
            write("memory.stat", &format!("anon 5\ninactive_file {}\nactive_file {}\nfile 9\n", files / 2, files / 2));
            container.looked = Mutex::new(Instant::now().checked_sub(LOOK).unwrap());
            container.look(&budget);
            budget.is_short()
        };
        assert!(!look(80_000_000, 0));
        assert!(look(95_000_000, 0));
        // Not before there is some distance.
        assert!(look(85_000_000, 0) && !look(80_000_000, 0));
        assert!(!look(99_000_000, 20_000_000) && look(99_000_000, 2_000_000));
        assert!(!look(50_000_000, 0));
        write(V1_SOCKETS, "45000000");
        assert!(look(50_000_000, 0));
    }

    #[test]
    fn the_budget_follows_the_limit() {
        let container = |limit: Option<u64>| Container { limit, ..Container::find(Path::new("/nonexistent"), "") };
        assert_eq!(container(Some(128 << 20)).budget(), 48 << 20);
        assert_eq!(container(Some(128 << 20)).connections(), 5461);
        assert_eq!(container(Some(0)).budget(), LEAST);
        assert_eq!(container(Some(0)).connections(), 1);
        assert_eq!(container(None).budget() as u64, machine() / 4);
    }

    #[test]
    fn many_sockets_have_small_buffers() {
        let budget = Budget::new(48 << 20);
        let sockets: Vec<_> = (0..5000).map(|_| budget.socket()).collect();
        let of = |at: usize| sockets[at].1;
        assert_eq!((of(0), of(95)), (None, None));
        assert!(of(96).unwrap() > 120 << 10);
        assert_eq!((of(767), of(4999)), (Some(LEAST_SOCKET_BUFFER), Some(LEAST_IN_A_CROWD)));
        let all: usize = sockets.iter().map(|(_, buffer)| buffer.unwrap_or(SOCKET_BUFFER)).sum();
        assert!(all < 140 << 20, "{all}");
        drop(sockets);
        assert_eq!(budget.socket().1, None);
    }
}
