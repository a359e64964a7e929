# A connection of the server's, a request's head and environment, and an answer.

module Rip
  class Gone < IOError; end # nobody waits for this answer any more

  class BadRequest < StandardError; end # what the front end would not send

  # What the heads of the front end's requests are like.
  module Head
    TOKEN = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
    WHOLE = %r{\A#{TOKEN} (?:/[!-~\x80-\xff]*|\*) HTTP/1\.1(?:\r\n#{TOKEN}:[\t -~\x80-\xff]*)*\z}n
    FRAMING = /\r\n(?:content[-_]length|(transfer[-_]encoding)):[ \t]*([^\r]*)/in
    LENGTH = /\A\d{1,18}[ \t]*\z/n # more is no body that somebody sends

    # The length of the body behind it.
    def self.body_bytes(head)
      raise BadRequest unless WHOLE.match?(head)
      framing = head.scan(FRAMING)
      return 0 if framing.empty?
      coding, length = framing.first
      raise BadRequest if framing.size > 1 || coding || !LENGTH.match?(length)
      length.to_i
    end
  end

  class Connection
    BAD_REQUEST = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    # The front end's bound for a client's head, and as much again for what it adds.
    MAX_HEAD_BYTES = 131_072
    READ_BYTES = 65_536
    MEMORY_BYTES = 262_144 # a longer body is put into a file

    attr_reader :io
    # Of the request at work, and when its thread has left the lead: where several are at work at once.
    attr_accessor :request_id, :left_at

    def initialize(io)
      @io = io
      @partial = "".b # of a head
      @unread_bytes = 0 # of a body that nobody wanted, still to come
    end

    # The next request's head, without the empty line; nil before all of it has come. Reads once, when there is
    # something to read: who says nothing more keeps nobody waiting.
    def read_head
      data = @io.readpartial(READ_BYTES)
      if @unread_bytes > 0
        passed = [@unread_bytes, data.bytesize].min
        @unread_bytes -= passed
        data = data.byteslice(passed, data.bytesize)
      end
      data = @partial << data unless @partial.empty?
      unless (at = data.index("\r\n\r\n"))
        raise BadRequest if data.bytesize > MAX_HEAD_BYTES
        @partial = data
        return nil
      end
      @partial = "".b
      @rest = data.byteslice(at + 4, data.bytesize)
      data.byteslice(0, at)
    rescue EOFError, SystemCallError => error
      raise Gone, error.message
    end

    # Lets a body pass of which nothing was read; false when more than that has come.
    def skip_body(length)
      @unread_bytes = [length - @rest.bytesize, 0].max
      ends_with?(length)
    end

    # Whether nothing has come behind a body of that length: the front end waits for the answer first.
    def ends_with?(length)
      @rest.bytesize <= length
    end

    # Answers what the front end would not send. Nobody can tell where the next request begins.
    def refuse
      write(BAD_REQUEST)
      false
    rescue Gone
      false
    end

    # rack.input: whole, since Rack 2 wants to rewind it.
    def body(length)
      input = length > MEMORY_BYTES ? unlinked_file : StringIO.new("".b)
      input.write(@rest.byteslice(0, length))
      left = length - @rest.bytesize
      while left > 0
        piece = @io.readpartial([left, READ_BYTES].min)
        input.write(piece)
        left -= piece.bytesize
      end
      input.rewind
      input
    rescue EOFError, SystemCallError => error
      input&.close
      raise Gone, error.message
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

    # Ends it for everybody: a child that the app has forked may hold it too.
    def close
      @io.shutdown
    rescue SystemCallError, IOError
      nil
    ensure
      @io.close
    end
  end

  # A request's head as Rack's environment.
  module Environment
    FIXED = {
      "SCRIPT_NAME" => "", "SERVER_PROTOCOL" => "HTTP/1.1", "HTTP_VERSION" => "HTTP/1.1",
      "SERVER_SOFTWARE" => "rip-server", "rack.version" => [1, 3], "rack.hijack?" => false,
      "rack.multithread" => false, "rack.multiprocess" => true, "rack.run_once" => false
    }.freeze

    def self.of(head, body, fixed)
      first, *lines = head.split("\r\n")
      method, target, = first.split(" ")
      path, query = target.split("?", 2)
      # `OPTIONS *` is about the server; Rack wants a path or none.
      path = "" if target == "*"
      env = fixed.merge(
        "REQUEST_METHOD" => method, "REQUEST_URI" => target, "REQUEST_PATH" => path,
        "PATH_INFO" => path, "QUERY_STRING" => query || "",
        "rack.input" => body, "rack.errors" => $stderr
      )
      fields(lines, env)
      secure = env["HTTP_X_FORWARDED_PROTO"] == "https"
      env["rack.url_scheme"] = secure ? "https" : "http"
      name, port = env["HTTP_HOST"].to_s.match(/\A(.+?)(?::(\d+))?\z/)&.captures
      env["SERVER_NAME"], env["SERVER_PORT"] = name || "localhost", port || (secure ? "443" : "80")
      # The server's own word where a trusted proxy has connected; else it is who has.
      env["REMOTE_ADDR"] = env.delete("HTTP_RIP_CLIENT") || env["HTTP_X_FORWARDED_FOR"].to_s
      env
    end

    def self.fields(lines, env)
      lines.each do |line|
        name, value = line.split(":", 2)
        key = name.upcase.tr("-", "_")
        key = "HTTP_#{key}" unless key == "CONTENT_TYPE" || key == "CONTENT_LENGTH"
        value = value.gsub(/\A[ \t]+|[ \t]+\z/n, "")
        value = "#{env[key]}#{key == "HTTP_COOKIE" ? "; " : ","}#{value}" if env[key]
        env[key] = value
      end
    end
  end

  # One request's answer.
  class Answer
    NAME = /\A#{Head::TOKEN}\z/
    HOP_BY_HOP = %w[connection keep-alive proxy-connection te trailer transfer-encoding upgrade].freeze

    attr_reader :started, :complete

    # `unwanted` answers whether event streams are to end; those of other methods than GET are computed, and end by
    # themselves.
    def initialize(connection, method, unwanted)
      @connection = connection
      @unwanted = unwanted
      @is_get = method == "GET"
      @without_body = method == "HEAD"
      @head = "".b # until it is sent
      @due = nil # what Content-Length still promises
    end

    def deliver(status, headers, body)
      head(status.to_i, headers)
      blocks = body.to_ary if body.respond_to?(:to_ary)
      length = blocks&.sum(&:bytesize)
      if !@due && length && !(@without_body && length.zero?)
        @due = length
        @head << "Content-Length: #{length}\r\n" unless [204, 304].include?(status.to_i)
      end
      @chunked = !@due && !@without_body
      @head << "Transfer-Encoding: chunked\r\n" if @chunked
      @head << "\r\n"
      flush("") if @streams_events || @without_body # its first event may be long in coming
      unless @without_body
        if blocks
          write(blocks.map(&:b).join)
        elsif body.respond_to?(:each)
          body.each { |block| write(block) }
        else
          Stream.lend(self) { |stream| body.call(stream) }
        end
        finish
      end
      @complete = true
    end

    def head(status, headers)
      raise ArgumentError, "#{status} is no status of an answer; 200 to 999 are" unless status.between?(200, 999)
      @without_body ||= [204, 304].include?(status)
      @head << "HTTP/1.1 #{status} #{Rack::Utils::HTTP_STATUS_CODES[status]}\r\n"
      headers.each do |name, values|
        lower = name.to_s.downcase
        next if HOP_BY_HOP.include?(lower) || lower.start_with?("rack.")
        raise ArgumentError, "#{name.inspect} is no name of a header" unless NAME.match?(name.to_s)
        @due = Integer(values) if lower == "content-length"
        @streams_events = values.to_s.start_with?("text/event-stream") if lower == "content-type"
        # Several of one name: an array in Rack 3, lines in Rack 2.
        values = values.to_s.split("\n", -1) unless values.is_a?(Array)
        values.each do |value|
          line = "#{name}: #{value}".b
          raise ArgumentError, "a header has a line break in it: #{line.inspect}" if line.match?(/[\r\n\0]/n)
          @head << line << "\r\n"
        end
      end
    end

    def write(block)
      block = block.to_s.b
      return 0 if block.empty?
      # A stream may have no end: only here can it notice that nobody listens.
      raise Gone, "the client has gone" if @started && @chunked && @connection.ended?
      raise Gone, "this worker leaves" if @streams_events && @is_get && @unwanted.call
      if @due
        raise "the body is longer than its Content-Length" if block.bytesize > @due
        @due -= block.bytesize
      end
      flush(@chunked ? "#{block.bytesize.to_s(16)}\r\n".b << block << "\r\n" : block)
      block.bytesize
    end

    def flush(data)
      @started = true
      @connection.write(@head << data)
      @head = "".b
    end

    def finish
      return if @finished
      raise "the body is #{@due} bytes shorter than its Content-Length" if @due&.positive?
      flush(@chunked ? "0\r\n\r\n" : "")
      @finished = true
    end
  end

  # What a Rack 3 body is called with. Another thread may keep it, but the connection is the next request's once the
  # answer has ended: from then on nothing can be written.
  class Stream
    # For as long as the block runs.
    def self.lend(answer)
      stream = new(answer)
      yield stream
    ensure
      stream.end_loan
    end

    def initialize(answer)
      @answer = answer
      @closed = false
      @lock = Mutex.new
    end

    def write(block)
      @lock.synchronize do
        raise IOError, "closed stream" if @closed
        @answer.write(block)
      end
    end

    def <<(block)
      write(block)
      self
    end

    def flush
      nil
    end

    def close
      @lock.synchronize do
        next if @closed
        @closed = true
        @answer.finish
      end
    end
    alias close_write close

    def end_loan
      @lock.synchronize { @closed = true }
    end

    def read(*)
      nil
    end
    alias close_read read

    def closed?
      @closed
    end
  end
end
