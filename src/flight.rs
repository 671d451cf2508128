//! What the parties to an exchange in flight tell each other: what is waited for and since when, whether the
//! request can go on, and the interim responses on their way to the client. An HTTP/1.1 connection has one
//! for all its exchanges, which follow each other; an HTTP/2 stream has one of its own.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::error::Failure;
use crate::read_ahead::ReadAhead;
use crate::timers::Timer;

/// The shared state of an exchange in flight.
#[derive(Debug)]
pub struct Flight {
    /// What the timer is armed for.
    waiting_for: Cell<WaitingFor>,
    timer: Timer,
    /// Why the current request can't go on. Nothing more of it is read.
    violation: Cell<Option<Failure>>,
    /// Whether the answer's body is still being produced.
    under_way: Cell<bool>,
    cut: Cell<bool>,
    /// When bytes of the current request were read last.
    last_read: Cell<Instant>,
    /// What to write before the final response: interim ones.
    pub(crate) interim: RefCell<BytesMut>,
    /// The answer, if it can be read ahead.
    read_ahead: RefCell<Weak<ReadAhead>>,
    /// Whether the two below are kept.
    keeps_pace: Cell<bool>,
    /// Bytes of the answer that were handed out and not written.
    unwritten: Cell<usize>,
    /// Whether the client leaves what was written lying.
    blocked: Cell<bool>,
    /// Whether more of the answer was wanted than is good while some is unwritten.
    held_back: Cell<bool>,
}

/// What has to happen before the timer fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitingFor {
    /// Nothing is timed.
    Nothing,
    /// The first byte of a request, soon.
    Pause,
    /// The first byte of a request.
    Request,
    /// The rest of a request head.
    Head,
    /// More of the request body.
    Body,
    /// The app's response head.
    App,
    /// The client to take what was written.
    Client,
}

impl Flight {
    /// Nothing is under way yet. `waiting_for` is what the timer is armed for.
    pub fn new(timer: Timer, waiting_for: WaitingFor) -> Rc<Self> {
        Rc::new(Self {
            waiting_for: Cell::new(waiting_for),
            timer,
            violation: Cell::new(None),
            under_way: Cell::new(false),
            cut: Cell::new(false),
            last_read: Cell::new(Instant::now()),
            interim: RefCell::default(),
            read_ahead: RefCell::default(),
            keeps_pace: Cell::new(false),
            unwritten: Cell::new(0),
            blocked: Cell::new(false),
            held_back: Cell::new(false),
        })
    }

    /// The timer, as it is armed.
    pub fn into_timer(self) -> Timer {
        self.timer
    }

    /// The timer of the task that polls the exchange.
    pub fn timer(&self) -> &Timer {
        &self.timer
    }

    /// Arms the timer for one thing, unless it is armed for it already.
    pub fn wait(&self, what: WaitingFor, at_most: Duration) {
        if self.waiting_for.replace(what) != what {
            self.timer.arm(at_most);
        }
    }

    /// Whether that is what the timer is armed for.
    pub fn waits_for(&self, what: WaitingFor) -> bool {
        self.waiting_for.get() == what
    }

    /// Starts the time for `what` anew: something of it has come.
    pub fn progress(&self, what: WaitingFor, at_most: Duration) {
        self.waiting_for.set(what);
        self.timer.arm(at_most);
    }

    /// Ends the time for `what`, if it is what the timer is armed for.
    pub fn arrived(&self, what: WaitingFor) {
        if self.waiting_for.get() == what {
            self.waiting_for.set(WaitingFor::Nothing);
            self.timer.disarm();
        }
    }

    /// What did not come in time.
    pub fn overdue(&self) -> Option<WaitingFor> {
        self.timer.expired().then(|| self.waiting_for.get())
    }

    /// A request head is complete, and its exchange begins.
    pub fn begin(&self) {
        self.under_way.set(true);
        self.unwritten.set(0);
        self.held_back.set(false);
        self.waiting_for.set(WaitingFor::Nothing);
        self.timer.disarm();
    }

    /// The answer's body has ended, or never will.
    pub fn end(&self) {
        self.under_way.set(false);
    }

