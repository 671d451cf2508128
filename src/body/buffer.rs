//! Request buffering: whether a body is read before the app is asked, and where it stays meanwhile. An app that
//! does one request at a time is kept from waiting for slow clients that way, and gets a length with every body.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::body::blocks::Blocks;
use crate::body::disk::{Disk, Space};
use crate::body::overflow::Overflow;
use crate::body::spool::{Open, PIECE, Spool, SpoolError};
use crate::body::{Content, RequestBody, Streamed};
use crate::config::{BufferRequests, Config, Protocol};
use crate::error::{Failure, Shed};
use crate::io::flight::ROOMY;
use crate::io::memory::{Budget, Container};
use crate::log::Repeats;

/// The settings of request buffering, and what has been found out about the directory. Shared by all workers.
#[derive(Debug)]
pub struct Buffering {
    mode: BufferRequests,
    /// Whether the app can take a body of unknown length.
    takes_chunks: bool,
    /// Bytes of one request.
    memory: usize,
    /// Bytes of all.
    budget: Budget,
    /// Room for one whole body, outside of the budget. Bodies that wait for each other's room would wait for ever;
    /// one of them gets this, is read to its end, and makes room for the others.
    reserve: Budget,
    directory: PathBuf,
    disk: Arc<Disk>,
    /// When the directory was found to be unwritable, if it was.
    unwritable: Mutex<Option<Instant>>,
    /// Bodies that went there.
    spooled: AtomicU64,
    repeats: Arc<Repeats>,
}

/// Bytes of the container's `budget` that are kept back for one whole body.
pub fn reserve(config: &Config, budget: usize) -> usize {
    config.buffer_memory.min(budget / 2)
}

impl Buffering {
    /// What the settings ask for, within the `budget` of the process in its `container`, of which
    /// [`reserve`] has been kept back.
    pub fn new(config: &Config, budget: Budget, container: &Container, repeats: Arc<Repeats>) -> Self {
        // The one place where the app's protocol has a say.
        let (mode, takes_chunks) = match config.upstream.protocol {
            // gRPC's bodies are conversations.
            Protocol::H2c if config.buffer_requests == BufferRequests::Auto => (BufferRequests::Off, true),
            Protocol::Http | Protocol::H2c => (config.buffer_requests, true),
            Protocol::Uwsgi => (config.buffer_requests, false),
        };
        // What would never fit is not for the memory.
        let memory = config.buffer_memory.min(budget.bytes());
        Self {
            mode,
            takes_chunks,
            memory,
            budget,
            reserve: Budget::new(memory),
            directory: config.buffer_dir.clone(),
            disk: Disk::new(config.buffer_disk, container.tmpfs()),
            unwritable: Mutex::default(),
            spooled: AtomicU64::new(0),
            repeats,
        }
    }

    /// Bytes that lie in memory because of somebody who is slow: answers, too, since the budget is theirs as well.
    pub fn held(&self) -> usize {
        self.budget.taken().saturating_sub(self.memory) + self.reserve.taken()
    }

    /// How many there may be.
    pub fn most(&self) -> usize {
        self.budget.bytes()
    }

    /// Bytes in spool files.
    pub fn on_disk(&self) -> u64 {
        self.disk.taken()
    }

    /// How many there may be; 0 while no file could be made.
    pub fn disk_limit(&self) -> u64 {
        self.disk.limit()
    }

    /// How many bodies went to disk.
    pub fn spooled(&self) -> u64 {
        self.spooled.load(Ordering::Relaxed)
    }

    /// Reads a body as far as it is to be read before the app is asked.
    ///
    /// # Errors
    ///
    /// What is wrong with the body, or with the place for it.
    pub async fn read(&self, body: RequestBody) -> Result<RequestBody, Failure> {
        let mut body = match body {
            RequestBody(Content::Streamed(None, body)) if self.mode != BufferRequests::Off => body,
            body => return Ok(body),
        };
        if body.length().is_some_and(|length| length > self.in_memory() as u64) {
            return Box::pin(self.read_long(Blocks::new(self.budget.hold()), Bytes::new(), body)).await;
        }
        // Nearly every body is short and has come with its head.
        let Some(data) = body.next().await? else { return Ok(RequestBody(Content::Read(Bytes::new()))) };
        if body.has_ended() {
            // Not counted: it lies where the connection has read the head to.
            return Ok(RequestBody(Content::Read(data)));
        }
        Box::pin(self.read_into_memory(data, body)).await
    }

