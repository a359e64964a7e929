//! The table of `rip-server status`, made from the control socket's JSON. Pure.

use crate::paths::shown;
use serde_json::Value;
use std::fmt::Write;

/// A line for each server.
pub(crate) fn list(servers: &[Value]) -> String {
    let text = |value: &Value| shown(value.as_str().unwrap_or("?")).to_string();
    let mut rows = vec![["app", "pid", "state", "workers", "listeners", "path"].map(str::to_owned)];
    for server in servers {
        let listeners = server["listeners"].as_array().into_iter().flatten().map(text);
        rows.push([
            text(&server["app"]),
            server["pid"].to_string(),
            text(&server["status"]),
            server["workers"].to_string(),
            listeners.collect::<Vec<_>>().join(" "),
            text(&server["path"]),
        ]);
    }
    let mut out = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            let _ = match column + 1 == row.len() {
                true => writeln!(out, "{cell}"),
                false => write!(out, "{cell:width$}  "),
            };
        }
    }
    out
}

/// The whole table, with a line end.
pub(crate) fn table(status: &Value) -> String {
    let text = |name: &str| shown(status[name].as_str().unwrap_or("?")).to_string();
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let mut out = String::new();
    let listeners: Vec<&str> =
        status["listeners"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let queue = &status["queue"];
    let clients = number(&status["clients"]);
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        out,
        "{}  {}  up {}  pid {}",
        text("app"),
        text("status"),
        age(number(&status["uptime"])),
        status["pid"]
    );
    let changed = match status["releaseChanged"].as_bool() {
        Some(true) => " (its files have changed since; a reload would take them over)",
        Some(false) | None => "",
    };
    let _ = writeln!(out, "  app      {}{changed}", text("release"));
    // An app that is a program is run by itself.
    if let Some(program) = status["program"].as_str().filter(|program| status["release"] != *program) {
        let _ = writeln!(out, "  run by   {}", shown(program));
    }
    if let Some(next) = status["nextRelease"].as_str() {
        let _ = writeln!(out, "  reload   would bring: {}", shown(next));
    }
    let before = &status["predecessor"];
    if before.is_object() {
        let (clients, workers) = (number(&before["clients"]), number(&before["workers"]));
        let _ = writeln!(
            out,
            "  before   the server before this one finishes: connections {clients}, workers {workers}"
        );
    }
    if status["upgrading"].as_bool() == Some(true) {
        let _ = writeln!(out, "  upgrade  under way: the new server's workers start");
    }
    let _ = writeln!(out, "  http     {}", shown(&listeners.join(", ")));
    let order = match queue["order"].as_str() {
        Some("newest first") => {
            format!("; overload: newest first for {}", age(number(&queue["orderSeconds"])))
        }
        Some(_) | None => String::new(),
    };
    let _ = writeln!(
        out,
        "  queue    {} now, {} at the deepest, {} ms at the longest{order}",
        number(&queue["now"]),
        number(&queue["deepest"]),
        number(&queue["longestMs"])
    );
    let _ = writeln!(
        out,
        "  workers  needed {} of {} in the last minute; {clients} {}",
        number(&status["needed"]["workers"]),
        number(&status["needed"]["of"]),
        if clients == 1 { "connection" } else { "connections" }
    );
    for template in status["templates"].as_array().into_iter().flatten() {
        let up = age(number(&template["ageSeconds"]));
        let pss = match &template["pssBytes"] {
            Value::Null => String::new(),
            bytes => format!(", pss {}", mib(bytes)),
        };
        let what = match template["loading"].as_bool() {
            Some(true) => "loads the app",
            Some(false) | None => "workers are forked from",
        };
        let _ = writeln!(out, "  template pid {}, which {what}, up {up}{pss}", template["pid"]);
    }
    for refused in status["quarantine"].as_array().into_iter().flatten() {
        let workers: Vec<String> = refused["workers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|worker| format!("{} (pid {})", worker["worker"], worker["pid"]))
            .collect();
        let _ = writeln!(
            out,
            "  refused  {}: {} workers died in it, the last {}; refused {} times, for {} s more",
            shown(refused["request"].as_str().unwrap_or("?")),
            number(&refused["deaths"]),
            workers.join(", "),
            number(&refused["refused"]),
            refused["secondsLeft"].as_f64().unwrap_or(0.0)
        );
    }
    out.push('\n');
    let mut rows = vec![
        ["slot", "gen", "pid", "state", "requests", "reloads", "rss", "pss", "age", "last exit"]
            .map(str::to_owned),
    ];
    for worker in status["workerList"].as_array().into_iter().flatten() {
        let or_dash = |value: &Value| match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let state = match (worker["state"].as_str(), worker["request"].as_str()) {
            (Some(state), Some(request)) => format!("{state} {request}"),
            (state, _) => state.unwrap_or("?").to_owned(),
        };
        // They hold nobody, so they stand beside what the worker does.
        let state = match number(&worker["streams"]) {
            0 => state,
            1 => format!("{state}, 1 stream"),
            streams => format!("{state}, {streams} streams"),
        };
        rows.push([
            or_dash(&worker["slot"]),
            or_dash(&worker["generation"]),
            or_dash(&worker["pid"]),
            state,
            or_dash(&worker["requests"]),
            or_dash(&worker["reloads"]),
            mib(&worker["rssBytes"]),
            mib(&worker["pssBytes"]),
            age(number(&worker["ageSeconds"])),
            or_dash(&worker["lastExit"]),
        ]);
    }
    for slot in status["waitingSlots"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "  slot {} has no worker: failed {} ({}), next start in {} ms",
            slot["slot"],
            match number(&slot["failures"]) {
                1 => "once".to_owned(),
                failures => format!("{failures} times in a row"),
            },
            slot["lastExit"].as_str().unwrap_or("could not be started"),
            number(&slot["nextStartMs"])
        );
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|info| info[column].chars().count()).max().unwrap_or(0))
        .collect();
    for info in rows {
        let cells: Vec<String> =
            info.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(out, "  {}", cells.join("  ").trim_end());
    }
    out
}

