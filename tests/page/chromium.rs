//! The page in a real browser: what it shows is what `status --json` says, it complains of nothing, and it asks nobody
//! else.

use super::browser::Browser;
use super::page_address;
use crate::support::{Hold, Server, Signal, TEST_TIMEOUT, comes_true};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// What the page shows, as far as it does not move from one moment to the next.
const SHOWN: &str = "(() => {
  const text = id => document.getElementById(id).textContent
  const rows = id => [...document.getElementById(id).rows].map(row => [...row.cells].slice(1).map(cell => cell.textContent))
  return {
    app: text('app'), status: text('state'), pid: text('pid'), generation: text('generation'), release: text('release'),
    needed: document.querySelector('.needed').textContent,
    workers: [...document.querySelectorAll('#workers tr:not(.needed)')].map(row =>
      [Number(row.dataset.pid), row.parts.slot.textContent, row.parts.state.textContent, row.cells[3].textContent]).sort(),
    deaths: rows('deaths'), failures: rows('failures').map(row => row.slice(0, 3)), rolls: rows('rolls').map(row => row.slice(0, 3)),
  }
})()";

/// The same of what the verb says.
fn expected(status: &Value) -> Value {
    let list = |name: &str| status[name].as_array().expect("a list").iter();
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let request = |value: &Value| format!("{} {}", text(&value["method"]), text(&value["path"]));
    let who = |value: &Value| match value["worker"].as_u64() {
        Some(worker) => format!("worker {worker}, pid {}", value["pid"]),
        None => "no worker".to_owned(),
    };
    let mut workers: Vec<(i64, Value)> = list("workerList")
        .map(|worker| {
            let is_hung = worker["oldest"]["hasClient"] == false;
            let state = if is_hung { "hung".to_owned() } else { text(&worker["state"]) };
            let row = json!([worker["pid"], text(&worker["slot"]), state, text(&worker["requests"])]);
            (worker["pid"].as_i64().unwrap_or_default(), row)
        })
        .collect();
    // As JavaScript sorts: by text.
    workers.sort_by_key(|(pid, _)| pid.to_string());
    let reason =
        |value: &Value| value["reason"].as_str().map(|reason| format!(" {reason}")).unwrap_or_default();
    json!({
        "app": status["app"], "status": status["status"], "pid": text(&status["pid"]),
        "generation": text(&status["generation"]), "release": status["release"],
        "needed": format!("needed in the last minute: {} of {}", status["needed"]["workers"], status["needed"]["of"]),
        "workers": workers.into_iter().map(|(_, row)| row).collect::<Vec<Value>>(),
        "deaths": list("deaths").map(|death| json!([who(death), death["exit"], request(&death["request"])])).collect::<Vec<_>>(),
        "failures": list("failures")
            .map(|failed| json!([who(failed), format!("{}{}", failed["status"], reason(failed)), request(failed)]))
            .collect::<Vec<_>>(),
        "rolls": list("rolls")
            .map(|roll| json!(["✓ done", format!("{} of {}", roll["replaced"], roll["of"]), "–"]))
            .collect::<Vec<_>>(),
    })
}

/// The lowest contrast of any text to what is behind it, and that text.
const CONTRAST: &str = "(() => {
  const parse = color => (color.match(/[\\d.]+/g) || []).map(Number)
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
  const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0) return c } return [255, 255, 255] }
  let worst = [99, '']
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility() || e.closest('script, style, svg')) continue
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))]
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
    if (contrast < worst[0]) worst = [contrast, e.className + ': ' + e.textContent.trim().slice(0, 40)]
  }
  return worst
})()";

/// A client of its own that asks once, whatever comes of it.
fn ask(address: SocketAddr, method: &'static str, target: &str) -> std::thread::JoinHandle<u16> {
    let target = target.to_owned();
    std::thread::spawn(move || {
        let mut client = crate::support::Client::connect(address);
        client.send_request(method, &target, "", b"");
        client.read_response().status
    })
}

