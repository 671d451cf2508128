//! `hostward inject`: reads a task definition as people have it and writes it with hostward before the app.
//!
//! The settings are judged by the loader that the container will use. What a document may look like is said in
//! `document`, what hostward's own container looks like in `container`; here is who gives what to whom.

mod arguments;
mod container;
mod document;
mod network;
mod report;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::IpAddr;

use serde_json::{Map, Value};

pub use self::arguments::Inject;
pub(super) use self::arguments::arguments;
use self::document::{Container, Published};
use self::network::Network;
use self::report::Report;
use crate::config::{Config, Endpoint, Flags, Loaded, Mistakes, Pem, Protocol, Source, Sources, Tls, load, visible};

/// What hostward's container is called.
const NAME: &str = "hostward";
/// The default port of `HOSTWARD_LISTEN`, and those that are tried where the app has it.
const PORTS: std::ops::RangeInclusive<u16> = 8080..=8099;
/// ECS takes 64 KiB.
const LONGEST: u64 = 1 << 20;
/// In bridge mode a health check names the instance's IP, which nothing inside the task can find out.
const BRIDGE_PROBES: &str = "self,peer,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10";

/// Writes the task definition to `out` and what was done to `say`. Returns the exit code: 2 when it refuses, and
/// then nothing is written to `out`.
pub fn run(asked: &Inject, flags: &Flags, input: &mut impl Read, out: &mut impl Write, say: &mut impl Write) -> u8 {
    match write(asked, flags, input, out, say) {
        Ok(code) => code,
        Err(error) => {
            writeln!(say, "hostward inject: {error}").ok();
            1
        }
    }
}

fn write(
    asked: &Inject,
    flags: &Flags,
    input: &mut impl Read,
    out: &mut impl Write,
    say: &mut impl Write,
) -> io::Result<u8> {
    let mut text = Vec::new();
    input.take(LONGEST + 1).read_to_end(&mut text)?;
    match inject(asked, flags, &text) {
        Err(reasons) => {
            for reason in reasons {
                writeln!(say, "hostward inject: {}", visible(reason.chars()))?;
            }
            Ok(2)
        }
        Ok((task, report)) => {
            writeln!(out, "{:#}", Value::Object(task))?;
            out.flush()?;
            report.write(say)?;
            Ok(0)
        }
    }
}

type Task = Map<String, Value>;

fn inject(asked: &Inject, flags: &Flags, text: &[u8]) -> Result<(Task, Report), Vec<String>> {
    if text.len() as u64 > LONGEST {
        return Err(vec!["more than 1 MiB: that is no task definition".into()]);
    }
    let mut report = Report::default();
    let alone = |reason| vec![reason];
    let mut task = document::read(text, &mut report).map_err(alone)?;
    let containers = document::containers(&task).map_err(alone)?;
    let network = document::network(&task).map_err(alone)?;
    if let Some(ours) = containers.iter().find(|container| container.name == NAME) {
        update(asked, flags, &mut task, &containers, ours, &mut report)?;
    } else {
        add(asked, flags, &mut task, &containers, network, &mut report)?;
    }
    Ok((task, report))
}

