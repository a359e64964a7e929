# The contract suite's app, for Rack.
require "digest"
require "socket"

PIECE = 65_536

at_exit do
  sleep 0.15
  touch(ENV.fetch("CONTRACT_DIR"), "hook")
end

def touch(folder, name, text = "")
  File.write(File.join(folder, name), text)
end

def there?(folder, name = "go")
  File.exist?(File.join(folder, name))
end

def wait_for(folder, name = "go")
  sleep 0.005 until there?(folder, name)
end

# A body that says what the block gives it, and leaves `told` if it is closed before its end.
class Pieces
  def initialize(folder = nil, &block)
    @folder, @block = folder, block
  end

  def each(&out)
    @block.call(out)
    @ended = true
  end

  def close
    File.write(File.join(@folder, "told"), "") if @folder && !@ended
  end
end

class Own < Exception; end

def fail(kind)
  case kind
  when "exit" then exit 3
  when "abort" then abort "told to fail"
  when "interrupt" then raise Interrupt
  when "signal" then raise SignalException, "HUP"
  when "memory" then raise NoMemoryError, "told to fail"
  when "throw" then throw :nobody
  when "own" then raise Own, "told to fail"
  when "stack" then fail("stack")
  when "kill" then Process.kill("KILL", Process.pid)
  else raise "told to fail"
  end
end

def pieces(path, out)
  File.open(path, "rb") do |file|
    while (piece = file.read(PIECE))
      out.call(piece)
    end
  end
end

def forked(kind, folder)
  return ["the parent"] if fork
  touch(folder, "child", Process.pid.to_s)
  case kind
  when "raise" then raise "told to fail, in a child"
  when "stay"
    wait_for(folder)
    exit!(0)
  end
  ["the child"]
end

def sha(input)
  sum, length = Digest::SHA256.new, 0
  while (piece = input.read(PIECE))
    sum << piece
    length += piece.bytesize
  end
  "#{length} #{sum.hexdigest}"
end

run lambda { |env|
  _, name, kind = env["PATH_INFO"].split("/")
  query = env["QUERY_STRING"]
  status, headers = 200, { "Content-Type" => "text/plain" }
  body =
    case name
    when "hello" then ["hello"]
    when "pid" then [Process.pid.to_s]
    when "ready" then ["the app's"]
    when "env" then [["cwd=#{Dir.pwd}", *ENV.map { |pair| pair.join("=") }].join("\n")]
    when "sha" then [sha(env["rack.input"])]
    when "ignore" then ["ignored"]
    when "part"
      env["rack.input"].read(1000)
      ["left"]
    when "file" then [File.binread(query)]
    when "pieces" then Pieces.new { |out| pieces(query, out) }
    when "wait"
      touch(query, "started")
      wait_for(query)
      touch(query, "ended")
      ["done"]
    when "events", "ticks"
      headers["Content-Type"] = "text/event-stream"
      Pieces.new(query) do |out|
        out.call("data: 0\n\n")
        until there?(query)
          sleep 0.02
          out.call("data: 0\n\n") if name == "ticks"
        end
      end
    when "fail" then fail(kind)
    when "break"
      Pieces.new do |out|
        out.call("first\n")
        wait_for(query)
        fail(kind)
      end
    when "fork" then forked(kind, query)
    when "fields"
      got = %w[HTTP_X_MANY HTTP_COOKIE HTTP_X_LATIN].map { |key| env[key].to_s.b }
      headers.update("X-Latin" => got[2], "X-Out" => "a\nb", "Set-Cookie" => "a=1\nb=2")
      [got.join("\n") + "\n"]
    when "nobody"
      status = kind.to_i
      headers["Content-Length"] = "5"
      ["hello"]
    when "client" then [env["REMOTE_ADDR"] + env["HTTP_RIP_CLIENT"].to_s]
    end
  body ? [status, headers, body] : [404, headers, []]
}
