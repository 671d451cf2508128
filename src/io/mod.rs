//! What the program stands on: sockets and pipes, timers, the memory budget, and
//! the state of an exchange in flight.

pub mod flight;
pub mod memory;
pub mod socket;
pub mod splice;
pub mod timers;
