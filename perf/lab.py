"""What the scripts of this folder share: build the C programs, start the servers, load them, read what they cost.

Every server runs from a temporary folder with a configuration of its own, on a free port of 127.0.0.1, and only
what was started here is ended, by its pid. Nothing but Python's standard library is used.
"""

import ctypes
import datetime
import http.client
import json
import os
import platform
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
SERVER = os.path.join(ROOT, "target", "release", "rip-server")
RESULTS = os.path.join(ROOT, "target", "perf")

START_SECONDS = 30  # from exec to the first answer; under valgrind the tenfold
STOP_SECONDS = 10   # from SIGTERM to SIGKILL
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1

# Thousands of connections at both ends: this process and its children may open all that the machine allows.
OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `with Lab()` ends its children


# ---------------------------------------------------------------- servers

class Failed(SystemExit):
    """A server that does not come up: what it was and what it said. Ends a script that does not catch it."""


class Front:
    """A front end under measurement: its name in the tables, its own process alone, its port."""

    def __init__(self, name, process, port, pid=None):
        self.name, self.process, self.port, self.pid = name, process, port, pid or process.pid

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"


class Lab:
    """A temporary folder and the processes started in it, all gone at the end of `with`."""

    def __enter__(self):
        self.dir = tempfile.mkdtemp(prefix="rip-perf-")  # short: a Unix socket's path has 107 bytes
        self.processes, self.count = [], 0
        return self

    def __exit__(self, *_):
        self.stop_all()
        shutil.rmtree(self.dir, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def new_path(self, stem):
        self.count += 1
        return self.path(f"{stem}-{self.count}")

    def write(self, name, text):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w") as file:
            file.write(text)
        return self.path(name)

    def build(self, source, *flags, name=None):
        program = self.path(name or source.removesuffix(".c"))
        subprocess.run(["cc", "-O2", *flags, "-o", program, os.path.join(HERE, source)], check=True)
        return program

    def spawn(self, command, stdout=None, **how):
        """Starts a process whose output goes to a file; it is told to end when this script dies."""
        log = stdout or self.new_path("log")
        with open(log, "ab") as out, open(log + ".err", "ab") as err:
            process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                       preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM), **how)
        process.log = log
        self.processes.append(process)
        return process

    def stop_all(self):
        """The front ends before their workers: the last started first."""
        while self.processes:
            self.stop(self.processes.pop())

    def stop(self, process):
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def workers(self, program, count):
        """Workers that no front end has started: their sockets, all listening."""
        sockets = [self.new_path("worker") for _ in range(count)]
        owners = [self.spawn([program, path]) for path in sockets]
        for path, owner in zip(sockets, owners):
            until(lambda: can_connect(path), owner, f"{program} on {path}")
        return sockets

    def rip(self, server, app, workers, *flags, name="rip", env=None, prefix=(), slow=1):
        """`rip-server <app> w:N r:0 http:127.0.0.1:PORT <flags>`, when all its workers have joined."""
        port = free_port()
        # r:0: none of the others replaces its workers either.
        process = self.spawn([*prefix, server, app, f"w:{workers}", "r:0", f"http:127.0.0.1:{port}", *flags],
                             env={**os.environ, "NODE_ENV": "production", "RIP_SOCKET_DIR": self.new_path("rip"), **(env or {})})
        announced = re.compile(rf"^rip-server: app=\S+ http=\S*:{port}\b.* workers=\d+", re.M)
        # With --json-logging the line goes to stderr, so look at both.
        until(lambda: announced.search(output(process)), process, "rip-server's line at its start", START_SECONDS * slow)
        until(lambda: joined(port) == workers, process, f"{workers} workers in /status", START_SECONDS * slow)
        return Front(name, process, port)

    def floor(self, program, sockets, prefix=(), slow=1):
        port = free_port()
        process = self.spawn([*prefix, program, port, *sockets])
        until(lambda: can_connect(port), process, "the floor", START_SECONDS * slow)
        return Front("floor", process, port)

    def haproxy(self, sockets):
        port = free_port()
        servers = "\n".join(f"    server w{i} unix@{path} maxconn 1" for i, path in enumerate(sockets))
        config = self.write(f"haproxy-{port}.cfg", HAPROXY.format(port=port, servers=servers, connections=OPEN_FILES // 2 - 100))
        process = self.spawn(["haproxy", "-db", "-f", config])
        until(lambda: can_connect(port), process, "haproxy")
        return Front("haproxy", process, port)

    def nginx(self, sockets):
        port = free_port()
        servers = "\n".join(f"        server unix:{path};" for path in sockets)
        user = "user root;" if os.getuid() == 0 else ""  # else its worker may not look into our folder
        config = self.write(f"nginx-{port}/nginx.conf", NGINX.format(
            port=port, servers=servers, user=user, dir=self.path(f"nginx-{port}"), connections=OPEN_FILES - 100))
        process = self.spawn(["nginx", "-c", config, "-e", config + ".log"])
        until(lambda: can_connect(port), process, "nginx")
        return Front("nginx", process, port, pid=until(lambda: children(process.pid), process, "nginx's worker")[0])


HAPROXY = """
global
    nbthread 1
    maxconn {connections}
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout queue 60s
    timeout http-keep-alive 60s
frontend clients
    bind 127.0.0.1:{port}
    default_backend workers
backend workers
    balance first
    http-reuse always
{servers}
"""

# nginx has no "one request at a time, the rest waits": it spreads requests over the workers as they come.
NGINX = """
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile {connections};
pid {dir}/pid;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    default_type text/plain;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_temp_path {dir}/client_body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    upstream workers {{
{servers}
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /server {{ return 200 "ok"; }}
        location / {{
            proxy_pass http://workers;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_request_buffering on;
        }}
    }}
}}
"""


def server_or_exit(path):
    """The server's binary as an absolute path; where there is none, how to get it."""
    if os.access(path, os.X_OK):
        return os.path.abspath(path)
    sys.exit(f"no server at {path}: build it with `cargo build --release`, or name one with --server PATH")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def can_connect(place):
    family = socket.AF_INET if isinstance(place, int) else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_STREAM) as s:
        return s.connect_ex(("127.0.0.1", place) if isinstance(place, int) else place) == 0


def joined(port):
    """How many workers `/status` counts; none while the answer is not a 200."""
    try:
        status, body = get(port, "/status")
        return json.loads(body)["workers"] if status == 200 else None
    except (OSError, http.client.HTTPException):
        return None


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def output(process):
    return "".join(open(path, errors="replace").read() for path in (process.log, process.log + ".err"))


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def until(done, process, what, seconds=START_SECONDS):
    deadline = time.monotonic() + seconds
    while not (value := done()):
        if process.poll() is not None or time.monotonic() > deadline:
            ended = "" if process.poll() is None else f" (exit {process.returncode})"
            raise Failed(f"waited in vain for {what}{ended}: {' '.join(process.args)}\n{output(process)[-2000:]}")
        time.sleep(0.02)
    return value


# ---------------------------------------------------------------- load and cost

WRK_REPORT = """
done = function(summary, latency)
    local e = summary.errors
    io.write(string.format('\\nREPORT {"requests":%d,"seconds":%f,"p50_us":%d,"p99_us":%d,"max_us":%d,"errors":%d}\\n', summary.requests,
        summary.duration / 1e6, latency:percentile(50), latency:percentile(99), latency.max, e.connect + e.read + e.write + e.timeout + e.status))
end
"""


def wrk(lab, url, connections, seconds, threads=1, show=False):
    """Requests, seconds, rate, p50_us, p99_us and errors (a status of 400 or more is one) of one run of wrk."""
    report = lab.path("report.lua")
    if not os.path.exists(report):
        lab.write("report.lua", WRK_REPORT)
    run = subprocess.run(["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency",
                          "-s", report, url], stdout=subprocess.PIPE, check=True, text=True)
    text, _, numbers = run.stdout.partition("\nREPORT ")
    if show:
        print(text + "\n")
    return with_rate(json.loads(numbers))


def with_rate(round):
    return {**round, "rate": round["requests"] / round["seconds"]}


def cpu_us(pid):
    """CPU time of a process so far, user and system, all its threads, to the nanosecond: clock_getcpuclockid(3)."""
    return time.clock_gettime_ns(~pid << 3 | 2) / 1000


def load(lab, front, path, connections, seconds, threads=1, show=False):
    """One round: what the load saw, and what it cost the front end's own process."""
    before_us = cpu_us(front.pid)
    round = wrk(lab, front.url(path), connections, seconds, threads, show)
    return {**round, "cpu_us": (cpu_us(front.pid) - before_us) / max(round["requests"], 1)}


def medians(rounds):
    """The median of each figure over the rounds; errors are added up."""
    figures = {key: statistics.median(round[key] for round in rounds)
               for key in ("rate", "p50_us", "p99_us", "max_us", "cpu_us") if key in rounds[0]}
    rates = [round["rate"] for round in rounds]
    return {**figures, "errors": sum(round["errors"] for round in rounds), "rate_min": min(rates), "rate_max": max(rates)}


def alternating(jobs, rounds):
    """Runs each job once a round, starting with another one each round; → job name: its results."""
    results = {name: [] for name, _ in jobs}
    for round in range(rounds):
        turn = round % len(jobs)
        for name, job in jobs[turn:] + jobs[:turn]:
            note(f"round {round + 1}/{rounds}: {name if isinstance(name, str) else ' '.join(map(str, name))}")
            results[name].append(job())
    return results


def syscalls(lab, front, path, connections, seconds):
    """Syscalls a request of the front end under `strace -c`, and each kind's share; wrk counts the requests.

    Each thread is attached by its own -p rather than by -f, which would count those of workers started meanwhile."""
    out = lab.new_path("strace")
    tids = os.listdir(f"/proc/{front.pid}/task")
    strace = subprocess.Popen(["strace", "-c", "-o", out, *(word for tid in tids for word in ("-p", tid))],
                              stderr=subprocess.PIPE, text=True)
    for _ in tids:
        if "attached" not in (line := strace.stderr.readline()):
            strace.wait()
            return None, line.strip()
    requests = wrk(lab, front.url(path), connections, seconds)["requests"]
    strace.send_signal(signal.SIGINT)
    strace.wait()
    kinds = {}
    for line in open(out):
        words = line.split()  # % time, seconds, usecs/call, calls, [errors,] name
        if len(words) >= 5 and words[3].isdigit() and words[-1] != "total":
            kinds[words[-1]] = int(words[3]) / requests
    return sum(kinds.values()), {kind: calls for kind, calls in sorted(kinds.items(), key=lambda item: -item[1]) if calls >= 0.005}


class Connection:
    """One kept-alive connection for bodies of any size: uploads zeros, throws downloads away unseen."""

    ZEROS = memoryview(bytes(1 << 20))

    def __init__(self, port, timeout_seconds=60):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a head and its body are two sends
        self.ends = False  # the last answer was to be the last one

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def upload(self, size):
        self.socket.sendall(b"POST /up HTTP/1.1\r\nHost: perf\r\nContent-Length: %d\r\n\r\n" % size)
        while size:
            size -= self.socket.send(self.ZEROS[:size])
        return self.answer()

    def upload_chunked(self, size):
        self.socket.sendall(b"POST /up HTTP/1.1\r\nHost: perf\r\nTransfer-Encoding: chunked\r\n\r\n")
        while size:
            piece = self.ZEROS[:min(size, 10_000)]
            self.socket.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            size -= len(piece)
        self.socket.sendall(b"0\r\n\r\n")
        return self.answer()

    def download(self, size, bytes_per_second=None):
        self.socket.sendall(b"GET /down?bytes=%d HTTP/1.1\r\nHost: perf\r\n\r\n" % size)
        return self.answer(bytes_per_second)

    def get(self, path, fields=b""):
        self.socket.sendall(b"GET %b HTTP/1.1\r\nHost: perf\r\n%b\r\n" % (path.encode(), fields))
        return self.answer()

    def get_pipelined(self, path, count):
        """`count` requests at once, and all of their small answers."""
        self.socket.sendall(b"GET %b HTTP/1.1\r\nHost: perf\r\n\r\n" % path.encode() * count)
        answers = b""
        while answers.count(b"\r\n\r\n") < count:
            if not (more := self.socket.recv(1 << 16)):
                raise ConnectionError("closed before all answers")
            answers += more

    def answer(self, bytes_per_second=None):
        """Reads one answer framed by Content-Length to its end; → its status."""
        head = b""
        while b"\r\n\r\n" not in head:
            if not (more := self.socket.recv(4096)):
                raise ConnectionError("closed before an answer")
            head += more
        head, _, body = head.partition(b"\r\n\r\n")
        self.ends = bool(re.search(rb"\r\nconnection: *close", head, re.I))
        left = int(re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)[1]) - len(body)
        while left:
            # On TCP, MSG_TRUNC drops the bytes in the kernel: the client should cost as little as can be.
            got = len(self.socket.recv(min(left, 64 << 10))) if bytes_per_second else self.socket.recv_into(
                self.NOWHERE, min(left, len(self.NOWHERE)), socket.MSG_TRUNC)
            if not got:
                raise ConnectionError(f"closed {left} bytes before the end")
            left -= got
            if bytes_per_second:
                time.sleep(got / bytes_per_second)
        return int(head.split()[1])

    NOWHERE = bytearray(1 << 20)


