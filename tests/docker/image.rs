//! The image that `docker/Dockerfile` makes: what it holds, how large it is, and how it wants to be run.

use serde_json::json;

use super::engine::Engine;

/// Made by `prepare` from the project's own Dockerfile.
const IMAGE: &str = "hostward-tests:hostward";
/// What everybody has to pull, at most.
const COMPRESSED: u64 = 5_000_000;

#[test]
fn the_image_is_one_small_file_that_nobody_owns_a_shell_beside() {
    let Some(engine) = Engine::get() else { return };
    let image = engine.inspect(IMAGE);
    let config = &image["Config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], json!(["/hostward"]));
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert_eq!(config["Volumes"], json!({ "/tmp": {} }));
    assert_eq!(config["Healthcheck"]["Test"], json!(["CMD", "/hostward", "healthcheck"]));
    assert_eq!(config["Labels"]["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(config["Labels"]["org.opencontainers.image.licenses"], env!("CARGO_PKG_LICENSE"));
    assert_eq!(image["RootFS"]["Layers"].as_array().expect("layers").len(), 1, "{image}");

    let size = engine.shell(&format!("docker save {IMAGE} | gzip | wc -c"));
    let size: u64 = size.parse().unwrap_or_else(|_| panic!("{size}"));
    assert!(size < COMPRESSED, "{size} bytes");

    let container = engine.docker(&["create", IMAGE]);
    let files = engine.shell(&format!("docker export {container} | tar t; docker rm {container} >/dev/null"));
    // Directories, and what the engine itself puts into every container.
    let engines = [".dockerenv", "dev/console", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"];
    let own: Vec<&str> = files.lines().filter(|file| !file.ends_with('/') && !engines.contains(file)).collect();
    assert_eq!(own, ["hostward"]);
}

#[test]
fn the_static_binary_finds_an_app_by_ip_and_by_a_name_in_the_hosts_file() {
    let Some(engine) = Engine::get() else { return };
    // Nothing listens there, and to be refused one has to have found it.
    for (upstream, expected) in
        [("http://127.0.0.1:1", "nothing listens on 127.0.0.1:1"), ("http://app:1", "nothing listens on 127.0.0.9:1")]
    {
        let line = format!(
            "docker run --rm --network none --add-host app:127.0.0.9 --env HOSTWARD_ALLOWED_HOSTS=www.example.com \
             --env HOSTWARD_UPSTREAM={upstream} {IMAGE} check --upstream 2>&1 || true"
        );
        let said = engine.shell(&line);
        assert!(said.contains(expected), "{said}");
    }
}
