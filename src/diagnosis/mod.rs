//! Why something was rejected or failed, who sent it, and which setting helps.

pub mod app_refusal;
pub mod diagnose;
pub mod exposure;
pub mod observer;
pub mod recent;
pub mod refusals;
