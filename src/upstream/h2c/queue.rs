//! Requests that wait for a place on a connection, in the order in which they came.

use std::cell::RefCell;
use std::collections::VecDeque;

use tokio::sync::oneshot::{self, Receiver, Sender};

use super::Place;
use crate::error::Failure;

/// The queue of one worker.
#[derive(Debug, Default)]
pub(super) struct Queue(RefCell<VecDeque<Sender<Result<Place, Failure>>>>);

impl Queue {
    /// Joins the queue. Dropping the receiver leaves it.
    pub(super) fn wait(&self) -> Receiver<Result<Place, Failure>> {
        let (sender, receiver) = oneshot::channel();
        self.0.borrow_mut().push_back(sender);
        receiver
    }

    /// Whether no request waits.
    pub(super) fn is_empty(&self) -> bool {
        let mut waiting = self.0.borrow_mut();
        while waiting.front().is_some_and(Sender::is_closed) {
            waiting.pop_front();
        }
        waiting.is_empty()
    }

    /// Gives a place to the first. When it has left, the place is free again.
    pub(super) fn give(&self, place: Place) {
        let first = self.0.borrow_mut().pop_front();
        if let Some(first) = first {
            drop(first.send(Ok(place)));
        }
    }

    /// Tells all that there is no place.
    pub(super) fn fail(&self, failure: Failure) {
        for waiting in self.0.take() {
            // A receiver that was dropped has left.
            drop(waiting.send(Err(failure)));
        }
    }
}
