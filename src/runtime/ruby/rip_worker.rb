# Loading and hot reload, the control socket, error answers.

module Rip
  class Worker
    LOOK_EVERY_S = 0.1 # how often a request looks whether config.ru has changed
    BACKLOG = 4096

    attr_reader :app, :max_at_work

    def initialize(env)
      @pid = Process.pid
      @id, @version = env["WORKER_ID"]&.to_i, env["RIP_VERSION"].to_i # a template has none
      @entry, @path, @control = env.values_at("RIP_APP_ENTRY", "SOCKET_PATH", "RIP_CONTROL_SOCKET")
      @instance = env["RIP_INSTANCE"]
      @watches = env["RIP_HOT_RELOAD"] == "module"
      @max_at_work = (env["RIP_CONCURRENCY"] || 1).to_i # requests at once
      @max_reloads = (env["RIP_MAX_RELOADS"] || 10).to_i
      @shows_traces = %w[development dev].include?(env["NODE_ENV"])
      # Sinatra shows traces to everybody unless it is told that this is production.
      env["APP_ENV"] ||= env["RACK_ENV"] || (@shows_traces ? "development" : "production")
      @reloads = 0
      @next_look = 0
    end

    # This process, forked from a template, is the worker that these variables name.
    def become(variables)
      ENV.update(variables)
      @pid = Process.pid
      @id, @version, @path = variables["WORKER_ID"].to_i, variables["RIP_VERSION"].to_i, variables["SOCKET_PATH"]
    end

    # A child that the app's code has forked, and that came back from there: it must not serve, nor run hooks that are
    # its parent's.
    def end_if_child(error = nil)
      return if Process.pid == @pid
      say("a process that the app has forked failed", error) if error
      exit!(error ? 1 : 0)
    end

    def load_or_exit
      @seen = signature
      @app = load
    rescue Exception => error
      end_if_child(error)
      fail_with("can't load #{@entry}", error)
    end

    def load
      app = Rack::Builder.parse_file(@entry)
      end_if_child
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
        Dir.chdir(File.dirname(@entry)) # a new folder may have taken its place
      rescue SystemCallError
        return # an editor is about to put the file back
      end
      @seen = seen
      swap
    end

    def swap
      @app = load
      @reloads += 1
      reloaded
      retire if @reloads == @max_reloads
    rescue SyntaxError => error
      # A new process would meet it as well.
      say("can't load the changed #{@entry}, the last good one goes on", error)
    rescue Exception => error
      end_if_child(error)
      # What can't be done twice in one process (a metric's registration) goes well in a new one.
      say("can't load the changed #{@entry} in place; a new process is asked for, and until it serves " \
        "the last good one goes on", error)
      retire
    end

    def listen
      File.unlink(@path) if File.exist?(@path)
      UNIXServer.new(@path).tap { |listener| listener.listen(BACKLOG) }
    rescue SystemCallError, ArgumentError => error
      fail_with("can't listen on #{@path}: #{error.message}")
    end

    def join(concurrency)
      ok, answer = tell("join", pid: @pid, socket: @path, version: @version,
        drains: true, streams: false, concurrency: concurrency)
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
      message = { op: op, workerId: @id, **more }
      message[:instance] = @instance if @instance
      body = JSON.generate(message)
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
      name = @id ? "worker #{@id}" : "template"
      $stderr.write("rip-server: #{name}: #{what}\n#{trace(error) + "\n" if error}")
    rescue SystemCallError, IOError
      nil # nobody reads it
    end

    # An exception of the app's may fail to tell what it is.
    def trace(error)
      error.full_message(highlight: false, order: :top).b
    rescue Exception => another
      "#{error.class}, whose message fails with #{another.class}\n\t#{error.backtrace&.join("\n\t")}".b
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
      told = trace(error)
      text = "#{what}\n\n".b << told
      return ["text/plain; charset=utf-8", text] unless env["HTTP_ACCEPT"].to_s.include?("text/html")
      title = told.lines.first.to_s.chomp[/\A.*?: (.*)\z/mn, 1] || error.class.name.to_s
      title, text = [title.b, text].map do |part|
        part.gsub(/[&<>"]/n, "&" => "&amp;", "<" => "&lt;", ">" => "&gt;", '"' => "&quot;")
      end
      page = "<!doctype html><meta charset=utf-8><title>#{title}</title><h1>#{title}</h1><pre>#{text}</pre>\n"
      ["text/html; charset=utf-8", page]
    end
  end
end
