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
