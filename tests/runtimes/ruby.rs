//! Ruby and Rack.

use super::checks::{App, Exceptions, app};
use super::fixture::{Fixture, ruby};
use super::support::{Client, Response, Signal, TEST_TIMEOUT, Trouble};

#[test]
fn ruby_serves_a_lambda() {
    app("rack", ruby(&["rack"])).check();
}

#[test]
fn ruby_serves_sinatra() {
    App { exceptions: Exceptions::Framework, ..app("sinatra", ruby(&["sinatra"])) }.check();
}

const LINTED: &str = r##"
use Rack::Lint
run lambda { |env|
  body = env["rack.input"].read
  env["rack.errors"].puts("said") if env["PATH_INFO"] == "/errors"
  bare = env["REQUEST_METHOD"] == "HEAD" || env["PATH_INFO"] == "/none"
  headers = env["PATH_INFO"] == "/none" ? {} : { "Content-Type" => "text/plain" }
  text = "#{env["REQUEST_METHOD"]} #{env["PATH_INFO"]} #{body.bytesize}"
  [env["PATH_INFO"] == "/none" ? 204 : 200, headers, bare ? [] : [text]]
}
"##;

#[test]
fn rack_lint_finds_no_fault_with_the_environment_and_the_answers() {
    let Some(fixture) = Fixture::empty(&ruby(&["rack"]), "app") else { return };
    fixture.write("config.ru", LINTED);
    let mut server = fixture.server(None).arg("w:1").start();
    server.wait_for_workers(1);
    let mut client = server.client();
    let said = |response: &Response| (response.status, response.text());
    assert_eq!(said(&client.get("/a?b=c")), (200, "GET /a 0".into()), "{}", server.stderr_text());
    assert_eq!(said(&client.post("/errors", &[1; 300_000])), (200, "POST /errors 300000".into()));
    client.send_request("HEAD", "/", "", b"");
    assert_eq!(client.read_response_to_head().status, 200);
    assert_eq!(client.get("/none").status, 204);
    client.send_request("OPTIONS", "*", "", b"");
    assert_eq!(said(&client.read_response()), (200, "OPTIONS  0".into()), "{}", server.stderr_text());
    client.send(b"GET / HTTP/1.1\r\nHost: [::1]:80\r\nX-Odd: \xe9\r\n\r\n");
    assert_eq!(said(&client.read_response()), (200, "GET / 0".into()), "{}", server.stderr_text());
}

#[test]
fn a_sigterm_handler_of_a_ruby_app_is_run_to_its_end() {
    let Some(fixture) = Fixture::empty(&ruby(&["rack"]), "app") else { return };
    let app = "
trap('TERM') { sleep 0.3; puts 'flushed' }
at_exit { puts 'left' }
run lambda { |env| [200, {}, ['hello']] }
";
    fixture.write("config.ru", app);
    let mut server = fixture.server(None).arg("w:1").start();
    server.wait_for_workers(1);
    assert_eq!(server.get("/").text(), "hello");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0, "{}", server.stderr_text());
    let lines = server.stdout_lines();
    for phrase in ["[worker 0] flushed", "[worker 0] left"] {
        assert!(lines.iter().any(|line| line == phrase), "no {phrase:?} in {lines:?}");
    }
}

#[test]
fn an_answer_without_a_valid_status_is_a_500() {
    let Some(fixture) = Fixture::empty(&ruby(&["rack"]), "app") else { return };
    fixture.write("config.ru", "run lambda { |env| [env['QUERY_STRING'], {}, ['hello']] }\n");
    let mut server = fixture.server(None).arg("w:1").start();
    server.wait_for_workers(1);
    for status in ["x", "101", "99", "1000"] {
        assert_eq!(server.get(&format!("/?{status}")).status, 500, "{status}");
    }
    assert_eq!(server.get("/?299").status, 299);
}

/// A body that lets another thread write on behind its own end, and one that closes the stream itself.
const LENT: &str = r##"
$late = Queue.new
run lambda { |env|
  streamed = lambda do |stream|
    stream << "first\n"
    case env["PATH_INFO"]
    when "/closed"
      stream.flush
      stream.close
    when "/short"
      stream.close rescue nil
    when "/long"
      stream.write("too much") rescue nil
    end
    Thread.new do
      $late.pop
      stream.write("EVIL")
    rescue IOError => error
      puts "late: #{error.message}, #{stream.closed?}"
    else
      puts "late: written"
    end
  end
  if env["PATH_INFO"] == "/next"
    $late << true until $late.num_waiting.zero?
    next [200, {}, ["fine"]]
  end
  headers = %w[/short /long].include?(env["PATH_INFO"]) ? { "Content-Length" => "9" } : {}
  [200, headers, streamed]
}
"##;

