//! One small app in each language: it answers with a word and its process, and writes a log into its own folder,
//! which must never be taken for a change.

use super::fixture::{Fixture, Needs, bun, node, python, ruby};
use super::support::{Server, ServerBuilder};
use std::fs;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex};

#[derive(Debug)]
pub struct Language {
    pub name: &'static str,
    pub needs: Needs,
    pub entry: &'static str,
    /// With IMPORT, and WORD for an expression.
    template: &'static str,
    import: &'static str,
    /// What is imported, with its text, WORD for an expression.
    pub part: &'static str,
    part_template: &'static str,
    /// An entry that does not parse.
    pub broken: &'static str,
    /// One that fails when it is loaded.
    pub failing: &'static str,
}

pub const BUN: Language = Language {
    name: "Bun",
    needs: bun(&[]),
    entry: "index.ts",
    template: "IMPORT
import { appendFileSync } from 'node:fs'
const answer: string = WORD
export default () => {
  appendFileSync('app.log', 'asked\\n')
  return new Response(`${answer} ${process.pid}`)
}
",
    import: "import { word } from './lib/part.ts'",
    part: "lib/part.ts",
    part_template: "export const word: string = WORD\n",
    broken: "export default () => {\n",
    failing: "throw new Error('on purpose')\n",
};

pub const NODE: Language = Language {
    name: "Node",
    needs: node(&[]),
    entry: "index.mjs",
    template: "IMPORT
import { appendFileSync } from 'node:fs'
export default () => {
  appendFileSync('app.log', 'asked\\n')
  return new Response(`${WORD} ${process.pid}`)
}
",
    import: "import { word } from './lib/part.mjs'",
    part: "lib/part.mjs",
    part_template: "export const word = WORD\n",
    broken: "export default () => {\n",
    failing: "throw new Error('on purpose')\n",
};

pub const COMMONJS: Language = Language {
    name: "Node with CommonJS and (req, res)",
    needs: node(&[]),
    entry: "index.js",
    template: "IMPORT
const { appendFileSync } = require('node:fs')
module.exports = (req, res) => {
  appendFileSync('app.log', 'asked\\n')
  res.end(`${WORD} ${process.pid}`)
}
",
    import: "const { word } = require('./lib/part.cjs')",
    part: "lib/part.cjs",
    part_template: "exports.word = WORD\n",
    broken: "module.exports = (req, res) => {\n",
    failing: "throw new Error('on purpose')\n",
};

pub const WSGI: Language = Language {
    name: "Python with WSGI",
    needs: python(&["sys"]),
    entry: "app.py",
    template: "IMPORT
import os

def app(environ, start_response):
    with open('app.log', 'a') as log:
        log.write('asked\\n')
    start_response('200 OK', [])
    return [('%s %d' % (WORD, os.getpid())).encode()]
",
    import: "from lib.part import word",
    part: "lib/part.py",
    part_template: "word = WORD\n",
    broken: "def app(:\n",
    failing: "raise RuntimeError('on purpose')\n",
};

pub const ASGI: Language = Language {
    name: "Python with ASGI",
    needs: python(&["asyncio"]),
    entry: "asgi.py",
    template: "IMPORT
import os

async def app(scope, receive, send):
    if scope['type'] != 'http':
        return
    with open('app.log', 'a') as log:
        log.write('asked\\n')
    body = ('%s %d' % (WORD, os.getpid())).encode()
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': body})
",
    import: "from lib.part import word",
    part: "lib/part.py",
    part_template: "word = WORD\n",
    broken: "async def app(:\n",
    failing: "raise RuntimeError('on purpose')\n",
};