# ---------------------------------------------------------------- what people see

def note(text):
    print(f"… {text}", file=sys.stderr, flush=True)


def table(headers, rows):
    """A Markdown table whose columns line up in a terminal too: words to the left, numbers to the right."""
    cells = [headers] + [[cell if isinstance(cell, str) else figure(cell) for cell in row] for row in rows]
    words = [isinstance(cell, str) for cell in rows[0]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    for row in cells:
        print("| " + " | ".join(cell.ljust(w) if word else cell.rjust(w) for cell, w, word in zip(row, widths, words)) + " |")
        if row is headers:
            print("|" + "|".join("-" * (w + 2) if word else "-" * (w + 1) + ":" for w, word in zip(widths, words)) + "|")
    print()


def figure(value):
    """Three or four digits are all that a noisy machine can say."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(a, b):
    return a / b if a is not None and b else None


def machine(server=None):
    """The machine, and what ran on it: a figure says nothing without them."""
    def first_line(*command):
        try:
            run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except OSError:
            return "none"
        return run.stdout.strip().split("\n")[0] if run.returncode == 0 else "none"
    cpuinfo = open("/proc/cpuinfo").read()
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": model[1] if model else platform.machine(), "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20, "kernel": platform.release(),
        "rip": first_line(server, "--version") if server else "not measured",
        "commit": first_line("git", "-C", ROOT, "describe", "--always", "--dirty"),
        "haproxy": first_line("haproxy", "-v"), "nginx": first_line("nginx", "-v"), "wrk": first_line("wrk", "-v"),
    }


def measured_on(about, command):
    print(f"Measured on {about['date'][:10]}: {about['cores']} × {about['cpu']}, {about['memory_mib']} MiB, Linux {about['kernel']};"
          f" {about['rip']} ({about['commit']}); {about['haproxy']}; {about['nginx']}. By `{command}`.\n")


def command_line():
    return " ".join(["perf/" + os.path.basename(sys.argv[0]), *sys.argv[1:]])


def save_json(path, value):
    if path:
        with open(path, "w") as file:
            json.dump(value, file, indent=1)
            file.write("\n")


def output_prefix(prefix):
    os.makedirs(os.path.dirname(os.path.abspath(prefix)), exist_ok=True)
    return prefix
