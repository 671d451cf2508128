//! Request buffering: whether a body is read before the app is asked, and where it stays meanwhile. An app that
//! does one request at a time is kept from waiting for slow clients that way, and gets a length with every body.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::body::blocks::Blocks;
use crate::body::spool::{PIECE, Spool};
use crate::body::{Content, RequestBody, Streamed};
use crate::config::{BufferRequests, Config, Protocol};
use crate::error::Failure;
use crate::log::Repeats;
use crate::memory::{Budget, Held};

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
    _reserved: Held,
    directory: PathBuf,
    /// When the directory was found to be unwritable, if it was.
    unwritable: Mutex<Option<Instant>>,
    /// Bodies that went there.
    spooled: AtomicU64,
    repeats: Arc<Repeats>,
}

impl Buffering {
    /// What the settings ask for, within the `budget` of the process.
    pub fn new(config: &Config, budget: Budget, repeats: Arc<Repeats>) -> Self {
        // The one place where the app's protocol has a say.
        let (mode, takes_chunks) = match config.upstream.protocol {
            // gRPC's bodies are conversations.
            Protocol::H2c if config.buffer_requests == BufferRequests::Auto => (BufferRequests::Off, true),
            Protocol::Http | Protocol::H2c => (config.buffer_requests, true),
            Protocol::Uwsgi => (config.buffer_requests, false),
        };
        // What would never fit is not for the memory.
        let memory = config.buffer_memory.min(budget.bytes() / 2);
        let mut reserved = budget.hold();
        reserved.take(memory);
        Self {
            mode,
            takes_chunks,
            memory,
            budget,
            reserve: Budget::new(memory),
            _reserved: reserved,
            directory: config.buffer_dir.clone(),
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
        if body.length().is_some_and(|length| length > self.memory as u64) {
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
            if blocks.len() + data.len() > self.memory {
                return self.read_long(blocks, data, body).await;
            }
            if !blocks.push(&data) {
                if let Some(spool) = self.spool().await {
                    return self.read_into(spool, blocks, data, body).await;
                }
                self.wait_for_room(&mut blocks, &data, &mut patience).await?;
            }
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
            () = tokio::time::sleep(*patience) => return Err(Failure::MemoryFull),
        }
        blocks.rely_on(reserve);
        blocks.push(data);
        Ok(())
    }

    /// What is too long for the memory goes to a file, or else is streamed, if it may be.
    async fn read_long(&self, mut blocks: Blocks, data: Bytes, body: Streamed) -> Result<RequestBody, Failure> {
        match self.spool().await {
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
            if blocks.len() + data.len() > PIECE || !blocks.push(&data) {
                let full = std::mem::replace(&mut blocks, Blocks::new(self.budget.hold()));
                spool.append(full, data).await.map_err(|error| self.failed(&error))?;
            }
            match body.next().await? {
                Some(more) => data = more,
                None => break,
            }
        }
        let spooled = async {
            spool.append(blocks, Bytes::new()).await?;
            spool.read(self.budget.hold())
        };
        let spooled = spooled.await.map_err(|error| self.failed(&error))?;
        Ok(RequestBody(Content::Spooled(Box::new(spooled), body.pace)))
    }

    /// Says at the start that long bodies can't go to the directory, and not first when one comes.
    pub async fn look(&self) {
        if self.mode != BufferRequests::Off
            && let Err(error) = Spool::create(self.directory.clone()).await
        {
            *self.unwritable.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            self.report(&error);
        }
    }

    /// A new file, if the directory is writable. In `auto` it needn't be, and isn't asked again and again.
    async fn spool(&self) -> Option<Spool> {
        let before = *self.unwritable.lock().unwrap_or_else(PoisonError::into_inner);
        let recently = before.is_some_and(|since| since.elapsed() < LOOK_AGAIN);
        if recently && self.mode == BufferRequests::Auto {
            return None;
        }
        let created = Spool::create(self.directory.clone()).await;
        let now = created.is_err().then(Instant::now);
        self.spooled.fetch_add(u64::from(now.is_none()), Ordering::Relaxed);
        *self.unwritable.lock().unwrap_or_else(PoisonError::into_inner) = now;
        created
            .inspect_err(|error| {
                // In `auto` it may be meant, and is said once.
                if self.mode == BufferRequests::On || before.is_none() {
                    self.report(error);
                }
            })
            .ok()
    }

    fn failed(&self, error: &io::Error) -> Failure {
        self.report(error);
        Failure::SpoolFailed
    }

    fn report(&self, error: &io::Error) {
        let message = "can't spool";
        if let Some(repeated) = self.repeats.admit(message, "", Instant::now()) {
            let directory = self.directory.display();
            tracing::warn!(error = %error, %directory, repeated, hint = HINT, "{message}");
        }
    }
}

/// A directory that could not be written may be by now: a volume gets room again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
const HINT: &str = "long request bodies go to HOSTWARD_BUFFER_DIR: give it a volume with room, or stream them (HOSTWARD_BUFFER_REQUESTS=off)";
