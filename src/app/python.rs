//! Python layouts: targets as `pkg.mod:attr`, entries inside packages, projects with a `manage.py`.

use super::NoApp;
use crate::spelling::near_miss;
use std::fmt;
use std::path::{Path, PathBuf};

/// Settings files are small; a longer file is something else.
const MAX_SETTINGS_BYTES: u64 = 1 << 20;
/// Packages are not nested deeper than this.
const MAX_PACKAGE_DEPTH: usize = 64;

/// The object of a Python project that is served: `pkg.mod:attr`, `pkg.mod:factory()`, or the `app` or `application` of
/// `pkg.mod`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    module: String,
    /// With `()` at the end if it is a factory, to be called once.
    attribute: Option<String>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.attribute {
            Some(attribute) => write!(f, "{}:{attribute}", self.module),
            None => f.write_str(&self.module),
        }
    }
}

impl Target {
    /// `None`: the word is not a target.
    pub fn parse(argument: &str) -> Option<Target> {
        let (module, attribute) = argument.split_once(':')?;
        let name = attribute.strip_suffix("()").unwrap_or(attribute);
        (is_dotted(module) && is_dotted(name))
            .then(|| Target { module: module.to_owned(), attribute: Some(attribute.to_owned()) })
    }
}

/// Where a target lies, and from where it is imported.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The project: the workers' working directory, and what is watched.
    pub root: PathBuf,
    /// The module's file; of a module that lies elsewhere (an installed one) the root.
    pub entry: PathBuf,
    pub target: Target,
}

/// A target that was typed, looked for in the folder that was typed (or its `src`).
pub(super) fn find_target(dir: &Path, target: &Target) -> Result<Found, NoApp> {
    let bases = [dir.to_path_buf(), dir.join("src")];
    let found = bases.iter().find_map(|base| module_file(base, &target.module));
    let misspelt = || {
        let meant = meant_module(&bases, &target.module);
        let first = target.module.split('.').next().unwrap_or_default();
        // A module that is not in the folder may be an installed one.
        let is_here =
            bases.iter().any(|base| base.join(first).is_dir() || module_file(base, first).is_some());
        (is_here || meant.is_some()).then(|| NoApp::NoModule {
            dir: dir.to_path_buf(),
            module: target.module.clone(),
            meant: meant.map(|module| Target { module, attribute: target.attribute.clone() }.to_string()),
        })
    };
    match found {
        Some(entry) => Ok(Found { root: dir.to_path_buf(), entry, target: target.clone() }),
        None => match misspelt() {
            Some(no_app) => Err(no_app),
            None => Ok(Found { root: dir.to_path_buf(), entry: dir.to_path_buf(), target: target.clone() }),
        },
    }
}

/// The module that was perhaps meant: for each part the existing name that is most similar.
fn meant_module(bases: &[PathBuf], module: &str) -> Option<String> {
    let mut meant = String::new();
    for part in module.split('.') {
        let names = bases.iter().flat_map(|base| {
            let folder = base.join(meant.replace('.', "/"));
            modules_in(&folder).into_iter().chain(folders_in(&folder))
        });
        let names: Vec<String> = names.collect();
        let near = near_miss(part, names.iter().map(String::as_str))?;
        meant = if meant.is_empty() { near.to_owned() } else { format!("{meant}.{near}") };
    }
    bases.iter().any(|base| module_file(base, &meant).is_some()).then_some(meant)
}

/// An entry that was found in `dir`: inside a package it is imported by its full name, from the first folder above that
/// is none.
pub(super) fn find_entry(dir: &Path, entry: &Path) -> Result<Found, NoApp> {
    let inside = entry.strip_prefix(dir).unwrap_or(entry);
    if inside == Path::new("manage.py") {
        return find_django(dir);
    }
    let mut root = dir;
    let mut names: Vec<String> = inside.with_extension("").iter().map(lossy).collect();
    while names.len() < MAX_PACKAGE_DEPTH && root.join("__init__.py").is_file() {
        let (Some(parent), Some(name)) = (root.parent(), root.file_name().map(lossy)) else { break };
        if !is_identifier(&name) {
            break;
        }
        names.insert(0, name);
        root = parent;
    }
    let target = Target { module: names.join("."), attribute: None };
    Ok(Found { root: root.to_path_buf(), entry: entry.to_path_buf(), target })
}

