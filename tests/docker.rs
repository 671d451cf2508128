//! The image and the Compose file, unchanged, on this machine's Docker engine. Relies on `tests/docker/prepare` for the base
//! images and on one task at a time: the Compose file's network is fixed. Without an engine the tests are
//! skipped, or fail with `CI=true`.

mod engine;
mod image;
mod load;
mod task;