/// `30.5M`
fn mib(bytes: &Value) -> String {
    bytes.as_u64().map_or("-".into(), |bytes| format!("{:.1}M", bytes as f64 / 1_048_576.0))
}

/// `12s`, `5m 3s`, `2h 7m`, `3d 4h`
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_stand_below_each_other() {
        let text = table(&json!({
            "app": "shop", "status": "healthy", "uptime": 3725, "pid": 7, "release": "/srv/shop/r7", "clients": 3,
            "program": "/usr/bin/node", "predecessor": {"clients": 1, "workers": 2}, "upgrading": true,
            "listeners": ["[::]:5002"], "queue": {"now": 0, "deepest": 4, "longestMs": 120, "order": "newest first", "orderSeconds": 61},
            "needed": {"workers": 3, "of": 8}, "releaseChanged": true, "nextRelease": "/srv/shop/r8",
            "quarantine": [{"request": "GET /x", "deaths": 2, "refused": 7, "secondsLeft": 42.0,
                "workers": [{"worker": 1, "pid": 40}, {"worker": 0, "pid": 41}]}],
            "templates": [{"pid": 41, "ageSeconds": 61, "pssBytes": 1_572_864},
                {"pid": 44, "ageSeconds": 1, "pssBytes": null, "loading": true}],
            "waitingSlots": [{"slot": 2, "failures": 4, "nextStartMs": 800, "lastExit": "exit code 7"}],
            "workerList": [
                {"slot": 0, "generation": 1, "pid": 42, "state": "idle", "requests": 12345, "ageSeconds": 59,
                 "rssBytes": 3_145_728, "pssBytes": 2_097_152},
                {"slot": 1, "generation": 12, "pid": 43, "state": "busy", "request": "1.2s GET /x", "requests": 7,
                 "ageSeconds": 61, "lastExit": "SIGKILL"},
            ],
        }));
        let expected = "\
shop  healthy  up 1h 2m  pid 7
  app      /srv/shop/r7 (its files have changed since; a reload would take them over)
  run by   /usr/bin/node
  reload   would bring: /srv/shop/r8
  before   the server before this one finishes: connections 1, workers 2
  upgrade  under way: the new server's workers start
  http     [::]:5002
  queue    0 now, 4 at the deepest, 120 ms at the longest; overload: newest first for 1m 1s
  workers  needed 3 of 8 in the last minute; 3 connections
  template pid 41, which workers are forked from, up 1m 1s, pss 1.5M
  template pid 44, which loads the app, up 1s
  refused  GET /x: 2 workers died in it, the last 1 (pid 40), 0 (pid 41); refused 7 times, for 42 s more

  slot 2 has no worker: failed 4 times in a row (exit code 7), next start in 800 ms
  slot  gen  pid  state             requests  reloads  rss   pss   age    last exit
  0     1    42   idle              12345     -        3.0M  2.0M  59s    -
  1     12   43   busy 1.2s GET /x  7         -        -     -     1m 1s  SIGKILL
";
        assert_eq!(text, expected);
    }
}
