//! `--fork` and `--warm`.

use super::flags::{Reader, Word};
use super::{Fork, HotReload, Usage};

impl Reader<'_> {
    /// Whether workers are forked, and what warms their template. A worker that swaps its code in place, and one in
    /// development, has no template.
    pub(super) fn fork(&mut self, hot_reload: HotReload) -> Result<(Fork, Option<String>), Usage> {
        let given = self.choice("--fork")?;
        let warm = self.argument("--warm")?;
        if let Some(Word { name, text }) = &warm
            && !text.starts_with('/')
        {
            return Err(Usage(format!("{name} takes the path of a page, not '{text}'; {name}=/ would do")));
        }
        if given == Some("always") && hot_reload == HotReload::Module {
            return Err(Usage(
                "--fork=always does not go with --hot-reload=module, the default in development: workers that swap their code are started one by one; --hot-reload=none would do".into(),
            ));
        }
        let fork = match given {
            Some("never") => Fork::Never,
            _ if hot_reload == HotReload::Module => Fork::Never,
            Some("always") => Fork::Always,
            Some(_) | None => Fork::Auto,
        };
        if given == Some("never")
            && let Some(Word { name, .. }) = warm
        {
            return Err(Usage(format!(
                "{name} is for templates, and --fork=never has none; one of them would do"
            )));
        }
        Ok((fork, warm.map(|warm| warm.text)))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Fork;
    use crate::config::tests::{complaint, config};

    #[test]
    fn workers_are_forked_where_that_is_safe_but_not_in_development() {
        for (flags, fork) in [
            ("", Fork::Never),
            ("--hot-reload=none", Fork::Auto),
            ("--hot-reload=process", Fork::Auto),
            ("--hot-reload=none --fork=auto", Fork::Auto),
            ("--hot-reload=module --fork=auto", Fork::Never),
            ("--hot-reload=process --fork=always", Fork::Always),
            ("--hot-reload=none --fork=never", Fork::Never),
        ] {
            assert_eq!(config(&format!("app {flags}")).fork, fork, "{flags}");
        }
        assert!(complaint("app --fork=always").contains("--hot-reload=none would do"));
    }

    #[test]
    fn a_template_is_warmed_by_a_page_of_the_app() {
        assert_eq!(config("app --hot-reload=none").warm, None);
        assert_eq!(config("app --hot-reload=none --warm=/big").warm.as_deref(), Some("/big"));
        assert_eq!(config("app --warm=/").warm.as_deref(), Some("/"));
        assert!(complaint("app --warm=big").contains("--warm=/ would do"));
        assert!(complaint("app --warm=/big --fork=never").contains("one of them"));
    }
}