pub const RUBY: Language = Language {
    name: "Ruby",
    needs: ruby(&["rack"]),
    entry: "config.ru",
    template: "IMPORT
run lambda { |env|
  File.write('app.log', \"asked\\n\", mode: 'a')
  [200, {}, [\"#{WORD} #{Process.pid}\"]]
}
",
    import: "require_relative 'lib/part'",
    part: "lib/part.rb",
    part_template: "def word = WORD\n",
    broken: "run lambda {\n",
    failing: "raise 'on purpose'\n",
};

const ALL: [&Language; 6] = [&BUN, &NODE, &COMMONJS, &WSGI, &ASGI, &RUBY];

/// Apps at once for each CPU, in all tests together: each has an interpreter for every worker, and a machine with too
/// many of them starts none in time.
const MAX_APPS_PER_CPU: usize = 5;

fn max_apps() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(2) * MAX_APPS_PER_CPU
}

/// One of [`max_apps`], until it is dropped.
struct Turn;

static APPS: Mutex<usize> = Mutex::new(0);
static APP_ENDED: Condvar = Condvar::new();

impl Turn {
    fn wait() -> Turn {
        let apps = APPS.lock().expect("nobody panics with it");
        let mut apps = APP_ENDED.wait_while(apps, |apps| *apps >= max_apps()).expect("nobody panics with it");
        *apps += 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *APPS.lock().expect("nobody panics with it") -= 1;
        APP_ENDED.notify_one();
    }
}

/// An app in each of these languages, side by side, since most of the time is waiting.
pub fn with(languages: &[&Language], check: impl Fn(&Language, &EditedApp) + Sync) {
    let check = &check;
    std::thread::scope(|scope| {
        for language in languages {
            scope.spawn(move || {
                let _turn = Turn::wait();
                if let Some(app) = language.app() {
                    check(language, &app);
                }
            });
        }
    });
}

/// An app in each language.
pub fn with_all(check: impl Fn(&Language, &EditedApp) + Sync) {
    with(&ALL, check);
}

impl Language {
    pub fn source(&self, phrase: &str) -> String {
        self.template.replace("IMPORT", "").replace("WORD", &format!("'{phrase}'"))
    }

    /// Its word is in another file.
    pub fn importing_source(&self) -> String {
        self.template.replace("IMPORT", self.import).replace("WORD", "word")
    }

    pub fn part_source(&self, phrase: &str) -> String {
        self.part_template.replace("WORD", &format!("'{phrase}'"))
    }

    /// An app whose word is `one`.
    fn app(&self) -> Option<EditedApp> {
        let fixture = Fixture::empty(&self.needs, "app")?;
        fixture.write(self.entry, &self.source("one"));
        Some(EditedApp { fixture, entry: self.entry })
    }
}

/// An app and its entry.
#[derive(Debug)]
pub struct EditedApp {
    pub fixture: Fixture,
    entry: &'static str,
}

/// What the app answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub phrase: String,
    pub pid: String,
}

impl EditedApp {
    pub fn builder(&self, arguments: &[&str]) -> ServerBuilder {
        self.fixture.server(None).env("NODE_ENV", "development").args(arguments)
    }

    /// With `module`, one worker, and these.
    pub fn serve(&self, arguments: &[&str]) -> Server {
        let mut server = self.builder(&["--hot-reload=module", "w:1"]).args(arguments).start();
        server.wait_for_workers(1);
        server
    }

    pub fn entry(&self) -> PathBuf {
        self.fixture.file(self.entry)
    }

    /// As a plain editor saves: the same file with other bytes.
    pub fn edit(&self, text: &str) {
        fs::write(self.entry(), text).expect("the entry can be written");
    }

    /// As a careful editor saves: a new file that takes the old one's name.
    pub fn replace(&self, text: &str) {
        let new = self.fixture.file("entry.new");
        fs::write(&new, text).expect("a new file");
        fs::rename(&new, self.entry()).expect("renamed over the entry");
    }
}

/// One request, which must not fail, whatever is being edited.
pub fn ask(server: &Server) -> Answer {
    let response = server.get("/");
    assert_eq!(response.status, 200, "{}\n{}", response.text(), server.stderr_text());
    let text = response.text();
    let (phrase, pid) = text.split_once(' ').unwrap_or_else(|| panic!("no word and process: {text}"));
    Answer { phrase: phrase.to_owned(), pid: pid.to_owned() }
}
