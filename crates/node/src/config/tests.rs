//! The sources, their order, and what each mistake is answered with.

use super::*;

type Pair<'a> = (&'a str, &'a str);

const NEEDED: [Pair<'static>; 2] = [("name", "a"), ("data_dir", "/data")];

fn pairs(pairs: &[Pair<'_>]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A node with a name and a directory, and these flags.
fn with_flags(flags: &[Pair<'_>]) -> Result<Config, ConfigError> {
    let flags = [pairs(&NEEDED), pairs(flags)].concat();
    Config::load(None, std::iter::empty(), &flags)
}

fn with_file(text: &str, environment: &[Pair<'_>], flags: &[Pair<'_>]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(Some(&path), pairs(environment).into_iter(), &pairs(flags))
}

#[track_caller]
fn refused(result: Result<Config, ConfigError>, parts: &[&str]) {
    let message = result.expect_err("it is wrong").to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn the_defaults_are_those_of_a_node_on_loopback() {
    let config = Config::with_defaults("a", Path::new("/data")).unwrap();
    let mib = 1024 * 1024;
    assert_eq!(config.client_listen, "127.0.0.1:7400".parse().unwrap());
    assert_eq!(config.peer_listen, "127.0.0.1:7401".parse().unwrap());
    assert_eq!(config.admin_listen, Some("127.0.0.1:7402".parse().unwrap()));
    assert_eq!(config.data_dir, Path::new("/data"));
    assert_eq!(config.security, Security::Secure);
    assert_eq!((config.limits.disk_low_bytes, config.limits.cache_bytes), (512 * mib, 64 * mib));
    assert_eq!((config.limits.pending_bytes_max, config.log.segment_bytes), (64 * mib, 64 * mib));
    let raft = RaftTiming {
        heartbeat_ms: 1000,
        election_min_ms: 3000,
        election_max_ms: 5000,
        liveness_timeout_ms: 1000,
    };
    assert_eq!(config.raft, raft);
    assert_eq!(config.history.mode, HistoryMode::Unusual);
    assert_eq!(config.logging, Logging { format: LogFormat::Human, level: "info".into() });
    assert!(config.peers.is_empty() && config.warnings().is_empty());
}

#[test]
fn the_documentation_has_every_setting_with_its_default() {
    let text = include_str!("../../../../docs/configuration.md");
    for key in super::keys::KEYS {
        let row = text.lines().find(|line| line.starts_with(&format!("| `{}` |", key.name)));
        let row = row.unwrap_or_else(|| panic!("docs/configuration.md says nothing of {}", key.name));
        if let Some(default) = key.default.filter(|default| !default.is_empty()) {
            assert!(row.contains(&format!("| `{default}` |")), "{row}");
        }
    }
}

#[test]
fn every_section_of_a_file_is_read() {
    let text = r#"
        name = "node-1"
        data_dir = "/var/lib/leasehold"
        client_listen = "10.0.0.1:7400"
        peer_listen = "[fd00::1]:7401"
        admin_listen = "off"
        client_advertise = "a.example:7400"
        peers = ["b.example:7401", "10.0.0.3:7401"]
        insecure = true
        [limits]
        disk_low_bytes = "1GiB"
        cache_bytes = 1048576
        connections_max = 100
        worker_threads = 3
        [log]
        segment_bytes = "32MiB"
        [history]
        mode = "all"
        [raft]
        heartbeat_ms = 100
        election_max_ms = "4s"
        [logging]
        format = "json"
        level = "info,leasehold_node=debug"
    "#;
    let config = with_file(text, &[], &[]).unwrap();
    assert_eq!(config.name, "node-1");
    assert_eq!(config.admin_listen, None);
    assert_eq!(config.client_advertise.as_ref().unwrap().to_string(), "a.example:7400");
    assert_eq!(
        config.peers.iter().map(Address::to_string).collect::<Vec<_>>(),
        ["b.example:7401", "10.0.0.3:7401"]
    );
    assert_eq!(config.limits.cache_bytes, 1_048_576);
    assert_eq!((config.raft.heartbeat_ms, config.raft.election_max_ms), (100, 4000));
    assert_eq!(config.history.mode, HistoryMode::All);
    assert_eq!(config.logging.format, LogFormat::Json);
    assert_eq!(config.security, Security::Insecure);
    let warnings = config.warnings();
    assert_eq!(warnings.len(), 2);
    assert!(warnings[0].contains("client_listen") && warnings[1].contains("peer_listen"));
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let text = "name = 'file'\ndata_dir = 'file'\nraft.heartbeat_ms = 100\n";
    let environment = [
        ("LEASEHOLD_NAME", "environment"),
        ("LEASEHOLD_DATA_DIR", "environment"),
        ("LEASEHOLD_RAFT__HEARTBEAT_MS", "110ms"),
        ("LEASEHOLD_PEERS", "b:1, c:2"),
        ("PATH", "/bin"),
    ];
    let config = with_file(text, &environment, &[("name", "flag"), ("history.mode", "off")]).unwrap();
    assert_eq!((config.name.as_str(), config.data_dir.to_str().unwrap()), ("flag", "environment"));
    assert_eq!((config.raft.heartbeat_ms, config.peers.len()), (110, 2));
    assert_eq!(config.history.mode, HistoryMode::Off);
}

#[test]
fn variables_that_are_not_settings_are_left_alone() {
    let environment = [
        ("LEASEHOLD_CONFIG", "x"),
        ("LEASEHOLD_ENDPOINT", "127.0.0.1:7400"),
        ("LEASEHOLD_PORT", "tcp://10.0.0.1:7400"),
        ("LEASEHOLD_PORT_7400_TCP_ADDR", "10.0.0.1"),
        ("LEASEHOLD_SERVICE_HOST", "10.0.0.1"),
    ];
    assert!(Config::load(None, pairs(&environment).into_iter(), &pairs(&NEEDED)).is_ok());
}

#[test]
fn unknown_keys_are_named_with_their_source_and_the_nearest_setting() {
    refused(with_file("nmae = 'a'", &[], &[]), &["`nmae`", "node.toml", "did you mean `name`", "a-z, 0-9"]);
    refused(
        with_file("[raft]\nheartbeat = 1", &[], &[]),
        &["`raft.heartbeat`", "`raft.heartbeat_ms`", "such as 250ms"],
    );
    refused(with_file("[colour]\nred = 1", &[], &[]), &["`colour.red`", "allowed: name, data_dir"]);
    refused(with_file("[name]\nred = 1", &[], &[]), &["`name`", "1 to 64"]);
    refused(with_flags(&[("heartbeat_ms", "1")]), &["`heartbeat_ms`", "flag --set", "`raft.heartbeat_ms`"]);
    let environment = pairs(&[("LEASEHOLD_RAFT_HEARTBEAT_MS", "1")]);
    let result = Config::load(None, environment.into_iter(), &pairs(&NEEDED));
    refused(result, &["`raft_heartbeat_ms`", "variable LEASEHOLD_RAFT_HEARTBEAT_MS", "`raft.heartbeat_ms`"]);
}

#[test]
fn missing_settings_say_how_to_set_them() {
    let result = Config::load(None, std::iter::empty(), &[]);
    refused(result, &["`name` is missing", "LEASEHOLD_NAME", "--set name=", "1 to 64"]);
    let flags = [("insecure", "true"), ("client_listen", "0.0.0.0:7400")];
    refused(
        with_flags(&flags),
        &["`client_advertise` is missing", "every interface", "LEASEHOLD_CLIENT_ADVERTISE"],
    );
}

#[test]
fn wrong_values_are_named_with_their_source_and_what_is_allowed() {
    let long = "a".repeat(65);
    let cases: &[(&str, &str, &str)] = &[
        ("name", "", "1 to 64"),
        ("name", "Node", "1 to 64"),
        ("name", &long, "1 to 64"),
        ("data_dir", "", "path of a directory"),
        ("client_listen", "localhost:7400", "an IP address"),
        ("admin_listen", "none", "or off"),
        ("client_advertise", "0.0.0.0:7400", "host:port"),
        ("peers", "b:7401,,c:7401", "list of host:port"),
        ("insecure", "yes", "true or false"),
        ("limits.disk_low_bytes", "512MB", "from 32MiB to 1TiB"),
        ("limits.pending_bytes_max", "1MiB", "from 16MiB"),
        ("limits.connections_max", "0", "from 8 to"),
        ("limits.worker_threads", "1025", "from 0 to"),
        ("log.segment_bytes", "16777217", "whole pages"),
        ("history.mode", "some", "off, unusual, all"),
        ("raft.heartbeat_ms", "5", "from 10ms"),
        ("raft.liveness_timeout_ms", "1", "from 400ms"),
        ("logging.format", "xml", "human, json"),
        ("logging.level", "loud", "error, warn"),
    ];
    for (key, value, allowed) in cases {
        refused(with_flags(&[(key, value)]), &[key, value, "flag --set", allowed]);
    }
    refused(with_file("name = 1.5", &[], &[]), &["`name` = 1.5", "node.toml", "1 to 64"]);
    refused(with_file("name = 'a'\ndata_dir = ['x']", &[], &[]), &["`data_dir` = [\"x\"]"]);
    refused(with_file("name = 'a'\ndata_dir = 'x'\npeers = [1]", &[], &[]), &["`peers` = [1]"]);
}

#[test]
fn values_that_do_not_fit_each_other_are_both_named() {
    let late = [("raft.heartbeat_ms", "1100ms")];
    refused(
        with_flags(&late),
        &["`raft.election_min_ms`", "the default", "`raft.heartbeat_ms` = \"1100ms\"", "three times"],
    );
    let flat = [("raft.election_max_ms", "3s")];
    refused(with_flags(&flat), &["`raft.election_max_ms`", "`raft.election_min_ms`", "more than"]);
    let full = [("log.segment_bytes", "512MiB")];
    refused(with_flags(&full), &["`limits.disk_low_bytes`", "`log.segment_bytes`", "two segments"]);
    let same = [("peer_listen", "127.0.0.1:7400")];
    refused(with_flags(&same), &["`peer_listen`", "`client_listen`", "its own"]);
    assert!(with_flags(&[("peer_listen", "127.0.0.1:0"), ("client_listen", "127.0.0.1:0")]).is_ok());
}

#[test]
fn an_address_beyond_loopback_needs_insecure() {
    let cases: &[&[Pair<'_>]] = &[
        &[("client_listen", "10.0.0.1:7400")],
        &[("peer_listen", "[fd00::1]:7401")],
        &[("admin_listen", "192.168.0.1:7402")],
        &[("client_advertise", "a.example:7400")],
        &[("peer_advertise", "10.0.0.1:7401")],
        &[("client_listen", "0.0.0.0:7400"), ("client_advertise", "localhost:7400")],
    ];
    for flags in cases {
        refused(
            with_flags(flags),
            &[&format!("`{}`", flags[0].0), flags[0].1, "flag --set", "insecure = true"],
        );
        let insecure = [*flags, &[("insecure", "true")]].concat();
        assert!(with_flags(&insecure).is_ok(), "{flags:?}");
    }
}

const TLS: [Pair<'static>; 3] =
    [("tls.certificate_file", "n.pem"), ("tls.key_file", "n.key"), ("tls.authority_file", "nodes.pem")];
const CLIENT_AUTHORITY: Pair<'static> = ("tls.client_authority_file", "clients.pem");

#[test]
fn tls_is_a_certificate_a_key_and_an_authority() {
    let config = with_flags(&[&TLS[..], &[CLIENT_AUTHORITY]].concat()).unwrap();
    let files = TlsFiles {
        certificate: "n.pem".into(),
        key: "n.key".into(),
        authority: "nodes.pem".into(),
        client_authority: Some("clients.pem".into()),
    };
    assert_eq!((config.tls, with_flags(&[]).unwrap().tls), (Some(files), None));
    for missing in TLS {
        let some = TLS.into_iter().filter(|pair| *pair != missing).collect::<Vec<_>>();
        refused(with_flags(&some), &[&format!("`{}` is missing", missing.0), "a node with TLS"]);
    }
    refused(with_flags(&[CLIENT_AUTHORITY]), &["`tls.certificate_file` is missing"]);
    refused(with_flags(&[&TLS[..2], &[("tls.authority_file", "")]].concat()), &["`tls.authority_file`"]);
}

#[test]
fn tls_is_enough_where_who_asks_is_known() {
    let peer = ("peer_listen", "10.0.0.1:7401");
    let admin = ("admin_listen", "10.0.0.1:7402");
    let client = ("client_listen", "10.0.0.1:7400");
    let config = with_flags(&[&TLS[..], &[peer, admin]].concat()).unwrap();
    assert_eq!(config.warnings(), [""; 0]);
    let open = [&TLS[..], &[client]].concat();
    refused(with_flags(&open), &["`client_listen`", "not asked for certificates", "insecure = true"]);
    assert!(with_flags(&[&open[..], &[CLIENT_AUTHORITY]].concat()).unwrap().warnings().is_empty());
    let sqs = [("sqs.listen", "10.0.0.1:9324"), ("sqs.insecure", "true")];
    refused(with_flags(&[&TLS[..], &sqs].concat()), &["`sqs.listen`", "not asked who they are"]);
    let keyed = [("sqs.listen", "10.0.0.1:9324"), ("sqs.access_keys", "ONE:s3cret")];
    assert!(with_flags(&[&TLS[..], &keyed].concat()).is_ok());
    let warned = with_flags(&[&open[..], &[("insecure", "true")]].concat()).unwrap().warnings();
    assert!(warned.len() == 1 && warned[0].contains("not asked for certificates"), "{warned:?}");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let result = Config::load(Some(Path::new("/nonexistent/node.toml")), std::iter::empty(), &[]);
    refused(result, &["/nonexistent/node.toml", "readable TOML file"]);
    refused(with_file("name = 'a'\nname = 'b'", &[], &[]), &["node.toml", "not TOML", "line 2"]);
    refused(with_file(&"#".repeat(1024 * 1024 + 1), &[], &[]), &["node.toml", "at most 1048576 bytes"]);
}

#[test]
fn an_advertised_address_follows_the_listener_that_was_bound() {
    let config = with_flags(&[("peer_advertise", "localhost:9")]).unwrap();
    let bound = "127.0.0.1:4242".parse().unwrap();
    assert_eq!(config.client_advertised(bound).unwrap().to_string(), "127.0.0.1:4242");
    assert_eq!(config.peer_advertised(bound).unwrap().to_string(), "localhost:9");
    assert_eq!(config.client_advertised("0.0.0.0:1".parse().unwrap()), Err(AddressError));
}

#[test]
fn the_files_of_the_deploy_folder_are_right() {
    let hosts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/hosts");
    for name in ["a", "b", "c"] {
        let config =
            Config::load(Some(&hosts.join(format!("{name}.toml"))), std::iter::empty(), &[]).unwrap();
        assert_eq!(config.name, name);
        assert_eq!(config.peers.len(), 2);
    }
}

fn sqs(settings: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let mut overrides = vec![("name", "a"), ("data_dir", "d"), ("sqs.listen", "127.0.0.1:9324")];
    overrides.extend(settings);
    let overrides =
        overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>();
    Config::load(None, std::iter::empty(), &overrides)
}

#[test]
fn an_sqs_listener_needs_keys_or_the_word_of_the_operator() {
    assert!(sqs(&[]).unwrap_err().to_string().contains("sqs.insecure"));
    let open = sqs(&[("sqs.insecure", "true")]).unwrap();
    assert!(
        open.warnings().iter().any(|warning| warning.contains("any credentials")),
        "{:?}",
        open.warnings()
    );
    let keyed = sqs(&[("sqs.access_keys", "ONE:s3cret/+=,TWO:other")]).unwrap();
    let keys = &keyed.sqs.as_ref().unwrap().access_keys;
    assert_eq!((keys[0].id.as_str(), keys[0].secret.expose(), keys.len()), ("ONE", "s3cret/+=", 2));
    let both = sqs(&[("sqs.access_keys", "ONE:s3cret"), ("sqs.insecure", "true")]).unwrap_err();
    assert!(matches!(both, ConfigError::Conflict { .. }), "{both}");
    assert!(!both.to_string().contains("s3cret"));
    assert!(sqs(&[("sqs.insecure", "true"), ("sqs.listen", "0.0.0.0:9324")]).is_err());
    for (key, value) in
        [("sqs.account_id", "123"), ("sqs.region", "US"), ("sqs.shards", "0"), ("sqs.pacing", "yes")]
    {
        assert!(sqs(&[("sqs.insecure", "true"), (key, value)]).unwrap_err().to_string().contains(key));
    }
}

#[test]
fn a_secret_is_in_no_message() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    for wrong in ["ONE:s3 cret", "s3cret", "ONE:s3cret,ONE:s3cret", ":s3cret"] {
        let error = sqs(&[("sqs.access_keys", wrong)]).unwrap_err().to_string();
        assert!(error.contains("sqs.access_keys") && !error.contains("s3"), "{error}");
    }
    let toml = write("node.toml", "name = \"a\"\n[sqs]\naccess_keys = [\"ONE:s3cret]\n");
    let error = Config::load(Some(&toml), std::iter::empty(), &[]).unwrap_err().to_string();
    assert!(error.contains("line 3") && !error.contains("s3cret"), "{error}");
    let keys = write("keys", "# of the workers\n\nONE:s3cret\nTWO:other\n");
    let config = sqs(&[("sqs.access_keys_file", keys.to_str().unwrap())]).unwrap();
    assert_eq!(config.sqs.as_ref().unwrap().access_keys.len(), 2);
    assert!(!format!("{config:?}").contains("s3cret"));
    let keys = write("keys", "ONE:s3cret\nTWO s3cret\n");
    let error = sqs(&[("sqs.access_keys_file", keys.to_str().unwrap())]).unwrap_err().to_string();
    assert!(error.contains("line 2") && !error.contains("s3cret"), "{error}");
}