#[test]
fn the_page_shows_what_status_says_of_a_fleet_that_crashes_hangs_grows_and_reloads() {
    let Some(mut browser) = Browser::start() else { return };
    let mut server = Server::with_test_worker(&[
        "w:2..4",
        "page:0",
        "--queue-timeout-ms=400",
        "--read-timeout-ms=2500",
        "--drain-timeout-ms=60000",
    ]);
    server.wait_for_workers(2);
    let address = server.address();
    let base = format!("http://localhost:{}/", page_address(&server).port());
    browser.look(1280, false);
    browser.open(&base);
    browser.wait_for("document.getElementById('link')?.textContent === 'live'");
    // A request that tries to be markup waits for a worker in vain, while the fleet grows.
    let hold = Hold::new();
    let (target, mut busy) = (format!("{}&secret=1", hold.target()), Vec::new());
    server.wait_until("it has grown, and all are at work", |server| {
        let details = server.details();
        // Whoever waits for longer than it takes to grow has a 504, so others come.
        if details["queue"]["now"] == 0 {
            busy.push(ask(address, "GET", &target));
        }
        let workers = details["workerList"].as_array().expect("a list of workers");
        workers.iter().filter(|worker| worker["state"] == "busy").count() == 4
    });
    let markup = ask(address, "GET", "/<script>window.isMarkup=1</script><img/src=x>");
    assert_eq!(markup.join().expect("an answer"), 504);
    hold.let_go();
    busy.into_iter().for_each(|client| assert!(client.join().is_ok()));
    assert_eq!(ask(address, "POST", "/die?secret=1").join().expect("an answer"), 502);
    server.wait_until("all are there", |server| server.details()["workers"] == 4);
    assert_eq!(server.verb(["reload"]).code, 0);
    // One hangs, and its client has its 504.
    assert_eq!(ask(address, "GET", "/sleep?ms=90000&secret=1").join().expect("an answer"), 504);
    server.wait_until("the old ones are gone", |server| server.worker_pids().len() == 4);
    let (mut shown, mut said) = (Value::Null, Value::Null);
    let agree = || {
        said = expected(&serde_json::from_str(&server.verb(["status", "--json"]).stdout).expect("JSON"));
        shown = browser.evaluate(SHOWN);
        shown == said
    };
    assert!(comes_true(TEST_TIMEOUT, agree), "shown: {shown:#}\nsaid: {said:#}");
    let rows = |name: &str| shown[name].as_array().map_or(0, Vec::len);
    assert!(
        rows("workers") == 4 && rows("deaths") >= 1 && rows("failures") >= 3 && rows("rolls") == 1,
        "{shown:#}"
    );
    let hung = shown["workers"].as_array().expect("a list").iter().filter(|row| row[2] == "hung").count();
    assert_eq!(hung, 1, "{shown:#}");
    let sentences = browser.evaluate("document.getElementById('glance').innerText").to_string();
    for word in ["GET /sleep hangs", "died: SIGKILL", "in POST /die", "More workers are needed"] {
        assert!(sentences.contains(word), "{word}: {sentences}");
    }
    let text = browser.evaluate("document.documentElement.innerText").to_string();
    assert!(text.contains("<script>window.isMarkup=1</script>") && !text.contains("secret"), "{text}");
    let is_clean =
        "window.isMarkup === undefined && document.scripts.length === 1 && !document.images.length";
    assert_eq!(browser.evaluate(is_clean), true);
    for (width, is_dark) in [(1280, false), (1280, true), (360, false), (360, true)] {
        browser.look(width, is_dark);
        let contrast = browser.evaluate(CONTRAST);
        assert!(contrast[0].as_f64() >= Some(4.5), "{width} {is_dark}: {contrast}");
        assert_eq!(
            browser.evaluate("document.documentElement.scrollWidth <= innerWidth"),
            true,
            "at {width} px"
        );
    }
    // The keyboard reaches the one button there is, and a page that rests costs nothing.
    browser.press("Tab", 9);
    assert_eq!(browser.evaluate("document.activeElement.id"), "pause");
    browser.press("Enter", 13);
    browser.wait_for("document.getElementById('link').textContent === 'paused'");
    server.wait_until("nobody looks", |server| server.details()["viewers"] == 0);
    browser.press("Enter", 13);
    browser.wait_for("document.getElementById('link').textContent === 'live'");
    assert_eq!(browser.complaints(), Vec::<&Value>::new());
    let elsewhere: Vec<&str> =
        browser.requested().into_iter().filter(|url| !url.starts_with(&base)).collect();
    assert!(elsewhere.is_empty() && browser.requested().len() >= 3, "{:?}", browser.requested());
    server.signal(Signal::SIGKILL);
    browser.wait_for("document.getElementById('link').textContent.startsWith('connection lost')");
}