#[test]
fn a_stream_that_another_thread_keeps_writes_nothing_into_the_next_answer() {
    let Some(fixture) = Fixture::empty(&ruby(&["rack"]), "app") else { return };
    fixture.write("config.ru", LENT);
    for c in ["c:1", "c:4"] {
        let mut server = fixture.server(None).args(["w:1", c]).start();
        server.wait_for_workers(1);
        for (at, path) in ["/", "/closed", "/", "/short", "/long"].into_iter().enumerate() {
            if at < 3 {
                assert_eq!(server.get(path).text(), "first\n", "{path}: {}", server.stderr_text());
            } else {
                let mut client = server.client();
                client.send_request("GET", path, "", b"");
                match client.read_response_within(TEST_TIMEOUT) {
                    Ok(answer) => panic!("{path} looks whole: {}", answer.text()),
                    Err(broken) => assert_ne!(broken.trouble, Trouble::TimedOut, "{path} hangs"),
                }
            }
            for _ in 0..3 {
                let next = server.get("/next");
                assert_eq!((next.status, next.text().as_str()), (200, "fine"), "behind {path}");
            }
            server.wait_until("the late word", |server| {
                let lines = server.stdout_lines();
                lines.iter().filter(|line| line.contains("late: closed stream, true")).count() == at + 1
            });
        }
    }
}

#[test]
fn a_handler_that_ends_its_thread_fails_its_request_and_takes_no_place_along() {
    let Some(fixture) = Fixture::empty(&ruby(&["rack"]), "app") else { return };
    let app = r##"
run lambda { |env|
  case env["PATH_INFO"]
  when "/exit" then Thread.exit
  when "/late" then sleep 0.05 and Thread.exit
  when "/body" then [200, {}, Enumerator.new { |pieces| pieces << "half"; Thread.exit }]
  when "/wait" then [200, {}, [(sleep 0.2).to_s]]
  else [200, {}, ["#{Process.pid}"]]
  end
}
"##;
    fixture.write("config.ru", app);
    for c in ["c:1", "c:2"] {
        let mut server = fixture.server(None).args(["w:1", c, "--queue-timeout-ms=4000"]).start();
        server.wait_for_workers(1);
        let pid = server.get("/").text();
        for path in ["/exit", "/late", "/body"].repeat(3) {
            let mut client = server.client();
            client.send_request("GET", path, "", b"");
            match client.read_response_within(TEST_TIMEOUT) {
                Ok(answer) => assert_eq!(answer.status, 500, "{path}: {}", server.stderr_text()),
                Err(broken) => assert_eq!((path, broken.trouble), ("/body", Trouble::Closed)),
            }
            assert_eq!(server.get("/").text(), pid, "behind {path}: {}", server.stderr_text());
        }
        // No other request comes over a connection that is about to be closed.
        if c == "c:2" {
            let mut direct = Client::connect_unix(&super::protocol::worker_socket(&server));
            let answer = direct.get("/exit");
            assert_eq!((answer.status, answer.header("connection")), (500, Some("close")));
            direct.read_until_close();
        }
        // All places are there.
        let mut waiting: Vec<_> = (0..4).map(|_| server.client()).collect();
        waiting.iter_mut().for_each(|client| client.send_request("GET", "/wait", "", b""));
        assert!(waiting.iter_mut().all(|client| client.read_response().status == 200));
        assert_eq!(server.get("/").text(), pid, "{}", server.stderr_text());
        drop(waiting);
        assert_eq!(server.verb(["stop"]).code, 0, "{}", server.stderr_text());
    }
}

#[test]
fn a_header_whose_name_is_no_token_is_a_500() {
    let Some(fixture) = Fixture::empty(&ruby(&["rack"]), "app") else { return };
    let app = "run lambda { |env| [200, { [env['QUERY_STRING']].pack('H*') => 'value' }, ['hello']] }\n";
    fixture.write("config.ru", app);
    let mut server = fixture.server(None).arg("w:1").start();
    server.wait_for_workers(1);
    let get = |name: &str| {
        let hex: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
        server.get(&format!("/?{hex}"))
    };
    for name in ["a:b", "a ", " a", "", "a b", "a\tb", "a\r\nb", "a\n", "\u{e9}", "a(b)", "a\0"] {
        assert_eq!(get(name).status, 500, "{name:?}: {}", server.stderr_text());
    }
    for name in ["X-Name", "x_name", "x!#$%&'*+-.^_`|~9"] {
        let answer = get(name);
        assert_eq!((answer.status, answer.header(name)), (200, Some("value")), "{name:?}");
    }
}