fn add(
    asked: &Inject,
    flags: &Flags,
    task: &mut Task,
    containers: &[Container],
    network: Network,
    report: &mut Report,
) -> Result<(), Vec<String>> {
    let app = choose(containers, asked.app.as_deref()).map_err(|reason| vec![reason])?;
    let mut given = asked.set.clone();
    let sources = sources(flags, &given);
    let says =
        |variable: &str| sources.list.iter().find(|g| g.setting.variable == variable && g.source != Source::Default);

    if says("HOSTWARD_UPSTREAM").is_none() {
        let url = |published: &Published| network.url(published.protocol, &app.name, published.port);
        let [published] = app.published.as_slice() else {
            let ports: Vec<_> = app.published.iter().map(|published| published.port.to_string()).collect();
            return Err(vec![format!(
                "container `{}` publishes {}: say which one is the app's, for example --upstream {}",
                app.name,
                ports.join(" and "),
                url(&app.published[0]),
            )]);
        };
        given.push(("HOSTWARD_UPSTREAM".into(), url(published)));
    }
    if network == Network::Awsvpc {
        let listen = says("HOSTWARD_LISTEN").and_then(|given| given.value.as_deref());
        if let Some(address) = free_port(listen, app, containers, report).map_err(|reason| vec![reason])? {
            given.push(("HOSTWARD_LISTEN".into(), address));
        }
    } else if says("HOSTWARD_PROBE_HOSTS").is_none() {
        given.push(("HOSTWARD_PROBE_HOSTS".into(), BRIDGE_PROBES.into()));
        report.remains("a health check names the instance's IP, which a task in bridge mode can't find out: HOSTWARD_PROBE_HOSTS has every private network, narrow it to your VPC's".into());
    }

    let Loaded { config, warnings, sources } = settle(flags, &given)?;
    for warning in warnings {
        report.remains(format!("{}: {warning}", warning.setting));
    }
    reachable(&config).map_err(|reason| vec![reason])?;
    if let Endpoint::Tcp { host, port } = &config.upstream.endpoint
        && network == Network::Bridge
        && own_loopback(host)
    {
        return Err(vec![format!(
            "HOSTWARD_UPSTREAM is {}: in bridge mode that is hostward's own container; the app is at {}",
            config.upstream,
            network.url(config.upstream.protocol, &app.name, *port)
        )]);
    }
    let published = match app.published.as_slice() {
        [one] => one,
        several => several.iter().find(|one| Some(one.port) == config.upstream.port()).ok_or_else(|| {
            vec![format!(
                "none of the ports that container `{}` publishes is where HOSTWARD_UPSTREAM is ({})",
                app.name, config.upstream
            )]
        })?,
    };
    if network == Network::Awsvpc
        && let Some(admin) = config.admin_listen
        && let Some(other) = owner(containers, admin.port())
    {
        return Err(vec![format!(
            "port {} of container `{}` is hostward's admin port too, and the containers of a task share their ports: --admin-listen 127.0.0.1:9798",
            admin.port(),
            other.name
        )]);
    }

    let mut mapping = document::take_mapping(task, app.at, published.at);
    document::move_mapping(&mut mapping, config.listen.port(), network);
    report.settings(&environment(&sources));
    report.moved(&app.name, published.port, config.listen.port(), &mapping, network);
    if published.protocol == Protocol::H2c && config.upstream.protocol != Protocol::H2c {
        report.remains(format!(
            "the port's appProtocol says HTTP/2, and HOSTWARD_UPSTREAM is {}: if the app has no HTTP/1.1, give --upstream {}",
            config.upstream,
            network.url(Protocol::H2c, &app.name, published.port)
        ));
    }
    let ours = container::Ours {
        app,
        image: asked.image.as_deref(),
        network,
        mapping,
        environment: environment(&sources),
        config: &config,
    };
    let container = container::build(&ours, task, report);
    document::push(task, container);
    report.service(&app.name, published.port, config.listen.port(), network);
    report.register();
    Ok(())
}

/// hostward is there already: only what was asked for changes.
fn update(
    asked: &Inject,
    flags: &Flags,
    task: &mut Task,
    containers: &[Container],
    ours: &Container,
    report: &mut Report,
) -> Result<(), Vec<String>> {
    let refuse = |reason: String| Err(vec![reason]);
    if !ours.asks_hostward {
        return refuse(format!(
            "there is a container `{NAME}` already, and it isn't hostward (no HOSTWARD_ variable, no `/hostward healthcheck`): rename it"
        ));
    }
    if let Some(app) = asked.app.as_deref() {
        if app == NAME || !containers.iter().any(|container| container.name == app) {
            return refuse(no_such(app, containers));
        }
        if !ours.depends_on.is_empty() && !ours.depends_on.iter().any(|name| name == app) {
            return refuse(format!(
                "hostward is there already, before `{}` and not `{app}`: take its container out first",
                ours.depends_on.join("`, `")
            ));
        }
    }
    let mut given = ours.environment.clone();
    for (name, value) in asked.set.iter().filter(|(_, value)| !value.trim().is_empty()) {
        given.retain(|(there, _)| there != name);
        given.push((name.clone(), value.clone()));
    }
    let Loaded { config, warnings, sources } = settle(flags, &given)?;
    for warning in warnings {
        report.remains(format!("{}: {warning}", warning.setting));
    }
    reachable(&config).map_err(|reason| vec![reason])?;
    if let [published] = ours.published.as_slice()
        && published.port != config.listen.port()
    {
        return refuse(format!(
            "hostward is there already and publishes {}, but HOSTWARD_LISTEN would be {}: take its container out first",
            published.port, config.listen
        ));
    }
    for container in containers.iter().filter(|container| ours.depends_on.contains(&container.name)) {
        if let Some(published) =
            container.published.iter().find(|published| Some(published.port) == config.upstream.port())
        {
            report.remains(format!(
                "`{}` still publishes its port {}: requests to it go past hostward. Take it off its portMappings",
                container.name, published.port
            ));
        }
    }
    let changed = document::update(task, ours.at, &environment(&sources), asked.image.as_deref());
    report.updated(&changed);
    Ok(())
}

