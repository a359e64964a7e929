//! `grafana.json` and `prometheus-alerts.yaml` with a real Prometheus, which scrapes a server under load: each panel's
//! query has data.

use super::{example_path, find_program};
use crate::load::Load;
use crate::support::skip::skip;
use crate::support::wire::Wire;
use crate::support::{Client, Server, TEST_TIMEOUT, comes_true, test_worker, wait_until};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// Nobody else of these tests picks ports of this address.
const PROMETHEUS_ADDRESS: &str = "127.0.0.5:0";

fn program(name: &str) -> Option<PathBuf> {
    let found = find_program(name);
    if found.is_none() {
        skip("the dashboard and the alerts", &format!("{name} is not installed"));
    }
    found
}

struct Prometheus {
    child: Child,
    address: SocketAddr,
    dir: TempDir,
}

impl Prometheus {
    /// Scrapes `target` four times a second.
    fn start(program: &Path, target: &str) -> Prometheus {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let config = format!(
            "global: {{scrape_interval: 250ms, scrape_timeout: 250ms}}\n\
             rule_files: ['{}']\n\
             scrape_configs: [{{job_name: rip-server, static_configs: [{{targets: ['{target}']}}]}}]\n",
            example_path("prometheus-alerts.yaml").display()
        );
        let path = dir.path().join("prometheus.yml");
        std::fs::write(&path, config).expect("a file can be written");
        let listener = TcpListener::bind(PROMETHEUS_ADDRESS).expect("a loopback address");
        let address = listener.local_addr().expect("it is bound");
        drop(listener);
        let log = File::create(dir.path().join("log")).expect("a file can be made");
        let child = Command::new(program)
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        let prometheus = Prometheus { child: child.expect("it can be started"), address, dir };
        let is_there = || prometheus.ask("/-/ready").is_some();
        assert!(comes_true(TEST_TIMEOUT, is_there), "it does not start:\n{}", prometheus.log());
        prometheus
    }

    /// The body of a 200.
    fn ask(&self, target: &str) -> Option<String> {
        let mut wire = Wire::tcp(self.address).ok()?;
        wire.write(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).ok()?;
        let response = Client { wire }.read_response_within(TEST_TIMEOUT).ok()?;
        (response.status == 200).then(|| response.text())
    }

    /// All values that a query has now.
    fn values(&self, query: &str) -> Vec<f64> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let Some(text) = self.ask(&format!("/api/v1/query?query={encoded}")) else { return Vec::new() };
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let series = answer["data"]["result"].as_array().expect("a vector").iter();
        series.filter_map(|one| one["value"][1].as_str()?.parse().ok()).collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Each panel's title and queries, as Grafana would send them.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}: the data source is chosen");
        for target in panel["targets"].as_array().expect("targets") {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let query = target["expr"].as_str().expect("a query");
            let query = query.replace("$instance", ".*").replace("$__rate_interval", "10s");
            assert!(!query.contains('$'), "{title}: {query}");
            all.push((title.to_owned(), query));
        }
    }
    all
}

fn assert_fine(what: &str, output: &Output) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {out}{err}");
}

#[test]
fn every_panel_of_the_dashboard_has_data_of_a_server_under_load() {
    let Some(program) = program("prometheus") else { return };
    let text = std::fs::read_to_string(example_path("grafana.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let server = Server::builder(test_worker()).args(["w:2", "metrics:127.0.0.1:0", "--no-access-log"]);
    let mut server = server.start();
    server.wait_for_workers(2);
    let load = Load::start(&server, "/ping");
    let prometheus = Prometheus::start(&program, &metrics_address(&server));
    let mut left = queries(&dashboard);
    assert!(left.len() > 20, "{left:?}");
    let has_data = |query: &str| prometheus.values(query).iter().any(|value| value.is_finite());
    let all = comes_true(TEST_TIMEOUT, || {
        left.retain(|(_, query)| !has_data(query));
        left.is_empty()
    });
    assert!(all, "no data for {left:#?}\n{}", prometheus.log());
    load.end();
}

/// Where it is scraped, as the first line says.
fn metrics_address(server: &Server) -> String {
    let lines = server.stdout_lines();
    let mut words = lines.iter().flat_map(|line| line.split_whitespace());
    words.find_map(|word| word.strip_prefix("metrics=")).expect("it is announced").to_owned()
}

#[test]
fn promtool_finds_nothing_wrong_with_the_alerts_and_the_metrics() {
    let Some(program) = program("promtool") else { return };
    let mut rules = Command::new(&program);
    rules.args(["check", "rules"]).arg(example_path("prometheus-alerts.yaml"));
    assert_fine("the rules", &rules.output().expect("promtool can be started"));
    let server = Server::with_test_worker(&["w:1"]);
    wait_until("an answer", || server.get("/ping").status == 200);
    let text = server.control("GET", "/metrics", "").text();
    let mut check = Command::new(&program);
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().expect("promtool can be started");
    check.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it is read");
    assert_fine("the metrics", &check.wait_with_output().expect("its end"));
}