    async fn read_into_memory(&self, mut data: Bytes, mut body: Streamed) -> Result<RequestBody, Failure> {
        let mut blocks = Blocks::new(self.budget.hold());
        // For all its waits together.
        let mut patience = body.pace.limits.pause;
        loop {
            if blocks.len() + data.len() > self.in_memory() {
                return self.read_long(blocks, data, body).await;
            }
            if !blocks.push(&data) {
                // Where the disk is full, there may be memory later.
                if let Ok(Some(spool)) = self.spool(length(&blocks, &data, &body)).await {
                    return self.read_into(spool, blocks, data, body).await;
                }
                body.pace.flight.set_waits_for_memory(true);
                let waited = self.wait_for_room(&mut blocks, &data, &mut patience).await;
                body.pace.flight.set_waits_for_memory(false);
                waited?;
            }
            body.pace.flight.weigh_bodies(blocks.len());
            match body.next().await? {
                Some(more) => data = more,
                None => return Ok(RequestBody(Content::Whole(Box::new(blocks), body.pace))),
            }
        }
    }

    /// Appends `data` once there is room, or the reserve is free. Takes the time for it off `patience`.
    async fn wait_for_room(&self, blocks: &mut Blocks, data: &[u8], patience: &mut Duration) -> Result<(), Failure> {
        let started = Instant::now();
        let mut reserve = self.reserve.hold();
        tokio::select! {
            biased;
            () = blocks.push_when_there_is_room(data) => {
                *patience = patience.saturating_sub(started.elapsed());
                return Ok(());
            }
            () = reserve.wait(self.memory) => {}
            () = tokio::time::sleep(*patience) => return Err(Failure::MemoryFull(Shed::Busy)),
        }
        blocks.rely_on(reserve);
        blocks.push(data);
        Ok(())
    }

    /// What is too long for the memory goes to a file, or else is streamed, if it may be.
    async fn read_long(&self, mut blocks: Blocks, data: Bytes, body: Streamed) -> Result<RequestBody, Failure> {
        match self.spool(length(&blocks, &data, &body)).await? {
            Some(spool) => self.read_into(spool, blocks, data, body).await,
            None if self.mode == BufferRequests::On => Err(Failure::SpoolFailed),
            None if body.length().is_none() && !self.takes_chunks => Err(Failure::BodyTooLarge),
            None => {
                // On its way in a moment: no longer than a streamed body's bytes would be here.
                blocks.push_uncounted(data);
                Ok(RequestBody(Content::Streamed(Some(Box::new(blocks)), body)))
            }
        }
    }

    /// The rest of the body to a file, behind what is in `blocks` and `data`.
    async fn read_into(
        &self,
        mut spool: Spool,
        mut blocks: Blocks,
        mut data: Bytes,
        mut body: Streamed,
    ) -> Result<RequestBody, Failure> {
        loop {
            if blocks.len() + data.len() > self.piece() || !blocks.push(&data) {
                let full = std::mem::replace(&mut blocks, Blocks::new(self.budget.hold()));
                spool.append(full, data, !self.budget.is_below(ROOMY)).await.map_err(|error| self.failed(error))?;
            }
            body.pace.flight.weigh_bodies(blocks.len());
            match body.next().await? {
                Some(more) => data = more,
                None => break,
            }
        }
        let spooled = async {
            spool.append(blocks, Bytes::new(), false).await?;
            Ok(spool.read(self.budget.hold())?)
        };
        let spooled = spooled.await.map_err(|error| self.failed(error))?;
        Ok(RequestBody(Content::Spooled(Box::new(spooled), body.pace)))
    }

    /// Bytes of a body that stay in memory: fewer when memory is short and a file can take the rest.
    fn in_memory(&self) -> usize {
        let can_spool = || {
            !self.disk.lacks(PIECE as u64) && self.unwritable.lock().unwrap_or_else(PoisonError::into_inner).is_none()
        };
        if self.budget.is_below(ROOMY) || !can_spool() { self.memory } else { self.memory.min(LITTLE) }
    }

    /// Bytes that are written to a file at once.
    fn piece(&self) -> usize {
        if self.budget.is_below(ROOMY) { PIECE } else { LITTLE }
    }

