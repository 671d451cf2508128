//! The one story of stopping: asked to stop, not ready any more, no new connections, no idle ones, the rest
//! cut.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// How far stopping has come. Every worker and the listener see each stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Not at all.
    Running,
    /// Not ready, still accepting; every answer closes its connection.
    Draining,
    /// No longer accepting; idle connections are closed, tunnels towards the app too; exchanges may finish.
    Closing,
    /// Everything is closed.
    Cut,
}

/// A wish to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// In order (SIGTERM). A second one means `Now`.
    Drain,
    /// At once (SIGINT).
    Now,
}

/// Waits for a wish to stop and goes through the stages. `open` counts the connections there are.
pub async fn run(
    mut stops: UnboundedReceiver<Stop>,
    stage: &watch::Sender<Stage>,
    delay: Duration,
    timeout: Duration,
    open: impl Fn() -> usize,
) {
    let wish = stops.recv().await.unwrap_or(Stop::Now);
    let begun = Instant::now();
    if wish == Stop::Drain {
        tracing::info!(
            open_connections = open(),
            drain_delay_s = delay.as_secs_f64(),
            shutdown_timeout_s = timeout.as_secs_f64(),
            "draining"
        );
        stage.send_replace(Stage::Draining);
        // Whoever wishes twice, or drops the wish, does not want to wait.
        tokio::select! {
            () = sleep(delay) => {
                stage.send_replace(Stage::Closing);
                tokio::select! {
                    () = until_none(&open, Instant::now() + timeout) => {}
                    _ = stops.recv() => {}
                }
            }
            _ = stops.recv() => {}
        }
    }
    let cut = open();
    stage.send_replace(Stage::Cut);
    until_none(&open, Instant::now() + LAST_WORDS).await;
    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(clean = cut == 0, cut_connections = cut, took_ms, "stopped");
}

/// Returns when there is no open connection, or at the deadline.
async fn until_none(open: &impl Fn() -> usize, deadline: Instant) {
    // First a pause: the listener may be accepting the last ones this very moment.
    loop {
        sleep_until(deadline.min(Instant::now() + LOOK)).await;
        if open() == 0 || Instant::now() >= deadline {
            return;
        }
    }
}

/// How often the open connections are counted while stopping.
const LOOK: Duration = Duration::from_millis(20);
/// What the connections that were cut get for writing their records.
const LAST_WORDS: Duration = Duration::from_secs(1);
