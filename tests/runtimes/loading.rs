//! How an entry is found and loaded: its exports, compilers, and what is said of one that cannot be loaded.

use super::fixture::{Fixture, Needs, bun, node, python};
use super::support::Server;

/// An app of one file in production: its server, started.
fn start(needs: &Needs, files: &[(&str, &str)], arguments: &[&str]) -> Option<(Fixture, Server)> {
    let fixture = Fixture::empty(needs, "app")?;
    for (name, text) in files {
        fixture.write(name, text);
    }
    let server = fixture.server(None).arg("w:1").args(arguments).start();
    Some((fixture, server))
}

fn says_hello(needs: &Needs, files: &[(&str, &str)], arguments: &[&str]) {
    let Some((_fixture, mut server)) = start(needs, files, arguments) else { return };
    server.wait_for_workers(1);
    let response = server.get("/");
    assert_eq!((response.status, response.text().as_str()), (200, "hello"), "{}", server.stderr_text());
}

/// No worker ever joins, so the server ends and says why.
fn complains(needs: &Needs, files: &[(&str, &str)], complaint: &str) {
    let Some((_fixture, mut server)) = start(needs, files, &[]) else { return };
    assert_eq!(server.wait_exit(), 1);
    server.wait_until(complaint, |server| server.stderr_text().contains(complaint));
}

const FETCH: &str = "export const fetch = (request) => new Response('hello')\n";
const OBJECT: &str = "export default { fetch: (request) => new Response('hello') }\n";
const FUNCTION: &str = "module.exports = (request) => new Response('hello')\n";
/// Of a language that is almost JavaScript.
const RIP: &str = "export default (request) -> new Response('hello')\n";

#[test]
fn bun_takes_a_fetch_that_is_exported_by_name_or_in_an_object() {
    says_hello(&bun(&[]), &[("index.ts", FETCH)], &[]);
    says_hello(&bun(&[]), &[("index.js", OBJECT)], &[]);
}

#[test]
fn node_takes_a_fetch_that_is_exported_by_name_or_in_an_object_or_by_commonjs() {
    says_hello(&node(&[]), &[("index.mjs", FETCH)], &[]);
    says_hello(&node(&[]), &[("index.mjs", OBJECT)], &[]);
    says_hello(&node(&[]), &[("index.js", FUNCTION)], &[]);
}

/// Bun's way to name a compiler.
const BUN_COMPILER: &str = "
import { plugin } from 'bun'
plugin({
  name: 'rip',
  setup(build) {
    build.onLoad({ filter: /\\.rip$/ }, async ({ path }) => (
      { contents: (await Bun.file(path).text()).replaceAll('->', '=>'), loader: 'js' }
    ))
  },
})
";

#[test]
fn bun_compiles_a_rip_entry_by_a_preloaded_module() {
    let files = [("index.rip", RIP), ("compiler.ts", BUN_COMPILER)];
    says_hello(&bun(&[]), &files, &["--preload=./compiler.ts"]);
}

#[test]
fn bun_compiles_a_rip_entry_as_its_bunfig_says() {
    let bunfig = "preload = ['./compiler.ts']\n";
    says_hello(&bun(&[]), &[("index.rip", RIP), ("compiler.ts", BUN_COMPILER), ("bunfig.toml", bunfig)], &[]);
}

#[test]
fn node_compiles_a_rip_entry_by_an_imported_module() {
    let register = "import { register } from 'node:module'\nregister('./hooks.mjs', import.meta.url)\n";
    let hooks = "
import { readFile } from 'node:fs/promises'
export async function load(url, context, next) {
  const file = new URL(url)
  if (!file.pathname.endsWith('.rip')) return next(url, context)
  file.search = ''
  const source = (await readFile(file, 'utf8')).replaceAll('->', '=>')
  return { format: 'module', source, shortCircuit: true }
}
";
    let files = [("index.rip", RIP), ("register.mjs", register), ("hooks.mjs", hooks)];
    says_hello(&node(&[]), &files, &["--preload=./register.mjs"]);
}

#[test]
fn a_rip_entry_that_nothing_compiles_says_what_is_missing() {
    complains(&bun(&[]), &[("index.rip", RIP)], "--preload=<module>");
}

#[test]
fn an_entry_without_a_handler_says_what_would_do() {
    let complaint = "export default (request) => new Response";
    complains(&bun(&[]), &[("index.ts", "export const answer = 42\n")], complaint);
    complains(&node(&[]), &[("index.mjs", "export const answer = 42\n")], complaint);
    complains(&python(&["sys"]), &[("app.py", "answer = 42\n")], "neither `application` nor `app`");
}

#[test]
fn an_entry_with_a_mistake_says_where_it_is() {
    complains(&node(&[]), &[("index.mjs", "\nexport default (\n")], "index.mjs:3");
    complains(&python(&["sys"]), &[("app.py", "def app(:\n")], "app.py\", line 1");
}

const WHO: &str = "export default () => new Response('Bun' in globalThis ? 'bun' : 'node')\n";

#[test]
fn a_javascript_app_may_name_its_runtime() {
    let both = Needs { programs: &["bun", "node"], ..Needs::programs(&[]) };
    for (arguments, runtime) in
        [(&[][..], "bun"), (&["--runtime=node"][..], "node"), (&["--runtime=bun"][..], "bun")]
    {
        let Some((_fixture, mut server)) = start(&both, &[("index.mjs", WHO)], arguments) else { return };
        server.wait_for_workers(1);
        assert_eq!(server.get("/").text(), runtime);
    }
}

#[test]
fn a_package_json_names_the_entry_of_a_folder_that_has_no_index() {
    let package = r#"{"name":"app","main":"./server"}"#;
    says_hello(&node(&[]), &[("package.json", package), ("server.js", FUNCTION)], &[]);
    says_hello(&bun(&[]), &[("package.json", r#"{"module":"main.tsx"}"#), ("main.tsx", OBJECT)], &[]);
    says_hello(&bun(&[]), &[("index.tsx", OBJECT)], &[]);
}

#[test]
fn an_env_file_is_for_workers_and_gives_way_to_the_real_environment() {
    let app = "export default () => new Response([process.env.FROM_FILE, process.env.BOTH, process.env.WORKER_ID].join())\n";
    let Some(fixture) = Fixture::empty(&node(&[]), "app") else { return };
    fixture.write("index.mjs", app);
    fixture.write("variables", "FROM_FILE='a value'\nBOTH=file\nWORKER_ID=77\n");
    let flag = format!("--env-file={}", fixture.file("variables").display());
    let server = fixture.server(None).env("BOTH", "environment").args(["w:1", &flag]);
    let mut server = server.start();
    server.wait_for_workers(1);
    assert_eq!(server.get("/").text(), "a value,environment,0");
}
