//! `rip-server check`: reads what a start would read, boots one worker behind a private server, asks it, and says what
//! it has found. A server of the same app that runs meanwhile is not touched.

mod trial;

use crate::app::Runtime;
use crate::client::{self, Progress};
use crate::config::Config;
use crate::paths::shown;
use crate::reactor::{self, StartError};
use std::path::PathBuf;
use std::time::Duration;
use trial::{Found, Trial};

/// Beside the read timeout, for an answer that the server gives when it is over.
const SPARE: Duration = Duration::from_secs(2);
/// From here on an answer is the app's failure.
const SERVER_ERROR: u16 = 500;

/// # Errors
/// What is wrong with the words, or with the app.
pub(crate) fn check(config: Config, embedded: Option<PathBuf>) -> Result<(), StartError> {
    if config.workers.max == 0 {
        return Err(StartError::Usage(
            "'w:0' starts no worker that could be checked; without it, check starts one".into(),
        ));
    }
    let trouble = StartError::Trouble;
    let preview = reactor::preview(&config, embedded.clone())?;
    let name = shown(&preview.app.name).to_string();
    let entry = shown(&preview.app.entry).to_string();
    let by = if preview.program == preview.app.entry {
        String::new()
    } else {
        format!(", run by {}", shown(&preview.program))
    };
    say(&format!("{name}: {entry}{by}"))?;
    if let Some(file) = &config.env_file {
        say(&format!("  variables   {} of {}", preview.variables, shown(file)))?;
    }
    let knows_ready = preview.app.runtime != Runtime::Command;
    let within = config.read_timeout + config.queue_timeout + SPARE;
    let mut progress = Progress::new("check: a worker starts");
    let mut trial = Trial::start(config, embedded).map_err(trouble)?;
    let joined = match trial.wait_for_worker(&mut progress) {
        Found::Worker { after, is_forked } => {
            let how = if is_forked { "forked from a template" } else { "started by itself" };
            Ok(format!("  worker      joined after {} ms, {how}", after.as_millis()))
        }
        Found::Failure(why) => Err(why),
    };
    drop(progress);
    let result = joined.and_then(|line| {
        say(&line).map_err(|error| error.to_string())?;
        ask(&mut trial, knows_ready, within)
    });
    let ended = trial.end();
    let words = trial.words();
    let complaint = match (result, ended) {
        (Ok(()), Ok(())) => return say("  ok"),
        (Err(complaint), _) | (Ok(()), Err(complaint)) => complaint,
    };
    for line in words {
        eprint_line(&format!("  | {}", shown(&line)));
    }
    Err(trouble(format!("'{name}' {complaint}")))
}

/// Asks the worker whether it is ready, where it knows that question, and the app for its first page.
fn ask(trial: &mut Trial, knows_ready: bool, within: Duration) -> Result<(), String> {
    let plain = |error: StartError| error.to_string();
    // A command knows nothing of that question.
    if let Some(socket) = trial.worker_socket().filter(|_| knows_ready) {
        let answer = trial.get(&socket, "/ready", "Rip-Probe: 1\r\n", within)?;
        if answer.status != 200 {
            return Err(format!("answers GET /ready with {}", answer.status));
        }
        say(&format!("  GET /ready  {}", answer.status)).map_err(plain)?;
    }
    let answer = trial.get(&trial.http(), "/", "", within)?;
    let kind = answer.media_type.map(|kind| format!(" {}", shown(&kind))).unwrap_or_default();
    let (status, after_ms) = (answer.status, answer.after.as_millis());
    say(&format!("  GET /       {status}{kind} after {after_ms} ms")).map_err(plain)?;
    match status {
        SERVER_ERROR.. => {
            let why = answer.first_line.map(|line| format!(": {}", shown(&line))).unwrap_or_default();
            Err(format!("answers GET / with {status}{why}"))
        }
        _ => Ok(()),
    }
}

fn say(line: &str) -> Result<(), StartError> {
    client::print(&format!("{line}\n")).map_err(StartError::Trouble)
}

fn eprint_line(line: &str) {
    use std::io::Write;
    // A closed stderr is no reason for another complaint.
    let _ = writeln!(std::io::stderr(), "{line}");
}
