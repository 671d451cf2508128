//! hostward from outside: the real binary between a client and an app, on loopback. One module a subject.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test says what went wrong by panicking")]
#![expect(unreachable_pub, reason = "nothing outside a test binary could reach anything")]

mod access_log;
mod admin;
mod app_refusals;
mod attacks;
mod behaviours;
mod buffering;
mod client_limits;
mod cloudwatch;
mod commands;
mod conformance;
mod dashboard;
mod diagnose;
mod discovery;
mod docker;
mod drain;
mod emf;
mod endurance;
mod expectation;
mod faults;
mod fields;
mod forwarded;
mod framing;
mod h2c;
mod host;
mod http2;
mod inject;
mod keep_alive;
mod metrics;
mod parked;
mod probe;
mod proxy_protocol;
mod read_ahead;
mod readme;
mod real_apps;
mod regression;
mod rolling;
mod settings;
mod soak;
mod start;
mod streaming;
mod support;
mod task_definition;
mod tls;
mod unix;
mod upgrade;
mod upstream_faults;
mod uwsgi;
