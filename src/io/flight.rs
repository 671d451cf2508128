//! What the parties to an exchange in flight tell each other: what is waited for and since when, whether the
//! request can go on, and the interim responses on their way to the client. An HTTP/1.1 connection has one
//! for all its exchanges, which follow each other; an HTTP/2 stream has one of its own.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::{Rc, Weak};
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::error::{Failure, Shed};
use crate::io::memory::Held;
use crate::io::timers::Timer;

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
    /// Why hostward ends the exchange, whatever state it is in.
    aborted: Cell<Option<Failure>>,
    /// What is taken of the memory budget, in all and for each part.
    held: RefCell<Held>,
    charges: [Cell<usize>; Part::Body as usize],
    /// Bytes of bodies, which have taken theirs.
    bodies: Cell<usize>,
    /// Whether the exchange waits for memory, so that nothing is gained by ending it.
    waits_for_memory: Cell<bool>,
    /// When bytes of the current request were read last.
    last_read: Cell<Instant>,
    /// What to write before the final response: interim ones.
    pub(crate) interim: RefCell<BytesMut>,
    /// The response, if it can be read ahead.
    read_ahead: RefCell<Option<Weak<dyn Ahead>>>,
    /// Whether the two below are kept.
    keeps_pace: Cell<bool>,
    /// Bytes of the answer that were handed out and not written.
    unwritten: Cell<usize>,
    /// Whether the client leaves what was written unread.
    blocked: Cell<bool>,
    /// Whether more of the answer was wanted than is good while some is unwritten.
    held_back: Cell<bool>,
}

/// A response that can be read from the app before its client takes it.
pub trait Ahead: fmt::Debug {
    /// Reads what there is.
    fn poll_fill(&self, cx: &mut Context<'_>);

    /// Bytes that have been read and not been handed out.
    fn queued(&self) -> usize;
}

/// What the memory budget is charged for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The connection or the stream itself, its task and its buffers.
    Connection,
    /// What the protocol's library keeps: hyper's buffers on both sides, or those of `h2`.
    Library,
    /// A request head, where it is longer than those buffers, or an HTTP/2 connection's unread bodies.
    Read,
    /// A response head that is longer than the usual buffers.
    Response,
    /// What the client leaves unread of a response, but for what is read ahead.
    Unwritten,
    /// Bodies in memory. Has to be the last.
    Body,
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
    /// Nothing is under way yet. `waiting_for` is what the timer is armed for; `held` has been taken for the connection or
    /// the stream itself.
    pub fn new(timer: Timer, held: Held, waiting_for: WaitingFor) -> Rc<Self> {
        timer.weigh(held.bytes());
        let charges = <[Cell<usize>; Part::Body as usize]>::default();
        charges[Part::Connection as usize].set(held.bytes());
        Rc::new(Self {
            waiting_for: Cell::new(waiting_for),
            timer,
            violation: Cell::new(None),
            under_way: Cell::new(false),
            aborted: Cell::new(None),
            held: RefCell::new(held),
            charges,
            bodies: Cell::new(0),
            waits_for_memory: Cell::new(false),
            last_read: Cell::new(Instant::now()),
            interim: RefCell::default(),
            read_ahead: RefCell::default(),
            keeps_pace: Cell::new(false),
            unwritten: Cell::new(0),
            blocked: Cell::new(false),
            held_back: Cell::new(false),
        })
    }

    /// The timer, as it is armed, and what is taken of the memory budget.
    pub fn into_parts(self) -> (Timer, Held) {
        (self.timer, self.held.into_inner())
    }

    /// Makes it `bytes` that the memory budget is charged with for `part`. False, and nothing changed, when there
    /// aren't as many.
    pub fn charge(&self, part: Part, bytes: usize) -> bool {
        if bytes <= self.charges[part as usize].get() {
            self.owe(part, bytes);
            return true;
        }
        let charged = self.held.borrow_mut().try_set(self.total_with(part, bytes));
        if charged {
            self.charged(part, bytes);
        }
        charged
    }

    /// The same for what is in memory already: where there aren't as many, the rest is owed, and the largest holders
    /// will have to end: this one at once, where too much is owed already.
    pub fn owe(&self, part: Part, bytes: usize) {
        let before = self.charges[part as usize].get();
        if bytes != before {
            self.held.borrow_mut().set(self.total_with(part, bytes));
            self.charged(part, bytes);
            if bytes > before && self.held.borrow().budget().is_exceeded() {
                self.timer.shed();
            }
        }
    }

