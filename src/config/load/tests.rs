//! Settings as an operator writes them, and what comes of it.

use std::time::Duration;

use super::*;
use crate::config::{Kind, SETTINGS, Source};

fn env(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// Loads with one allowed host, unless the pairs say otherwise.
fn with(pairs: &[(&str, &str)]) -> Result<Loaded, Mistakes> {
    let mut all = env(&[("HOSTWARD_ALLOWED_HOSTS", "www.example.com")]);
    all.extend(env(pairs));
    load(&Flags::default(), all, false)
}

fn config(pairs: &[(&str, &str)]) -> Config {
    with(pairs).unwrap().config
}

fn mistakes(pairs: &[(&str, &str)]) -> Vec<Mistake> {
    with(pairs).unwrap_err().list
}

/// The only mistake, as `(setting, error)`.
fn mistake(pairs: &[(&str, &str)]) -> (String, String) {
    let [mistake] = mistakes(pairs).try_into().unwrap();
    (mistake.setting, mistake.error)
}

#[test]
fn one_setting_is_enough_and_the_defaults_are_the_contracts() {
    let Loaded { config, warnings, sources } = with(&[]).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.rules.canonical.unwrap(), "www.example.com");
    assert_eq!(config.rules.rewrite, HostRewrite::Preserve);
    assert_eq!(config.rules.mode, HostPolicy::Enforce);
    assert!(config.rules.probes.own && config.rules.probes.peer && !config.rules.probes.missing);
    assert_eq!(config.rules.trusted, Networks::private());
    assert_eq!(config.reject_status, RejectStatus::Answer(StatusCode::MISDIRECTED_REQUEST));
    assert_eq!(config.probe_proto, Some("https"));
    assert_eq!(config.task_ip, TaskIp::Auto(MetadataSource::default()));
    assert_eq!(config.listen, "[::]:8080".parse().unwrap());
    assert_eq!(config.admin_listen, Some("127.0.0.1:9797".parse().unwrap()));
    assert_eq!(config.max_connections, None);
    assert_eq!(config.upstream.to_string(), "http://127.0.0.1:8000");
    let millis = [
        config.upstream_connect_timeout,
        config.upstream_start_timeout,
        config.upstream_response_timeout,
        config.upstream_idle_timeout,
        config.header_timeout,
        config.body_timeout,
        config.idle_timeout,
        config.tunnel_idle_timeout,
        config.drain_delay,
        config.shutdown_timeout,
    ]
    .map(|duration| duration.as_millis());
    assert_eq!(millis, [10_000, 30_000, 60_000, 1500, 15_000, 60_000, 75_000, 3_600_000, 5000, 20_000]);
    assert_eq!(config.upstream_max_connections, None);
    assert_eq!(config.ready_path, None);
    assert!(!config.forwarding.forwarded && !config.access_log_probes);
    assert_eq!(config.metrics, Metrics { prometheus: true, emf: false });
    assert_eq!((config.max_body_size, config.max_header_size), (None, 65536));
    assert_eq!(config.log_level, tracing::Level::INFO);
    assert_eq!(config.log_format, LogFormat::Json);
    assert_eq!(config.access_log, AccessLog::On);
    assert_eq!(config.threads, None);
    assert_eq!(config.given, ["HOSTWARD_ALLOWED_HOSTS=www.example.com"]);
    assert_eq!(sources.list.len(), SETTINGS.len());
}

#[test]
fn every_setting_is_read_once_and_no_other() {
    let mut reader = Reader::new(&Flags::default(), &HashMap::new());
    reader.switch("HOSTWARD_STRICT", true);
    reader.config(MetadataSource::default(), false);
    let mut asked = reader.asked;
    let mut table: Vec<_> = SETTINGS.iter().map(|setting| setting.variable).collect();
    asked.sort_unstable();
    table.sort_unstable();
    assert_eq!(asked, table);
}