    /// A file for a response whose client is slow; `None` while there can't be one.
    pub fn overflow(self: &Arc<Self>) -> Option<Overflow> {
        let unwritable = *self.unwritable.lock().unwrap_or_else(PoisonError::into_inner);
        let recently = unwritable.is_some_and(|since| since.elapsed() < LOOK_AGAIN);
        (!recently && !self.disk.lacks(self.disk.limit() / 2 + PIECE as u64)).then(|| Overflow::new(Arc::clone(self)))
    }

    /// Says that a response isn't read on, because of its client.
    pub fn report_slow_client(&self) {
        let message = "slow client holds the app";
        if let Some(repeated) = self.repeats.admit(message, "", Instant::now()) {
            tracing::warn!(repeated, hint = SLOW_HINT, "{message}");
        }
    }

    /// A file in the directory, without a name. It blocks.
    pub(super) fn create_for_response(&self) -> Result<Open, SpoolError> {
        let file = tempfile::tempfile_in(&self.directory).inspect_err(|_| {
            *self.unwritable.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        })?;
        Ok(Open { file, space: Space::new(&self.disk) })
    }

    pub(super) fn overflow_failed(&self, error: &SpoolError) {
        if let SpoolError::Io(error) = error {
            self.report(error);
        }
    }

    /// Whether there is memory for large parts.
    pub(super) fn has_memory(&self) -> bool {
        self.budget.is_below(ROOMY)
    }

    /// Says at the start that long bodies can't go to the directory, and not first when one comes.
    pub async fn look(&self) {
        if self.mode != BufferRequests::Off
            && let Err(SpoolError::Io(error)) = self.create(0).await
        {
            *self.unwritable.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            self.report(&error);
        }
    }

    async fn create(&self, length: u64) -> Result<Spool, SpoolError> {
        Spool::create(self.directory.clone(), Arc::clone(&self.disk), length).await
    }

    /// A new file for `length` bytes or more, if the directory is writable. In `auto` it needn't be, and isn't asked
    /// again and again.
    async fn spool(&self, length: u64) -> Result<Option<Spool>, Failure> {
        let before = *self.unwritable.lock().unwrap_or_else(PoisonError::into_inner);
        let recently = before.is_some_and(|since| since.elapsed() < LOOK_AGAIN);
        if recently && self.mode == BufferRequests::Auto {
            return Ok(None);
        }
        let created = self.create(length).await;
        let now = matches!(created, Err(SpoolError::Io(_))).then(Instant::now);
        self.spooled.fetch_add(u64::from(created.is_ok()), Ordering::Relaxed);
        *self.unwritable.lock().unwrap_or_else(PoisonError::into_inner) = now;
        match created {
            Ok(spool) => Ok(Some(spool)),
            Err(SpoolError::TooLong) if self.mode == BufferRequests::Auto => Ok(None),
            Err(SpoolError::TooLong | SpoolError::DiskFull) => Err(Failure::DiskFull),
            Err(SpoolError::Io(error)) => {
                // In `auto` it may be meant, and is said once.
                if self.mode == BufferRequests::On || before.is_none() {
                    self.report(&error);
                }
                Ok(None)
            }
        }
    }

    fn failed(&self, error: SpoolError) -> Failure {
        match error {
            SpoolError::TooLong | SpoolError::DiskFull => Failure::DiskFull,
            SpoolError::Io(error) => {
                self.report(&error);
                Failure::SpoolFailed
            }
        }
    }

    fn report(&self, error: &io::Error) {
        let message = "can't spool";
        if let Some(repeated) = self.repeats.admit(message, "", Instant::now()) {
            let directory = self.directory.display();
            tracing::warn!(error = %error, %directory, repeated, hint = HINT, "{message}");
        }
    }
}

/// Bytes of a body as far as they are known, of which `blocks` and `data` have come.
fn length(blocks: &Blocks, data: &Bytes, body: &Streamed) -> u64 {
    ((blocks.len() + data.len()) as u64).saturating_add(body.length().unwrap_or_default())
}

/// Bytes of a body in memory, and of a write, when memory is short.
const LITTLE: usize = 64 * 1024;
/// A directory that could not be written may be by now: a volume gets room again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
const SLOW_HINT: &str = "the app waits until the client has taken its response: raise the app's write timeout (uWSGI: socket-timeout, 4 s unless set), HOSTWARD_BUFFER_RESPONSES or HOSTWARD_BUFFER_DISK, or give HOSTWARD_BUFFER_DIR a volume with space";
const HINT: &str = "long request bodies, and responses to slow clients, go to HOSTWARD_BUFFER_DIR: give it a larger volume, or stream them (HOSTWARD_BUFFER_REQUESTS=off)";
