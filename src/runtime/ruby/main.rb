# Rip Server's Ruby worker: loads config.ru, joins the server, serves one request at a time.
#
# Run by the server as `ruby main.rb`, in the app's folder, with the worker protocol's environment.
# The main thread serves one connection, the server's. A second thread, the gate, holds the listener
# and all other connections: a request on one of them is handed to the main thread while that is
# idle, and answered 503 while it is not.

folder = File.dirname(ENV.fetch("RIP_APP_ENTRY"))
# Before any other require: a gem of another version than the bundle's must not be loaded by then.
if ENV["BUNDLE_GEMFILE"] || File.exist?(File.join(folder, "Gemfile"))
  begin
    require "bundler"
    Bundler.setup
  rescue LoadError, StandardError => error
    warn "rip-server: Bundler does not work here, the installed gems are used: #{error.message}"
  end
end

require "json"
require "socket"
require "stringio"
require "tempfile"
require "uri" # Rack 2's Lint takes it for granted
require "rack"

class Gone < IOError; end # nobody waits for this answer any more

class Worker
  LOOK_EVERY_S = 0.1 # how often a request looks whether config.ru has changed
  BACKLOG = 128 # the server opens one connection; the rest is for its retries

  attr_reader :app

  def initialize(env)
    @id, @version = env.fetch("WORKER_ID").to_i, env["RIP_VERSION"].to_i
    @entry, @path, @control = env.values_at("RIP_APP_ENTRY", "SOCKET_PATH", "RIP_CONTROL_SOCKET")
    @watches = env["RIP_HOT_RELOAD"] == "module"
    @max_reloads = (env["RIP_MAX_RELOADS"] || 10).to_i
    @shows_traces = %w[development dev].include?(env["NODE_ENV"])
    # Sinatra shows traces to everybody unless it is told that this is production.
    env["APP_ENV"] ||= env["RACK_ENV"] || (@shows_traces ? "development" : "production")
    @reloads = 0
    @next_look = 0
  end

  def load_or_exit
    @seen = signature
    @app = load
  rescue Exception => error
    fail_with("can't load #{@entry}", error)
  end

  def load
    app = Rack::Builder.parse_file(@entry)
    app = app.first if app.is_a?(Array) # Rack 2: with its options
    app
  end

  def signature
    stat = File.stat(@entry)
    [stat.mtime.to_r, stat.size, stat.ino, stat.dev]
  end

  # Between two requests: a changed config.ru is built anew, and the last good app goes on if it can't be.
  def look
    return unless @watches
    now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    return if now < @next_look
    @next_look = now + LOOK_EVERY_S
    begin
      seen = signature
      return if seen == @seen
      Dir.chdir(File.dirname(@entry)) # of a `current` symlink that moved, the new folder
    rescue SystemCallError
      return # an editor is about to put the file back
    end
    @seen = seen
    @app = load
    @reloads += 1
    reloaded
    retire if @reloads == @max_reloads
  rescue Exception => error
    say("can't load the changed #{@entry}, the last good one goes on", error)
  end

  def listen
    File.unlink(@path) if File.exist?(@path)
    UNIXServer.new(@path).tap { |listener| listener.listen(BACKLOG) }
  rescue SystemCallError, ArgumentError => error
    fail_with("can't listen on #{@path}: #{error.message}")
  end

  def join
    ok, answer = tell("join", pid: Process.pid, socket: @path, version: @version)
    fail_with("the server refused this worker: #{answer}") unless ok
  rescue SystemCallError, IOError => error
    fail_with("can't reach the server at #{@control}: #{error.message}")
  end

  # True if the server is there to finish with this worker in order.
  def quit
    tell("quit").first
  rescue SystemCallError, IOError
    false
  end

  # For `rip-server status`.
  def reloaded
    tell("reloaded")
  rescue SystemCallError, IOError
    nil
  end

  def retire
    tell("retire")
  rescue SystemCallError, IOError => error
    say("can't ask to be replaced: #{error.message}")
  end

  def server_lives?
    UNIXSocket.open(@control) { true }
  rescue Errno::ENOENT, Errno::ECONNREFUSED
    false
  end

  # Posts a message to the control socket: [whether it was accepted, the answer's text].
  def tell(op, **more)
    body = JSON.generate({ op: op, workerId: @id, **more })
    UNIXSocket.open(@control) do |control|
      control.write("POST /worker HTTP/1.1\r\nHost: rip\r\nConnection: close\r\n" \
        "Content-Type: application/json\r\nContent-Length: #{body.bytesize}\r\n\r\n#{body}")
      head = control.gets("\r\n\r\n").to_s
      text = control.read(head[/^content-length: *(\d+)/i, 1]&.to_i).to_s.strip
      accepted = head.start_with?("HTTP/1.1 200 ") && JSON.parse(text)["ok"] == true
      return [accepted, text]
    end
  rescue JSON::ParserError
    [false, "no answer"]
  end

  def say(what, error = nil)
    trace = error ? error.full_message(highlight: false, order: :top) + "\n" : ""
    $stderr.write("rip-server: worker #{@id}: #{what}\n#{trace}")
  end

  def fail_with(what, error = nil)
    say(what, error)
    exit!(1)
  end

  # Reports a request's exception; the 500's content type and body.
  def error_answer(error, env)
    what = "#{env["REQUEST_METHOD"]} #{env["PATH_INFO"]} (request #{env["HTTP_X_REQUEST_ID"] || "-"})"
    say("#{what} failed", error)
    return ["text/plain; charset=utf-8", "Internal Server Error\n"] unless @shows_traces
    text = "#{what}\n\n#{error.full_message(highlight: false, order: :top)}".b
    return ["text/plain; charset=utf-8", text] unless env["HTTP_ACCEPT"].to_s.include?("text/html")
    title, text = ["#{error.class}: #{error.message}".b, text].map do |part|
      part.gsub(/[&<>"]/n, "&" => "&amp;", "<" => "&lt;", ">" => "&gt;", '"' => "&quot;")
    end
    page = "<!doctype html><meta charset=utf-8><title>#{title}</title><h1>#{title}</h1><pre>#{text}</pre>\n"
    ["text/html; charset=utf-8", page]
  end
end

class Connection
  READ_BYTES = 65_536
  MEMORY_BYTES = 262_144 # a longer body is put into a file

  attr_reader :io

  def initialize(io)
    @io = io
  end

  # The next request as [head, body], or nil if the connection has ended.
  def read
    data = "".b
    until (at = data.index("\r\n\r\n"))
      data << @io.readpartial(READ_BYTES)
    end
    head, rest = data.byteslice(0, at), data.byteslice(at + 4, data.bytesize)
    [head, body(rest, head[/^content-length: *(\d+)/i, 1].to_i)]
  rescue EOFError, SystemCallError
    nil
  end

  # rack.input: whole, since Rack 2 wants to rewind it.
  def body(start, length)
    input = length > MEMORY_BYTES ? unlinked_file : StringIO.new("".b)
    input.write(start)
    left = length - start.bytesize
    while left > 0
      piece = @io.readpartial([left, READ_BYTES].min)
      input.write(piece)
      left -= piece.bytesize
    end
    input.rewind
    input
  end

  def unlinked_file
    file = Tempfile.create("rip-body", binmode: true)
    File.unlink(file.path)
    file
  rescue SystemCallError, ArgumentError
    StringIO.new("".b) # no usable TMPDIR
  end

  def write(data)
    @io.write(data)
  rescue SystemCallError, IOError => error
    raise Gone, error.message
  end

  def ended?
    found = @io.recv_nonblock(1, Socket::MSG_PEEK, exception: false)
    found != :wait_readable && found.to_s.empty?
  rescue SystemCallError
    true
  end
end

# One request's answer; also the stream that a Rack 3 body is called with.
class Answer
  HOP_BY_HOP = %w[connection keep-alive proxy-connection te trailer transfer-encoding upgrade].freeze

  attr_reader :started, :complete

  def initialize(connection, method)
    @connection = connection
    @without_body = method == "HEAD"
    @head = "".b # until it is sent
    @due = nil # what Content-Length still promises
  end

  def deliver(status, headers, body)
    streams_events = head(status.to_i, headers)
    blocks = body.to_ary if body.respond_to?(:to_ary)
    length = blocks&.sum(&:bytesize)
    if !@due && length && !(@without_body && length.zero?)
      @due = length
      @head << "Content-Length: #{length}\r\n" unless [204, 304].include?(status.to_i)
    end
    @chunked = !@due && !@without_body
    @head << "Transfer-Encoding: chunked\r\n" if @chunked
    @head << "\r\n"
    flush("") if streams_events || @without_body # its first event may be long in coming
    unless @without_body
      if blocks
        write(blocks.map(&:b).join)
      elsif body.respond_to?(:each)
        body.each { |block| write(block) }
      else
        body.call(self)
      end
      finish
    end
    @complete = true
  end

  def head(status, headers)
    @without_body ||= [204, 304].include?(status)
    @head << "HTTP/1.1 #{status} #{Rack::Utils::HTTP_STATUS_CODES[status]}\r\n"
    streams_events = false
    headers.each do |name, values|
      lower = name.to_s.downcase
      next if HOP_BY_HOP.include?(lower) || lower.start_with?("rack.")
      @due = Integer(values) if lower == "content-length"
      streams_events = values.to_s.start_with?("text/event-stream") if lower == "content-type"
      # Several of one name: an array in Rack 3, lines in Rack 2.
      values = values.to_s.split("\n", -1) unless values.is_a?(Array)
      values.each do |value|
        line = "#{name}: #{value}".b
        raise ArgumentError, "a header has a line break in it: #{line.inspect}" if line.match?(/[\r\n\0]/n)
        @head << line << "\r\n"
      end
    end
    streams_events
  end

  def write(block)
    block = block.to_s.b
    return 0 if block.empty?
    # A stream may have no end: only here can it notice that nobody listens.
    raise Gone, "the client has gone" if @started && @chunked && @connection.ended?
    if @due && (@due -= block.bytesize) < 0
      raise "the body is longer than its Content-Length"
    end
    flush(@chunked ? "#{block.bytesize.to_s(16)}\r\n".b << block << "\r\n" : block)
    block.bytesize
  end

  def <<(block)
    write(block)
    self
  end

  def flush(data = nil)
    return unless data
    @started = true
    @connection.write(@head << data)
    @head = "".b
  end

  def finish
    return if @closed
    @closed = true
    raise "the body is #{@due} bytes shorter than its Content-Length" if @due&.positive?
    flush(@chunked ? "0\r\n\r\n" : "")
  end
  alias close finish
  alias close_write finish

  def read(*)
    nil
  end
  alias close_read read

  def closed?
    @closed
  end
end

class Server
  ACCEPT_PAUSE_S = 0.05 # out of descriptors: one may come free
  GRACE_S = 0.002 # an answer's last byte is out a moment before the main thread is idle
  BUSY = "HTTP/1.1 503 Service Unavailable\r\nRip-Worker-Busy: 1\r\nContent-Length: 0\r\n\r\n"
  READY = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"

  def initialize(worker)
    @worker = worker
    @listener = worker.listen
    @handed = Queue.new # connections with a request, from the gate
    @held = [] # the gate's, but for those
    @current = nil # the main thread's
    @busy = @leaving = false
    @wake_main, @waker_of_main = IO.pipe
    @wake_gate, @waker_of_gate = IO.pipe
  end

  def run
    trap("TERM") do
      @leaving = true
      wake(@waker_of_main)
    end
    Thread.new { gate }.abort_on_exception = true
    @worker.join
    until done?
      ready, = IO.select([@wake_main, @current&.io].compact)
      serve if ready.include?(@current&.io)
      woken if ready.include?(@wake_main)
    end
  end

  def done?
    return @quit_accepted == false if @current || !@handed.empty? || !@held.empty?
    @leaving
  end

  def wake(waker)
    waker.write_nonblock("!", exception: false)
  end

  def woken
    @wake_main.read_nonblock(4096)
    @quit_accepted = @worker.quit if @leaving && @quit_accepted.nil?
    until @handed.empty?
      # The connection that was used last is the likeliest to be used next.
      last, @current = @current, @handed.pop
      hold(last) if last
      serve
    end
  end

  def serve
    @busy = true
    keep = serve_one(@current)
    @busy = false
    return if keep
    @current.io.close
    @current = nil
    # With the server gone, nobody will ever end this process.
    @leaving = true if @handed.empty? && @held.empty? && !@worker.server_lives?
  end

  # One request; false when the connection is to be closed.
  def serve_one(connection)
    head, body = connection.read
    return false unless head
    env = environment(head, body)
    if env["HTTP_RIP_PROBE"] && env["PATH_INFO"] == "/ready"
      connection.write(READY)
    else
      @worker.look
      return respond(connection, env)
    end
    true
  rescue Gone
    false
  ensure
    body&.close
  end

  def respond(connection, env)
    answer = Answer.new(connection, env["REQUEST_METHOD"])
    begin
      status, headers, body = @worker.app.call(env)
      answer.deliver(status, headers, body)
    ensure
      body.close if body.respond_to?(:close)
    end
    true
  rescue Gone
    false
  rescue Exception => error
    type, text = @worker.error_answer(error, env)
    # Cut, unless it was the body's close that failed: half an answer must not look whole.
    return answer.complete if answer.started
    text = text.b
    head = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: #{type}\r\nContent-Length: #{text.bytesize}\r\n\r\n"
    connection.write(env["REQUEST_METHOD"] == "HEAD" ? head : head.b << text)
    true
  end

  def environment(head, body)
    first, *lines = head.split("\r\n")
    method, target, = first.split(" ")
    path, query = target.split("?", 2)
    env = {
      "REQUEST_METHOD" => method, "REQUEST_URI" => target, "REQUEST_PATH" => path,
      "SCRIPT_NAME" => "", "PATH_INFO" => path, "QUERY_STRING" => query || "",
      "SERVER_PROTOCOL" => "HTTP/1.1", "HTTP_VERSION" => "HTTP/1.1", "SERVER_SOFTWARE" => "rip-server",
      "rack.version" => [1, 3], "rack.input" => body, "rack.errors" => $stderr, "rack.hijack?" => false,
      "rack.multithread" => false, "rack.multiprocess" => true, "rack.run_once" => false
    }
    lines.each do |line|
      name, value = line.split(":", 2)
      key = name.upcase.tr("-", "_")
      key = "HTTP_#{key}" unless key == "CONTENT_TYPE" || key == "CONTENT_LENGTH"
      value = value.strip
      value = "#{env[key]}#{key == "HTTP_COOKIE" ? "; " : ","}#{value}" if env[key]
      env[key] = value
    end
    secure = env["HTTP_X_FORWARDED_PROTO"] == "https"
    env["rack.url_scheme"] = secure ? "https" : "http"
    name, port = env["HTTP_HOST"].to_s.match(/\A(.+?)(?::(\d+))?\z/)&.captures
    env["SERVER_NAME"], env["SERVER_PORT"] = name || "localhost", port || (secure ? "443" : "80")
    env["REMOTE_ADDR"] = env["HTTP_X_FORWARDED_FOR"].to_s.split(",").last.to_s.strip
    env
  end

  # The gate's thread

  def hold(connection)
    @held << connection
    wake(@waker_of_gate)
  end

  def gate
    loop do
      ready, = IO.select([@listener, @wake_gate, *@held.map(&:io)])
      @wake_gate.read_nonblock(4096) if ready.delete(@wake_gate)
      accept if ready.delete(@listener)
      @held.select { |connection| ready.include?(connection.io) }.each do |connection|
        sleep GRACE_S if @busy
        if @busy
          refuse(connection)
        else
          @handed << connection
          @held.delete(connection)
          wake(@waker_of_main)
        end
      end
    end
  end

  def accept
    @held << Connection.new(@listener.accept)
  rescue SystemCallError
    sleep ACCEPT_PAUSE_S
  end

  def refuse(connection)
    head, body = connection.read
    raise Gone unless head
    body.close
    connection.write(BUSY)
  rescue Gone
    @held.delete(connection)
    connection.io.close
    wake(@waker_of_main) # it may be waiting for the last connection's end
  end
end

$stdout.sync = $stderr.sync = true
# A C locale must not make the app's sources and templates ASCII.
Encoding.default_external = Encoding::UTF_8 if Encoding.default_external == Encoding::US_ASCII
trap("INT") {} # Ctrl-C is the server's business
trap("TERM") { exit!(0) } # nothing is lost if it ends before it has joined

worker = Worker.new(ENV)
worker.load_or_exit
Server.new(worker).run
exit
