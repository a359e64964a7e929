# Rip Server's Ruby worker: loads config.ru, joins the server, serves.
#
# Run by the server as `ruby main.rb`, in the app's folder, with the worker protocol's environment.
# With RIP_TEMPLATE in it, this process is the template, and workers are forked from it (rip_template).
# The other parts: rip_worker (loading, hot reload, the control socket, error answers), rip_http (a
# connection, a request's environment, an answer), rip_server (the serve loop and the gate), rip_threads
# (several requests at once).

mode, warm = ENV.delete("RIP_TEMPLATE"), ENV.delete("RIP_WARM")
if mode
  require_relative "rip_template"
  template = Rip::Template.new(mode, warm)
end
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
require_relative "rip_worker"
require_relative "rip_http"
require_relative "rip_server"
require_relative "rip_threads"

$stdout.sync = $stderr.sync = true
# A C locale must not make the app's sources and templates ASCII.
Encoding.default_external = Encoding::UTF_8 if Encoding.default_external == Encoding::US_ASCII
trap("INT") {} # Ctrl-C is the server's business
early_exit = proc { exit!(0) } # nothing is lost if it ends before it has joined
trap("TERM", early_exit)

template&.begin
worker = Rip::Worker.new(ENV)
worker.load_or_exit
worker.become(template.run(worker)) if template
server = (worker.max_at_work > 1 ? Rip::ThreadedServer : Rip::Server).new(worker)
of_the_app = server.run
# A SIGTERM handler of the app's own, which may take its time, or end the process by itself.
of_the_app.call(Signal.list["TERM"]) if of_the_app.is_a?(Proc) && of_the_app != early_exit
exit