#[test]
fn every_example_is_right() {
    for setting in SETTINGS {
        let mut given = vec![("HOSTWARD_ALLOWED_HOSTS", "www.example.org"), (setting.variable, setting.example)];
        // Each wants the other two.
        if setting.variable.starts_with("HOSTWARD_TLS_") {
            given.extend([("HOSTWARD_TLS", "files"), ("HOSTWARD_TLS_CERT", "/a"), ("HOSTWARD_TLS_KEY", "/b")]);
        }
        let loaded = load(&Flags::default(), env(&given), false);
        assert!(loaded.is_ok(), "{} {:?}", setting.variable, loaded.unwrap_err().list);
    }
}

#[test]
fn every_setting_refuses_nonsense_by_name() {
    for setting in SETTINGS {
        let mut flags = Flags::default();
        flags.set("HOSTWARD_ALLOWED_HOSTS", "www.example.com".into());
        flags.set(setting.variable, "@nonsense@".into());
        let list = load(&flags, [], false).unwrap_err().list;
        assert_eq!(list.len(), 1, "{list:?}");
        assert_eq!(list[0].setting, setting.variable);
        assert_eq!(list[0].value.as_deref(), Some("@nonsense@"));
        assert!(list[0].by_flag && !list[0].error.is_empty() && !list[0].hint.is_empty(), "{list:?}");
        assert!(!list[0].error.contains("own table"), "{list:?}");
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let mistakes = load(
        &Flags::default(),
        env(&[
            ("HOSTWARD_ALOWED_HOSTS", "x"),
            ("HOSTWARD_IDLE_TIMEOUT", "75"),
            ("HOSTWARD_TRUSTED_PROXIES", "10.0.0.0/33"),
        ]),
        false,
    )
    .unwrap_err();
    let mut out = Vec::new();
    mistakes.write(&mut out, true, std::time::SystemTime::UNIX_EPOCH).unwrap();
    let text = String::from_utf8(out).unwrap();
    let lines: Vec<_> = text.lines().take(5).collect();
    assert_eq!(
        lines,
        [
            "hostward: 3 configuration problems, not starting (exit 2)",
            "",
            "  HOSTWARD_ALOWED_HOSTS     unknown variable. Did you mean HOSTWARD_ALLOWED_HOSTS?",
            "  HOSTWARD_TRUSTED_PROXIES  \"10.0.0.0/33\": prefix length must be 0-32. Example: 10.0.0.0/16.",
            "  HOSTWARD_IDLE_TIMEOUT     \"75\": a duration needs a unit. Write 75s.",
        ]
    );
}

#[test]
fn a_flag_wins_and_empty_is_unset() {
    let mut flags = Flags::default();
    flags.set("HOSTWARD_IDLE_TIMEOUT", "5m".into());
    flags.set("HOSTWARD_BODY_TIMEOUT", "".into());
    let environment = env(&[
        ("HOSTWARD_ALLOWED_HOSTS", " a.example "),
        ("HOSTWARD_IDLE_TIMEOUT", "nonsense"),
        ("HOSTWARD_BODY_TIMEOUT", "7s"),
        ("HOSTWARD_HEADER_TIMEOUT", " "),
    ]);
    let Loaded { config, sources, .. } = load(&flags, environment, true).unwrap();
    assert_eq!(config.idle_timeout, Duration::from_mins(5));
    assert_eq!(config.body_timeout, Duration::from_secs(7));
    assert_eq!(config.header_timeout, Duration::from_secs(15));
    assert_eq!(config.log_format, LogFormat::Text);
    assert_eq!(
        config.given,
        ["HOSTWARD_ALLOWED_HOSTS=a.example", "HOSTWARD_BODY_TIMEOUT=7s", "HOSTWARD_IDLE_TIMEOUT=5m"]
    );
    let source =
        |variable: &str| sources.list.iter().find(|given| given.setting.variable == variable).map(|given| given.source);
    assert_eq!(source("HOSTWARD_IDLE_TIMEOUT"), Some(Source::Flag));
    assert_eq!(source("HOSTWARD_BODY_TIMEOUT"), Some(Source::Environment));
    assert_eq!(source("HOSTWARD_HEADER_TIMEOUT"), Some(Source::Default));
}

#[test]
fn an_unknown_variable_is_a_mistake_unless_strict_is_off() {
    for (name, meant) in [
        ("HOSTWARD_ALOWED_HOSTS", "HOSTWARD_ALLOWED_HOSTS"),
        ("HOSTWARD_ALLOWED_HOST", "HOSTWARD_ALLOWED_HOSTS"),
        ("HOSTWARD_UPSTREM", "HOSTWARD_UPSTREAM"),
        ("HOSTWARD_IDLE_TIMOUT", "HOSTWARD_IDLE_TIMEOUT"),
        ("HOSTWARD_allowed_hosts", "HOSTWARD_ALLOWED_HOSTS"),
    ] {
        let [mistake] = mistakes(&[(name, "x")]).try_into().unwrap();
        assert_eq!((mistake.setting.as_str(), mistake.hint), (name, format!("Did you mean {meant}?")));
    }
    // Nothing is accepted and ignored.
    for name in ["HOSTWARD_XYZ", "HOSTWARD_"] {
        let [mistake] = mistakes(&[(name, "on")]).try_into().unwrap();
        assert!(mistake.hint.starts_with("Remove it"), "{mistake:?}");
        assert_eq!(mistake.value, None);
    }
    let loaded = with(&[("HOSTWARD_XYZ", "x"), ("HOSTWARD_STRICT", "off")]).unwrap();
    assert_eq!(loaded.warnings.len(), 1);
    assert!(with(&[("OTHER_XYZ", "x"), ("HOSTWARD", "x"), ("HOSTWARD_XYZ", "")]).is_ok());
}

#[test]
fn allowed_hosts_are_required_unless_a_misspelt_one_has_been_reported() {
    let missing = load(&Flags::default(), [], false).unwrap_err().list;
    assert_eq!((missing.len(), missing[0].error.as_str()), (1, "required"));
    let not_strict = env(&[("HOSTWARD_ALOWED_HOSTS", "x"), ("HOSTWARD_STRICT", "off")]);
    assert_eq!(load(&Flags::default(), not_strict, false).unwrap_err().list[0].error, "required");
    assert_eq!(mistake(&[("HOSTWARD_ALLOWED_HOSTS", ",")]).1, "a list without an item");
    let two = mistakes(&[("HOSTWARD_ALLOWED_HOSTS", "https://a.example, b.example c d@e")]);
    let values: Vec<_> = two.iter().filter_map(|mistake| mistake.value.as_deref()).collect();
    assert_eq!(values, ["https://a.example", "d@e"]);
}

#[test]
fn the_canonical_host_is_the_first_concrete_one() {
    for (allowed, expected) in [
        ("*.a.example,.b.example,c.example", "b.example"),
        ("10.0.0.0/8 d.example:8443", "d.example:8443"),
        ("[2001:db8::1]", "[2001:db8::1]"),
        ("WWW.Example.com.", "www.example.com"),
    ] {
        let config = config(&[("HOSTWARD_ALLOWED_HOSTS", allowed)]);
        assert_eq!(config.rules.canonical.unwrap(), expected, "{allowed}");
    }
    let given = config(&[("HOSTWARD_CANONICAL_HOST", "App.internal:1")]);
    assert_eq!(given.rules.canonical.unwrap(), "App.internal:1");
    let none = [("HOSTWARD_ALLOWED_HOSTS", "*,10.0.0.0/8")];
    assert_eq!(mistake(&none).0, "HOSTWARD_CANONICAL_HOST");
    assert!(with(&[none[0], ("HOSTWARD_PROBE_HOSTS", "none")]).is_ok());
    for wants in [("HOSTWARD_HOST_REWRITE", "canonical"), ("HOSTWARD_READY_PATH", "/")] {
        assert_eq!(mistake(&[none[0], ("HOSTWARD_PROBE_HOSTS", "none"), wants]).0, "HOSTWARD_CANONICAL_HOST");
    }
}

#[test]
fn a_wildcard_is_warned_about() {
    let loaded = with(&[("HOSTWARD_ALLOWED_HOSTS", "a.example,*")]).unwrap();
    assert_eq!(loaded.warnings.len(), 1);
    assert_eq!(loaded.warnings[0].error, "every host may enter");
}

#[test]
fn probe_hosts_and_proxies_are_words_and_networks() {
    let probes = config(&[("HOSTWARD_PROBE_HOSTS", "SELF missing,10.0.0.0/8 ::1")]).rules.probes;
    assert!(probes.own && !probes.peer && probes.missing);
    assert_eq!(probes.networks, ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
    assert_eq!(mistake(&[("HOSTWARD_PROBE_HOSTS", "none,self")]).1, "this word stands alone");
    assert_eq!(mistake(&[("HOSTWARD_PROBE_HOSTS", "slef")]).1, "expected self, peer, missing, a CIDR or IP, or none");
    assert!(config(&[("HOSTWARD_TRUSTED_PROXIES", "none")]).rules.trusted.is_empty());
    let trusted = config(&[("HOSTWARD_TRUSTED_PROXIES", "private,203.0.113.7")]).rules.trusted;
    assert_eq!(trusted.len(), Networks::private().len() + 1);
    assert_eq!(mistake(&[("HOSTWARD_TRUSTED_PROXIES", "none 10.0.0.0/8")]).1, "this word stands alone");
}

#[test]
fn what_is_believed_about_the_client_is_read_and_needs_somebody_to_be_believed() {
    let settings = [
        ("HOSTWARD_CLIENT_PROTO", "HTTPS"),
        ("HOSTWARD_CLIENT_IP_HEADER", "True-Client-IP"),
        ("HOSTWARD_PASS_HEADERS", "X-Forwarded-User,x-script-name forwarded"),
        ("HOSTWARD_TRACE_CONTEXT", "derive"),
    ];
    let Loaded { config, warnings, .. } = with(&settings).unwrap();
    assert_eq!(warnings, []);
    let forwarding = config.forwarding;
    assert_eq!(forwarding.client_proto, Some("https"));
    assert_eq!(forwarding.client_ip_header.unwrap().as_str(), "true-client-ip");
    assert_eq!(forwarding.pass, ["x-forwarded-user", "x-script-name", "forwarded"]);
    assert!(forwarding.derive_traceparent && !forwarding.forwarded);

    let loaded = with(&[&settings[..], &[("HOSTWARD_TRUSTED_PROXIES", "none")]].concat()).unwrap();
    let warned: Vec<_> = loaded.warnings.iter().map(|warning| warning.setting.as_str()).collect();
    assert_eq!(warned, ["HOSTWARD_PASS_HEADERS", "HOSTWARD_CLIENT_IP_HEADER", "HOSTWARD_TRACE_CONTEXT"]);
    // hostward writes it.
    let (setting, error) = mistake(&[("HOSTWARD_PASS_HEADERS", "Forwarded"), ("HOSTWARD_FORWARDED", "on")]);
    assert_eq!((setting.as_str(), error.as_str()), ("HOSTWARD_PASS_HEADERS", "hostward writes this header itself"));
}

#[test]
fn words_become_what_they_say() {
    for (text, expected) in [("400", 400), ("403", 403), ("404", 404), ("421", 421)] {
        let status = RejectStatus::Answer(StatusCode::from_u16(expected).unwrap());
        assert_eq!(config(&[("HOSTWARD_REJECT_STATUS", text)]).reject_status, status);
    }
    assert_eq!(config(&[("HOSTWARD_REJECT_STATUS", "444")]).reject_status, RejectStatus::Close);
    assert!(with(&[("HOSTWARD_REJECT_STATUS", "200")]).is_err());
    assert_eq!(config(&[("HOSTWARD_PROBE_PROTO", "off")]).probe_proto, None);
    assert_eq!(config(&[("HOSTWARD_PROBE_PROTO", "HTTP")]).probe_proto, Some("http"));
    assert_eq!(config(&[("HOSTWARD_HOST_REWRITE", "canonical")]).rules.rewrite, HostRewrite::Canonical);
    assert_eq!(config(&[("HOSTWARD_HOST_POLICY", "report")]).rules.mode, HostPolicy::Report);
    assert_eq!(config(&[("HOSTWARD_ACCESS_LOG", "errors")]).access_log, AccessLog::Errors);
    assert_eq!(config(&[("HOSTWARD_ACCESS_LOG", "false")]).access_log, AccessLog::Off);
    assert_eq!(config(&[("HOSTWARD_LOG_FORMAT", "text")]).log_format, LogFormat::Text);
    for level in ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"] {
        assert_eq!(config(&[("HOSTWARD_LOG_LEVEL", level)]).log_level.as_str(), level);
    }
    assert!(config(&[("HOSTWARD_FORWARDED", "yes"), ("HOSTWARD_ACCESS_LOG_PROBES", "1")]).forwarding.forwarded);
    assert_eq!(config(&[("HOSTWARD_MAX_BODY_SIZE", "10MiB")]).max_body_size, Some(10 << 20));
    for (text, mode) in [("auto", BufferRequests::Auto), ("yes", BufferRequests::On), ("0", BufferRequests::Off)] {
        assert_eq!(config(&[("HOSTWARD_BUFFER_REQUESTS", text)]).buffer_requests, mode);
    }
    assert_eq!(config(&[("HOSTWARD_BUFFER_MEMORY", "64KiB")]).buffer_memory, 64 << 10);
    assert_eq!(config(&[("HOSTWARD_BUFFER_DIR", "/var/spool")]).buffer_dir, Path::new("/var/spool"));
    assert_eq!(config(&[("HOSTWARD_THREADS", "2")]).threads, Some(2));
    assert_eq!(config(&[("HOSTWARD_READY_PATH", "/a?b")]).ready_path.unwrap().as_str(), "/a?b");
    assert_eq!(config(&[("HOSTWARD_ADMIN_LISTEN", "OFF")]).admin_listen, None);
}

#[test]
fn zero_is_taken_only_where_it_means_something() {
    for setting in SETTINGS {
        let Kind::Duration(least, _) = setting.kind else { continue };
        let zero_means_something = [
            "HOSTWARD_UPSTREAM_START_TIMEOUT",
            "HOSTWARD_UPSTREAM_IDLE_TIMEOUT",
            "HOSTWARD_DRAIN_DELAY",
            "HOSTWARD_SHUTDOWN_TIMEOUT",
        ]
        .contains(&setting.variable);
        assert_eq!(least.is_zero(), zero_means_something, "{}", setting.variable);
        assert_eq!(with(&[(setting.variable, "0s")]).is_ok(), zero_means_something, "{}", setting.variable);
        assert_eq!(with(&[(setting.variable, "0")]).is_ok(), zero_means_something, "{}", setting.variable);
    }
}

#[test]
fn addresses_that_lead_back_to_hostward_are_mistakes() {
    let (setting, error) = mistake(&[("HOSTWARD_UPSTREAM", "http://localhost:8080")]);
    assert_eq!((setting.as_str(), error.contains("HOSTWARD_LISTEN")), ("HOSTWARD_UPSTREAM", true), "{error}");
    assert!(mistake(&[("HOSTWARD_UPSTREAM", "http://127.0.0.1:9797")]).1.contains("HOSTWARD_ADMIN_LISTEN"));
    assert_eq!(mistake(&[("HOSTWARD_ADMIN_LISTEN", "127.0.0.1:8080")]).0, "HOSTWARD_ADMIN_LISTEN");
    assert!(with(&[("HOSTWARD_LISTEN", "127.0.0.1:0"), ("HOSTWARD_ADMIN_LISTEN", "127.0.0.1:0")]).is_ok());
    assert_eq!(mistake(&[("HOSTWARD_UPSTREAM", "http://169.254.170.2:80")]).0, "HOSTWARD_UPSTREAM");
}

#[test]
fn values_that_nobody_replaced_get_words_of_their_own() {
    for value in [
        "${HOSTS}",
        "$HOSTS",
        "{{hosts}}",
        "arn:aws:ssm:eu-west-1:1:parameter/x",
        "arn:aws:secretsmanager:e:1:secret:x",
    ] {
        let [mistake] = mistakes(&[("HOSTWARD_ALLOWED_HOSTS", value)]).try_into().unwrap();
        assert!(mistake.hint.contains("valueFrom"), "{mistake:?}");
    }
}

#[test]
#[cfg(unix)]
fn bytes_that_are_not_text_are_a_mistake() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = || OsString::from_vec(b"a\xff.example".to_vec());
    let list = load(&Flags::default(), [("HOSTWARD_ALLOWED_HOSTS".into(), bytes())], false).unwrap_err().list;
    assert_eq!((list.len(), list[0].error.as_str()), (1, "not UTF-8"));
    let mut flags = Flags::default();
    flags.set("HOSTWARD_ALLOWED_HOSTS", bytes());
    assert!(load(&flags, [], false).unwrap_err().list[0].by_flag);
    let mut name = bytes();
    name = [OsString::from("HOSTWARD_"), name].into_iter().collect();
    let unknown = [(name, "x".into()), ("HOSTWARD_ALLOWED_HOSTS".into(), "a.example".into())];
    assert_eq!(load(&Flags::default(), unknown, false).unwrap_err().list[0].error, "unknown variable");
    let metadata = [("ECS_CONTAINER_METADATA_URI_V4".into(), bytes()), ("HOSTWARD_ALLOWED_HOSTS".into(), "a".into())];
    assert_eq!(load(&Flags::default(), metadata, false).unwrap().warnings.len(), 1);
}

