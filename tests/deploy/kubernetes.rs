//! The Kubernetes manifest: it parses, its parts name each other rightly, and its command serves.

use super::dockerfiles::with_words;
use super::{default_drain, example_path, root};
use crate::support::server::output;
use crate::support::skip::skip;
use crate::support::{Server, test_worker};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// The documents, read by PyYAML where some Python has it.
fn documents() -> Option<Vec<Value>> {
    let read = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let pythons = [root().join("target/venv/bin/python3"), "python3".into(), "/usr/bin/python3".into()];
    let has_yaml = |python: &PathBuf| {
        Command::new(python).args(["-c", "import yaml"]).output().is_ok_and(|output| output.status.success())
    };
    let Some(python) = pythons.into_iter().find(has_yaml) else {
        skip("kubernetes.yaml", "no python3 has PyYAML");
        return None;
    };
    let mut command = Command::new(python);
    command.args(["-c", read]).arg(example_path("kubernetes.yaml"));
    let json = output(command);
    assert_eq!(json.code, 0, "{}", json.stderr);
    Some(serde_json::from_str(&json.stdout).expect("JSON"))
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

fn words(container: &Value) -> Vec<String> {
    let words = container["args"].as_array().expect("args");
    words.iter().map(|phrase| phrase.as_str().expect("a word in quotes or without").to_owned()).collect()
}

#[test]
fn the_manifests_parts_name_each_other() {
    let Some(documents) = documents() else { return };
    let (deployment, service) = (of_kind(&documents, "Deployment"), of_kind(&documents, "Service"));
    let (spec, template) = (&deployment["spec"], &deployment["spec"]["template"]);
    let labels = &template["metadata"]["labels"];
    assert_eq!(&spec["selector"]["matchLabels"], labels);
    assert_eq!(&service["spec"]["selector"], labels);
    let container = &template["spec"]["containers"][0];
    let ports = container["ports"].as_array().expect("ports");
    let port = |name: &str| ports.iter().find(|port| port["name"] == name).map(|port| &port["containerPort"]);
    assert!(port(service["spec"]["ports"][0]["targetPort"].as_str().expect("a name")).is_some());
    for name in ["http", "metrics"] {
        let phrase = format!("{name}:{}", port(name).unwrap_or_else(|| panic!("no port {name}")));
        assert!(words(container).contains(&phrase), "{phrase}");
    }
    let annotations = &template["metadata"]["annotations"];
    let metrics = port("metrics").expect("a port").to_string();
    assert_eq!(annotations["prometheus.io/port"], metrics.as_str(), "annotations are strings");
    assert_eq!(annotations["prometheus.io/path"], "/metrics");
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    let volumes = template["spec"]["volumes"].as_array().expect("volumes");
    assert_eq!(mounts[0]["name"], volumes[0]["name"]);
}

#[test]
fn a_pod_is_ready_when_a_worker_is_and_has_time_to_end() {
    let Some(documents) = documents() else { return };
    let pod = &of_kind(&documents, "Deployment")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    for (probe, path) in [("readinessProbe", "/status"), ("livenessProbe", "/server")] {
        assert_eq!(container[probe]["httpGet"]["path"], path);
        assert_eq!(container[probe]["httpGet"]["port"], "http");
    }
    let seconds = |value: &Value| Duration::from_secs(value.as_u64().expect("seconds"));
    let waits = seconds(&container["lifecycle"]["preStop"]["sleep"]["seconds"]);
    let flag = words(container).iter().find_map(|phrase| {
        phrase
            .strip_prefix("--drain-timeout-ms=")
            .map(|ms| Duration::from_millis(ms.parse().expect("a number")))
    });
    let drains = default_drain().max(flag.unwrap_or_default() + Duration::from_secs(1));
    let has = seconds(&pod["terminationGracePeriodSeconds"]);
    assert!(has > waits + drains, "{has:?} for {waits:?} and {drains:?}");
    assert!(container["resources"]["limits"]["cpu"].is_string(), "w:auto follows it");
}

#[test]
fn the_pods_command_serves_with_the_probes_paths() {
    let Some(documents) = documents() else { return };
    let pod = &of_kind(&documents, "Deployment")["spec"]["template"]["spec"];
    let mut server = with_words(Server::builder(test_worker()), words(&pod["containers"][0])).start();
    server.wait_until("readiness", |server| server.get("/status").status == 200);
    assert_eq!(server.get("/server").text(), "ok");
}
