# The main thread serves one connection, the server's. A second thread, the gate, holds the listener
# and all other connections: a request on one of them is handed to the main thread while that is
# idle, and answered 503 while it is not.

module Rip
  class Server
    ACCEPT_PAUSE_S = 0.05 # out of descriptors: one may come free
    # An answer's last byte is out a moment before the main thread is idle, on a loaded machine some milliseconds.
    GRACE_LOOKS = 20
    LOOK_S = 0.001
    BUSY = "HTTP/1.1 503 Service Unavailable\r\nRip-Worker-Busy: 1\r\nContent-Length: 0\r\n\r\n"
    READY = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"

    def initialize(worker)
      @worker = worker
      @fixed = Environment::FIXED
      @listener = worker.listen
      @handed = Queue.new # connections with a request, from the gate
      @held = [] # the gate's, but for those
      @current = nil # the main thread's
      @busy = @leaving = false
      @wake_main, @waker_of_main = IO.pipe
      @wake_gate, @waker_of_gate = IO.pipe
    end

    # Serves until the server has finished with this worker; the SIGTERM handler that the app has set.
    def run
      of_the_app = on_term
      keep_from_children
      Thread.new { gate }.abort_on_exception = true
      @worker.join(1)
      until done?
        ready, = IO.select([@wake_main, @current&.io].compact)
        serve if ready.include?(@current&.io)
        woken if ready.include?(@wake_main)
      end
      of_the_app
    end

    # The handler that the app has set.
    def on_term
      trap("TERM") do
        @leaving = true
        wake(@waker_of_main)
      end
    end

    # A child that stays must not hold the server's connections. Before Ruby 3.1 there is no such hook, and what is
    # closed here is shut down for children too.
    def keep_from_children
      return unless Process.respond_to?(:_fork)
      server = self
      hook = Module.new do
        define_method(:_fork) do
          pid = super()
          server.let_go if pid.zero?
          pid
        end
      end
      Process.singleton_class.prepend(hook)
    end

    # In a child: its copies are closed, and the parent's go on.
    def let_go
      sockets.each(&:close)
    end

    def sockets
      handed = []
      handed << @handed.pop.io until @handed.empty?
      [@listener, @current&.io, *@held.map(&:io), *handed].compact
    end

    def done?
      return @quit_accepted == false if @current || !@handed.empty? || !@held.empty?
      !@quit_accepted.nil?
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
      keep = serve_one(@current)
      @busy = false
      return if keep
      @current.close
      @current = nil
      # With the server gone, nobody will ever end this process.
      return unless @handed.empty? && @held.empty? && (@leaving || !@worker.server_lives?)
      @leaving = true
      wake(@waker_of_main)
    end

    # One request; false when the connection is to be closed.
    def serve_one(connection)
      return true unless (head = connection.read_head)
      @busy = true # not before: the end of a connection is no request that another has to give way to
      length = Head.body_bytes(head)
      if (answer = probed(head))
        connection.write(answer)
        return connection.skip_body(length)
      end
      body = connection.body(length)
      env = Environment.of(head, body, @fixed)
      respond(connection, env) && connection.ends_with?(length)
    rescue BadRequest
      connection.refuse
    rescue Gone
      false
    rescue StandardError => error
      @worker.say("a request that can't be read", error)
      false
    ensure
      body&.close
    end

    # The answer to the server's probe, if it is one; here to both kinds: no handler runs.
    def probed(head)
      probe(head) && READY
    end

    # "1" and "idle" are asked by the server; without the field the path is the app's.
    def probe(head)
      head.start_with?("GET /ready ") && head[/^rip-probe: *(\w+)/i, 1]
    end

    def respond(connection, env)
      answer = Answer.new(connection, env["REQUEST_METHOD"], -> { @leaving })
      is_over = false
      begin
        status, headers, body = newest_app.call(env)
        @worker.end_if_child
        answer.deliver(status, headers, body)
      ensure
        body.close if body.respond_to?(:close)
      end
      @worker.end_if_child
      is_over = true
    rescue Gone
      is_over = true
      @worker.end_if_child
      false
    rescue Exception => error
      is_over = true
      @worker.end_if_child(error)
      failed(connection, env, answer, error)
    ensure
      # Thread.exit is no exception: nothing is rescued, and nothing returned. So nobody keeps the connection either.
      unless is_over
        error = ThreadError.new("the handler has ended its thread")
        failed(connection, env, answer, error, "Connection: close\r\n")
      end
    end

    def newest_app
      @worker.look
      @worker.app
    end

    # Whether the connection goes on.
    def failed(connection, env, answer, error, fields = "")
      type, text = @worker.error_answer(error, env)
      # Cut, unless it was the body's close that failed: half an answer must not look whole.
      return answer.complete if answer.started
      text = text.b
      head = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: #{type}\r\nContent-Length: #{text.bytesize}\r\n" \
        "#{fields}\r\n"
      connection.write(env["REQUEST_METHOD"] == "HEAD" ? head : head.b << text)
      true
    rescue Gone
      false
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
          GRACE_LOOKS.times { @busy ? sleep(LOOK_S) : break }
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
      return unless (head = connection.read_head)
      length = Head.body_bytes(head)
      connection.write(probe(head) == "1" ? READY : BUSY)
      raise Gone unless connection.skip_body(length)
    rescue Gone, BadRequest => error
      connection.refuse if error.is_a?(BadRequest)
      @held.delete(connection)
      connection.close
      wake(@waker_of_main) # it may be waiting for the last connection's end
    end
  end
end