/// What the settings of a Django project name, else its `wsgi.py` or `asgi.py`. The settings are read and not run: the
/// entry itself says which of several it wants.
fn find_django(dir: &Path) -> Result<Found, NoApp> {
    let found = |module: &str, attribute: Option<&str>| {
        let entry = module_file(dir, module)?;
        let target = Target { module: module.to_owned(), attribute: attribute.map(str::to_owned) };
        Some(Found { root: dir.to_path_buf(), entry, target })
    };
    let settings = std::env::var("DJANGO_SETTINGS_MODULE").ok().filter(|name| !name.is_empty());
    let settings = settings.or_else(|| settings_named_in(&read_small(&dir.join("manage.py"))));
    let texts: Vec<String> =
        settings.iter().flat_map(|name| settings_files(dir, name)).map(|file| read_small(&file)).collect();
    // A new project has only the second; the first is set by those who want ASGI.
    for setting in ["ASGI_APPLICATION", "WSGI_APPLICATION"] {
        let value = texts.iter().find_map(|text| assigned(text, setting));
        let app = value.and_then(|value| value.rsplit_once('.'));
        if let Some(found) = app.and_then(|(module, attribute)| found(module, Some(attribute))) {
            return Ok(found);
        }
    }
    let package = settings.as_deref().and_then(|name| name.split('.').next().map(str::to_owned));
    let packages = package.into_iter().chain(folders_in(dir));
    let modules = packages.flat_map(|package| ["wsgi", "asgi"].map(|kind| format!("{package}.{kind}")));
    modules.into_iter().find_map(|module| found(&module, None)).ok_or(NoApp::NoDjango(dir.to_path_buf()))
}

/// The word behind `DJANGO_SETTINGS_MODULE` in a `manage.py`.
fn settings_named_in(text: &str) -> Option<String> {
    let behind = text.split_once("DJANGO_SETTINGS_MODULE")?.1;
    // The first quote ends the name itself.
    let quoted = behind.get(1..)?.split(['"', '\'']).nth(1)?;
    is_dotted(quoted).then(|| quoted.to_owned())
}

/// The settings' own file, then those beside it: they may be split into several.
fn settings_files(dir: &Path, name: &str) -> Vec<PathBuf> {
    let Some(file) = module_file(dir, name) else { return Vec::new() };
    let folder = file.parent().unwrap_or(dir).to_path_buf();
    let others = modules_in(&folder).into_iter().map(|name| folder.join(name).with_extension("py"));
    let others = others.filter(|other| *other != file).collect::<Vec<_>>();
    std::iter::once(file).chain(others).collect()
}

/// The string that a line `NAME = "…"` sets.
fn assigned<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().rev().find_map(|line| {
        let value = line.strip_prefix(name)?.trim_start().strip_prefix('=')?.trim_start();
        let quote = value.chars().next().filter(|quote| "'\"".contains(*quote))?;
        let value = value[1..].split(quote).next()?;
        is_dotted(value).then_some(value)
    })
}

fn module_file(base: &Path, module: &str) -> Option<PathBuf> {
    let path = base.join(module.replace('.', "/"));
    let files = [path.join("__init__.py"), PathBuf::from(format!("{}.py", path.display()))];
    files.into_iter().find(|file| file.is_file())
}

/// The names of a folder's modules and packages.
fn modules_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            match name.strip_suffix(".py") {
                Some(stem) => Some(stem.to_owned()),
                None => entry.path().join("__init__.py").is_file().then_some(name),
            }
        })
        .filter(|name| is_identifier(name) && name != "__init__")
        .collect();
    names.sort();
    names
}

fn folders_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> =
        folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| is_identifier(name));
    names.sort();
    names
}

/// A file's text; empty if it is missing, too long, or not text.
fn read_small(file: &Path) -> String {
    let is_small = file.metadata().is_ok_and(|file| file.len() <= MAX_SETTINGS_BYTES);
    if is_small { std::fs::read_to_string(file).unwrap_or_default() } else { String::new() }
}

fn is_dotted(text: &str) -> bool {
    text.split('.').all(is_identifier)
}

fn is_identifier(text: &str) -> bool {
    text.chars().all(|letter| letter.is_alphanumeric() || letter == '_')
        && text.chars().next().is_some_and(|first| !first.is_numeric())
}

