//! Words that ask a running server, or for what runs.

use super::{CGI_GUARD, CGI_WORKER, Reader};
use crate::app::Target;
use crate::config::{Command, ServerId, Usage, Verb, words};
use crate::control::{CanaryPlan, DEFAULT_CANARY_ERRORS};
use std::ffi::OsString;
use std::path::PathBuf;

impl Reader<'_> {
    /// The verb among the first words, if there is one.
    pub(super) fn verb(&mut self) -> Result<Option<Command>, Usage> {
        let remaining = self.flags.clone().finish();
        let place = ServerId {
            app: None,
            socket_dir: PathBuf::new(),
            variant: String::new(),
            socket_prefix: None,
            given: Vec::new(),
        };
        let verb = match remaining.first().and_then(|argument| argument.to_str()) {
            Some(CGI_WORKER) if remaining.len() == 1 => return Ok(Some(Command::CgiWorker)),
            Some(CGI_GUARD) if remaining.len() == 1 => return Ok(Some(Command::CgiGuard)),
            argument => match Verb::ALL.into_iter().find(|verb| argument == Some(verb.code())) {
                Some(verb) => verb,
                None => return Ok(None),
            },
        };
        // The word that was found above.
        let _: Result<Option<String>, _> = self.flags.opt_free_from_str();
        Ok(Some(Command::Ask { verb, place }))
    }

    pub(super) fn ask(
        mut self,
        verb: Verb,
        mut place: ServerId,
        carries_app: bool,
    ) -> Result<Command, Usage> {
        let verb = match verb {
            Verb::Status { .. } => {
                let [json, watch, check, failures] =
                    ["--json", "--watch", "--check", "--failures"].map(|flag| self.flags.contains(flag));
                let all =
                    [(json, "--json"), (check, "--check"), (watch, "--watch"), (failures, "--failures")];
                let given: Vec<&str> =
                    all.into_iter().filter(|(is_given, _)| *is_given).map(|(_, name)| name).collect();
                match given[..] {
                    [] | [_] | ["--watch", "--failures"] => {}
                    [one, other, ..] => {
                        return Err(Usage(format!(
                            "{one} and {other} do not go together; one of them would do"
                        )));
                    }
                }
                Verb::Status { json, watch, check, failures }
            }
            Verb::Reload { .. } => Verb::Reload { canary: self.canary()? },
            Verb::Upgrade | Verb::Stop => verb,
        };
        let words = self.remaining("has no place behind a verb")?;
        match (&words[..], carries_app) {
            ([app], false) => place.app = Some(app.into()),
            ([], true) => {}
            // The current folder is the app.
            ([], false) => place.app = Some(".".into()),
            ([app, target], false) if Target::parse(target).is_some() => {
                return Err(Usage(format!(
                    "'{target}' has no place behind a verb; rip-server {} {app} would do",
                    verb.code()
                )));
            }
            ([.., extra], _) => return Err(Usage(format!("'{extra}' is one word too many"))),
        }
        Ok(Command::Ask { verb, place })
    }

    /// The words of a start behind `check`.
    pub(super) fn check(
        mut self,
        mut place: ServerId,
        command: Option<Vec<OsString>>,
        carries_app: bool,
    ) -> Result<Command, Usage> {
        let _: Result<Option<String>, _> = self.flags.opt_free_from_str();
        let has_words =
            self.flags.clone().finish().iter().any(|word| !word.to_string_lossy().starts_with('-'));
        if !has_words && !carries_app {
            // The current folder is the app.
            place.app = Some(".".into());
        }
        match self.serve(place, command, carries_app)? {
            Command::Serve(config) => Ok(Command::Check(config)),
            other => Ok(other),
        }
    }

    pub(super) fn list(mut self, place: ServerId) -> Result<Command, Usage> {
        let _: Result<Option<String>, _> = self.flags.opt_free_from_str();
        match &self.remaining("has no place behind a verb")?[..] {
            [] => {}
            [extra, ..] => {
                return Err(Usage(format!("'{extra}' is one word too many; rip-server list would do")));
            }
        }
        let is_given = place.given.iter().any(|flag| flag.starts_with("--socket-dir"));
        Ok(Command::List { socket_dir: place.socket_dir, is_given })
    }

    /// What `reload` says of a trial.
    fn canary(&mut self) -> Result<Option<CanaryPlan>, Usage> {
        let length = self.of_verb("--canary", "500 or --canary=30s")?;
        let errors = self.of_verb("--canary-errors", "5")?;
        let max_errors_percent = match &errors {
            Some(percent) => words::number("--canary-errors", percent, 0..=100)?,
            None => DEFAULT_CANARY_ERRORS,
        };
        match length {
            Some(length) => Ok(Some(CanaryPlan { length: words::trial(&length)?, max_errors_percent })),
            None if errors.is_some() => Err(Usage(
                "--canary-errors is there without --canary; --canary=500 --canary-errors=5 would do".into(),
            )),
            None => Ok(None),
        }
    }

    /// A verb's own flag, which has no variable.
    fn of_verb(&mut self, name: &'static str, example: &str) -> Result<Option<String>, Usage> {
        let given = self.flags.opt_value_from_str(name);
        given.map_err(|_| Usage(format!("{name} needs a value: {name}={example}")))
    }
}
