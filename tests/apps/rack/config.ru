# A bare Rack app.
require "digest"
require "rack"

class Pieces
  def initialize(&block)
    @block = block
  end

  def each(&out)
    @block.call(out)
  end
end

def answer(env)
  path = Rack::Utils.unescape_path(env["PATH_INFO"])
  case path
  when "/hello" then ["hello"]
  when "/pid" then [Process.pid.to_s]
  when "/sha"
    body = env["rack.input"].read
    ["#{body.bytesize} #{Digest::SHA256.hexdigest(body)}"]
  when "/stream", "/break"
    gate = Rack::Utils.parse_query(env["QUERY_STRING"])["gate"]
    Pieces.new do |out|
      out.call("first\n")
      sleep 0.005 until File.exist?(gate)
      raise "told to fail" if path == "/break"
      out.call("last\n")
    end
  when "/endless"
    Pieces.new do |out|
      loop do
        out.call("tick\n")
        sleep 0.005
      end
    end
  when "/fail" then raise "told to fail"
  when "/cookies" then [""]
  when %r{\A/echo/} then [path]
  end
end

run lambda { |env|
  headers = { "content-type" => "text/plain" }
  headers["x-echo"] = env["HTTP_X_NAME"] if env["HTTP_X_NAME"]
  # Several in one field: as lines for Rack 2, which is Debian's.
  cookies = ["a=1; Path=/", "b=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT"]
  headers["set-cookie"] = cookies.join("\n") if env["PATH_INFO"] == "/cookies"
  body = answer(env)
  [body ? 200 : 404, headers, body || []]
}