    /// The same as [`Flight::charge`], as soon as there are as many. The task's timer bounds the wait.
    pub async fn charge_when_possible(&self, part: Part, bytes: usize) {
        if !self.charge(part, bytes) {
            let mut waiting = self.sibling();
            waiting.wait(bytes - self.charges[part as usize].get()).await;
            self.absorb(part, waiting);
        }
    }

    /// Another holder of the same budget.
    pub fn sibling(&self) -> Held {
        self.held.borrow().sibling()
    }

    /// Charges `part` with what a [`Flight::sibling`] has taken, in addition.
    pub fn absorb(&self, part: Part, held: Held) {
        let bytes = self.charges[part as usize].get() + held.bytes();
        self.held.borrow_mut().absorb(held);
        self.charged(part, bytes);
    }

    /// What all parts come to when this one is `bytes`.
    fn total_with(&self, part: Part, bytes: usize) -> usize {
        let others = self.charges.iter().map(Cell::get).sum::<usize>() - self.charges[part as usize].get();
        others + bytes
    }

    fn charged(&self, part: Part, bytes: usize) {
        self.charges[part as usize].set(bytes);
        self.weigh();
    }

    fn weigh(&self) {
        let bytes = self.held.borrow().bytes() + self.bodies.get();
        self.timer.weigh(if self.waits_for_memory.get() { 0 } else { bytes });
    }

    /// Says whether the exchange waits for memory: then neither the client nor the app is slow.
    pub fn set_waits_for_memory(&self, waits: bool) {
        self.waits_for_memory.set(waits);
        self.timer.pardon();
        self.weigh();
    }

    /// Says how many bytes of bodies are in memory. They have been taken from the budget.
    pub fn weigh_bodies(&self, bytes: usize) {
        if self.bodies.replace(bytes) != bytes {
            self.weigh();
        }
    }

    /// Whether there is memory for large buffers.
    pub fn has_memory(&self) -> bool {
        self.held.borrow().budget().is_below(ROOMY)
    }

    /// Whether a request head may take more memory than those that are charged with their connections.
    pub fn may_grow(&self) -> bool {
        !self.held.borrow().budget().is_squeezed()
    }

    /// Gives back everything that was charged but `idle` bytes: the connection only lingers.
    pub fn release(&self, idle: usize) {
        self.charges.iter().for_each(|charge| charge.set(0));
        self.charges[Part::Connection as usize].set(idle);
        self.held.borrow_mut().set(idle);
        // More than nothing: it can be ended to make way for others.
        self.timer.weigh(idle.max(1));
    }

    /// Why the exchange has to end, if it has to because memory is short.
    pub fn shed(&self) -> Option<Failure> {
        self.timer.is_shed().then(|| {
            Failure::MemoryFull(match self.waiting_for.get() {
                WaitingFor::Head | WaitingFor::Pause | WaitingFor::Request
                    if self.charges[Part::Read as usize].get() > 0 =>
                {
                    Shed::LargeHead
                }
                WaitingFor::Head | WaitingFor::Pause | WaitingFor::Request | WaitingFor::Body => Shed::SlowClient,
                WaitingFor::App | WaitingFor::Client | WaitingFor::Nothing => Shed::Busy,
            })
        })
    }

    /// The timer of the task that polls the exchange.
    pub fn timer(&self) -> &Timer {
        &self.timer
    }

    /// Arms the timer for one thing, unless it is armed for it already.
    pub fn wait(&self, what: WaitingFor, at_most: Duration) {
        if self.waiting_for.get() != what {
            self.progress(what, at_most);
        }
    }

    /// Whether that is what the timer is armed for.
    pub fn waits_for(&self, what: WaitingFor) -> bool {
        self.waiting_for.get() == what
    }

    /// Starts the time for `what` again: something of it has come.
    pub fn progress(&self, what: WaitingFor, at_most: Duration) {
        self.waiting_for.set(what);
        self.timer.arm(at_most);
        if what == WaitingFor::App {
            self.timer.spare();
        }
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
        self.weigh_bodies(0);
        self.charge(Part::Response, 0);
        self.unwritten.set(0);
        self.held_back.set(false);
        self.waiting_for.set(WaitingFor::Nothing);
        self.timer.disarm();
        self.timer.pardon();
    }

    /// The answer's body has ended, or never will.
    pub fn end(&self) {
        self.under_way.set(false);
    }

    /// Whether an answer is being produced.
    pub fn is_under_way(&self) -> bool {
        self.under_way.get()
    }

    /// Ends the exchange, in whatever state it is. Whether that is new: then the exchange is polled once more, for its
    /// final response.
    pub fn abort(&self, why: Failure) -> bool {
        let new = self.aborted.get().is_none();
        if new {
            self.aborted.set(Some(why));
        }
        new
    }

