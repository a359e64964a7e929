"""What `runtimes` and `waits` share: the environment of apps, and servers that people use instead."""

import os
import shutil

import lab
from lab import Front


def environment(the, options, **programs):
    """NODE_ENV=production, and a PATH with only those of Bun and Node that are asked for: rip-server prefers Bun."""
    bin = the.new_path("bin")
    os.mkdir(bin)
    for name, program in programs.items():
        os.symlink(os.path.realpath(program), os.path.join(bin, name))
    plain = [dir for dir in ("/usr/local/bin", "/usr/bin", "/bin") if not os.path.exists(dir + "/bun")]
    env = {**os.environ, "NODE_ENV": "production", "PATH": ":".join([bin, *plain])}
    if options.venv:
        env["VIRTUAL_ENV"] = os.path.abspath(options.venv)
    return env


def other(the, name, command, port, env, cwd):
    process = the.spawn(command, env=env, cwd=cwd)
    until_hello(process, port)
    return Front(name, process, port)


def until_hello(process, port):
    lab.until(lambda: lab.can_connect(port) and lab.get(port, "/") == (200, b"hello"), process, "hello")


def add_programs(parse):
    """The options that name what runs the apps."""
    parse.add_argument("--server", default=lab.SERVER, help="the server's binary (target/release/rip-server)")
    parse.add_argument("--venv", default=os.environ.get("VIRTUAL_ENV"), help="with gunicorn and uvicorn ($VIRTUAL_ENV)")
    parse.add_argument("--bun", default=shutil.which("bun"), help="Bun's executable (from PATH)")
    parse.add_argument("--node", default=shutil.which("node"), help="Node's executable (from PATH)")
    parse.add_argument("--only", default="", help="only rows whose name contains this")
    parse.add_argument("--json", metavar="FILE", help="write all figures there, each round's too")


def parsed(parse):
    options = parse.parse_args()
    # The apps run in folders of their own.
    options.venv, options.bun = (path and os.path.abspath(path) for path in (options.venv, options.bun))
    return options


def missing(options):
    """Why rows can't be measured here, by what they need."""
    def there(name):
        return options.venv and os.path.exists(os.path.join(options.venv, "bin", name))
    return {
        "gunicorn": None if there("gunicorn") else "no gunicorn: --venv DIR",
        "uvicorn": None if there("uvicorn") else "no uvicorn in --venv DIR",
        "node": None if options.node else "no node: --node PATH",
        "bun": None if options.bun else "no bun: --bun PATH",
    }
