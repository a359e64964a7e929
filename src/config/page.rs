//! What the command line says of the operators' page.

use super::{Config, Usage};
use crate::page::is_name;

/// Names under which a page is shown. A certificate or a proxy has a few.
pub(super) fn host_names(name: &str, argument: &str) -> Result<Vec<String>, Usage> {
    let names = argument.split(',').map(str::trim).filter(|given| !given.is_empty());
    let check = |given: &str| match is_name(given) {
        true => Ok(given.to_owned()),
        false => Err(Usage(format!("{name} takes host names as shop.internal,shop, not '{given}'"))),
    };
    names.map(check).collect()
}

/// Names are for a page that is there.
pub(super) fn check(config: &Config) -> Result<(), Usage> {
    match config.page_hosts.first() {
        Some(name) if config.page.is_empty() => Err(Usage(format!(
            "--page-host={name} is there, and no page that it could be for; page:5003 would be one"
        ))),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Listen;
    use crate::config::tests::config;

    #[test]
    fn the_page_is_for_this_machine_unless_an_address_is_given() {
        let place = |word: &str| {
            config(&format!("app {word}")).page.iter().map(Listen::to_string).collect::<String>()
        };
        assert_eq!(place("w:1"), "");
        assert_eq!(place("page:5003"), place("page:localhost:5003"));
        assert_eq!(place("page:*:5003"), "port 5003");
        assert_eq!(place("page:10.0.0.1:5003"), "10.0.0.1 port 5003");
        let hosts = |flag: &str| config(&format!("app page:0 {flag}")).page_hosts;
        assert!(hosts("").is_empty());
        assert_eq!(hosts("--page-host=shop.internal,shop"), ["shop.internal", "shop"]);
    }
}