    /// Why hostward ends the exchange, if it does.
    pub fn aborted(&self) -> Option<Failure> {
        self.aborted.get()
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

    /// A response that may be read ahead begins.
    pub fn allow_read_ahead(&self, response: Weak<dyn Ahead>) {
        self.read_ahead.replace(Some(response));
    }

    /// Reads the response ahead, if it can be.
    pub fn poll_read_ahead(&self, cx: &mut Context<'_>) {
        let response = self.read_ahead.borrow().as_ref().and_then(Weak::upgrade);
        if let Some(response) = response {
            response.poll_fill(cx);
            self.weigh_bodies(response.queued());
        }
    }

    /// From now on the code that writes the response reports it: [`Flight::wrote`] and [`Flight::set_blocked`].
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

    /// Bytes of the response are handed out. Without [`Flight::keep_pace`] they are not counted.
    pub fn hand_out(&self, bytes: usize) {
        if self.keeps_pace.get() {
            self.unwritten.set(self.unwritten.get() + bytes);
        }
    }

    /// Bytes were written, of the answer or of its framing.
    pub fn wrote(&self, bytes: usize) {
        self.unwritten.set(self.unwritten.get().saturating_sub(bytes));
    }

    /// Everything that was handed out has been written.
    pub fn wrote_all(&self) {
        self.unwritten.set(0);
    }

    /// Whether the client takes what is written. Returns what was known before. What it leaves unread counts in the
    /// memory budget.
    pub fn set_blocked(&self, blocked: bool) -> bool {
        self.set_unread(blocked.then(|| self.unwritten.get()))
    }

    /// The same with so many bytes that the client leaves unread; `None` when it takes what is written.
    pub fn set_unread(&self, unread: Option<usize>) -> bool {
        self.owe(Part::Unwritten, unread.unwrap_or_default());
        self.blocked.replace(unread.is_some())
    }

    /// Whether the client leaves what was written unread.
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

    /// Queues an interim response, unless the client leaves too many unread: they are hints, and may be lost.
    /// The caller is polled by the connection's task, which sends it.
    pub fn queue_interim(&self, response: &[u8]) {
        let mut interim = self.interim.borrow_mut();
        if interim.len() + response.len() <= MAX_INTERIM {
            interim.extend_from_slice(response);
        }
    }
}

/// Percent of the memory budget beyond which buffers stay small.
pub const ROOMY: usize = 25;
/// Bytes of interim responses that wait for the client.
const MAX_INTERIM: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::memory::Budget;
    use crate::io::timers::Timers;

    #[test]
    fn only_what_somebody_will_say_was_written_counts_as_unwritten() {
        let held = Budget::new(1000).hold();
        let flight = Flight::new(Timers::new().timer(), held, WaitingFor::Nothing);
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

    #[test]
    fn each_part_is_charged_on_its_own_and_within_the_budget() {
        let budget = Budget::new(100);
        let mut held = budget.hold();
        assert!(held.take(20));
        let flight = Flight::new(Timers::new().timer(), held, WaitingFor::Head);
        assert!(flight.charge(Part::Read, 50) && flight.charge(Part::Library, 30) && !flight.charge(Part::Read, 51));
        assert!(flight.charge(Part::Library, 0) && flight.charge(Part::Read, 60) && budget.taken() == 80);
        assert_eq!(flight.shed(), None);
        flight.timer.shed();
        assert_eq!(flight.shed(), Some(Failure::MemoryFull(Shed::LargeHead)));
        assert!(flight.charge(Part::Read, 0));
        assert_eq!(flight.shed(), Some(Failure::MemoryFull(Shed::SlowClient)));
        flight.release(5);
        assert_eq!(budget.taken(), 5);
    }

    #[test]
    fn what_is_left_unread_is_owed_where_there_is_no_memory_for_it() {
        let budget = Budget::new(160);
        let flight = || Flight::new(Timers::new().timer(), budget.hold(), WaitingFor::Client);
        let (one, other) = (flight(), flight());
        one.set_unread(Some(100));
        assert_eq!((budget.taken(), budget.is_short()), (100, false));
        other.set_unread(Some(70));
        assert_eq!((budget.taken(), budget.is_short(), other.shed()), (170, true, None));
        // There is memory again, for any holder.
        one.set_unread(Some(90));
        assert!(!budget.is_short());
        // Too much to wait until others have ended.
        other.set_unread(Some(90));
        assert_eq!((one.shed(), other.shed()), (None, Some(Failure::MemoryFull(Shed::Busy))));
        other.set_unread(Some(60));
        assert_eq!(budget.taken(), 150);
        drop((one, other));
        assert_eq!(budget.taken(), 0);
    }
}