fn lossy(name: impl AsRef<std::ffi::OsStr>) -> String {
    name.as_ref().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Project(tempfile::TempDir);

    impl Project {
        fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().expect("a folder");
            for (name, text) in files {
                let file = dir.path().join(name);
                std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
                std::fs::write(file, text).expect("written");
            }
            Project(dir)
        }

        fn path(&self) -> &Path {
            self.0.path()
        }

        fn entry(&self, dir: &str, entry: &str) -> (String, String, String) {
            let dir = self.path().join(dir);
            self.reported(find_entry(&dir, &dir.join(entry)))
        }

        fn target(&self, argument: &str) -> Result<Found, NoApp> {
            find_target(self.path(), &Target::parse(argument).expect(argument))
        }

        /// The root and the entry from the project's folder on, and the target.
        fn reported(&self, found: Result<Found, NoApp>) -> (String, String, String) {
            let Found { root, entry, target } = found.expect("is found");
            let inside = |path: &Path| lossy(path.strip_prefix(self.path()).expect("inside"));
            (inside(&root), inside(&entry), target.to_string())
        }
    }

    fn three(root: &str, entry: &str, target: &str) -> (String, String, String) {
        (root.into(), entry.into(), target.into())
    }

    #[test]
    fn a_target_is_a_module_and_what_is_in_it() {
        for argument in ["app:app", "mysite.wsgi:application", "pkg:create_app()", "a.b:c.d"] {
            assert_eq!(Target::parse(argument).map(|target| target.to_string()).as_deref(), Some(argument));
        }
        for argument in ["app", "http:5002", "w:4", "./app:app", "a..b:c", "a:b(1)", "a:", ":a", "w:2..8"] {
            assert_eq!(Target::parse(argument), None, "{argument}");
        }
    }

    #[test]
    fn an_entry_inside_a_package_is_imported_from_the_first_folder_that_is_none() {
        let project = Project::new(&[
            ("site/shop/__init__.py", ""),
            ("site/shop/web/__init__.py", ""),
            ("site/shop/web/main.py", ""),
            ("my-app/__init__.py", ""),
            ("my-app/app.py", ""),
        ]);
        assert_eq!(
            project.entry("site/shop/web", "main.py"),
            three("site", "site/shop/web/main.py", "shop.web.main")
        );
        assert_eq!(project.entry("site/shop", "web/main.py").2, "shop.web.main");
        assert_eq!(
            project.entry("my-app", "app.py"),
            three("my-app", "my-app/app.py", "app"),
            "no package has such a name"
        );
    }

    #[test]
    fn a_target_is_found_in_its_project_or_its_src_or_left_to_python() {
        let project =
            Project::new(&[("shop/wsgi.py", ""), ("src/other/__init__.py", ""), ("src/other/web.py", "")]);
        assert_eq!(
            project.reported(project.target("shop.wsgi:app")),
            three("", "shop/wsgi.py", "shop.wsgi:app")
        );
        assert_eq!(project.reported(project.target("other:app")).1, "src/other/__init__.py");
        assert_eq!(project.reported(project.target("installed.somewhere:app")).1, "");
    }

    #[test]
    fn a_misspelt_module_is_told_with_the_one_that_was_meant() {
        let project = Project::new(&[("mysite/__init__.py", ""), ("mysite/wsgi.py", "")]);
        for (argument, meant) in [
            ("mysite.wsgy:application", "mysite.wsgi:application would do"),
            ("mysit:application", "mysite:application would do"),
            ("mysit.wsgi:application", "mysite.wsgi:application would do"),
            ("mysite.nothing:application", "there is no module 'mysite.nothing'"),
        ] {
            let complaint = project.target(argument).expect_err(argument).to_string();
            assert!(complaint.contains(meant) && !complaint.contains('\n'), "{complaint}");
        }
    }

    #[test]
    fn a_django_project_is_served_as_its_settings_say() {
        let manage = "os.environ.setdefault('DJANGO_SETTINGS_MODULE', \"mysite.settings\")\n";
        let project = |settings: &str, name: &str| {
            Project::new(&[
                ("manage.py", manage),
                (name, settings),
                ("mysite/wsgi.py", ""),
                ("mysite/asgi.py", ""),
                ("mysite/web.py", ""),
            ])
        };
        let target = |settings: &str| project(settings, "mysite/settings.py").entry("", "manage.py").2;
        assert_eq!(target("WSGI_APPLICATION = 'mysite.web.site'\n"), "mysite.web:site");
        let both =
            "WSGI_APPLICATION = 'mysite.wsgi.application'\nASGI_APPLICATION=\"mysite.asgi.application\"\n";
        assert_eq!(target(both), "mysite.asgi:application");
        assert_eq!(target("WSGI_APPLICATION = None\n"), "mysite.wsgi");
        let split = project("WSGI_APPLICATION = 'mysite.web.site'\n", "mysite/settings/base.py");
        std::fs::write(split.path().join("mysite/settings/__init__.py"), "from .base import *")
            .expect("written");
        assert_eq!(split.entry("", "manage.py"), three("", "mysite/web.py", "mysite.web:site"));
        let empty = Project::new(&[("manage.py", manage)]);
        let complaint = find_entry(empty.path(), &empty.path().join("manage.py")).expect_err("nothing there");
        assert!(complaint.to_string().contains("mysite.wsgi:application would do"), "{complaint}");
    }
}