    /// Whether an answer is being produced.
    pub fn is_under_way(&self) -> bool {
        self.under_way.get()
    }

    /// The exchange is cut in the middle of whatever is under way. Whether that is new: then it is to be polled once
    /// more, for its last words.
    pub fn cut(&self) -> bool {
        !self.cut.replace(true)
    }

    /// Whether it was hostward that ended the exchange.
    pub fn was_cut(&self) -> bool {
        self.cut.get()
    }

    /// The current request can't go on.
    pub fn violate(&self, why: Failure) {
        self.violation.set(Some(why));
    }

    /// Why the current request can't go on, if it can't.
    pub fn violation(&self) -> Option<Failure> {
        self.violation.get()
    }

    /// Something of the current request has been read.
    pub fn has_read(&self) {
        self.last_read.set(Instant::now());
    }

    /// When the current request was read.
    pub fn last_read(&self) -> Instant {
        self.last_read.get()
    }

    /// An answer that may be read ahead begins.
    pub fn allow_read_ahead(&self, answer: &Rc<ReadAhead>) {
        self.read_ahead.replace(Rc::downgrade(answer));
    }

    /// Reads the answer ahead, if it can be.
    pub fn poll_read_ahead(&self, cx: &mut Context<'_>) {
        let answer = self.read_ahead.borrow().upgrade();
        if let Some(answer) = answer {
            answer.poll_fill(self.unwritten.get(), cx);
        }
    }

    /// Whoever writes the answer says what has been written: [`Flight::wrote`] and [`Flight::set_blocked`].
    pub fn keep_pace(&self) {
        self.keeps_pace.set(true);
    }

    /// Whether more of the answer may be handed out while at most `unwritten` bytes wait to be written. If not,
    /// remembers that it was wanted.
    pub fn may_hand_out(&self, unwritten: usize) -> bool {
        let may = !self.keeps_pace.get() || (!self.blocked.get() && self.unwritten.get() <= unwritten);
        self.held_back.set(!may);
        may
    }

    /// Bytes of the answer are handed out. Where nobody says what becomes of them, they are not counted.
    pub fn hand_out(&self, bytes: usize) {
        if self.keeps_pace.get() {
            self.unwritten.set(self.unwritten.get() + bytes);
        }
    }

    /// Bytes were written, of the answer or of its framing.
    pub fn wrote(&self, bytes: usize) {
        self.unwritten.set(self.unwritten.get().saturating_sub(bytes));
    }

    /// Whether the client takes what is written. Returns what was known before.
    pub fn set_blocked(&self, blocked: bool) -> bool {
        self.blocked.replace(blocked)
    }

    /// Whether the client leaves what was written lying.
    pub fn is_blocked(&self) -> bool {
        self.blocked.get()
    }

    /// Whether what was held back can be had now. Says so once.
    pub fn is_to_be_asked_again(&self) -> bool {
        let again = self.held_back.get() && !self.blocked.get() && self.unwritten.get() == 0;
        if again {
            self.held_back.set(false);
        }
        again
    }

    /// Queues an interim response, unless the client leaves too many lying: they are hints, and may be lost.
    /// Whoever calls is polled by the connection's task, which sends it.
    pub fn queue_interim(&self, response: &[u8]) {
        let mut interim = self.interim.borrow_mut();
        if interim.len() + response.len() <= MAX_INTERIM {
            interim.extend_from_slice(response);
        }
    }
}

/// Bytes of interim responses that wait for the client.
const MAX_INTERIM: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timers::Timers;

    #[test]
    fn only_what_somebody_will_say_was_written_counts_as_unwritten() {
        let flight = Flight::new(Timers::new().timer(), WaitingFor::Nothing);
        // An HTTP/2 stream's: a long answer would take up the whole budget, byte by byte, and never give it back.
        flight.hand_out(100);
        assert_eq!(flight.unwritten.get(), 0);
        assert!(flight.may_hand_out(0));
        flight.keep_pace();
        flight.hand_out(100);
        assert!(!flight.may_hand_out(99) && flight.may_hand_out(100));
        flight.wrote(60);
        assert_eq!(flight.unwritten.get(), 40);
    }
}