#[test]
fn what_the_platform_says_is_handed_on() {
    let auto = config(&[
        ("ECS_CONTAINER_METADATA_URI_V4", "http://169.254.170.2/v4/x"),
        ("ECS_CONTAINER_METADATA_URI", ""),
        ("AWS_EXECUTION_ENV", "AWS_ECS_FARGATE"),
        ("POD_IP", "10.1.2.3"),
        ("POD_IPS", "10.1.2.3,2001:DB8::1"),
    ]);
    let expected = MetadataSource {
        v4: Some("http://169.254.170.2/v4/x".into()),
        v3: None,
        on_ecs: true,
        pod: vec!["10.1.2.3".parse().unwrap(), "2001:db8::1".parse().unwrap()],
    };
    assert_eq!(auto.task_ip, TaskIp::Auto(expected));
    assert_eq!(config(&[("HOSTWARD_TASK_IP", "off")]).task_ip, TaskIp::Off);
    let given = TaskIp::Given(vec!["10.0.0.1".parse().unwrap(), "::1".parse().unwrap()]);
    assert_eq!(config(&[("HOSTWARD_TASK_IP", "10.0.0.1,::1")]).task_ip, given);
    assert!(with(&[("HOSTWARD_TASK_IP", "off,10.0.0.1")]).is_err());
    assert_eq!(with(&[("POD_IP", "nonsense")]).unwrap().warnings.len(), 1);
}