/// The container that is meant, with at least one port that can move.
fn choose<'a>(containers: &'a [Container], named: Option<&str>) -> Result<&'a Container, String> {
    if let Some(name) = named {
        let container = containers.iter().find(|container| container.name == name);
        let container = container.ok_or_else(|| no_such(name, containers))?;
        return if container.published.is_empty() {
            Err(format!(
                "container `{name}` publishes no TCP port (portMappings), so there is none that could move to hostward"
            ))
        } else {
            Ok(container)
        };
    }
    let candidates: Vec<&Container> = containers.iter().filter(|container| !container.published.is_empty()).collect();
    match candidates.as_slice() {
        [one] => Ok(one),
        [] => {
            Err("no container publishes a TCP port (portMappings), so there is none that could move to hostward".into())
        }
        several => Err(format!(
            "{} containers publish a port ({}): say which one is the app, for example --app {}",
            several.len(),
            names(several.iter().copied()),
            several[0].name
        )),
    }
}

fn no_such(name: &str, containers: &[Container]) -> String {
    let others = names(containers.iter().filter(|container| container.name != NAME));
    format!("there is no container `{}` to stand before; there is {others}", crate::config::show(name))
}

fn names<'a>(containers: impl Iterator<Item = &'a Container>) -> String {
    containers.map(|container| format!("`{}`", container.name)).collect::<Vec<_>>().join(", ")
}

fn owner(containers: &[Container], port: u16) -> Option<&Container> {
    containers.iter().find(|container| container.occupies(port))
}

/// The containers of a task share one loopback in awsvpc mode, so no two may listen on one port. Returns the
/// address to listen on where it isn't the default one.
fn free_port(
    listen: Option<&str>,
    app: &Container,
    containers: &[Container],
    report: &mut Report,
) -> Result<Option<String>, String> {
    // Every form of an address ends in its port; what doesn't is the loader's to refuse.
    let wanted =
        listen.map_or(Some(*PORTS.start()), |text| text.rsplit(':').next().and_then(|digits| digits.parse().ok()));
    let Some(wanted) = wanted else { return Ok(None) };
    let Some(other) = owner(containers, wanted) else { return Ok(None) };
    let free = PORTS.into_iter().find(|port| owner(containers, *port).is_none());
    let example = free.map_or_else(String::new, |port| format!(": --listen :{port}"));
    if listen.is_some() || other.name != app.name {
        return Err(format!(
            "port {wanted} is container `{}`'s, and hostward would listen on it too; the containers of a task share their ports in awsvpc mode{example}",
            other.name
        ));
    }
    let free = free.ok_or_else(|| {
        format!("the containers publish every port from {} to {}: give --listen", PORTS.start(), PORTS.end())
    })?;
    report.did(format!(
        "hostward listens on {free}, because `{}` has {wanted}, and the containers of a task share their ports in awsvpc mode",
        app.name
    ));
    Ok(Some(format!("[::]:{free}")))
}

fn reachable(config: &Config) -> Result<(), String> {
    let listen = config.listen;
    if listen.port() == 0 || listen.ip().to_canonical().is_loopback() {
        return Err(format!("HOSTWARD_LISTEN is {listen}: a load balancer needs a port that it can reach"));
    }
    Ok(())
}

fn own_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// What was given, whether right or wrong.
fn sources(flags: &Flags, given: &[(String, String)]) -> Sources {
    match load(flags, variables(given), false) {
        Ok(loaded) => loaded.sources,
        Err(Mistakes { sources, .. }) => sources,
    }
}

/// The settings that hostward's container gets, judged by the loader that it has.
fn settle(flags: &Flags, given: &[(String, String)]) -> Result<Loaded, Vec<String>> {
    let loaded = load(flags, variables(given), false).map_err(|mistakes| {
        mistakes.list.iter().map(|mistake| format!("{}: {mistake}", mistake.setting)).collect::<Vec<_>>()
    })?;
    if let Tls::Files { key: Pem::Text(_), .. } = &loaded.config.tls {
        return Err(vec!["HOSTWARD_TLS_KEY: a private key doesn't belong into a task definition, which many may read. Give a path, and mount the file".into()]);
    }
    Ok(loaded)
}

fn variables(given: &[(String, String)]) -> impl Iterator<Item = (OsString, OsString)> + '_ {
    given.iter().map(|(name, value)| (name.into(), value.into()))
}

fn environment(sources: &Sources) -> Vec<(&'static str, String)> {
    let given = sources.list.iter().filter(|given| given.source != Source::Default);
    given.filter_map(|given| Some((given.setting.variable, given.value.clone()?))).collect()
}
