require "digest"
require "sinatra/base"

class App < Sinatra::Base
  get "/hello" do
    content_type "text/plain"
    "hello"
  end

  get "/pid" do
    Process.pid.to_s
  end

  post "/sha" do
    body = request.body.read
    "#{body.bytesize} #{Digest::SHA256.hexdigest(body)}"
  end

  get "/stream" do
    stream do |out|
      out << "first\n"
      sleep 0.005 until File.exist?(params["gate"])
      out << "last\n"
    end
  end

  get "/endless" do
    stream do |out|
      loop do
        out << "tick\n"
        sleep 0.005
      end
    end
  end

  get "/fail" do
    raise "told to fail"
  end

  get "/break" do
    stream do |out|
      out << "first\n"
      sleep 0.005 until File.exist?(params["gate"])
      raise "told to fail"
    end
  end

  get "/cookies" do
    response.set_cookie("a", value: "1", path: "/")
    response.set_cookie("b", value: "2", expires: Time.at(0).utc)
    ""
  end

  get "/echo/:name" do |name|
    headers "X-Echo" => request.env["HTTP_X_NAME"]
    "/echo/#{name}"
  end
end

run App
