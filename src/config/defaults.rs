//! The defaults of a program that carries the server: words that it puts before the typed ones.

use super::{activation, table};
use std::ffi::OsString;

/// The name of a setting: `w:`, `http:`, `--read-timeout-ms`.
fn setting(argument: &str) -> &str {
    match argument.strip_prefix("--") {
        Some(_) => argument.split('=').next().unwrap_or(argument),
        None => argument.find(':').map_or(argument, |colon| &argument[..=colon]),
    }
}

/// The typed words, preceded by the program's defaults for settings that are neither typed nor in the environment. A
/// verb gets only the defaults that name the server.
pub fn with_defaults(
    defaults: &[String],
    arguments: Vec<OsString>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Vec<OsString> {
    const PLACE: [&str; 3] = ["--variant", "--socket-prefix", "--socket-dir"];
    let typed: Vec<String> =
        arguments.iter().map(|argument| setting(&argument.to_string_lossy()).to_owned()).collect();
    let is_verb =
        typed.first().is_some_and(|argument| super::Verb::ALL.iter().any(|verb| verb.code() == argument))
            || typed.iter().any(|argument| argument == "--stop");
    let is_set = |name: &str| environment(name).is_some_and(|value| !value.is_empty());
    let is_open = |argument: &&String| {
        let name = setting(argument);
        let in_environment = match name {
            "http:" => is_set("PORT") || activation::has_http(environment, std::process::id()),
            "c:" => is_set("RIP_CONCURRENCY"),
            name => table::environment_name(name).is_some_and(is_set),
        };
        !typed.iter().any(|other| other == name) && !in_environment && (!is_verb || PLACE.contains(&name))
    };
    // The words of a start stand behind it.
    let is_check = typed.first().is_some_and(|argument| argument == "check");
    let (verb, remaining): (Vec<OsString>, Vec<OsString>) = match arguments.split_first() {
        Some((first, remaining)) if is_verb || is_check => (vec![first.clone()], remaining.to_vec()),
        _ => (Vec::new(), arguments),
    };
    let defaults_left = defaults.iter().filter(is_open).map(OsString::from);
    verb.into_iter().chain(defaults_left).chain(remaining).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(typed: &str, environment: &[&str]) -> String {
        let defaults = ["w:4", "http:127.0.0.1:80", "--read-timeout-ms=9", "--variant=x"].map(str::to_owned);
        let typed = typed.split_whitespace().map(OsString::from).collect();
        let environment = |name: &str| environment.contains(&name).then(|| "1".to_owned());
        let words = with_defaults(&defaults, typed, &environment);
        words.iter().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_programs_own_words_give_way_to_typed_ones_and_to_the_environment() {
        assert_eq!(words("", &[]), "w:4 http:127.0.0.1:80 --read-timeout-ms=9 --variant=x");
        assert_eq!(
            words("w:2 --read-timeout-ms 5", &[]),
            "http:127.0.0.1:80 --variant=x w:2 --read-timeout-ms 5"
        );
        assert_eq!(words("", &["PORT", "RIP_READ_TIMEOUT_MS"]), "w:4 --variant=x");
    }

    #[test]
    fn a_verb_gets_what_says_which_server_is_meant() {
        assert_eq!(words("status --json", &[]), "status --variant=x --json");
        assert_eq!(words("stop --variant=y", &[]), "stop --variant=y");
        assert_eq!(words("--stop", &[]), "--stop --variant=x");
    }

    #[test]
    fn a_check_gets_the_words_of_a_start() {
        assert_eq!(words("check w:2", &["PORT"]), "check --read-timeout-ms=9 --variant=x w:2");
    }

    #[test]
    fn what_systemd_gives_takes_the_place_of_a_programs_own_listeners() {
        let pid = std::process::id().to_string();
        let environment = |name: &str| match name {
            "LISTEN_PID" => Some(pid.clone()),
            "LISTEN_FDS" => Some("1".to_owned()),
            "RIP_CONCURRENCY" => Some("4".to_owned()),
            "RIP_VARIANT" => Some(String::new()),
            _ => None,
        };
        let defaults = ["http:80", "c:2", "--variant=x"].map(str::to_owned);
        assert_eq!(with_defaults(&defaults, Vec::new(), &environment), ["--variant=x"]);
    }
}
